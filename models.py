# [Task]: T005 [From]: specs/requirements.md
"""The two tables: `task`, which this service owns, and `"user"`, which Better Auth owns.

schemas.py defines what clients send and get.
"""

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    Join,
    LargeBinary,
    Select,
    String,
    Text,
    bindparam,
    event,
    false,
    literal_column,
)
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria
from sqlalchemy.sql import FromClause
from sqlmodel import Field, SQLModel

from kit.database.sql import Instant, UTCDateTime, advance, utc_now

TITLE_LENGTH = 200

DESCRIPTION_LENGTH = 1000

IDEMPOTENCY_KEY_LENGTH = 255


class User(SQLModel, table=True):
    """A user of Better Auth, read-only. Better Auth's migration creates the table, never ours."""

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


def _created_at(context: DefaultExecutionContext) -> datetime:
    # SQLAlchemy computes defaults in column order, so created_at already has its value.
    parameters = context.get_current_parameters()  # type: ignore[no-untyped-call]
    created_at: datetime = parameters["created_at"]
    return created_at


_NEXT_VERSION = advance(
    bindparam("changed_at", callable_=utc_now, type_=UTCDateTime()),
    literal_column("updated_at", UTCDateTime()),
)


class Task(SQLModel, table=True):
    """One task of one user.

    Every UPDATE by the ORM or Core moves `updated_at`, unless it sets that column itself. The model
    has no foreign key, because Better Auth may create its table later (kit/database/tables.py).
    """

    __tablename__ = "task"
    # An ORM UPDATE must return the new `updated_at`: an async session can't load it lazily.
    __mapper_args__ = {"eager_defaults": True}
    # Without it, SQLite would reuse the id of a deleted task.
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
    # The defaults belong to the columns, so that a Core INSERT gets them too.
    created_at: Instant = Field(
        default=None, sa_column=Column(UTCDateTime, nullable=False, default=utc_now)
    )
    updated_at: Instant = Field(
        default=None,
        sa_column=Column(UTCDateTime, nullable=False, default=_created_at, onupdate=_NEXT_VERSION),
    )
    # The columns below are internal: `exclude` keeps them out of JSON.
    # The Idempotency-Key of the POST and a digest of its body (tasks/idempotency.py).
    idempotency_key: str | None = Field(
        default=None, exclude=True, sa_column=Column(String(IDEMPOTENCY_KEY_LENGTH))
    )
    idempotency_mark: bytes | None = Field(
        default=None, exclude=True, sa_column=Column(LargeBinary)
    )
    # Set only in a tombstone: a deleted task's row, kept for its key (specs/decisions.md, D30).
    deleted_at: datetime | None = Field(default=None, exclude=True, sa_column=Column(UTCDateTime))


TASK_TABLE = Task.__table__  # type: ignore[attr-defined]  # SQLModel makes it


# The default list, newest first, is read from this index in order.
Index(
    "ix_task_user_id_created_at_id",
    TASK_TABLE.c.user_id,
    TASK_TABLE.c.created_at.desc(),
    TASK_TABLE.c.id.desc(),
)


# The next two indexes are partial, so that tasks without a key cost nothing.
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


@event.listens_for(Session, "do_orm_execute")
def _hide_tombstones(state: ORMExecuteState) -> None:
    """Hide tombstones from every SELECT, UPDATE and DELETE of a session."""
    if state.is_column_load:
        return  # The session already has this row.
    is_task = TASK_TABLE.c.deleted_at.is_(None)
    if state.is_orm_statement:
        criteria = with_loader_criteria(Task, is_task, include_aliases=True)
        state.statement = state.statement.options(criteria)
    elif isinstance(state.statement, Select) and any(
        map(_reads_tasks, state.statement.get_final_froms())
    ):
        state.statement = state.statement.where(is_task)


def _reads_tasks(source: FromClause) -> bool:
    if isinstance(source, Join):
        return _reads_tasks(source.left) or _reads_tasks(source.right)
    return source is TASK_TABLE
