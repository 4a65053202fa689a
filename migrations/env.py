# [Task]: T025 [From]: specs/design.md
"""What Alembic compares and changes: the `task` table, and nothing of Better Auth's.

At start database/tables.py brings its own connection; the `alembic` command reads the settings.
"""

import asyncio
from typing import Any

from alembic import context
from sqlalchemy import Connection

from database.database import open_database
from models import TASK_TABLE
from settings import get_settings

# Of its own name: another application in the database may use Alembic too.
VERSION_TABLE = "task_schema"


def _is_ours(_object: Any, name: str | None, kind: str, _reflected: bool, _other: Any) -> bool:
    # The foreign key to Better Auth's users comes and goes with their table: database/tables.py.
    return name == TASK_TABLE.name if kind == "table" else kind != "foreign_key_constraint"


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=TASK_TABLE.metadata,
        include_object=_is_ours,
        version_table=VERSION_TABLE,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


async def _run_by_command() -> None:
    async with (
        open_database(get_settings()) as database,
        database.changing_tables() as connection,
    ):
        await connection.run_sync(_run)


if (given := context.config.attributes.get("connection")) is not None:
    _run(given)
else:
    asyncio.run(_run_by_command())
