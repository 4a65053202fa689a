# [Task]: T005 [From]: specs/requirements.md
"""SQL functions and types with the same results in every database: instants and text order."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import PlainSerializer, WithJsonSchema
from sqlalchemy import (
    DateTime,
    Dialect,
    String,
    TypeDecorator,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement, SyntaxExtension
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine


def utc_now() -> datetime:
    """The current time in UTC, to the microsecond."""
    return datetime.now(UTC)


class UTCDateTime(TypeDecorator[datetime]):
    """An instant: timestamptz on PostgreSQL, UTC text of fixed width on SQLite; aware in Python."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.replace(tzinfo=UTC)


class advance(FunctionElement[datetime]):  # named like the SQL function it stands for
    """SQL: `advance(now, before)` is `now`, or just after `before` if `now` is not later.

    So `updated_at` moves with every change, even if the clocks of two workers differ or changes
    that waited for a lock are written out of order.
    """

    type = UTCDateTime()
    inherit_cache = True


@compiles(advance, "postgresql")
def _advance_postgresql(element: advance, compiler: SQLCompiler, **kw: Any) -> str:
    now, before = (compiler.process(clause, **kw) for clause in element.clauses)
    # Citus accepts only IMMUTABLE functions in a CASE, and timestamptz + interval is not.
    after = f"timezone('UTC', timezone('UTC', {before}) + interval '1 microsecond')"
    return f"greatest({now}, {after})"


@compiles(advance, "sqlite")
def _advance_sqlite(element: advance, compiler: SQLCompiler, **kw: Any) -> str:
    now, before = (compiler.process(clause, **kw) for clause in element.clauses)
    # SQLite's time functions have milliseconds only. The result has UTCDateTime's text form.
    after = f"strftime('%Y-%m-%d %H:%M:%f', {before}, '+0.001 seconds') || '000'"
    return f"max({now}, {after})"


class RFC3339(TypeDecorator[str]):
    """An instant as clients see it: UTC with six digits of a second."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        # On SQLite the value already is the text.
        return dialect.type_descriptor(String() if dialect.name == "sqlite" else self.impl_instance)

    def result_processor(
        self,
        dialect: Dialect,
        coltype: object,  # noqa: ARG002  # A part of the interface.
    ) -> Callable[[datetime | None], str | None] | None:
        # Faster than process_result_value, which SQLAlchemy wraps in another function.
        return None if dialect.name == "sqlite" else _text_or_null


def _text_or_null(instant: datetime | None) -> str | None:
    return None if instant is None else rfc3339_text(instant)


def rfc3339_text(instant: datetime) -> str:
    """The instant as clients see it: UTC with six digits of a second."""
    if instant.tzinfo is None:  # PostgreSQL's infinity: asyncpg gives it no time zone.
        return ""
    # isoformat takes a third less time for a datetime without a zone.
    return f"{instant.astimezone(UTC).replace(tzinfo=None).isoformat('T', 'microseconds')}Z"


# The type of an instant in a model: a datetime in Python, RFC 3339 text in JSON.
Instant = Annotated[
    datetime,
    PlainSerializer(rfc3339_text, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class rfc3339(FunctionElement[str]):  # named as a SQL function would be
    """SQL: `rfc3339(instant)` is the instant as clients see it, UTC with six digits of a second.

    The database writes the text, which saves the service parsing and formatting. It is for the
    years 1 to 9999. A value that is not an instant, such as PostgreSQL's infinity, becomes an empty
    string: no client parses that as a date, while JavaScript parses null as 1970. In a nullable
    column it becomes NULL. There is no CASE on IS NULL, because SQLite 3.40 evaluates IS NULL in
    RETURNING as false.
    """

    type = String()
    inherit_cache = True


@compiles(rfc3339, "postgresql")
def _rfc3339_postgresql(element: rfc3339, compiler: SQLCompiler, **kw: Any) -> str:
    instant = compiler.process(element.clauses, **kw)
    written = f"to_char({instant} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    return _never_null(element, written)


# For GLOB.
_UTC_DATE_TIME = "0000-00-00[ T]00:00:00.000000".replace("0", "[0-9]")


@compiles(rfc3339, "sqlite")
def _rfc3339_sqlite(element: rfc3339, compiler: SQLCompiler, **kw: Any) -> str:
    instant = compiler.process(element.clauses, **kw)
    # UTCDateTime's form is used as it is. strftime converts other forms, which an older service may
    # have written, with milliseconds only. It returns NULL for text that is not a time.
    return _never_null(
        element,
        f"CASE WHEN {instant} GLOB '{_UTC_DATE_TIME}' "
        f"THEN replace({instant}, ' ', 'T') "
        f"ELSE strftime('%Y-%m-%dT%H:%M:%f', {instant}) || '000' END || 'Z'",
    )


def _never_null(element: FunctionElement[str], written: str) -> str:
    """An empty string instead of NULL, unless the column is nullable."""
    [instant] = element.clauses
    return written if getattr(instant, "nullable", False) else f"coalesce({written}, '')"


class returned_rfc3339(FunctionElement[str]):  # named like rfc3339
    """The same for RETURNING. Python writes the text, since Citus accepts only IMMUTABLE functions
    there.
    """

    type = RFC3339()
    inherit_cache = True


@compiles(returned_rfc3339, "postgresql")
def _returned_postgresql(element: returned_rfc3339, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(returned_rfc3339, "sqlite")
def _returned_sqlite(element: returned_rfc3339, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(rfc3339(*element.clauses), **kw)


class code_points(FunctionElement[str]):  # named as a SQL function would be
    """SQL: `code_points(text)` is the text, compared by the code points of its characters.

    So a list has the same order in every database, whatever the collation.
    """

    type = String()
    inherit_cache = True


@compiles(code_points, "postgresql")
def _code_points_postgresql(element: code_points, compiler: SQLCompiler, **kw: Any) -> str:
    return f'{compiler.process(element.clauses, **kw)} COLLATE "C"'


@compiles(code_points, "sqlite")
def _code_points_sqlite(element: code_points, compiler: SQLCompiler, **kw: Any) -> str:
    # SQLite does this by default.
    return compiler.process(element.clauses, **kw)


class unless_key_is_known(SyntaxExtension, ClauseElement):  # named as a SQL clause would be
    """SQL: makes an INSERT return the existing task if the user has used its key before."""

    inherit_cache = True

    def apply_to_insert(self, insert_stmt: Any) -> None:
        insert_stmt.apply_syntax_extension_point(lambda _existing: [self], "post_values")


@compiles(unless_key_is_known)
def _unless_key_is_known(*_arguments: Any, **_options: Any) -> str:
    # RETURNING includes an existing row only if the upsert updates it, so this changes nothing.
    return (
        "ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL "
        "DO UPDATE SET idempotency_key = task.idempotency_key"
    )
