# [Task]: T020 [From]: specs/requirements.md
"""Bodies, parts of paths and the JSON of a task, each by itself."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas import (
    CONTROLS,
    MAX_TASK_ID,
    TaskCreate,
    TaskId,
    TaskPublic,
    TaskUpdate,
    UserId,
    decode_user_id,
    task_json,
    tasks_json,
)

ROW: dict[str, Any] = {
    "id": MAX_TASK_ID,
    "user_id": "日本",
    "title": 'Say "hello"\n',
    "description": None,
    "completed": True,
    "created_at": datetime(2026, 1, 31, 9, tzinfo=UTC),
    "updated_at": datetime(2026, 1, 31, 9, 0, 0, 1, tzinfo=UTC),
}


class TestTaskJson:
    def test_is_a_task_as_documented(self) -> None:
        task = TaskPublic.model_validate_json(task_json(ROW), strict=True)
        assert task.model_dump() == ROW

    def test_writes_times_with_six_digits(self) -> None:
        text = task_json(ROW).decode()
        assert '"created_at":"2026-01-31T09:00:00.000000Z"' in text
        assert '"updated_at":"2026-01-31T09:00:00.000001Z"' in text

    def test_of_several_is_an_array_of_the_same(self) -> None:
        assert tasks_json([ROW, ROW]) == b"[" + task_json(ROW) + b"," + task_json(ROW) + b"]"
        assert tasks_json([]) == b"[]"

    def test_leaves_the_row_as_it_was(self) -> None:
        row = dict(ROW)
        task_json(row)
        assert row == ROW


class TestUserId:
    @pytest.mark.parametrize(
        ("segment", "user_id"),
        [("alice", "alice"), ("a%2Fb", "a/b"), ("a%252Fb", "a%2Fb"), ("100%25", "100%")],
    )
    def test_is_decoded_once(self, segment: str, user_id: str) -> None:
        assert decode_user_id(segment) == user_id
        assert TypeAdapter(UserId).validate_python(segment) == user_id

    @pytest.mark.parametrize("segment", ["", "a" * 256, "a\x00b", "a\nb", "a\x7fb", "a\x85b"])
    def test_of_another_form_is_refused(self, segment: str) -> None:
        with pytest.raises(ValidationError):
            TypeAdapter(UserId).validate_python(segment)

    def test_may_hold_what_is_no_control(self) -> None:
        assert not CONTROLS.search("auth0|123 a@b.co 日本 \u200b\U0001f600")


class TestTaskId:
    @pytest.mark.parametrize("text", ["1", "42", str(MAX_TASK_ID)])
    def test_is_a_plain_decimal(self, text: str) -> None:
        assert TypeAdapter(TaskId).validate_python(text) == int(text)

    @pytest.mark.parametrize("text", ["", "0", "01", "+1", "-1", "1.0", " 1", "1 ", "1_0", "१"])
    def test_of_another_form_is_refused(self, text: str) -> None:
        with pytest.raises(ValidationError):
            TypeAdapter(TaskId).validate_python(text)

    def test_of_65_bits_is_refused(self) -> None:
        with pytest.raises(ValidationError):
            TypeAdapter(TaskId).validate_python(str(MAX_TASK_ID + 1))


class TestBodies:
    def test_an_update_tells_absent_from_null(self) -> None:
        adapter = TypeAdapter(TaskUpdate)
        assert adapter.validate_python({}) == {}
        assert adapter.validate_python({"description": None}) == {"description": None}
        with pytest.raises(ValidationError):
            adapter.validate_python({"title": None})

    def test_a_new_task_has_defaults(self) -> None:
        task = TaskCreate.model_validate({"title": " x "})
        assert task.model_dump() == {"title": "x", "description": None, "completed": False}
