# [Task]: T010 [From]: specs/requirements.md
"""The statements on the table `task`. kit/database/execute.py runs them."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle, islice
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    Column,
    ColumnElement,
    Delete,
    Insert,
    LargeBinary,
    ScalarSelect,
    String,
    Text,
    Update,
    and_,
    asc,
    bindparam,
    case,
    delete,
    desc,
    false,
    func,
    insert,
    literal,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlalchemy.types import TypeEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from db import (
    ReadSession,
    Record,
    Row,
    Statement,
    UTCDateTime,
    Word,
    advance,
    code_points,
    contains,
    returned_rfc3339,
    rfc3339,
    unless_key_is_known,
)
from errors import SearchTooSlow
from kit.errors import StatementTooSlow
from models import HAS_KEY, IS_DELETED, TASK_TABLE
from schemas import Order, Sort, TaskCreate, TaskPublic, TaskUpdate
from tasks.conditional import MAX_TAGS, Precondition

_task = TASK_TABLE.c

type Columns = ReadOnlyColumnCollection[str, Any]


def _public(
    of: Columns, instant: Callable[[ColumnElement[Any]], ColumnElement[Any]]
) -> tuple[ColumnElement[Any], ...]:
    """The columns of TaskPublic. Rows of them can be written as JSON without conversion."""
    columns = [of[name] for name in TaskPublic.model_fields]
    return tuple(
        instant(column).label(column.key) if isinstance(column.type, UTCDateTime) else column
        for column in columns
    )


_selected = _public(_task, rfc3339)
_returned = _public(_task, returned_rfc3339)
_now = bindparam("now", type_=UTCDateTime())


def _new_value(name: str) -> BindParameter[Any]:
    return bindparam(f"new_{name}", type_=_task[name].type)


_owner = _task.user_id == bindparam("owner")
# A CASE hides the condition from the planner. Without statistics, PostgreSQL expects one row in 200
# to match IS NULL, and would sort rows that the index has in order (tests/faults/test_plans.py).
_is_there = case((IS_DELETED, false()), else_=true())


def _owned(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """The tasks of the user in the bind `owner`, without tombstones."""
    return and_(_owner, _is_there, *conditions)


_this_task = _owned(_task.id == bindparam("task_id"))


class Change(NamedTuple):
    """The statements of one change: for any version, and by number of versions to compare."""

    any_version: Statement
    by_version: dict[int, Statement]

    async def row(
        self, session: AsyncSession, precondition: Precondition | None, **values: object
    ) -> Row | None:
        """The changed task, or None if no task matches the id and the precondition."""
        if precondition is None:
            return await self.any_version.row(session, **values)
        versions, are_allowed = precondition
        if not versions:
            return None
        count = 1 if len(versions) == 1 else MAX_TAGS
        # The versions are repeated to fill the statement's fixed number of binds.
        filled = enumerate(islice(cycle(versions), count))
        binds = {f"version_{n}": version for n, version in filled}
        statement = self.by_version[count]
        return await statement.row(session, **values, **binds, are_allowed=are_allowed)


def _has_version(count: int) -> ColumnElement[bool]:
    """With the bind `are_allowed` true, the task's version must be one of the binds `version_0` and
    so on. With false, it must be none of them.
    """
    versions = [bindparam(f"version_{n}", type_=UTCDateTime()) for n in range(count)]
    is_one: ColumnElement[bool] = _task.updated_at.in_(versions)
    return is_one == bindparam("are_allowed", type_=Boolean())


def _change(statement: Update | Delete, *returned: ColumnElement[Any]) -> Change:
    def restricted(*conditions: ColumnElement[bool]) -> Statement:
        return Statement(statement.where(_this_task, *conditions).returning(*returned))

    return Change(restricted(), {n: restricted(_has_version(n)) for n in (1, MAX_TAGS)})


def _update(values: dict[str, ColumnElement[Any]]) -> Change:
    """An UPDATE that moves `updated_at` only if a value differs from the stored one."""
    changed = or_(*(value.is_distinct_from(_task[name]) for name, value in values.items()))
    moved = case((changed, advance(_now, _task.updated_at)), else_=_task.updated_at)
    return _change(update(TASK_TABLE).values(**values, updated_at=moved), *_returned)


# A limit that no table reaches.
ALL = 2**63 - 1


def _up_to(count: ColumnElement[int]) -> ScalarSelect[Any]:
    """A LIMIT whose value the planner does not know.

    PostgreSQL then plans for few rows and reads the index in order. Otherwise it might collect and
    sort all rows (tests/faults/test_plans.py).
    """
    return select(count).scalar_subquery()


_part = _up_to(bindparam("part", ALL, type_=BigInteger()))
_all = _up_to(literal_column(str(ALL), BigInteger()))


def _sort_key(of: Columns, sort: Sort) -> ColumnElement[Any]:
    return code_points(of.title) if sort == "title" else of[sort]


def _ordered(of: Columns, sort: Sort, order: Order) -> tuple[ColumnElement[Any], ...]:
    """The ORDER BY: the sort key, then the id."""
    key = _sort_key(of, sort)
    return (desc(key), desc(of.id)) if order == "desc" else (asc(key), asc(of.id))


def _beyond(of: Columns, sort: Sort, order: Order) -> ColumnElement[bool]:
    """The tasks after the one in the binds `task_id` and `sort`."""
    place: TypeEngine[Any] = String() if sort == "title" else UTCDateTime()
    here = tuple_(_sort_key(of, sort), of.id)
    there = tuple_(bindparam(sort, type_=place), bindparam("task_id", type_=BigInteger()))
    return here < there if order == "desc" else here > there


def _passes(of: Columns, name: str) -> ColumnElement[bool]:
    """The condition of a filter. Its value is the bind of the same name."""
    if name == "completed":
        completed: ColumnElement[bool] = of.completed == bindparam(name, type_=Boolean())
        return completed
    word = bindparam(name, type_=Word())
    return or_(contains(of.title, word), contains(of.description, word))


class _Search(Statement[ReadSession]):
    """A statement that searches all tasks of a user."""

    async def records(self, session: ReadSession, **values: object) -> Sequence[Record]:
        """Like Statement.records, but raises SearchTooSlow on a timeout."""
        try:
            return await super().records(session, **values)
        except StatementTooSlow as error:
            raise SearchTooSlow(str(error)) from error


@cache
def listing(
    sort: Sort, order: Order, *filters: str, goes_on: bool = False
) -> Statement[ReadSession]:
    """The list with these filters. The bind `part` limits it; without it, the list is complete.

    With `goes_on`, it starts after the task in the bind `task_id`, whose sort key is in the bind
    named like the sort.
    """
    indexed = sort == "created_at"

    def conditions(of: Columns, *names: str, place: bool) -> list[ColumnElement[bool]]:
        beyond = [_beyond(of, sort, order)] if goes_on and place else []
        return [*beyond, *(_passes(of, name) for name in names)]

    if indexed and "search" not in filters:
        return Statement(
            select(*_selected)
            .where(_owned(*conditions(_task, *filters, place=True)))
            .order_by(*_ordered(_task, sort, order))
            .limit(_part)
        )
    # First the user's own tasks in index order, then the filters: otherwise PostgreSQL might scan
    # the whole table. Only matching rows are converted for clients, since that costs more than
    # filtering (D27).
    own = (
        select(TASK_TABLE)
        .where(_owned(*conditions(_task, place=indexed)))
        .order_by(*_ordered(_task, "created_at", order))
        .limit(_all)
        .subquery("own")
    )
    found = (
        select(own)
        .where(*conditions(own.c, *filters, place=not indexed))
        .order_by(*_ordered(own.c, sort, order))
        .limit(_part)
        .subquery("found")
    )
    kind = _Search if "search" in filters else Statement
    return kind(select(*_public(found.c, rfc3339)).order_by(*_ordered(found.c, sort, order)))


# The names of binds, by the members of the schemas.
_CREATED = {name: f"new_{name}" for name in TaskCreate.model_fields}
_UPDATED = {name: f"new_{name}" for name in TaskUpdate.__annotations__}
_NULLABLE = {name: f"sets_{name}" for name in _UPDATED if _task[name].nullable}


def created_values(body: TaskCreate) -> dict[str, Any]:
    """Values for CREATE and its variants."""
    return {bind: getattr(body, name) for name, bind in _CREATED.items()}


def updated_values(body: TaskUpdate) -> dict[str, Any]:
    """Values for UPDATE."""
    values = {bind: body.get(name) for name, bind in _UPDATED.items()}
    return values | {flag: name in body for name, flag in _NULLABLE.items()}


LIST = listing("created_at", "desc")
_new: dict[str, Any] = {
    "user_id": bindparam("owner", type_=Text()),
    **{name: _new_value(name) for name in TaskCreate.model_fields},
    "created_at": _now,
    "updated_at": _now,
}
_key = bindparam("idempotency_key", type_=String())
_new_with_key: dict[str, Any] = {
    **_new,
    "idempotency_key": _key,
    "idempotency_mark": bindparam("idempotency_mark", type_=LargeBinary()),
}
# Counts no further than the limit. The CTE makes Citus assign the id on the coordinator.
_limit = bindparam("task_limit", type_=BigInteger())
_counted = select(literal_column("1").label("one")).where(_owned()).limit(_limit).subquery()
_tasks = select(func.count().label("tasks")).select_from(_counted)
_room = _tasks.cte("room")
# A repeated request adds no task, so the limit does not refuse it.
_times = select(func.count().label("times")).where(_owner, _task.idempotency_key == _key)
_is_known = select(_times.cte("known").c.times).scalar_subquery() > 0


def _insert(values: dict[str, Any], *conditions: ColumnElement[bool]) -> Insert:
    if not conditions:
        return insert(TASK_TABLE).values(values)
    return insert(TASK_TABLE).from_select(list(values), select(*values.values()).where(*conditions))


def _create(*conditions: ColumnElement[bool]) -> Statement:
    return Statement(_insert(_new, *conditions).returning(*_returned))


def _create_once(*conditions: ColumnElement[bool]) -> Statement:
    """An INSERT that returns the existing task of the key, if there is one, and its mark."""
    once = _insert(_new_with_key, *conditions).ext(unless_key_is_known())
    return Statement(once.returning(*_returned, _task.idempotency_mark), repeatable=True)


COUNT = Statement(_tasks)
CREATE = _create()
CREATE_WITHIN = _create(_room.c.tasks < _limit)
CREATE_ONCE = _create_once()
CREATE_ONCE_WITHIN = _create_once(or_(_room.c.tasks < _limit, _is_known))
GET = Statement(select(*_selected).where(_this_task))


def _changed_value(name: str) -> ColumnElement[Any]:
    """A column's new value: the bind, or the old value if the body lacks the member."""
    column, value = _task[name], _new_value(name)
    if not column.nullable:
        return func.coalesce(value, column)
    # NULL is a valid value here, so a flag says whether the body has the member.
    return case((bindparam(f"sets_{name}", type_=Boolean()), value), else_=column)


_completed: dict[str, ColumnElement[Any]] = {
    "completed": func.coalesce(_new_value("completed"), not_(_task.completed))
}
UPDATE = _update({name: _changed_value(name) for name in _UPDATED})
COMPLETE = _update(_completed)


def _emptied(column: Column[Any]) -> Any:
    """The column's value in a tombstone, which keeps no data of the task."""
    if column.nullable:
        return None
    # Columns that are not text have a default in the database: their migration needed one.
    default = getattr(column.server_default, "arg", "")
    return literal(default).cast(column.type) if isinstance(default, str) else default


# A task with a key becomes a tombstone, unless its key has expired (D30).
_expired = _task.created_at < bindparam("expired", type_=UTCDateTime())
DELETE = _change(delete(TASK_TABLE).where(or_(not_(HAS_KEY), _expired)), _task.id)
MAKE_TOMBSTONE = _change(
    update(TASK_TABLE).values(
        **{name: _emptied(_task[name]) for name in TaskCreate.model_fields},
        updated_at=_now,
        deleted_at=_now,
    ),
    _task.deleted_at,
)
# CLEAR deletes a user's expired tombstones, and the oldest ones beyond the number in `bound`.
CLEARED_AT_A_TIME = 500
_beyond_bound = (
    select(_task.created_at)
    .where(_owner, IS_DELETED)
    .order_by(desc(_task.created_at))
    .limit(1)
    .offset(bindparam("bound", type_=BigInteger()))
    .scalar_subquery()
)
_to_clear = (
    select(_task.id)
    .where(_owner, IS_DELETED, or_(_expired, _task.created_at <= _beyond_bound))
    .order_by(_task.created_at)
    .limit(CLEARED_AT_A_TIME)
)
CLEAR = Statement(
    delete(TASK_TABLE).where(_owner, IS_DELETED, _task.id.in_(_to_clear)).returning(_task.id),
    repeatable=True,
)
