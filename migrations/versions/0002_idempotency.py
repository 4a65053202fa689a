# [Task]: T056 [From]: specs/decisions.md
"""The key of the request that made a task, and tasks that are only there for their key.

Nothing that the release before does is hindered: the columns may be empty, and while there are
tasks, the indexes are left to kit/database/indexes.py, which keeps nobody waiting.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    # A table whose version was lost has them.
    found = {column["name"] for column in sa.inspect(connection).get_columns("task")}
    for column in (
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("idempotency_mark", sa.LargeBinary),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
    ):
        if column.name not in found:
            op.add_column("task", column)
    if connection.dialect.name == "sqlite" or not _has_tasks(connection):
        _create_indexes()


def downgrade() -> None:
    op.execute("DELETE FROM task WHERE deleted_at IS NOT NULL")
    for name in ("ux_task_user_id_idempotency_key", "ix_task_user_id_created_at_deleted"):
        op.drop_index(name, "task", if_exists=True)
    for name in ("idempotency_key", "idempotency_mark", "deleted_at"):
        op.drop_column("task", name)


def _has_tasks(connection: sa.Connection) -> bool:
    return bool(connection.scalar(sa.text("SELECT EXISTS (SELECT 1 FROM task)")))


def _create_indexes() -> None:
    has_key = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "ux_task_user_id_idempotency_key",
        "task",
        ["user_id", "idempotency_key"],
        unique=True,
        postgresql_where=has_key,
        sqlite_where=has_key,
        if_not_exists=True,
    )
    is_deleted = sa.text("deleted_at IS NOT NULL")
    op.create_index(
        "ix_task_user_id_created_at_deleted",
        "task",
        ["user_id", "created_at"],
        postgresql_where=is_deleted,
        sqlite_where=is_deleted,
        if_not_exists=True,
    )
