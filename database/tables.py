# [Task]: T023 [From]: specs/requirements.md
"""How the `task` table comes to be, and how it is tied to Better Auth's `"user"` table.

What the tables hold is in models.py.
"""

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Connection, column, inspect, select, table, text
from sqlalchemy.exc import SQLAlchemyError

from database.database import Database
from database.failures import database_errors
from errors import DatabaseUnavailable

logger = logging.getLogger("tasks.tables")

# Seconds between attempts to reach a database that was not there at the start.
START_RETRY_INTERVAL = 0.5
# Seconds between looks for Better Auth's table, while there are requests.
OWNERS_LOOK_INTERVAL = 5.0
# Seconds the start waits for the tables; they may take longer while requests get 503.
START_PATIENCE = 3.0
# Seconds after which an upgrade is given up, rolled back and begun anew.
UPGRADE_TIMEOUT = 600.0

MIGRATIONS = Path(__file__).parent.parent / "migrations"
# The newest of the migrations, and the table in which Alembic keeps what the database has.
HEAD = "0001"
VERSION_TABLE = "task_schema"


async def keep_tables(database: Database) -> None:
    """Bring the tables up to date: now if that is quick, else in the background until done."""
    tables = _Tables(database)
    database.in_background(tables.keep())
    with suppress(TimeoutError):
        await asyncio.wait_for(tables.tried.wait(), START_PATIENCE)


async def upgrade_tables(database: Database) -> None:
    """Apply the migrations that the database lacks, in one transaction, one process at a time.

    Raises DatabaseUnavailable.
    """
    with database.watched():
        async with asyncio.timeout(UPGRADE_TIMEOUT), database.changing_tables() as connection:
            version = await connection.run_sync(_version)
            if version is None or version < HEAD:
                await connection.run_sync(_upgrade)
            elif version > HEAD:
                logger.warning(
                    "the tables are those of a newer version of this service: %s", version
                )


def _version(connection: Connection) -> str | None:
    # Asked without Alembic, whose import takes longer than the rest of a start.
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def link_owners(database: Database) -> bool:
    """Have Better Auth's deletion of a user delete the user's tasks; False while it has no table.

    That is a foreign key, in place of one that would hinder the deletion. Tasks that already belong
    to nobody are reported and left alone. PostgreSQL only. Raises DatabaseUnavailable.
    """
    with database_errors():
        async with database.engine.connect() as connection:
            change = await connection.scalar(text(_OWNER_LINK))
        if change in (None, "linked"):
            return change is not None
        async with database.changing_tables() as connection:
            # Asked once more, now that nobody else can be at it.
            change = await connection.scalar(text(_OWNER_LINK))
            if change in (None, "linked"):
                return change is not None
            await connection.execute(text(change))
    logger.info("from now on the deletion of a user in Better Auth deletes the user's tasks")
    await _report_orphans(database)
    return True


async def _report_orphans(database: Database) -> None:
    # After the locks have been released: it takes the longer the more tasks there are.
    try:
        with database_errors():
            async with database.engine.connect() as connection:
                orphans = await connection.scalar(text(_COUNT_ORPHANS))
    except DatabaseUnavailable as error:
        logger.warning("tasks that belong to no user of Better Auth's were not counted: %s", error)
    else:
        if orphans:
            logger.warning("%s tasks belong to no user of Better Auth's: left alone", orphans)


class _Tables:
    """What is still to be done for the tables, while the service runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._linked = False
        self._next_look = 0.0
        self.tried = asyncio.Event()

    async def keep(self) -> None:
        while True:
            try:
                await upgrade_tables(self._database)
                break
            except DatabaseUnavailable:
                self.tried.set()
                await asyncio.sleep(START_RETRY_INTERVAL)
        self._database.tables_ready = True
        self._database.works()
        if self._database.is_postgresql:
            await self._link_owners()
        self.tried.set()
        if self._database.is_postgresql:
            # Better Auth's migration may come later. An answer shows that the database is awake, so
            # that looking then wakes no suspended one.
            self._database.when_awake.append(self._look_again)

    async def _link_owners(self) -> None:
        self._next_look = time.monotonic() + OWNERS_LOOK_INTERVAL
        try:
            self._linked = await link_owners(self._database)
        except (DatabaseUnavailable, SQLAlchemyError) as error:
            if self._database.seen_working:  # Else the log has told of worse.
                logger.warning(
                    "the foreign key to Better Auth's users can't be added yet: %s", error
                )

    def _look_again(self) -> None:
        if not self._linked and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + OWNERS_LOOK_INTERVAL
            self._database.in_background(self._link_owners())


# The ALTER TABLE that is called for, 'linked' if none is, NULL while there is no table that fits:
# its id must be text, as `user_id` is, and unique. NOT VALID: rows whose user is gone may stay.
_OWNER_LINK = """
    WITH owner AS (
        SELECT a.attrelid
        FROM pg_attribute a
        JOIN pg_constraint c ON c.conrelid = a.attrelid
            AND c.contype IN ('p', 'u')
            AND c.conkey = ARRAY[a.attnum]
            AND NOT c.condeferrable
        WHERE a.attrelid = to_regclass('"user"')
            AND a.attname = 'id'
            AND a.atttypid IN ('text'::regtype, 'varchar'::regtype)
        LIMIT 1
    ), link AS (
        SELECT c.conname, c.confdeltype = 'c' AS cascades
        FROM pg_constraint c
        JOIN owner ON owner.attrelid = c.confrelid
        WHERE c.conrelid = to_regclass('task') AND c.contype = 'f'
    ), change AS (
        SELECT format('DROP CONSTRAINT %I', conname) AS part FROM link WHERE NOT cascades
        UNION ALL
        SELECT 'ADD CONSTRAINT fk_task_user_id_user FOREIGN KEY (user_id) '
            || 'REFERENCES "user" (id) ON DELETE CASCADE NOT VALID'
        WHERE NOT EXISTS (SELECT FROM link WHERE cascades)
    )
    SELECT coalesce('ALTER TABLE task ' || (SELECT string_agg(part, ', ') FROM change), 'linked')
    FROM owner
"""
_COUNT_ORPHANS = """
    SELECT count(*) FROM task WHERE NOT EXISTS (SELECT FROM "user" WHERE "user".id = task.user_id)
"""
