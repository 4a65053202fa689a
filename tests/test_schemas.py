# [Task]: T020 [From]: specs/requirements.md
"""Bodies and parts of paths, each by itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from kit.paths import CONTROLS, decode_user_id
from schemas import MAX_TASK_ID, TaskCreate, TaskId, TaskPublic, TaskUpdate, UserId, tasks_json


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

    @pytest.mark.parametrize(
        "text", ["", "0", "01", "+1", "-1", "1.0", " 1", "1 ", "1_0", "१", f"{MAX_TASK_ID + 1}"]
    )
    def test_of_another_form_is_refused(self, text: str) -> None:
        with pytest.raises(ValidationError):
            TypeAdapter(TaskId).validate_python(text)


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


text = st.text(st.characters(exclude_categories=["Cs"]))
instants = st.datetimes().map(lambda instant: f"{instant.isoformat('T', 'microseconds')}Z")
records = st.tuples(
    st.integers(1, MAX_TASK_ID),
    text,
    text,
    text | st.none(),
    st.booleans(),
    instants | st.just(""),
    instants | st.just(""),
)


class TestTasksJson:
    @given(st.lists(records))
    def test_is_what_pydantic_writes(self, those: list[tuple[object, ...]]) -> None:
        names = TaskPublic.model_fields
        dicts = [dict(zip(names, record, strict=True)) for record in those]
        assert tasks_json(those) == to_json(dicts)

    def test_escapes_what_json_must(self) -> None:
        title = "".join(map(chr, range(0x100))) + "\u2028\U0001f600"
        record = (1, "alice", title, None, True, "then", "now")
        names = TaskPublic.model_fields
        assert tasks_json([record]) == to_json([dict(zip(names, record, strict=True))])
