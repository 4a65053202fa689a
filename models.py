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
    LargeBinary,
    String,
    Text,
    false,
)
from sqlmodel import Field, SQLModel

from kit.database.sql import UTCDateTime, utc_now

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
    # tasks/idempotency.py.
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
