# [Task]: T025 [From]: specs/design.md
"""What Alembic compares and changes: the `task` table, and nothing of Better Auth's.

At start kit/database/tables.py brings its own connection; the `alembic` command reads the settings.
"""

import asyncio
from typing import Any, Literal

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlmodel.sql.sqltypes import AutoString

from db import open_database
from kit.database.sql import UTCDateTime
from kit.database.tables import (
    VERSION_TABLE,
    TablesRefused,
    enter_schema_of_task,
    migration_errors,
    versions,
)
from models import TASK_TABLE
from settings import get_settings


def _is_ours(_object: Any, name: str | None, kind: str, _reflected: bool, _other: Any) -> bool:
    # The foreign key to Better Auth's users comes with their table: kit/database/tables.py.
    return name == TASK_TABLE.name if kind == "table" else kind != "foreign_key_constraint"


def _number(_context: Any, _revision: Any, directives: list[Any]) -> None:
    """Number the new migration, so that a start can compare them without Alembic's graph."""
    for script in directives:
        script.rev_id = f"{int(versions()[-1]) + 1:04}"


def _render(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """The types of SQLModel and of this service as those of SQLAlchemy that they stand for."""
    if kind == "type" and isinstance(item, AutoString):
        return f"sa.String({item.length or ''})"
    if kind == "type" and isinstance(item, UTCDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def _run(connection: Connection) -> None:
    schema = enter_schema_of_task(connection)
    context.configure(
        connection=connection,
        process_revision_directives=_number,
        render_item=_render,
        target_metadata=TASK_TABLE.metadata,
        include_object=_is_ours,
        version_table=VERSION_TABLE,
        # Where the table task is: another of the search path may be another installation's.
        version_table_schema=schema,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


async def _run_by_command() -> None:
    try:
        async with open_database(get_settings()) as database:
            with migration_errors():
                async with database.changing_tables() as connection:
                    await connection.run_sync(_run)
    except TablesRefused as error:
        raise CommandError(str(error)) from None


if (given := context.config.attributes.get("connection")) is not None:
    _run(given)
else:
    asyncio.run(_run_by_command())
