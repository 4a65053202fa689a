# [Task]: T005 [From]: specs/requirements.md
"""The two tables: `task`, which is this service's, and `"user"`, which Better Auth owns.

What a client may send and sees is in schemas.py.
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


def _created_at(context: DefaultExecutionContext) -> datetime:
    # SQLAlchemy fills in defaults in the order of the columns, so created_at has its value by now.
    parameters = context.get_current_parameters()  # type: ignore[no-untyped-call]
    created_at: datetime = parameters["created_at"]
    return created_at


_NEXT_VERSION = advance(
    bindparam("changed_at", callable_=utc_now, type_=UTCDateTime()),
    literal_column("updated_at", UTCDateTime()),
)


class Task(SQLModel, table=True):
    """One task of one user. No foreign key here: Better Auth's table may come after this one.

    Every UPDATE moves `updated_at`, by the ORM or by Core, unless it sets that column itself.
    """

    __tablename__ = "task"
    # An UPDATE by the ORM returns the new `updated_at`: an async session can't load it later.
    __mapper_args__ = {"eager_defaults": True}
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
    # The columns have the defaults, so that an INSERT by Core gets them too.
    created_at: Instant = Field(
        default=None, sa_column=Column(UTCDateTime, nullable=False, default=utc_now)
    )
    updated_at: Instant = Field(
        default=None,
        sa_column=Column(UTCDateTime, nullable=False, default=_created_at, onupdate=_NEXT_VERSION),
    )
    # The columns below are internal: `exclude` keeps them out of JSON.
    # The key of the request that made the task, and a digest of its body (tasks/idempotency.py).
    idempotency_key: str | None = Field(
        default=None, exclude=True, sa_column=Column(String(IDEMPOTENCY_KEY_LENGTH))
    )
    idempotency_mark: bytes | None = Field(
        default=None, exclude=True, sa_column=Column(LargeBinary)
    )
    # Set in a tombstone: a deleted task's row, kept for its key (specs/decisions.md, D30).
    deleted_at: datetime | None = Field(default=None, exclude=True, sa_column=Column(UTCDateTime))


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


@event.listens_for(Session, "do_orm_execute")
def _hide_tombstones(state: ORMExecuteState) -> None:
    """Keep tombstones out of what any session selects, updates or deletes."""
    if state.is_column_load:
        return  # Of a row that the session has already found.
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
