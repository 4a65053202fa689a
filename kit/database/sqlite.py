# [Task]: T080 [From]: specs/requirements.md
"""SQLite: connections with a statement timeout, and the execution of single statements.

A short read runs in the event loop's thread. Longer reads and all writes run in other threads
(specs/decisions.md, D48). Sessions use the same connection class through aiosqlite.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

from sqlalchemy import URL, ExceptionContext, event
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from kit.database.failures import BROKEN, is_sqlite
from kit.database.gate import Gate, Turn
from kit.database.search import sqlite_contains
from settings import Settings

# Seconds that a read may take in the event loop's thread, where it blocks all other requests.
AT_ONCE = 0.005
# Connections for longer reads. More threads would be slower, since they compete for the GIL.
READERS = 3
# The user whose request reads, so that one user's long reads leave a thread for others.
reading_user: ContextVar[str | None] = ContextVar("reading_user", default=None)
# Seconds to wait for another process that creates the same file.
CREATION_TIMEOUT = 1.0
# SQLite checks the deadline every so many instructions, which take some microseconds.
_INSTRUCTIONS = 1000


class Connection(sqlite3.Connection):
    """A connection whose statements are interrupted after `limit` seconds; None means no limit.

    `set_up` must be called before the first statement.
    """

    def __init__(
        self, path: str, *, limit: float | None, reads_only: bool = False, **options: Any
    ) -> None:
        # A new file is created with mode 0600, which SQLite copies to -wal and -shm. An existing
        # file is not opened: closing it would release all locks of this process on it.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        super().__init__(path, **{**options, "check_same_thread": False})
        # Any thread may set it. It ends the running statement.
        self.is_abandoned = False
        self._limit = float("inf") if limit is None else limit
        self._deadline = float("inf")
        self._reads_only = reads_only
        self._is_set_up = False
        self.set_progress_handler(self._is_over, _INSTRUCTIONS)
        self.create_function("contains", 2, sqlite_contains, deterministic=True)

    def _is_over(self) -> bool:
        return self.is_abandoned or time.monotonic() > self._deadline

    def start_clock(self) -> None:
        self._deadline = time.monotonic() + self._limit

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or _Cursor)

    def commit(self) -> None:
        self._deadline = float("inf")  # A COMMIT must not be interrupted.
        super().commit()

    def rollback(self) -> None:
        self._deadline = float("inf")
        super().rollback()

    def fetch(self, sql: str, arguments: tuple[Any, ...]) -> list[Any]:
        """All rows of one statement."""
        if not self._is_set_up:
            self.set_up()
        rows: list[Any] = self.cursor().execute(sql, arguments).fetchall()
        return rows

    def set_up(self) -> None:
        if not self._reads_only:
            self._use_wal()
        for pragma in (
            "synchronous = FULL",
            "foreign_keys = ON",
            f"query_only = {self._reads_only}",
        ):
            self.execute(f"PRAGMA {pragma}")
        self._is_set_up = True

    def _use_wal(self) -> None:
        deadline = time.monotonic() + CREATION_TIMEOUT
        while True:
            try:
                self.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                # Another process creates the same file. SQLite's busy timeout does not cover that.
                if not is_sqlite(error, sqlite3.SQLITE_BUSY) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return


class _Cursor(sqlite3.Cursor):
    connection: Connection

    def execute(self, *arguments: Any) -> Any:
        self.connection.start_clock()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        self.connection.start_clock()
        return super().executemany(*arguments)

    # The limit applies to each fetch, so that a result read in parts may take longer in total.

    def fetchone(self) -> Any:
        self.connection.start_clock()
        return super().fetchone()

    def fetchmany(self, *arguments: Any) -> Any:
        self.connection.start_clock()
        return super().fetchmany(*arguments)


def _open(path: str, **options: Any) -> Connection:
    """A connection that is set up. aiosqlite calls this in a thread."""
    connection = Connection(path, **options)
    try:
        connection.set_up()
    except BaseException:
        connection.close()
        raise
    return connection


def turn_timeout(settings: Settings) -> float:
    """Seconds that a request waits for its turn: both timeouts, as SQLite has no server."""
    return settings.database_pool_timeout + settings.database_connect_timeout


def create_engine(
    settings: Settings, url: URL, limit: float | None, *, reads_only: bool = False
) -> AsyncEngine:
    """An engine for sessions. For writing it has one connection, since SQLite has one writer."""
    engine = create_async_engine(
        url,
        hide_parameters=True,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=READERS if reads_only else 1,
        max_overflow=0,
        pool_timeout=turn_timeout(settings),
        # Each session ends its own transaction, so nothing is left to reset.
        pool_reset_on_return=None,
        connect_args={
            "factory": partial(_open, limit=limit, reads_only=reads_only),
            "timeout": settings.database_statement_timeout,
        },
    )
    event.listen(engine.sync_engine, "before_cursor_execute", _begin_in_time)
    event.listen(engine.sync_engine, "handle_error", _discard_broken)
    event.listen(engine.sync_engine, "invalidate", _interrupt)
    return engine


def _begin_in_time(
    connection: SyncConnection, cursor: Any, statement: str, *_arguments: object
) -> None:
    # sqlite3 begins a transaction if the first word is that of a write, but not behind WITH. A
    # SAVEPOINT outside a transaction would be committed by its RELEASE.
    driver = cast(Any, connection.connection.driver_connection)
    word = statement.split(maxsplit=1)[0].upper()
    if word in ("WITH", "SAVEPOINT") and not driver.in_transaction:
        cursor.execute("BEGIN")


def _discard_broken(context: ExceptionContext) -> None:
    """Reopen the file after it was found damaged: it may have been replaced."""
    error = context.original_exception
    if is_sqlite(error, *BROKEN):
        context.is_disconnect = True


def _interrupt(connection: Any, *_: object) -> None:
    """Interrupt the statement of a session whose request was cancelled."""
    with contextlib.suppress(StopIteration, ValueError):
        connection.driver_connection.interrupt().send(None)


async def add_functions(connection: AsyncConnection) -> None:
    """Register the function of search.py on a connection of any engine."""
    if "contains" not in connection.info:
        raw = await connection.get_raw_connection()
        driver = cast(Any, raw.driver_connection)
        await driver.create_function("contains", 2, sqlite_contains, deterministic=True)
        connection.info["contains"] = True


class File:
    """An SQLite file, for statements that are their own transactions."""

    def __init__(self, settings: Settings, url: URL) -> None:
        path = os.path.abspath(str(url.database))
        limit = settings.database_statement_timeout
        options: dict[str, Any] = {"timeout": limit, "isolation_level": None}
        threads = ThreadPoolExecutor(READERS + 1, "sqlite")
        self._reading = _Lane(
            partial(Connection, path, limit=limit, reads_only=True, **options), threads
        )
        self._writing = _Lane(partial(Connection, path, limit=limit, **options), threads)
        options["timeout"] = 0
        self._connect = partial(Connection, path, limit=AT_ONCE, reads_only=True, **options)
        self._connection: Connection | None = None
        self._threads = threads
        self._gate = Gate(READERS, turn_timeout(settings))
        # For sessions that only read.
        self.reading_engine = create_engine(settings, url, limit, reads_only=True)

    async def read(self, sql: str, *arguments: Any) -> list[Any]:
        """The rows of a SELECT.

        Raises sqlite3.Error, or DatabaseUnavailable if too many long reads are running.
        """
        if self._connection is None:
            self._connection = self._connect()
        try:
            return self._connection.fetch(sql, arguments)
        except sqlite3.Error as error:
            if not is_sqlite(error, sqlite3.SQLITE_INTERRUPT):
                self._connection.close()
                self._connection = None
                if not is_sqlite(error, sqlite3.SQLITE_BUSY):
                    raise
        user = reading_user.get()
        async with Turn(self._gate, user):
            return await self._reading.fetch(sql, arguments)

    async def write(self, sql: str, *arguments: Any) -> list[Any]:
        """The rows that a write returns. Raises sqlite3.Error."""
        return await self._writing.fetch(sql, arguments)

    async def close(self) -> None:
        """Interrupt running statements and close all connections."""
        await self.reading_engine.dispose()
        lanes = (self._reading, self._writing)
        for lane in lanes:
            lane.abandon()
        self._threads.shutdown()
        for lane in lanes:
            lane.close()
        if self._connection is not None:
            self._connection.close()


class _Lane:
    """A pool of connections of one kind. Their statements run in threads."""

    def __init__(self, connect: Callable[[], Connection], threads: ThreadPoolExecutor) -> None:
        self._connect = connect
        self._threads = threads
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []

    async def fetch(self, sql: str, arguments: tuple[Any, ...]) -> list[Any]:
        """The rows of a statement. Cancelling the task interrupts the statement."""
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = self._connect()
            self._open.add(connection)
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, connection.fetch, sql, arguments)
        try:
            rows = await asyncio.shield(running)
        except BaseException:
            connection.is_abandoned = True
            # Called when the thread has ended the statement.
            running.add_done_callback(partial(self._discard, connection))
            raise
        self._idle.append(connection)
        return rows

    def _discard(self, connection: Connection, ended: asyncio.Future[Any]) -> None:
        ended.exception()
        self._open.discard(connection)
        connection.close()

    def abandon(self) -> None:
        for connection in self._open:
            connection.is_abandoned = True

    def close(self) -> None:
        while self._open:
            self._open.pop().close()
