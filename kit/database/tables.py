# [Task]: T023 [From]: specs/requirements.md
"""Applies migrations to the `task` table and links it to Better Auth's `"user"` table.

models.py defines the tables.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, String, column, func, select, table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.database.database import LOCK_TIMEOUT, TABLES_LOCK, Database
from kit.database.failures import (
    database_errors,
    describe,
    driver_error,
    service_error,
)
from kit.database.indexes import make_indexes
from kit.errors import DatabaseUnavailable

logger = logging.getLogger("tasks.tables")

# Seconds between attempts to reach a database that was down at the start.
START_RETRY_INTERVAL = 0.5
# Seconds between attempts at a migration that raises an unexpected error.
BUG_RETRY_INTERVAL = 30.0
# Seconds between attempts at a migration that the database refuses, until an operator acts.
REFUSED_RETRY_INTERVAL = 30.0
# Seconds between checks for Better Auth's table while requests come. The interval doubles up to the
# longest one each time the database refuses the foreign key.
OWNERS_LOOK_INTERVAL = 5.0
LONGEST_LOOK_INTERVAL = 3600.0
# Seconds the start waits for the migrations. After that, requests get 503 until they are applied.
START_PATIENCE = 3.0
# Seconds after which an upgrade is rolled back and started again.
UPGRADE_TIMEOUT = 600.0

MIGRATIONS = Path(__file__).parents[2] / "migrations"
# Alembic's version table. It has its own name, since another application in the same database may
# use Alembic too.
VERSION_TABLE = "task_schema"


def versions() -> list[str]:
    """The numbers of all migrations, oldest first. It does not import Alembic."""
    return sorted(path.name.partition("_")[0] for path in MIGRATIONS.glob("versions/[0-9]*.py"))


async def keep_tables(database: Database) -> None:
    """Migrate the tables. Waits up to START_PATIENCE; the rest runs in the background."""
    tables = _Tables(database)
    database.in_background(tables.keep())
    with suppress(TimeoutError):
        await asyncio.wait_for(tables.tried.wait(), START_PATIENCE)


class TablesRefused(Exception):
    """The tables can't be migrated. The text says why and what to do."""


async def upgrade_tables(database: Database) -> None:
    """Apply missing migrations in one transaction, in one process at a time.

    Raises DatabaseUnavailable or TablesRefused.
    """
    *older, newest = versions()
    with database.watched(), migration_errors(database.setting):
        # Most starts have nothing to migrate, so the first check takes no lock.
        async with database.engine.connect() as connection:
            version = await _version(connection, database.schema)
            await _warn_of_encoding(connection)
        if version is None or version in older:
            async with asyncio.timeout(UPGRADE_TIMEOUT), database.changing_tables() as connection:
                version = await _version(connection, database.schema)
                if version is None or version in older:
                    await connection.run_sync(_upgrade)
                    version = newest
        if version != newest:
            logger.warning("the tables are those of a newer version of this service: %s", version)


@contextmanager
def migration_errors(setting: str = "DATABASE_URL") -> Iterator[None]:
    """Inside, errors that a retry can't fix are raised as TablesRefused."""
    try:
        yield
    except DBAPIError as error:
        meant = service_error(error, setting)
        state = getattr(driver_error(error), "sqlstate", None)
        lacks_privilege = state in ("42501", "3F000")
        # 0A000: an object that refers to the table, such as a view, prevents its change.
        if isinstance(meant, DatabaseUnavailable) and not lacks_privilege and state != "0A000":
            raise
        reason = meant if lacks_privilege else describe(error)
        raise TablesRefused(f"the tables can't be brought up to date: {reason}") from error


async def _version(connection: AsyncConnection, schema: str | None) -> str | None:
    # Alembic is not used: its import takes longer than the rest of a start.
    found = (
        await connection.execute(text(_VERSION_TABLE[connection.dialect.name]), {"schema": schema})
    ).one_or_none()
    if found is None:
        return None
    version = None
    if found.columns == "version_num":
        where = table(VERSION_TABLE, schema=found.schema)
        version = await connection.scalar(
            select(column("version_num", String())).select_from(where)
        )
    if found.columns != "version_num" or not re.fullmatch(r"\d{4}", version or "0000"):
        raise TablesRefused(
            f"there is a table {VERSION_TABLE} that is not this service's: rename it, or set "
            "DATABASE_URL to another database"
        )
    return version


# Finds the version table in the schema of the table task, which may be any of the search path.
_VERSION_TABLE = {
    "postgresql": """
        SELECT nspname AS schema, (
            SELECT string_agg(attname, ',') FROM pg_attribute
            WHERE attrelid = found.oid AND attnum > 0 AND NOT attisdropped) AS columns
        FROM pg_class AS found JOIN pg_namespace ON pg_namespace.oid = relnamespace
        LEFT JOIN pg_class AS task ON task.oid = to_regclass('task')
        WHERE found.relname = 'task_schema' AND CASE
            WHEN CAST(:schema AS text) IS NOT NULL THEN nspname = :schema
            WHEN task.oid IS NULL THEN found.oid = to_regclass('task_schema')
            ELSE found.relnamespace = task.relnamespace END
    """,
    "sqlite": """
        SELECT NULL AS schema, (SELECT group_concat(name) FROM pragma_table_info(s.name)) AS columns
        FROM sqlite_master AS s WHERE :schema IS NULL AND lower(s.name) = 'task_schema'
    """,
}


async def _warn_of_encoding(connection: AsyncConnection) -> None:
    if connection.dialect.name != "postgresql":
        return
    encoding = await connection.scalar(text("SELECT getdatabaseencoding()"))
    if encoding != "UTF8":
        logger.warning(
            "the database's encoding is %s, which can't hold every character: tasks with others "
            "fail. Make the database anew with ENCODING 'UTF8'",
            encoding,
        )


def enter_schema_of_task(connection: Connection) -> str | None:
    """Put the schema of the table task first in the search path until the transaction ends.

    Returns the name of that schema; None on SQLite, or if there is no such table.
    """
    if connection.dialect.name != "postgresql":
        return None
    schema: str | None = connection.scalar(text(_ENTER_SCHEMA_OF_TASK))
    return schema


_ENTER_SCHEMA_OF_TASK = """
    SELECT nspname FROM (
        SELECT nspname, set_config(
            'search_path', quote_ident(nspname) || ', ' || current_setting('search_path'), true)
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE pg_class.oid = to_regclass('task')
        OFFSET 0
    ) AS entered
"""


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


class LinkRefused(Exception):
    """PostgreSQL refuses the foreign key. The message says what is missing."""


async def link_owners(database: Database) -> bool:
    """Add the foreign key by which Better Auth's deletion of a user deletes the user's tasks.

    Returns False if that is not possible yet. An existing foreign key that does not cascade is
    replaced. Tasks without a user are reported and left alone. PostgreSQL only. It waits at the
    gate like a request. Raises DatabaseUnavailable or LinkRefused.
    """
    async with database.gate:
        with database.watched():
            async with database.engine.begin() as connection:
                change = await connection.scalar(text(_OWNER_LINK))
                if change in (None, "linked"):
                    return change is not None
                if not await connection.scalar(select(func.pg_try_advisory_xact_lock(TABLES_LOCK))):
                    return False
                # Checked again with the lock held.
                change = await connection.scalar(text(_OWNER_LINK))
                if change in (None, "linked"):
                    return change is not None
                await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
                await _change(connection, change)
    logger.info("from now on the deletion of a user in Better Auth deletes the user's tasks")
    await _report_orphans(database)
    return True


async def _change(connection: AsyncConnection, change: str) -> None:
    try:
        await connection.execute(text(change))
    except DBAPIError as error:
        match getattr(error.orig, "sqlstate", None):
            case "42501":
                raise LinkRefused(
                    "the database user of this service lacks the privilege to refer to it: "
                    'GRANT REFERENCES ON "user" TO that user'
                ) from error
            case "55P03":  # The table is locked just now.
                raise
            case _:
                raise LinkRefused(f"PostgreSQL refuses it ({describe(error)})") from error


async def _report_orphans(database: Database) -> None:
    # It runs after the locks are released and with a short timeout: requests may be waiting.
    try:
        async with database.gate:
            with database_errors():
                async with database.engine.begin() as connection:
                    await connection.execute(text("SET LOCAL statement_timeout = '200ms'"))
                    orphans = await connection.scalar(text(_COUNT_ORPHANS))
    except DatabaseUnavailable as error:
        logger.info("tasks that belong to no user of Better Auth's were not counted: %s", error)
    else:
        if orphans:
            logger.warning("%s tasks belong to no user of Better Auth's: left alone", orphans)


class _Tables:
    """The background work on the tables while the service runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._look_interval = OWNERS_LOOK_INTERVAL
        self._refusal = ""
        self._tables_refused = ""
        self.tried = asyncio.Event()

    async def keep(self) -> None:
        while not await self._done(upgrade_tables):
            pass
        self._database.tables_ready = True
        self._database.mark_up()
        if self._database.is_postgresql:
            await self._link_owners()
            while not await self._done(make_indexes):
                pass
        self.tried.set()

    async def _done(self, work: Callable[[Database], Awaitable[None]]) -> bool:
        """Run it and return whether it succeeded. After a failure, sleep before returning False."""
        try:
            await work(self._database)
        except DatabaseUnavailable:
            wait = START_RETRY_INTERVAL
        except TablesRefused as error:
            wait = REFUSED_RETRY_INTERVAL
            if str(error) != self._tables_refused:
                self._tables_refused = str(error)
                logger.error("%s (looked at again every %g s)", error, wait)
        except Exception:
            wait = BUG_RETRY_INTERVAL
            logger.exception("the tables can't be brought up to date: tried again in %g s", wait)
        else:
            return True
        self.tried.set()
        await asyncio.sleep(wait)
        return False

    async def _link_owners(self) -> None:
        try:
            if await link_owners(self._database):
                return
            self._look_interval = OWNERS_LOOK_INTERVAL
        except DatabaseUnavailable:
            pass  # Already logged as an outage.
        except LinkRefused as error:
            self._look_interval = min(2 * self._look_interval, LONGEST_LOOK_INTERVAL)
            if str(error) != self._refusal:
                self._refusal = str(error)
                logger.warning(
                    "Better Auth's deletion of a user will not delete the user's tasks, since the "
                    "foreign key to its users can't be added: %s",
                    error,
                )
        # Better Auth's migration may come later.
        self._database.when_awake(self._look_interval, self._link_owners)


# The ALTER TABLE to run, 'linked' if the foreign key exists, NULL if there is no suitable table:
# its id must be unique and of type text, like `user_id`. NOT VALID lets rows without a user stay.
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
