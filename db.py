# [Task]: T009 [From]: specs/design.md
"""The database: an engine for any URL, sessions that end in time, failures as one error.

How a statement is run is in statements.py, how the tables come to be in tables.py.
"""

import asyncio
import ipaddress
import logging
import secrets
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, cast

import asyncpg
from fastapi import Depends, Request
from sqlalchemy import URL, event, make_url, select
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    EmulatedDBAPIException,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util import await_only as await_
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet
from sqlmodel.ext.asyncio.session import AsyncSession

from errors import DatabaseUnavailable, InvalidToken
from logs import Outage
from models import TASK_TABLE
from settings import Settings, SettingsError

logger = logging.getLogger("tasks.db")

# Seconds an idle connection is trusted: beyond, a firewall may have forgotten it without a word.
IDLE_BEFORE_PING = 15.0
PING_TIMEOUT = 0.5
# Seconds to wait for a connection that is still being recovered: its request has left the gate.
POOL_GRACE = 0.4
# Any number will do, so long as every process takes the same lock.
_TABLES_LOCK = 7_236_830_419
# Seconds between two questions whether a database that failed is back, asked on behalf of probes.
PROBE_INTERVAL = 1.0


# --- From a URL to an engine ------------------------------------------------------------------


def connection_arguments(url: str) -> tuple[URL, dict[str, Any]]:
    """The driver's URL and connect arguments for what Neon, Heroku or a person writes.

    libpq's `sslmode`, `sslrootcert` and `channel_binding`, which asyncpg does not take from an
    SQLAlchemy URL, become its `ssl` argument. Raises SettingsError, which never quotes the URL.
    """
    try:
        parsed = make_url(url.strip())
    except (ArgumentError, ValueError):
        raise SettingsError(
            "DATABASE_URL is not a URL: it should look like "
            "postgresql://user:password@host/database or sqlite:///tasks.db"
        ) from None
    match parsed.drivername.partition("+")[0]:
        case "postgres" | "postgresql":
            return _postgresql_arguments(parsed)
        case "sqlite":
            return parsed.set(drivername="sqlite+aiosqlite"), {}
        case _:
            raise SettingsError(
                "DATABASE_URL is of a database that is not supported: use postgresql:// or sqlite://"
            )


def _postgresql_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    query = dict(url.query)
    for name, value in url.query.items():
        if name not in _PARAMETERS or not isinstance(value, str):
            # Not named: it may be part of a password that should have been percent-encoded.
            raise SettingsError(
                "DATABASE_URL has a parameter that is not supported, or one twice; supported are "
                + ", ".join(_PARAMETERS)
            )
    arguments: dict[str, Any] = {
        "connection_class": _Connection,
        "ssl": _ssl_argument(url),
        "server_settings": {
            "application_name": "task-api",
            **{name: query[name] for name in _SERVER_PARAMETERS if name in query},
        },
    }
    if "," in (query.get("host") or url.host or ""):
        raise SettingsError("DATABASE_URL names several hosts: name one, which may be a proxy's")
    for name in _CACHE_SIZES:
        if name in query:
            if not str(query[name]).isdecimal():
                raise SettingsError(f"DATABASE_URL: {name} must be a number")
            arguments[name] = int(str(query[name]))
    if query.get("pgbouncer") == "true":  # As Prisma is told of such a pooler.
        arguments.setdefault("statement_cache_size", 0)
    socket_folder = {"host": query["host"]} if "host" in query else {}
    return url.set(drivername="postgresql+asyncpg", query=socket_folder), arguments


_TLS_PARAMETERS = ("sslmode", "sslrootcert", "channel_binding")
_SERVER_PARAMETERS = ("application_name", "options")
# What the two caches of prepared statements hold; an old pooler wants the driver's at 0.
_CACHE_SIZES = ("statement_cache_size", "prepared_statement_cache_size")
# Addressed to other clients, such as Prisma; this service's own settings say the same.
_IGNORED_PARAMETERS = ("connection_limit", "pool_timeout", "connect_timeout")
_PARAMETERS = (
    *_TLS_PARAMETERS,
    *_SERVER_PARAMETERS,
    *_CACHE_SIZES,
    *_IGNORED_PARAMETERS,
    "host",
    "pgbouncer",
)


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """Names its prepared statements as no other process does.

    asyncpg counts alike in each process. Behind a pooler that hands one server connection to
    several, and that loses track of statements, a process would run what another prepared under its
    name: a read may be a deletion. Names that nobody else has make that an error, 26000.
    """

    def _get_unique_id(self, prefix: str) -> str:
        return f"{super()._get_unique_id(prefix)}{secrets.token_hex(6)}"


class _MustWait(Exception):
    """Outside a greenlet SQLAlchemy's pool can't wait for a connection: see Database.checkout."""


def _connect(*arguments: Any, **options: Any) -> Coroutine[Any, Any, Any]:
    if not in_greenlet():
        raise _MustWait
    connecting: Coroutine[Any, Any, Any] = asyncpg.connect(*arguments, **options)
    return connecting


def _ssl_argument(url: URL) -> ssl.SSLContext | str | bool:
    sslmode = url.query.get("sslmode")
    sslrootcert = cast(str | None, url.query.get("sslrootcert"))
    channel_binding = url.query.get("channel_binding")
    mode = sslmode or ("prefer" if _is_local(url) else "require")
    if channel_binding == "require":
        # asyncpg can't bind channels. What is asked for is that nobody stands in the middle, and a
        # certificate verified in full gives that as well.
        if sslmode in ("disable", "allow", "prefer"):
            raise SettingsError(
                f"DATABASE_URL asks for sslmode={sslmode} and channel_binding=require, "
                "which exclude each other: remove one of them"
            )
        mode = "verify-full"
    elif channel_binding not in (None, "prefer", "disable"):
        raise SettingsError("DATABASE_URL: channel_binding must be require, prefer or disable")
    if mode == "require" and sslrootcert is not None:
        mode = "verify-ca"  # As libpq does.
    match mode:
        case "disable":
            return False
        case "allow" | "prefer":
            return str(mode)
        case "require":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        case "verify-ca" | "verify-full":
            cafile = None if sslrootcert == "system" else sslrootcert
            try:
                context = ssl.create_default_context(cafile=cafile)
            except (OSError, ssl.SSLError):
                raise SettingsError("DATABASE_URL: sslrootcert is not a readable file") from None
            context.check_hostname = mode == "verify-full"
            # libpq does not ask for what PostgreSQL's manual does not put into a certificate.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            return context
        case _:
            raise SettingsError(
                "DATABASE_URL: sslmode must be disable, allow, prefer, require, verify-ca "
                "or verify-full"
            )


def _is_local(url: URL) -> bool:
    host = url.query.get("host") or url.host  # In the driver's order.
    if not isinstance(host, str) or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _create_engine(settings: Settings, statement_timeout: float | None) -> AsyncEngine:
    url, arguments = connection_arguments(settings.database_url.get_secret_value())
    if url.get_backend_name() == "sqlite":
        # One connection: SQLite has one writer at a time, and here writers wait for it in turn
        # rather than for its lock.
        engine = create_async_engine(
            url,
            hide_parameters=True,
            poolclass=AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=POOL_GRACE,
            connect_args={"timeout": settings.database_statement_timeout},
        )
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    else:
        engine = create_async_engine(
            url,
            hide_parameters=True,
            pool_size=settings.database_pool_size,
            max_overflow=0,
            pool_timeout=POOL_GRACE,
            connect_args={
                "async_creator_fn": _connect,
                "timeout": settings.database_connect_timeout,
                "command_timeout": statement_timeout,
                **arguments,
            },
        )
        event.listen(engine.sync_engine, "checkin", _note_use)
        event.listen(engine.sync_engine, "checkout", _discard_dead)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    deadline = time.monotonic() + POOL_GRACE
    cursor = connection.cursor()
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # Another process makes the same file. For this, SQLite does not wait by itself.
            if _sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            await_(asyncio.sleep(0.01))
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _discard_dead(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Have the pool connect anew in place of a connection that is dead, or mute after idling."""
    driver = connection.driver_connection
    if driver.is_closed():  # What the server has closed is known as such without a round trip.
        raise DisconnectionError
    # Outside a greenlet nothing can be waited for: Database.checkout asks then.
    if in_greenlet() and _has_idled(record.info) and await_(_is_mute(driver)):
        raise DisconnectionError


def _has_idled(info: Mapping[Any, Any]) -> bool:
    return bool(time.monotonic() - info.get("used_at", float("inf")) > IDLE_BEFORE_PING)


async def _is_mute(driver: Any) -> bool:
    """Whether a connection does not answer any more; it is closed then."""
    try:
        await driver.fetchval("SELECT 1", timeout=PING_TIMEOUT)
    except DRIVER_ERRORS:
        driver.terminate()
        return True
    return False


# --- Sessions ---------------------------------------------------------------------------------


class Gate:
    """Lets as many requests at the database as there are connections, in the order they came in.

    The pool by itself lets whoever gives a connection back and asks again overtake those who wait.
    """

    def __init__(self, permits: int, patience: float) -> None:
        self._permits = asyncio.Semaphore(permits)
        self._patience = patience
        self._overload = Outage(logger, "requests find no free connection in time")

    async def __aenter__(self) -> None:
        """Raises DatabaseUnavailable after `patience` seconds."""
        if not self._permits.locked():
            self._overload.ends()
            await self._permits.acquire()
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._permits.acquire()
        except TimeoutError:
            reason = f"none within {self._patience} s"
            self._overload.begins(reason)
            raise DatabaseUnavailable(f"no free connection: {reason}") from None

    async def __aexit__(self, *_: object) -> None:
        self._permits.release()


class Database:
    """The engine, the gate in front of it, and whether it was last seen working."""

    setting = "DATABASE_URL"
    outage = "the database does not serve"
    # One statement that took too long may have met a locked row: worth asking at once.
    asked_at_once_when_late = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = _create_engine(settings, settings.database_statement_timeout)
        self.is_postgresql = self.engine.dialect.name == "postgresql"
        if self.is_postgresql:
            self.gate = Gate(settings.database_pool_size, settings.database_pool_timeout)
        else:
            # There is no server to connect to, so that time goes to waiting.
            waiting = settings.database_pool_timeout + settings.database_connect_timeout
            self.gate = Gate(1, waiting)
        # Set by tables.py: in older tables, what is written might not mean what it says.
        self.tables_ready = False
        self.seen_working = False
        self._failed_at = float("-inf")
        self._outage = Outage(logger, self.outage)
        self._tasks: set[asyncio.Task[Any]] = set()

    def watched(self) -> "_Watch":
        """Around what asks the database: what database_errors does, and note its failures."""
        return _Watch(self)

    def fails(self, error: DatabaseUnavailable) -> None:
        """Note that it has not answered, unless that has been noted of another."""
        if error.is_noted:  # By the primary, to which a replica's request went on.
            return
        error.is_noted = True
        self.seen_working = False
        at_once = self.asked_at_once_when_late and isinstance(error.__cause__, _TOO_LATE)
        self._failed_at = float("-inf") if at_once else time.monotonic()
        self._outage.begins(str(error).replace(Database.setting, self.setting))

    def works(self) -> None:
        """Note that it has answered."""
        self.seen_working = True
        self._outage.ends()

    async def is_ready(self) -> bool:
        """Whether its tables are there and it was last seen working."""
        return self.tables_ready and await self.serves()

    @property
    def is_worth_asking(self) -> bool:
        """Whether it was last seen failing, and not just now."""
        return not self.seen_working and time.monotonic() - self._failed_at >= PROBE_INTERVAL

    async def serves(self) -> bool:
        """Whether it was last seen working.

        It is asked only after it was seen failing, and not often, so that a database that is
        suspended while nobody needs it is left asleep.
        """
        if self.is_worth_asking:
            self._failed_at = time.monotonic()  # Other probes need not ask meanwhile.
            with suppress(DatabaseUnavailable):
                async with self.gate:
                    with self.watched():
                        async with self.engine.connect() as connection:
                            await connection.execute(select(TASK_TABLE.c.id).limit(0))
                    self.works()
            self._failed_at = time.monotonic()
        return self.seen_working

    def for_reading(self) -> "Database":
        """Where a request that only reads is to look."""
        return self

    @asynccontextmanager
    async def changing_tables(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for changes of tables: one process at a time, for as long as it takes.

        The lock is the transaction's, so that it works through a pooler too. Raises driver errors.
        """
        if not self.is_postgresql:
            async with self.engine.begin() as connection:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection
            return
        patient = _create_engine(self.settings, statement_timeout=None)
        try:
            async with patient.begin() as connection:
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TABLES_LOCK})")
                # While a change waits for a lock, all others wait behind it: rather try again.
                await connection.exec_driver_sql("SET LOCAL lock_timeout = '500ms'")
                yield connection
        finally:
            await patient.dispose()

    async def checkout(self) -> PoolProxiedConnection:
        """A connection from the pool, to be given back by `checkin`.

        SQLAlchemy takes it in a greenlet, in case it has to wait. That costs more than the
        statement that is to come, so what is at hand is taken without one. Raises driver errors,
        and InvalidRequestError when connections break as soon as they are made.
        """
        pool = cast(AsyncAdaptedQueuePool, self.engine.sync_engine.pool)
        if self.is_postgresql and pool.checkedin():
            # With the connection at hand dead, the pool has to make another.
            with suppress(_MustWait):
                pooled = pool.connect()
                try:
                    if not (_has_idled(pooled.info) and await _is_mute(pooled.driver_connection)):
                        return pooled
                except BaseException:  # Cancelled, with the answer still to come.
                    pooled.invalidate()
                    raise
                pooled.invalidate()
        return await self.engine.raw_connection()

    async def checkin(self, pooled: PoolProxiedConnection) -> None:
        """Give a connection back on which no transaction has been begun."""
        if self.is_postgresql:
            pooled.close()  # As nothing is to be rolled back, there is nothing to wait for.
        else:
            await greenlet_spawn(pooled.close)

    def in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Run it until it is done or the database is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("work in the background failed", exc_info=error)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.dispose()


class Replicated(Database):
    """A primary with a streaming replica, from which is read while that is seen working.

    What is read there may be older than what was written a moment ago: docs/scaling.md.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.replica = _Replica(settings)
        if not (self.is_postgresql and self.replica.is_postgresql):
            raise SettingsError(
                "DATABASE_READ_URL is for a replica of PostgreSQL: it and DATABASE_URL must be "
                "postgresql:// URLs, or remove it"
            )

    def for_reading(self) -> Database:
        if self.replica.seen_working:
            return self.replica
        if self.replica.is_worth_asking:
            # The replica's work, so that it ends before its connections are closed.
            self.replica.in_background(self.replica.serves())
        return self

    async def close(self) -> None:
        await self.replica.close()
        await super().close()


class _Replica(Database):
    setting = "DATABASE_READ_URL"
    outage = "the replica of DATABASE_READ_URL does not serve, and the primary is read from"
    # There is no hurry: meanwhile the primary answers.
    asked_at_once_when_late = False

    def __init__(self, settings: Settings) -> None:
        url = {"database_url": settings.database_read_url}
        try:
            super().__init__(settings.model_copy(update=url))
        except SettingsError as error:
            raise SettingsError(str(error).replace(Database.setting, self.setting)) from None


class Session(AsyncSession):
    """The session that `get_session` gives; a Statement runs on its own in it.

    What SQLAlchemy's session needs is made when something asks for it: a Statement never does.
    """

    def __init__(self, database: Database, primary: Database | None = None) -> None:
        self.database = database
        # Where a Statement goes when the database, as a replica, fails it at once.
        self.primary = primary or database
        # When its request began to wait for the database.
        self.waiting_since = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        """Called for what is missing, and until then all that SQLAlchemy keeps here is."""
        if "sync_session" in vars(self) or "database" not in vars(self):
            raise AttributeError(name)
        super().__init__(self.database.engine, expire_on_commit=False)
        return getattr(self, name)

    @property
    def has_begun(self) -> bool:
        """Whether it is in a transaction."""
        return "sync_session" in vars(self) and self.in_transaction()


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The database for as long as the service runs. Raises SettingsError for a bad DATABASE_URL.

    It does not connect: a database that is away is no reason not to start.
    """
    database = (Replicated if settings.database_read_url else Database)(settings)
    logger.info("tasks are kept in %s", database.engine.url.set(query={}).render_as_string())
    try:
        yield database
    finally:
        await database.close()


_READING = ("GET", "HEAD")


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """A session that commits when the endpoint succeeds and rolls back when it fails.

    For a GET it may be one to a replica, which can't be written to.
    Use it as `SessionDep`: with FastAPI's default scope the commit would come after the response.
    """
    primary: Database = request.app.state.database
    if not primary.tables_ready:
        raise DatabaseUnavailable("the tables are not up to date yet")
    database = primary.for_reading() if request.method in _READING else primary
    session = Session(database, primary)
    async with database.gate:
        with database.watched():
            try:
                yield session
                if session.has_begun:
                    await session.commit()
                    database.works()
            finally:
                if session.has_begun:
                    await session.close()


SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]


# --- Failures ---------------------------------------------------------------------------------


# Not all of SQLAlchemyError: most of those are bugs.
DRIVER_ERRORS = (
    DBAPIError,
    PoolTimeoutError,
    EmulatedDBAPIException,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    sqlite3.Error,
    OSError,  # Refused, unknown host, TLS; TimeoutError is one.
)
_POOLER_HINT = (
    "the pooler in front of the database loses prepared statements: "
    "add statement_cache_size=0 to the parameters of DATABASE_URL"
)
# What a SQLSTATE that begins so means to an operator; with any other, the database does serve.
_REASONS = {
    "0A000": "its tables are being changed",
    "08P01": "the server, or a pooler in front of it, refuses what the service asks for at log-in",
    "08": "the connection is broken",
    "25006": "the database is read-only",
    "26000": _POOLER_HINT,
    "28P01": "the password in DATABASE_URL is wrong",
    "28": "the server refuses the user of DATABASE_URL",
    "40": "the statement had to give way, on a replica to what its primary has changed",
    "3D000": "DATABASE_URL names a database that does not exist",
    "3F000": "the user of DATABASE_URL may use no schema to keep the table task in",
    "42501": "the user of DATABASE_URL lacks a privilege on the table task or its schema",
    "42P01": "there is no table task yet",
    "42P05": _POOLER_HINT,
    "53300": "the server is out of connections",
    "53": "the server is out of resources",
    "55P03": "the row or table is locked",
    "57014": "the statement took too long",
    "57": "the server is starting or stopping",
}
_TOO_LATE = (TimeoutError, asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)
# The one foreign key is the owner's: see tables.py.
_FOREIGN_KEY_VIOLATION = "23503"


class database_errors:  # a class, since every request passes three of them
    """Turn a driver's failure to serve into DatabaseUnavailable; a bug of ours stays what it is.

    A task for a user who is no longer there is InvalidToken: the token has outlived its user.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if not isinstance(error, DRIVER_ERRORS):
            return
        cause = error.orig if isinstance(error, DBAPIError) else error
        if getattr(cause, "sqlstate", None) == _FOREIGN_KEY_VIOLATION:
            raise InvalidToken("its user has been deleted") from error
        reason = _reason(cause)
        if reason is None:
            return
        # The first line: what comes after it is asyncpg's advice.
        said = str(cause).partition("\n")[0]
        raise DatabaseUnavailable(f"{reason} ({type(cause).__name__}: {said})") from error


class _Watch(database_errors):
    def __init__(self, database: Database) -> None:
        self._database = database

    def __exit__(self, type_: object, error: BaseException | None, traceback: object) -> None:
        try:
            super().__exit__(type_, error, traceback)
        except DatabaseUnavailable as unavailable:
            self._database.fails(unavailable)
            raise
        if isinstance(error, DatabaseUnavailable):
            self._database.fails(error)


def _reason(cause: BaseException | None) -> str | None:
    """Why the database does not serve, in a sentence; None if it does, and the fault is ours."""
    state = getattr(cause, "sqlstate", None)
    if state == "0A000" and "cached statement" not in str(cause):
        return None
    if state is not None:
        return next((_REASONS[key] for key in (state, state[:2]) if key in _REASONS), None)
    match cause:
        case sqlite3.OperationalError() if "no such table" in str(cause):
            return _REASONS["42P01"]
        case sqlite3.OperationalError() if _sqlite_code(cause) != sqlite3.SQLITE_ERROR:
            return "SQLite can't open, lock or write its file"
        case sqlite3.Error():
            return None
        case asyncpg.InterfaceError() | asyncpg.InternalClientError() if not nothing_sent(cause):
            return None  # A call that the driver refuses.
        case ssl.SSLCertVerificationError():
            return "the server's certificate does not verify, as the sslmode of DATABASE_URL asks"
        case TimeoutError():
            return "it did not answer in time"
        case _:
            return "it can't be reached"


def nothing_sent(error: BaseException) -> bool:
    """Whether the driver failed before it sent anything, since the connection was at its end."""
    match error:
        case asyncpg.InterfaceError():
            return "closed" in str(error)
        case asyncpg.InternalClientError():
            # The server's last word has been read, its end of the connection not yet.
            return "cannot switch to state" in str(error)
        case _:
            return False


def _sqlite_code(error: sqlite3.Error) -> int | None:
    # Absent from errors that Python raises by itself.
    return getattr(error, "sqlite_errorcode", None)
