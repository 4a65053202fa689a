# [Task]: T015 [From]: specs/requirements.md
"""Every statement that the service can send, by name, and a value for each of their parameters."""

from itertools import chain, combinations, product
from typing import get_args

from sqlalchemy import make_url

from db import Statement
from kit.database.sql import utc_now
from schemas import Order, Sort
from tasks import queries
from tasks.conditional import MAX_TAGS

_FILTERS = ("completed", "search")

LISTINGS = {
    f"{sort} {order} {' '.join(filters)}{' on' if goes_on else ''}": queries.listing(
        sort, order, *filters, goes_on=goes_on
    )
    for sort, order, goes_on in product(get_args(Sort), get_args(Order), (False, True))
    for filters in chain.from_iterable(combinations(_FILTERS, n) for n in range(3))
}
CHANGES = {name: item for name, item in vars(queries).items() if isinstance(item, queries.Change)}
STATEMENTS = {
    **{name: item for name, item in vars(queries).items() if isinstance(item, Statement)},
    **{name: change.any_version for name, change in CHANGES.items()},
    **{
        f"{name} by {n} versions": statement
        for name, change in CHANGES.items()
        for n, statement in change.by_version.items()
    },
    **LISTINGS,
}

VALUES = {
    "owner": "alice",
    "task_id": 1,
    "new_title": "changed",
    "new_description": "changed",
    "new_completed": True,
    "sets_description": True,
    "now": utc_now(),
    "task_limit": 100,
    **{f"version_{n}": utc_now() for n in range(MAX_TAGS)},
    "are_allowed": True,
    "completed": True,
    "search": "milk",
    "title": "Buy",
    "created_at": utc_now(),
    "updated_at": utc_now(),
    "part": 51,
    "idempotency_key": "a key",
    "idempotency_mark": bytes(24),
    "expired": utc_now(),
    "bound": 100,
}

_POSTGRESQL = make_url("postgresql+asyncpg://").get_dialect()()


def prepared(statement: Statement, **values: object) -> tuple[str, list[str]]:
    """It as PostgreSQL's PREPARE takes it, and its arguments as EXECUTE does."""
    compiled = statement.core.compile(dialect=_POSTGRESQL)
    given = VALUES | values
    arguments = []
    for name in compiled.positiontup or ():
        bind = compiled.binds[name]
        value = given.get(name, bind.value)
        convert = bind.type.dialect_impl(_POSTGRESQL).bind_processor(_POSTGRESQL)
        arguments.append(_literal(convert(value) if convert else value))
    return str(compiled), arguments


def _literal(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(_literal, value))}]"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    return str(value) if isinstance(value, int) else f"'{value}'"
