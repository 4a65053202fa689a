# [Task]: T023 [From]: specs/requirements.md
"""How the `task` table comes to be, and how it is tied to Better Auth's `"user"` table.

What the tables hold is in models.py.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateIndex, CreateTable

from db import Database, database_errors
from errors import DatabaseUnavailable
from models import TASK_TABLE

logger = logging.getLogger("tasks.tables")

# Seconds between attempts to reach a database that was not there at the start.
START_RETRY_INTERVAL = 1.0
# Seconds between looks for Better Auth's table, while there are requests.
OWNERS_LOOK_INTERVAL = 5.0
# Any number will do, so long as every process takes the same lock while it changes tables.
_LOCK = 7_236_830_419


async def keep_tables(database: Database) -> None:
    """Make the table, at once or in the background as soon as the database serves."""
    tables = _Tables(database)
    try:
        await tables.make()
    except DatabaseUnavailable:
        database.in_background(tables.make_when_reachable())


async def create_task_table(engine: AsyncEngine) -> None:
    """Make the `task` table and its index where they are missing, and nothing else.

    Raises DatabaseUnavailable.
    """
    async with _one_at_a_time(engine) as connection:
        await connection.execute(CreateTable(TASK_TABLE, if_not_exists=True))
        for index in TASK_TABLE.indexes:
            await connection.execute(CreateIndex(index, if_not_exists=True))


async def link_owners(engine: AsyncEngine) -> bool:
    """Have Better Auth's deletion of a user delete the user's tasks; False while it has no table.

    That is a foreign key, in place of one that would hinder the deletion. Tasks that already belong
    to nobody are reported and left alone. PostgreSQL only. Raises DatabaseUnavailable.
    """
    async with _one_at_a_time(engine) as connection:
        # Whoever works on the users meanwhile must not be held up by this.
        await connection.execute(text("SET LOCAL lock_timeout = '500ms'"))
        change = await connection.scalar(text(_OWNER_LINK))
        if change in (None, "linked"):
            return change is not None
        await connection.execute(text(change))
    logger.info("from now on the deletion of a user in Better Auth deletes the user's tasks")
    with database_errors():
        async with engine.connect() as connection:
            orphans = await connection.scalar(text(_COUNT_ORPHANS))
    if orphans:
        logger.warning("%s tasks belong to no user of Better Auth's, and are left alone", orphans)
    return True


class _Tables:
    """What is still to be done for the tables, while the service runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._linked = False
        self._next_look = 0.0

    async def make(self) -> None:
        with self._database.watched():
            await create_task_table(self._database.engine)
        self._database.works()
        if self._database.is_postgresql:
            await self._link_owners()
            # Better Auth's migration may come later. A connection that comes back to the pool shows
            # that the database is awake, so that looking then wakes no suspended one.
            event.listen(self._database.engine.sync_engine, "checkin", self._look_again)

    async def make_when_reachable(self) -> None:
        while True:
            await asyncio.sleep(START_RETRY_INTERVAL)
            with suppress(DatabaseUnavailable):
                await self.make()
                return

    async def _link_owners(self) -> None:
        self._next_look = time.monotonic() + OWNERS_LOOK_INTERVAL
        try:
            self._linked = await link_owners(self._database.engine)
        except DatabaseUnavailable as error:
            logger.warning("the foreign key to Better Auth's users can't be added yet: %s", error)

    def _look_again(self, *_: object) -> None:
        if not self._linked and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + OWNERS_LOOK_INTERVAL
            self._database.in_background(self._link_owners())


@asynccontextmanager
async def _one_at_a_time(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that one process at a time may be in."""
    with database_errors():
        async with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # IF NOT EXISTS alone fails when two processes make the table at once.
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            yield connection


# The ALTER TABLE that is called for, 'linked' if none is, NULL while there is no table that fits:
# its id must be text, as `user_id` is, and unique. NOT VALID: rows whose user is gone may stay.
_OWNER_LINK = """
    WITH owner AS (
        SELECT a.attrelid
        FROM pg_attribute a
        JOIN pg_constraint c ON c.conrelid = a.attrelid
            AND c.contype IN ('p', 'u')
            AND c.conkey = ARRAY[a.attnum]
        WHERE a.attrelid = to_regclass('"user"')
            AND a.attname = 'id'
            AND a.atttypid IN ('text'::regtype, 'varchar'::regtype)
        LIMIT 1
    ), link AS (
        SELECT c.conname, c.confdeltype = 'c' AS cascades
        FROM pg_constraint c
        JOIN owner ON owner.attrelid = c.confrelid
        WHERE c.conrelid = to_regclass('task') AND c.contype = 'f'
    ), hindrances AS (
        SELECT coalesce(string_agg(format('DROP CONSTRAINT %I, ', conname), ''), '') AS dropped
        FROM link
    )
    SELECT CASE
        WHEN EXISTS (SELECT FROM link WHERE cascades) THEN 'linked'
        ELSE 'ALTER TABLE task ' || dropped || 'ADD CONSTRAINT fk_task_user_id_user '
            || 'FOREIGN KEY (user_id) REFERENCES "user" (id) ON DELETE CASCADE NOT VALID'
        END
    FROM owner, hindrances
"""
_COUNT_ORPHANS = """
    SELECT count(*) FROM task WHERE NOT EXISTS (SELECT FROM "user" WHERE "user".id = task.user_id)
"""
