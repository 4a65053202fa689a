# [Task]: T009 [From]: specs/design.md
"""How tasks are kept: the engine for any database URL, sessions, statements in one round trip.

What the statements say is in routes/tasks.py, how the tables come to be in tables.py.
"""

import ipaddress
import logging
import sqlite3
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, cast

import asyncpg
from fastapi import Depends, Request
from sqlalchemy import URL, Dialect, Select, UpdateBase, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    EmulatedDBAPIException,
    SQLAlchemyError,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util import greenlet_spawn
from sqlmodel.ext.asyncio.session import AsyncSession

from errors import DatabaseUnavailable, InvalidToken
from settings import Settings, SettingsError

logger = logging.getLogger("tasks.db")


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
            raise SettingsError(f"DATABASE_URL has {name}, which is not supported, or has it twice")
    arguments = {
        "ssl": _ssl_argument(url),
        "server_settings": {
            "application_name": "task-api",
            **{name: query[name] for name in _SERVER_PARAMETERS if name in query},
        },
    }
    kept = {name: query[name] for name in _DRIVER_PARAMETERS if name in query}
    return url.set(drivername="postgresql+asyncpg", query=kept), arguments


_TLS_PARAMETERS = ("sslmode", "sslrootcert", "channel_binding")
_SERVER_PARAMETERS = ("application_name", "options")
# Passed on in the URL: a socket's folder, and the two caches that old poolers want at 0.
_DRIVER_PARAMETERS = ("host", "prepared_statement_cache_size", "statement_cache_size")
# Addressed to other clients, such as Prisma; this service's own settings say the same.
_IGNORED_PARAMETERS = ("pgbouncer", "connection_limit", "pool_timeout", "connect_timeout")
_PARAMETERS = (*_TLS_PARAMETERS, *_SERVER_PARAMETERS, *_DRIVER_PARAMETERS, *_IGNORED_PARAMETERS)


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
            return context
        case _:
            raise SettingsError(
                "DATABASE_URL: sslmode must be disable, allow, prefer, require, verify-ca "
                "or verify-full"
            )


def _is_local(url: URL) -> bool:
    host = url.host or url.query.get("host")
    if not isinstance(host, str) or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _create_engine(settings: Settings) -> AsyncEngine:
    url, arguments = connection_arguments(settings.database_url.get_secret_value())
    if url.get_backend_name() == "sqlite":
        # One connection: SQLite has one writer at a time, and here writers wait for it in turn
        # rather than for its lock. There is no server to reach, so that time goes to waiting too.
        engine = create_async_engine(
            url,
            hide_parameters=True,
            poolclass=AsyncAdaptedQueuePool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=settings.database_pool_timeout + settings.database_connect_timeout,
            connect_args={"timeout": settings.database_statement_timeout},
        )
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    else:
        engine = create_async_engine(
            url,
            hide_parameters=True,
            pool_size=settings.database_pool_size,
            max_overflow=0,
            pool_timeout=settings.database_pool_timeout,
            connect_args={
                "timeout": settings.database_connect_timeout,
                "command_timeout": settings.database_statement_timeout,
                **arguments,
            },
        )
        event.listen(engine.sync_engine, "checkout", _discard_closed)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _discard_closed(connection: Any, _record: object, _proxy: object) -> None:
    # A connection that the server has closed is known as such without a round trip.
    if connection.driver_connection.is_closed():
        raise DisconnectionError


# --- Sessions ---------------------------------------------------------------------------------


class Session(AsyncSession):
    """The session that `get_session` gives. Statement needs to tell it from a test's own."""

    bind: AsyncEngine


@asynccontextmanager
async def open_engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """The engine for as long as the service runs. Raises SettingsError for a bad DATABASE_URL.

    It does not connect: a database that is away is no reason not to start.
    """
    engine = _create_engine(settings)
    logger.info("tasks are kept in %s", engine.url.set(query={}).render_as_string())
    try:
        yield engine
    finally:
        await engine.dispose()


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """A session that commits when the endpoint succeeds and rolls back when it fails.

    Use it as `SessionDep`: with FastAPI's default scope the commit would come after the response.
    """
    session = Session(request.app.state.engine, expire_on_commit=False)
    with database_errors():
        try:
            yield session
            if session.in_transaction():
                await session.commit()
        finally:
            if session.in_transaction():
                await session.close()


SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]


# --- Failures ---------------------------------------------------------------------------------


_DRIVER_ERRORS = (
    SQLAlchemyError,
    EmulatedDBAPIException,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    sqlite3.Error,
    OSError,  # Refused, unknown host, TLS; TimeoutError is one.
)
# By SQLSTATE, the first characters: connection exception, authorization, unknown database,
# resources, operator intervention, lock not available, read-only, table not made yet.
_UNAVAILABLE_STATES = ("08", "28", "3D", "53", "57", "55P03", "25006", "42P01")


# The one foreign key is the owner's: see tables.py.
_FOREIGN_KEY_VIOLATION = "23503"


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn a driver's failure to serve into DatabaseUnavailable; a bug of ours stays what it is.

    A task for a user who is no longer there is InvalidToken: the token has outlived its user.
    """
    try:
        yield
    except _DRIVER_ERRORS as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if getattr(cause, "sqlstate", None) == _FOREIGN_KEY_VIOLATION:
            raise InvalidToken("its user has been deleted") from error
        if not _is_unavailable(cause):
            raise
        raise DatabaseUnavailable(f"{type(cause).__name__}: {cause}") from error


def _is_unavailable(cause: BaseException | None) -> bool:
    state = getattr(cause, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_UNAVAILABLE_STATES)
    if isinstance(cause, sqlite3.Error):
        return isinstance(cause, sqlite3.OperationalError)
    return True


# --- Statements -------------------------------------------------------------------------------

type Rows = list[dict[str, Any]]
type Converter = Callable[[Any], Any]


class Statement:
    """A Core statement, compiled once per kind of database and run on the driver's connection.

    On its own, a statement is its own transaction: it is done when its rows are back, in one round
    trip, with neither BEGIN nor COMMIT (specs/decisions.md, D2). In a session that has begun a
    transaction, or one that a test put in place of ours, it takes part in that transaction.
    """

    def __init__(self, statement: Select[Any] | UpdateBase) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    async def rows(self, session: AsyncSession, **values: object) -> Rows:
        """Run it with values for its bind parameters. Raises DatabaseUnavailable."""
        with database_errors():
            if isinstance(session, Session) and not session.in_transaction():
                return await self._run_alone(session.bind, values)
            await session.flush()
            connection = await session.connection()
            pooled = await connection.get_raw_connection()
            compiled = self._for(connection.dialect)
            return await compiled.fetch(pooled.driver_connection, values)

    async def row(self, session: AsyncSession, **values: object) -> dict[str, Any] | None:
        """The first of `rows`, if there is one."""
        rows = await self.rows(session, **values)
        return rows[0] if rows else None

    async def _run_alone(self, engine: AsyncEngine, values: dict[str, object]) -> Rows:
        pooled = await engine.raw_connection()
        try:
            connection: Any = pooled.driver_connection
            rows = await self._for(engine.dialect).fetch(connection, values)
            if engine.dialect.name == "sqlite" and connection.in_transaction:
                # sqlite3 begins a transaction before it writes.
                await connection.commit()
            return rows
        finally:
            await greenlet_spawn(pooled.close)

    def _for(self, dialect: Dialect) -> "_Compiled":
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, dialect)
        return compiled


class _Compiled:
    """A statement's SQL for one dialect, with SQLAlchemy's own conversions of values."""

    def __init__(self, statement: Select[Any] | UpdateBase, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._sql = str(compiled)
        self._execute = _EXECUTE[dialect.name]
        self._arguments: list[tuple[str, Converter | None]] = []
        for name in compiled.positiontup or ():
            bind_type = compiled.binds[name].type.dialect_impl(dialect)
            self._arguments.append((name, bind_type.bind_processor(dialect)))
        self._columns: list[tuple[str, Converter | None]] = []
        for column in statement.exported_columns:
            column_type = column.type.dialect_impl(dialect)
            self._columns.append((str(column.key), column_type.result_processor(dialect, None)))

    async def fetch(self, connection: Any, values: Mapping[str, object]) -> Rows:
        arguments = [
            values[name] if convert is None else convert(values[name])
            for name, convert in self._arguments
        ]
        return [
            {
                name: value if convert is None else convert(value)
                for (name, convert), value in zip(self._columns, row, strict=True)
            }
            for row in await self._execute(connection, self._sql, arguments)
        ]


async def _execute_postgresql(connection: Any, sql: str, arguments: list[object]) -> Sequence[Any]:
    rows: Sequence[Any] = await connection.fetch(sql, *arguments)
    return rows


async def _execute_sqlite(connection: Any, sql: str, arguments: list[object]) -> Sequence[Any]:
    rows: Sequence[Any] = await connection.execute_fetchall(sql, arguments)
    return rows


_EXECUTE = {"postgresql": _execute_postgresql, "sqlite": _execute_sqlite}
