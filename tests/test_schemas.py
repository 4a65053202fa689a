# [Task]: T020 [From]: specs/requirements.md
"""User ids in paths and the JSON of tasks, each by itself; the rest is in test_routes.py."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from schemas import MAX_TASK_ID, TaskPublic, UserId, tasks_json


@pytest.mark.parametrize("segment", ["", "a" * 256, "a\x00b", "a\nb", "a\x7fb", "a\x85b"])
def test_user_id_of_another_form_is_refused(segment: str) -> None:
    user_ids = TypeAdapter(UserId)
    with pytest.raises(ValidationError):
        user_ids.validate_python(segment)
    for good in ("a" * 255, "auth0|123 a@b.co 日本 \u200b\U0001f600"):
        assert user_ids.validate_python(good) == good


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
# Whatever JSON must escape, and what it need not.
LETTERS = "".join(map(chr, range(0x100))) + "\u2028\U0001f600"


@given(st.lists(records))
@example([(1, "alice", LETTERS, None, True, "then", "now")])
def test_tasks_json_is_what_pydantic_writes(those: list[tuple[object, ...]]) -> None:
    names = TaskPublic.model_fields
    dicts = [dict(zip(names, record, strict=True)) for record in those]
    assert tasks_json(those) == to_json(dicts)
