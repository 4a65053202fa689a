# [Task]: T009 [From]: specs/design.md
"""A database: its engine, its gate, its last known state, and its read replica.

execute.py runs statements. tables.py creates the tables.
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
from kit.database.gate import Gate, Turn
from kit.database.pool import create_engine, quoted, set_search_path
from kit.database.urls import place, read_url
from kit.errors import DatabaseUnavailable, StatementTimeout
from kit.logs import Outage
from settings import Settings, SettingsError

logger = logging.getLogger("tasks.db")

# While a change of a table waits for its lock, all other statements wait behind it.
LOCK_TIMEOUT = "300ms"
# The key of the advisory lock. The number is arbitrary, but all processes must use the same.
TABLES_LOCK = 7_236_830_419
# Seconds between two probes of a database that failed.
PROBE_INTERVAL = 1.0

type Core = Select[Any] | UpdateBase
type Work = Callable[[], Coroutine[Any, Any, object]]
# Makes the tracing span around a statement with this SQL.
type StatementSpan = Callable[[Core, str], AbstractContextManager[None]]


class Database:
    """The engine, the gate in front of it, and whether the last answer was a good one."""

    setting = "DATABASE_URL"
    outage = "the database does not serve"
    # The target_session_attrs if the URL names several hosts and no target.
    target = "read-write"

    def __init__(self, settings: Settings, table: Table) -> None:
        self.settings = settings
        # The table that a probe selects from.
        self.table = table
        url = settings.database_url.get_secret_value()
        self.asked = read_url(url, self.target, self.setting)
        # The schema of the table; None for the server's own search path.
        self.schema = next(iter(self.asked.search_path), None)
        self.engine = create_engine(self.asked, settings)
        # The cache key of compiled statements.
        self.sql_form = self.engine.dialect.name, self.schema
        self.is_postgresql = self.engine.dialect.name == "postgresql"
        # Set on SQLite, where reads don't wait for writes.
        self.file: sqlite.File | None = None
        if self.is_postgresql:
            self.gate = Gate(settings.database_pool_size, settings.database_pool_timeout)
        else:
            self.file = sqlite.File(settings, self.engine.url)
            self.gate = Gate(1, sqlite.turn_timeout(settings))
        # True once migrations are applied; until then requests get 503.
        self.tables_ready = False
        self.seen_working = False
        # Held while a statement is repeated after a conflict with another transaction.
        self.repeat_lock = asyncio.Lock()
        # Set by kit/telemetry/record.py.
        self.statement_span: StatementSpan | None = None
        # Work that is due as soon as the database is awake.
        self._due: list[Work] = []
        # True after a timeout, until the next answer.
        self._in_doubt = False
        self._failed_at = float("-inf")
        self._outage = Outage(logger, self.outage)
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, driver errors are raised as ServiceErrors and change the database's state."""
        try:
            yield
        except DRIVER_ERRORS as error:
            self.handle_error(error)
            raise

    def handle_error(self, error: Exception) -> None:
        """Record a driver's error and raise the ServiceError for it, if there is one.

        failures.service_error decides which one that is.
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
        """Record that the database has answered."""
        self.seen_working = True
        self._in_doubt = False
        self._outage.ends()
        while self._due:
            self.in_background(self._due.pop()())

    def mark_down(self, reason: str) -> None:
        """Record that the database does not serve."""
        self.seen_working = False
        self._failed_at = time.monotonic()
        self._outage.begins(reason)

    async def is_ready(self) -> bool:
        """Whether the tables are up to date and the database was last seen working."""
        return self.tables_ready and await self.serves()

    @property
    def probe_is_due(self) -> bool:
        """Whether to probe: its last failure is some time ago, or a timeout left its state open."""
        has_failed = not self.seen_working
        return self._in_doubt or (
            has_failed and time.monotonic() - self._failed_at >= PROBE_INTERVAL
        )

    async def serves(self) -> bool:
        """Whether it was last seen working.

        It is probed only after a failure, once per PROBE_INTERVAL, so that a suspended database
        stays asleep.
        """
        if self.probe_is_due:
            # So that concurrent callers don't probe as well.
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
        except StatementTimeout as error:  # A healthy database answers this at once.
            self.mark_down(str(error))
        else:
            self.mark_up()

    def for_reading(self) -> "Database":
        """The database for a request that only reads."""
        return self

    def engine_for(self, *, reads: bool) -> AsyncEngine:
        """The engine for a session."""
        return self.file.reading_engine if reads and self.file is not None else self.engine

    def admission(self, user: str | None, *, reads: bool) -> AbstractAsyncContextManager[None]:
        """A context in which a request of this user may use a connection; None means no user."""
        if reads and self.file is not None:
            return nullcontext()
        return Turn(self.gate, user)

    def members(self) -> "list[Database]":
        """The database and, if there is one, its replica."""
        return [self]

    @asynccontextmanager
    async def changing_tables(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for changes of tables, in one process at a time, without a timeout.

        Its advisory lock ends with the transaction, so it works through a pooler. Raises driver
        errors.
        """
        engine = create_engine(self.asked, self.settings, has_timeout=False)
        # Only READ COMMITTED sees what another process did before it released the lock.
        options = {"isolation_level": "READ COMMITTED"} if self.is_postgresql else {}
        try:
            async with engine.execution_options(**options).begin() as connection:
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
            await engine.dispose()

    def when_awake(self, seconds: float, work: Work) -> None:
        """Run work in the background after the first answer of the database in so many seconds.

        So the work wakes no suspended database.
        """
        asyncio.get_running_loop().call_later(seconds, self._due.append, work)

    def in_background[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in a task, which is cancelled when the database is closed."""
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
    """Make this schema the only one searched until the transaction ends. Create it if needed."""
    name = quoted(schema)
    found = await connection.scalar(select(func.to_regnamespace(name)))
    if found is None:
        await connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    await connection.exec_driver_sql(set_search_path([schema]))


class Replicated(Database):
    """A primary with a streaming replica, which serves reads while it works.

    Reads from the replica may miss the latest writes (docs/scaling.md).
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
            # A task of the replica, so that it ends before the replica's connections are closed.
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
    # So both settings may name the same list of hosts.
    target = "prefer-standby"

    def __init__(self, settings: Settings, table: Table) -> None:
        url = settings.database_read_url
        super().__init__(settings.model_copy(update={"database_url": url}), table)


def new_database(settings: Settings, table: Table) -> Database:
    """The database, not connected yet. Raises SettingsError for a bad URL."""
    return (Replicated if settings.database_read_url else Database)(settings, table)


@asynccontextmanager
async def open_database(settings: Settings, table: Table) -> AsyncIterator[Database]:
    """The database for as long as the service runs. Raises SettingsError for a bad DATABASE_URL.

    It does not connect, so the service starts while the database is down.
    """
    database = new_database(settings, table)
    logger.info("tasks are kept in %s", place(database.engine.url))
    for member in database.members():
        if member.asked.ignored:
            logger.debug(
                "ignored parameters of %s: %s", member.setting, ", ".join(member.asked.ignored)
            )
    try:
        yield database
    finally:
        await database.close()
