# [Task]: T010 [From]: specs/requirements.md
"""The six statements: what each endpoint asks of the table `task`.

How a statement is run is told in database/execute.py.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    ScalarSelect,
    String,
    Text,
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
    tuple_,
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
# For a change that is meant for one version of the task only.
_this_version = _task.updated_at == bindparam("version", type_=UTCDateTime())


def _update(values: dict[str, ColumnElement[Any]], *conditions: ColumnElement[bool]) -> Statement:
    """An UPDATE that moves `updated_at` when one of the values is a change, and only then."""
    changed = or_(*(value.is_distinct_from(_task[name]) for name, value in values.items()))
    moved = case((changed, advance(_now, _task.updated_at)), else_=_task.updated_at)
    return Statement(
        update(TASK_TABLE)
        .where(_this_task, *conditions)
        .values(**values, updated_at=moved)
        .returning(*_returned)
    )


def _part(count: int) -> ScalarSelect[Any]:
    """A limit in a form that PostgreSQL can't see through while it plans.

    It then expects to need some of the rows, and reads them off the index in order, where it might
    else gather and sort them all (tests/faults/test_plans.py).
    """
    return select(literal_column(str(count))).scalar_subquery()


# A list is read in parts, so that a long one keeps nobody else waiting. Most lists are one part;
# those that follow are smaller, since others wait for each of them (D21).
LIST_PART = 1000
NEXT_PART = 200
_newest_first = (_task.created_at.desc(), _task.id.desc())

LIST = Statement(
    select(*_selected).where(_owned()).order_by(*_newest_first).limit(_part(LIST_PART))
)
LIST_ON = Statement(
    select(*_selected)
    .where(
        _owned(
            tuple_(_task.created_at, _task.id)
            < tuple_(bindparam("created_at", type_=UTCDateTime()), bindparam("task_id"))
        )
    )
    .order_by(*_newest_first)
    .limit(_part(NEXT_PART))
)
_new: dict[str, Any] = {
    "user_id": bindparam("owner", type_=Text()),
    "title": _new_title,
    "description": _new_description,
    "completed": _new_completed,
    "created_at": _now,
    "updated_at": _now,
}
CREATE = Statement(insert(TASK_TABLE).values(_new).returning(*_returned))
# Counted no further than the limit, in a form in which Citus has the coordinator number the task.
_limit = bindparam("task_limit", type_=BigInteger())
_counted = select(literal_column("1").label("one")).where(_owned()).limit(_limit).subquery()
_room = select(func.count().label("tasks")).select_from(_counted).cte("room")
CREATE_WITHIN = Statement(
    insert(TASK_TABLE)
    .from_select(
        list(_new),
        select(*_new.values()).where(_room.c.tasks < _limit),
    )
    .returning(*_returned)
)
GET = Statement(select(*_selected).where(_this_task))
# A NULL title or completed stands for "as it is"; a description may be set to NULL, hence the flag.
_updated: dict[str, ColumnElement[Any]] = {
    "title": func.coalesce(_new_title, _task.title),
    "description": case(
        (bindparam("describe", type_=Boolean()), _new_description), else_=_task.description
    ),
    "completed": func.coalesce(_new_completed, _task.completed),
}
_completed: dict[str, ColumnElement[Any]] = {
    "completed": func.coalesce(_new_completed, not_(_task.completed))
}
UPDATE = _update(_updated)
UPDATE_VERSION = _update(_updated, _this_version)
COMPLETE = _update(_completed)
COMPLETE_VERSION = _update(_completed, _this_version)
DELETE = Statement(delete(TASK_TABLE).where(_this_task).returning(_task.id))
DELETE_VERSION = Statement(delete(TASK_TABLE).where(_this_task, _this_version).returning(_task.id))
