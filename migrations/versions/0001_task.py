# [Task]: T025 [From]: specs/design.md
"""The task table: made, or taken over from an earlier service of the same design."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from kit.database.takeover import take_over

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    if not take_over(connection, "task", _columns(), later=_LATER, fills=_FILLS):
        op.create_table("task", *_columns(), sqlite_autoincrement=True)
    op.create_index(
        "ix_task_user_id_created_at_id",
        "task",
        ["user_id", sa.text("created_at DESC"), sa.text("id DESC")],
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_table("task")


def _columns() -> list[sa.Column[Any]]:
    instant = sa.DateTime(timezone=True)
    identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return [
        sa.Column("id", identity, sa.Identity(), primary_key=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("description", sa.String(1000)),
        sa.Column("completed", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("updated_at", instant, nullable=False),
    ]


# In place of NULL, in the table of an earlier service.
_FILLS = {"completed": "false", "updated_at": "created_at"}
# Of later migrations: such a table may have been this service's once.
_LATER: list[sa.Column[Any]] = [
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("idempotency_mark", sa.LargeBinary),
    sa.Column("deleted_at", sa.DateTime(timezone=True)),
]
