# [Task]: T009 [From]: specs/design.md
"""Connections: how they are made, taken from the pool and given back.

What the URL says of them is in urls.py; who may have one is decided in gate.py.
"""

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, cast

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util import await_only as await_
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from database.failures import DRIVER_ERRORS, sqlite_code
from database.urls import connection_arguments
from settings import Settings

# Seconds an idle connection is trusted: beyond, a firewall may have forgotten it without a word.
IDLE_BEFORE_PING = 15.0
PING_TIMEOUT = 0.5
# Seconds to wait for a connection that is still being recovered: its request has left the gate.
POOL_GRACE = 0.4


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
                "connection_class": _Connection,
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
