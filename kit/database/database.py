# [Task]: T009 [From]: specs/design.md
"""A database: its engine and its gate, whether it was last seen working, and sessions on it.

How a statement is run is told in execute.py, how the tables come to be in tables.py.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from typing import Any

from sqlalchemy import Select, Table, UpdateBase, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from kit.database import sqlite
from kit.database.failures import DRIVER_ERRORS, service_error
from kit.database.gate import Gate
from kit.database.pool import create_engine, quoted, set_search_path
from kit.database.urls import place, read_url
from kit.errors import DatabaseUnavailable, StatementTimeout
from kit.logs import Outage
from settings import Settings, SettingsError

logger = logging.getLogger("tasks.db")

# For changes of tables that are in use: while one waits for its lock, all others wait behind it.
LOCK_TIMEOUT = "300ms"
# Any number will do, so long as every process takes the same lock.
TABLES_LOCK = 7_236_830_419
# Seconds between two questions whether a database that failed is back, asked on behalf of probes.
PROBE_INTERVAL = 1.0

type Core = Select[Any] | UpdateBase
# Around a statement, with its SQL.
type StatementSpan = Callable[[Core, str], AbstractContextManager[None]]


class Database:
    """The engine, the gate in front of it, and whether it was last seen working."""

    setting = "DATABASE_URL"
    outage = "the database does not serve"
    # Which of several hosts is meant if the URL does not say.
    target = "read-write"

    def __init__(self, settings: Settings, table: Table) -> None:
        self.settings = settings
        # The table that it is asked about whether it serves.
        self.table = table
        url = settings.database_url.get_secret_value()
        self.asked = read_url(url, self.target, self.setting)
        # Whose table it is; None for wherever the server looks.
        self.schema = next(iter(self.asked.search_path), None)
        self.engine = create_engine(self.asked, settings)
        # By what compiled statements differ from those for other databases.
        self.sql_form = self.engine.dialect.name, self.schema
        self.is_postgresql = self.engine.dialect.name == "postgresql"
        # On SQLite, requests that read need not wait for those that write.
        self.file: sqlite.File | None = None
        if self.is_postgresql:
            self.gate = Gate(settings.database_pool_size, settings.database_pool_timeout)
        else:
            self.file = sqlite.File(settings, self.engine.url)
            self.gate = Gate(1, sqlite.patience(settings))
        # Set by tables.py: in older tables, what is written might not mean what it says.
        self.tables_ready = False
        self.seen_working = False
        # For statements that are run again because they had to give way to each other.
        self.repeat_lock = asyncio.Lock()
        # Set where statements are recorded: kit/telemetry/record.py.
        self.statement_span: StatementSpan | None = None
        # Called after each answer, which shows that the database is awake.
        self.after_answer: list[Callable[[], None]] = []
        # A statement took too long, and none has been answered since.
        self._in_doubt = False
        self._failed_at = float("-inf")
        self._outage = Outage(logger, self.outage)
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around what asks it: raise what a driver's error means, and note what that says of it."""
        try:
            yield
        except DRIVER_ERRORS as error:
            self.handle_error(error)
            raise

    def handle_error(self, error: Exception) -> None:
        """Note what a driver's error says of the database, and raise what it means, if it is known.

        Raises what failures.service_error makes of it.
        """
        meant = service_error(error, self.setting)
        if meant is None:
            return
        if isinstance(meant, StatementTimeout):
            self._in_doubt = True
        elif isinstance(meant, DatabaseUnavailable):
            self.mark_down(str(meant))
        raise meant from error

    def mark_up(self) -> None:
        """Note that it has answered."""
        self.seen_working = True
        self._in_doubt = False
        self._outage.ends()
        for call in self.after_answer:
            call()

    def mark_down(self, reason: str) -> None:
        """Note that it does not serve."""
        self.seen_working = False
        self._failed_at = time.monotonic()
        self._outage.begins(reason)

    async def is_ready(self) -> bool:
        """Whether its tables are there and it was last seen working."""
        return self.tables_ready and await self.serves()

    @property
    def probe_is_due(self) -> bool:
        """Whether it was last seen failing, and not just now; or nobody knows."""
        has_failed = not self.seen_working
        return self._in_doubt or (
            has_failed and time.monotonic() - self._failed_at >= PROBE_INTERVAL
        )

    async def serves(self) -> bool:
        """Whether it was last seen working.

        It is asked only after it was seen failing, and not often, so that a database that is
        suspended while nobody needs it is left asleep.
        """
        if self.probe_is_due:
            # Other probes need not ask meanwhile.
            self._in_doubt = False
            self._failed_at = time.monotonic()
            with suppress(DatabaseUnavailable):
                async with self.admission(None, reads=True):
                    await self._ask()
            self._failed_at = time.monotonic()
        return self.seen_working

    async def _ask(self) -> None:
        try:
            with self.watched():
                async with self.engine_for(reads=True).connect() as connection:
                    await connection.execute(select(self.table.c.id).limit(0))
        except StatementTimeout as error:  # Of one that any database in order answers at once.
            self.mark_down(str(error))
        else:
            self.mark_up()

    def for_reading(self) -> "Database":
        """Where a request that only reads is to look."""
        return self

    def engine_for(self, *, reads: bool) -> AsyncEngine:
        """The engine of a session."""
        return self.file.reading_engine if reads and self.file is not None else self.engine

    def admission(self, user: str | None, *, reads: bool) -> AbstractAsyncContextManager[None]:
        """Where a request of this user waits for its turn; None is no user."""
        if reads and self.file is not None:
            return nullcontext()
        return self.gate if user is None else self.gate.turn_of(user)

    def members(self) -> "list[Database]":
        """It, and its replica if it has one."""
        return [self]

    @asynccontextmanager
    async def changing_tables(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for changes of tables: one process at a time, for as long as it takes.

        The lock is the transaction's, so that it works through a pooler too. Raises driver errors.
        """
        patient = create_engine(self.asked, self.settings, is_patient=True)
        # Whatever the server's default is: what others did before the lock was free is to be seen.
        options = {"isolation_level": "READ COMMITTED"} if self.is_postgresql else {}
        try:
            async with patient.execution_options(**options).begin() as connection:
                if not self.is_postgresql:
                    await connection.exec_driver_sql("BEGIN IMMEDIATE")
                    yield connection
                    return
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({TABLES_LOCK})")
                await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                if self.schema is not None:
                    await _enter(connection, self.schema)
                yield connection
        finally:
            await patient.dispose()

    def in_background[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it until it is done or the database is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("work in the background failed", exc_info=error)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.dispose()
        if self.file is not None:
            await self.file.close()


async def _enter(connection: AsyncConnection, schema: str) -> None:
    """Have all names mean this schema's until the transaction ends; make it if it is missing."""
    name = quoted(schema)
    there = await connection.scalar(select(func.to_regnamespace(name)))
    if there is None:
        await connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    await connection.exec_driver_sql(set_search_path([schema]))


class Replicated(Database):
    """A primary with a streaming replica, from which is read while that is seen working.

    What is read there may be older than what was written a moment ago: docs/scaling.md.
    """

    def __init__(self, settings: Settings, table: Table) -> None:
        super().__init__(settings, table)
        self.replica = _Replica(settings, table)
        if not (self.is_postgresql and self.replica.is_postgresql):
            raise SettingsError(
                "DATABASE_READ_URL is for a replica of PostgreSQL: it and DATABASE_URL must be "
                "postgresql:// URLs, or remove it"
            )

    def for_reading(self) -> Database:
        if self.replica.probe_is_due:
            # The replica's work, so that it ends before its connections are closed.
            self.replica.in_background(self.replica.serves())
        return self.replica if self.replica.seen_working else self

    def members(self) -> list[Database]:
        return [self, self.replica]

    async def close(self) -> None:
        await self.replica.close()
        await super().close()


class _Replica(Database):
    setting = "DATABASE_READ_URL"
    outage = "the replica of DATABASE_READ_URL does not serve, and the primary is read from"
    # The list of hosts may then be the same as the primary's, whichever of them that is.
    target = "prefer-standby"

    def __init__(self, settings: Settings, table: Table) -> None:
        url = settings.database_read_url
        super().__init__(settings.model_copy(update={"database_url": url}), table)


def new_database(settings: Settings, table: Table) -> Database:
    """The database, which has connected to nothing yet. Raises SettingsError for a bad URL."""
    return (Replicated if settings.database_read_url else Database)(settings, table)


@asynccontextmanager
async def open_database(settings: Settings, table: Table) -> AsyncIterator[Database]:
    """The database for as long as the service runs. Raises SettingsError for a bad DATABASE_URL.

    It does not connect: a database that is away is no reason not to start.
    """
    database = new_database(settings, table)
    logger.info("tasks are kept in %s", place(database.engine.url))
    for one in database.members():
        if one.asked.ignored:
            logger.debug(
                "parameters of %s that mean nothing here: %s",
                one.setting,
                ", ".join(one.asked.ignored),
            )
    try:
        yield database
    finally:
        await database.close()
