# [Task]: T080 [From]: specs/requirements.md
"""SQLite: connections whose statements end in time, and how a single statement is run on them.

A short read runs at once, in the event loop's thread. What takes longer, and every write, runs in
a thread (specs/decisions.md, D48). Sessions use the same class of connections through aiosqlite.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

from sqlalchemy import URL, ExceptionContext, event
from sqlalchemy import Connection as SyncConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from kit.database.failures import BROKEN, is_sqlite
from kit.database.gate import Gate
from kit.database.search import sqlite_contains
from settings import Settings

# Seconds that a read may take in the event loop's thread, where all others wait for it.
AT_ONCE = 0.005
# Connections for longer reads. Threads compete for the interpreter's lock: more of them are slower.
READERS = 3
# Seconds to wait for another process that creates the same file.
CREATION_PATIENCE = 1.0
# SQLite looks at the clock after so many of its instructions, some microseconds.
_INSTRUCTIONS = 1000


class Connection(sqlite3.Connection):
    """A connection to a file whose statements end within `limit` seconds, if that is not None.

    `set_up` is called before its first statement.
    """

    def __init__(
        self, path: str, *, limit: float | None, reads_only: bool = False, **options: Any
    ) -> None:
        # SQLite gives -wal and -shm the mode of the file. Only a new file is opened here: to close
        # a file releases all locks that this process has on it.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        super().__init__(path, **{**options, "check_same_thread": False})
        # Set to end its statement, in whatever thread that runs.
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
        self._deadline = float("inf")  # A COMMIT that has begun is not cut off.
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
        deadline = time.monotonic() + CREATION_PATIENCE
        while True:
            try:
                self.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                # Another process creates the same file. SQLite does not wait for this by itself.
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

    # Whoever reads a result part by part may take longer.

    def fetchone(self) -> Any:
        self.connection.start_clock()
        return super().fetchone()

    def fetchmany(self, *arguments: Any) -> Any:
        self.connection.start_clock()
        return super().fetchmany(*arguments)


def _open(path: str, **options: Any) -> Connection:
    """A connection that is set up, for aiosqlite, which calls this in a thread."""
    connection = Connection(path, **options)
    try:
        connection.set_up()
    except BaseException:
        connection.close()
        raise
    return connection


def patience(settings: Settings) -> float:
    """Seconds that a request waits for its turn; there is no server to connect to."""
    return settings.database_pool_timeout + settings.database_connect_timeout


def create_engine(
    settings: Settings, url: URL, limit: float | None, *, reads_only: bool = False
) -> AsyncEngine:
    """An engine for sessions. SQLite has one writer at a time, so an engine for writing has one
    connection.
    """
    engine = create_async_engine(
        url,
        hide_parameters=True,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=READERS if reads_only else 1,
        max_overflow=0,
        pool_timeout=patience(settings),
        # Whoever begins a transaction ends it.
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
    # sqlite3 begins a transaction before what writes, which it knows by the first word. Behind a
    # WITH it sees none, and a savepoint without a transaction around it is committed on its own.
    driver = cast(Any, connection.connection.driver_connection)
    word = statement.split(maxsplit=1)[0].upper()
    if word in ("WITH", "SAVEPOINT") and not driver.in_transaction:
        cursor.execute("BEGIN")


def _discard_broken(context: ExceptionContext) -> None:
    """Open the file anew after it was found damaged: another may take its place."""
    error = context.original_exception
    if is_sqlite(error, *BROKEN):
        context.is_disconnect = True


def _interrupt(connection: Any, *_: object) -> None:
    """End the statement of a session whose request has been cancelled."""
    with contextlib.suppress(StopIteration, ValueError):
        connection.driver_connection.interrupt().send(None)


async def add_functions(connection: AsyncConnection) -> None:
    """Give the function of search.py to a connection of whatever engine."""
    if "contains" not in connection.info:
        raw = await connection.get_raw_connection()
        driver = cast(Any, raw.driver_connection)
        await driver.create_function("contains", 2, sqlite_contains, deterministic=True)
        connection.info["contains"] = True


class File:
    """The file of an SQLite database, for single statements. Each is its own transaction."""

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
        self._gate = Gate(READERS, patience(settings))
        # For sessions that only read.
        self.reading_engine = create_engine(settings, url, limit, reads_only=True)

    async def read(self, sql: str, *arguments: Any) -> list[Any]:
        """Raises sqlite3.Error, or DatabaseUnavailable if too many other reads take long."""
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
        async with self._gate:
            return await self._reading.fetch(sql, arguments)

    async def write(self, sql: str, *arguments: Any) -> list[Any]:
        """Raises sqlite3.Error."""
        return await self._writing.fetch(sql, arguments)

    async def close(self) -> None:
        """Statements that still run are given up."""
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
    """Connections of one kind, whose statements run in threads."""

    def __init__(self, connect: Callable[[], Connection], threads: ThreadPoolExecutor) -> None:
        self._connect = connect
        self._threads = threads
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []

    async def fetch(self, sql: str, arguments: tuple[Any, ...]) -> list[Any]:
        """Rows of a statement. It is given up when its task is cancelled."""
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
            # At once, or when the thread has noticed.
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
