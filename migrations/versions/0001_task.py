# [Task]: T025 [From]: specs/design.md
"""The task table: made, or taken over from an earlier service of the same design."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    if not sa.inspect(connection).has_table("task"):
        _create()
    elif connection.dialect.name == "postgresql":
        _take_over(connection)
    op.create_index(
        "ix_task_user_id_created_at_id",
        "task",
        ["user_id", sa.text("created_at DESC"), sa.text("id DESC")],
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_table("task")


def _create() -> None:
    instant = sa.DateTime(timezone=True)
    identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "task",
        sa.Column("id", identity, sa.Identity(), primary_key=True),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("description", sa.String(1000)),
        sa.Column("completed", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("updated_at", instant, nullable=False),
        sqlite_autoincrement=True,
    )


def _take_over(connection: sa.Connection) -> None:
    """Widen ids to 64 bits, and read times without a zone as the UTC that they were written in."""
    types = {c["name"]: c["type"] for c in sa.inspect(connection).get_columns("task")}
    if not isinstance(types["id"], sa.BigInteger):
        op.alter_column("task", "id", type_=sa.BigInteger)
        sequence = connection.scalar(sa.text("SELECT pg_get_serial_sequence('task', 'id')"))
        if sequence is not None:
            op.execute(f"ALTER SEQUENCE {sequence} AS bigint")
    for name in ("created_at", "updated_at"):
        if not getattr(types[name], "timezone", False):
            op.alter_column(
                "task",
                name,
                type_=sa.DateTime(timezone=True),
                postgresql_using=f"{name} AT TIME ZONE 'UTC'",
            )
