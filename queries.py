# [Task]: T010 [From]: specs/requirements.md
"""The six statements: what each endpoint asks of the table `task`.

How a statement is run is told in database/execute.py.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    String,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    not_,
    or_,
    select,
    update,
)

from db import Statement
from models import TASK_TABLE, UTCDateTime, advance, returned_rfc3339, rfc3339

_task = TASK_TABLE.c


def _public(
    instant: Callable[[ColumnElement[Any]], ColumnElement[Any]],
) -> tuple[ColumnElement[Any], ...]:
    """A task as clients see it: rows of these columns are JSON without another word."""
    return (
        _task.id,
        _task.user_id,
        _task.title,
        _task.description,
        _task.completed,
        instant(_task.created_at).label("created_at"),
        instant(_task.updated_at).label("updated_at"),
    )


_selected = _public(rfc3339)
_returned = _public(returned_rfc3339)
_now = bindparam("now", type_=UTCDateTime())
_new_title = bindparam("new_title", type_=String())
_new_description = bindparam("new_description", type_=String())
_new_completed = bindparam("new_completed", type_=Boolean())


def _owned(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """The rows a statement may touch: those of the bind `owner`. The one place that says so."""
    return and_(_task.user_id == bindparam("owner"), *conditions)


_this_task = _owned(_task.id == bindparam("task_id"))


def _update(**values: ColumnElement[Any]) -> Statement:
    """An UPDATE that moves `updated_at` when one of the values is a change, and only then."""
    changed = or_(*(value.is_distinct_from(_task[name]) for name, value in values.items()))
    moved = case((changed, advance(_now, _task.updated_at)), else_=_task.updated_at)
    return Statement(
        update(TASK_TABLE)
        .where(_this_task)
        .values(**values, updated_at=moved)
        .returning(*_returned)
    )


# A limit that is none, the greatest bigint, in a form that PostgreSQL can't see through while it
# plans. It then expects to need a part of the rows, and reads them off the index in order, where it
# might else gather and sort them (tests/faults/test_plans.py).
_no_limit = select(literal_column("9223372036854775807")).scalar_subquery()

LIST = Statement(
    select(*_selected)
    .where(_owned())
    .order_by(_task.created_at.desc(), _task.id.desc())
    .limit(_no_limit)
)
CREATE = Statement(
    insert(TASK_TABLE)
    .values(
        user_id=bindparam("owner"),
        title=_new_title,
        description=_new_description,
        completed=_new_completed,
        created_at=_now,
        updated_at=_now,
    )
    .returning(*_returned)
)
GET = Statement(select(*_selected).where(_this_task))
# A NULL title or completed stands for "as it is"; a description may be set to NULL, hence the flag.
UPDATE = _update(
    title=func.coalesce(_new_title, _task.title),
    description=case(
        (bindparam("describe", type_=Boolean()), _new_description), else_=_task.description
    ),
    completed=func.coalesce(_new_completed, _task.completed),
)
COMPLETE = _update(completed=func.coalesce(_new_completed, not_(_task.completed)))
DELETE = Statement(delete(TASK_TABLE).where(_this_task).returning(_task.id))
