# [Task]: T009 [From]: specs/design.md
"""Connections: what a database URL asks for, and how one is taken from the pool and given back.

Who may have one is decided in db.py.
"""

import asyncio
import ipaddress
import secrets
import sqlite3
import ssl
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, cast

import asyncpg
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util import await_only as await_
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from failures import DRIVER_ERRORS, sqlite_code
from settings import Settings, SettingsError

# Seconds an idle connection is trusted: beyond, a firewall may have forgotten it without a word.
IDLE_BEFORE_PING = 15.0
PING_TIMEOUT = 0.5
# Seconds to wait for a connection that is still being recovered: its request has left the gate.
POOL_GRACE = 0.4


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
    """Outside a greenlet SQLAlchemy's pool can't wait for a connection: see checkout."""


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


def create_engine(settings: Settings, statement_timeout: float | None) -> AsyncEngine:
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
            if sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
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
    # Outside a greenlet nothing can be waited for: checkout asks then.
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


# --- From the pool and back -------------------------------------------------------------------


async def checkout(engine: AsyncEngine) -> PoolProxiedConnection:
    """A connection from the pool, to be given back by `checkin`.

    SQLAlchemy takes it in a greenlet, in case it has to wait. That costs several times what the
    taking does, so what is at hand is taken without one. Raises driver errors,
    and InvalidRequestError when connections break as soon as they are made.
    """
    pool = cast(AsyncAdaptedQueuePool, engine.sync_engine.pool)
    if engine.dialect.name == "postgresql" and pool.checkedin():
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
    return await engine.raw_connection()


async def checkin(engine: AsyncEngine, pooled: PoolProxiedConnection) -> None:
    """Give a connection back on which no transaction has been begun."""
    if engine.dialect.name == "postgresql":
        pooled.close()  # As nothing is to be rolled back, there is nothing to wait for.
    else:
        await greenlet_spawn(pooled.close)
