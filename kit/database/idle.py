# [Task]: T108 [From]: specs/design.md
"""Idle connections: Statements hand them to each other without SQLAlchemy's checkout."""

import time
from collections import deque
from typing import Any, cast

from sqlalchemy.exc import DisconnectionError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection

from kit.database.failures import DRIVER_ERRORS

# Seconds an idle connection is trusted: beyond, a firewall may have forgotten it without a word.
IDLE_BEFORE_PING = 15.0
PING_TIMEOUT = 0.5


class IdleConnection:
    """A connection in no transaction, checked out of SQLAlchemy's pool and waiting to be used."""

    __slots__ = ("driver", "pooled", "used_at")

    def __init__(self, pooled: PoolProxiedConnection) -> None:
        self.pooled = pooled
        self.driver: Any = pooled.driver_connection
        self.used_at = time.monotonic()


class Pool(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool, and the connections that statements on their own hand to each other.

    To check a connection out and in again takes SQLAlchemy as long as a statement takes asyncpg. So
    what a Statement has used stays checked out and idle for the next one, until a session asks
    SQLAlchemy for it (specs/decisions.md, D18).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.idle: deque[IdleConnection] = deque()
        self._asking = 0

    def _do_get(self) -> ConnectionPoolEntry:
        if self.idle and not self.checkedin():
            self._release()
        self._asking += 1
        try:
            return super()._do_get()
        finally:
            self._asking -= 1

    def put(self, connection: IdleConnection) -> None:
        """Keep it for the next Statement, or check it in where a session waits for one."""
        connection.used_at = time.monotonic()
        self.idle.append(connection)
        if self._asking:
            self._release()

    def dispose(self) -> None:
        while self.idle:
            self._release()
        super().dispose()

    def _release(self) -> None:
        connection = self.idle.popleft()
        info = connection.pooled.info
        connection.pooled.close()
        info["used_at"] = connection.used_at  # Not now, as note_use would have it.


def note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def discard_dead(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Have SQLAlchemy connect anew in place of a connection that is dead, or mute after idling."""
    used_at = record.info.get("used_at", float("inf"))
    if connection.run_async(lambda driver: _is_dead(driver, used_at)):
        raise DisconnectionError


async def _is_dead(driver: Any, used_at: float) -> bool:
    # What the server has closed is known as such without a round trip.
    if not driver.is_usable:
        driver.terminate()
        return True
    if time.monotonic() - used_at < IDLE_BEFORE_PING:
        return False
    try:
        await driver.fetchval("SELECT 1", timeout=PING_TIMEOUT)
    except DRIVER_ERRORS:
        driver.terminate()
        return True
    return False


def pool_of(engine: AsyncEngine) -> Pool:
    return cast(Pool, engine.sync_engine.pool)


async def take(engine: AsyncEngine) -> IdleConnection:
    """A connection for statements on their own, to be given back. Raises driver errors."""
    idle = pool_of(engine).idle
    while idle:
        connection = idle.pop()
        try:
            if not await _is_dead(connection.driver, connection.used_at):
                return connection
        except BaseException:  # Cancelled, with the answer still to come.
            connection.pooled.invalidate()
            raise
        connection.pooled.invalidate()
    try:
        pooled = await engine.raw_connection()
    except InvalidRequestError as error:  # The pool has tried several.
        raise ConnectionError("connections break as soon as they are made") from error
    return IdleConnection(pooled)


def give_back(engine: AsyncEngine, connection: IdleConnection) -> None:
    """Keep it for the next Statement; it must be in no transaction."""
    pool_of(engine).put(connection)
