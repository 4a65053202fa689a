# [Task]: T005 [From]: specs/requirements.md
"""The two tables: `task`, which is this service's, and `"user"`, which Better Auth owns.

What a client may send and sees is in schemas.py.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Identity,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    false,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement, SyntaxExtension
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine
from sqlmodel import Field, SQLModel

TITLE_LENGTH = 200
DESCRIPTION_LENGTH = 1000
IDEMPOTENCY_KEY_LENGTH = 255


def utc_now() -> datetime:
    """The present instant, UTC, to the microsecond."""
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
    """SQL: `advance(now, before)` is `now`, or just after `before` where the clock is not past it.

    So `updated_at` moves with every change, even when clocks of two workers disagree or changes
    that waited for a row's lock are written out of order.
    """

    type = UTCDateTime()
    inherit_cache = True


@compiles(advance, "postgresql")
def _advance_postgresql(element: advance, compiler: SQLCompiler, **kw: Any) -> str:
    now, before = (compiler.process(clause, **kw) for clause in element.clauses)
    # Immutable, unlike timestamptz + interval: Citus takes nothing else in a CASE.
    after = f"timezone('UTC', timezone('UTC', {before}) + interval '1 microsecond')"
    return f"greatest({now}, {after})"


@compiles(advance, "sqlite")
def _advance_sqlite(element: advance, compiler: SQLCompiler, **kw: Any) -> str:
    now, before = (compiler.process(clause, **kw) for clause in element.clauses)
    # SQLite's clock functions know milliseconds only: the next one, in UTCDateTime's text form.
    after = f"strftime('%Y-%m-%d %H:%M:%f', {before}, '+0.001 seconds') || '000'"
    return f"max({now}, {after})"


class RFC3339(TypeDecorator[str]):
    """An instant as clients see it: UTC with six digits of a second."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        # On SQLite it comes as the text that it is to be.
        return dialect.type_descriptor(String() if dialect.name == "sqlite" else self.impl_instance)

    def result_processor(
        self,
        dialect: Dialect,
        coltype: object,  # noqa: ARG002  # A part of the interface.
    ) -> Callable[[datetime | None], str] | None:
        # In place of process_result_value, around which SQLAlchemy puts a function of its own.
        return None if dialect.name == "sqlite" else _written


def _written(instant: datetime | None) -> str:
    if instant is None or instant.tzinfo is None:  # Infinity, to which asyncpg gives no zone.
        return ""
    # Without its zone it is written in two thirds of the time.
    return f"{instant.astimezone(UTC).replace(tzinfo=None).isoformat('T', 'microseconds')}Z"


class rfc3339(FunctionElement[str]):  # named as a SQL function would be
    """SQL: `rfc3339(instant)` is the instant as clients see it, UTC with six digits of a second.

    Written by the database, which spares the service to take it apart and put it together again.
    For the years 1 to 9999. What is no instant, PostgreSQL's infinity among it, is an empty text:
    of that no client makes a date, while JavaScript makes 1970 of null.
    """

    type = String()
    inherit_cache = True


@compiles(rfc3339, "postgresql")
def _rfc3339_postgresql(element: rfc3339, compiler: SQLCompiler, **kw: Any) -> str:
    instant = compiler.process(element.clauses, **kw)
    written = f"to_char({instant} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    return f"coalesce({written}, '')"


# For GLOB.
_UTC_DATE_TIME = "0000-00-00[ T]00:00:00.000000".replace("0", "[0-9]")


@compiles(rfc3339, "sqlite")
def _rfc3339_sqlite(element: rfc3339, compiler: SQLCompiler, **kw: Any) -> str:
    instant = compiler.process(element.clauses, **kw)
    # UTCDateTime's form, or any other that SQLite understands, such as an older service may have
    # written: its own function knows them, but only milliseconds, and makes NULL of any other text.
    return (
        f"coalesce(CASE WHEN {instant} GLOB '{_UTC_DATE_TIME}' "
        f"THEN replace({instant}, ' ', 'T') "
        f"ELSE strftime('%Y-%m-%dT%H:%M:%f', {instant}) || '000' END || 'Z', '')"
    )


class returned_rfc3339(FunctionElement[str]):  # as the SQL function of which it is a variant
    """The same in a RETURNING, where the service writes it: Citus takes only what is immutable."""

    type = RFC3339()
    inherit_cache = True


@compiles(returned_rfc3339, "postgresql")
def _returned_postgresql(element: returned_rfc3339, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(returned_rfc3339, "sqlite")
def _returned_sqlite(element: returned_rfc3339, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(rfc3339(*element.clauses), **kw)


class code_points(FunctionElement[str]):  # named as a SQL function would be
    """SQL: `code_points(text)` is the text, compared by the numbers of its characters.

    So a list has one order in every database, whatever its collation.
    """

    type = String()
    inherit_cache = True


@compiles(code_points, "postgresql")
def _code_points_postgresql(element: code_points, compiler: SQLCompiler, **kw: Any) -> str:
    return f'{compiler.process(element.clauses, **kw)} COLLATE "C"'


@compiles(code_points, "sqlite")
def _code_points_sqlite(element: code_points, compiler: SQLCompiler, **kw: Any) -> str:
    # SQLite compares so by itself.
    return compiler.process(element.clauses, **kw)


class unless_key_is_known(SyntaxExtension, ClauseElement):  # read in a statement as SQL's words are
    """SQL: to an INSERT of a task with a key that the user has used, the task that has it."""

    inherit_cache = True

    def apply_to_insert(self, insert_stmt: Any) -> None:
        insert_stmt.apply_syntax_extension_point(lambda _existing: [self], "post_values")


@compiles(unless_key_is_known)
def _unless_key_is_known(*_arguments: Any, **_options: Any) -> str:
    # To change nothing is the one way to have a row returned that was there already.
    return (
        "ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL "
        "DO UPDATE SET idempotency_key = task.idempotency_key"
    )


class User(SQLModel, table=True):
    """A user as Better Auth keeps it, for reading. Its migration makes this table, never ours."""

    __tablename__ = "user"

    id: str = Field(sa_column=Column(Text, primary_key=True))
    name: str = Field(sa_column=Column(Text, nullable=False))
    email: str = Field(sa_column=Column(Text, nullable=False, unique=True))
    email_verified: bool = Field(
        default=False, sa_column=Column("emailVerified", Boolean, nullable=False)
    )
    image: str | None = Field(default=None, sa_column=Column(Text))
    created_at: datetime = Field(
        default_factory=utc_now, sa_column=Column("createdAt", UTCDateTime, nullable=False)
    )
    updated_at: datetime = Field(
        default_factory=utc_now, sa_column=Column("updatedAt", UTCDateTime, nullable=False)
    )


class Task(SQLModel, table=True):
    """One task of one user. No foreign key here: Better Auth's table may come after this one."""

    __tablename__ = "task"
    # SQLite would hand the id of a deleted task to the next one.
    __table_args__ = {"sqlite_autoincrement": True}  # SQLAlchemy's own convention

    id: int | None = Field(
        default=None,
        sa_column=Column(
            BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True
        ),
    )
    user_id: str = Field(sa_column=Column(Text, nullable=False))
    title: str = Field(sa_column=Column(String(TITLE_LENGTH), nullable=False))
    description: str | None = Field(default=None, sa_column=Column(String(DESCRIPTION_LENGTH)))
    completed: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=false())
    )
    created_at: datetime = Field(
        default_factory=utc_now, sa_column=Column(UTCDateTime, nullable=False)
    )
    updated_at: datetime = Field(
        default_factory=utc_now, sa_column=Column(UTCDateTime, nullable=False)
    )
    # The key of the request that made it, if that had one, and what tells the request from others:
    # routes/idempotency.py.
    idempotency_key: str | None = Field(
        default=None, sa_column=Column(String(IDEMPOTENCY_KEY_LENGTH))
    )
    idempotency_mark: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    # Of a task that was deleted, and is only there for its key: specs/decisions.md, D30.
    deleted_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))


TASK_TABLE = Task.__table__  # type: ignore[attr-defined]  # SQLModel makes it

# One user's list, newest first, is read off this index in order.
Index(
    "ix_task_user_id_created_at_id",
    TASK_TABLE.c.user_id,
    TASK_TABLE.c.created_at.desc(),
    TASK_TABLE.c.id.desc(),
)

# These two hold few rows or none, so that tasks without a key cost them nothing.
HAS_KEY = TASK_TABLE.c.idempotency_key.is_not(None)
Index(
    "ux_task_user_id_idempotency_key",
    TASK_TABLE.c.user_id,
    TASK_TABLE.c.idempotency_key,
    unique=True,
    postgresql_where=HAS_KEY,
    sqlite_where=HAS_KEY,
)
IS_DELETED = TASK_TABLE.c.deleted_at.is_not(None)
Index(
    "ix_task_user_id_created_at_deleted",
    TASK_TABLE.c.user_id,
    TASK_TABLE.c.created_at,
    postgresql_where=IS_DELETED,
    sqlite_where=IS_DELETED,
)
