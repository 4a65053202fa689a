# [Task]: T108 [From]: specs/design.md
"""Idle connections, which Statements reuse without SQLAlchemy's checkout."""

import time
from collections import deque
from typing import Any, cast

from sqlalchemy.exc import DisconnectionError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection

from kit.database.failures import DRIVER_ERRORS

# Seconds after which an idle connection is pinged: a firewall may have dropped it silently.
IDLE_BEFORE_PING = 15.0
PING_TIMEOUT = 0.5


class IdleConnection:
    """A connection without a transaction that stays checked out of SQLAlchemy's pool."""

    __slots__ = ("driver", "pooled", "used_at")

    def __init__(self, pooled: PoolProxiedConnection) -> None:
        self.pooled = pooled
        self.driver: Any = pooled.driver_connection
        self.used_at = time.monotonic()


class Pool(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool plus the idle connections of Statements.

    A checkout and checkin cost SQLAlchemy as much as a statement costs asyncpg. So the connection
    of a Statement stays checked out for the next Statement, until a session needs it
    (specs/decisions.md, D18).
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
        """Keep it for the next Statement, or check it in if a session waits for a connection."""
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
        info["used_at"] = connection.used_at  # note_use has set the time of the checkin.


def note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def discard_dead(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Make SQLAlchemy replace a connection that is closed or does not answer a ping."""
    used_at = record.info.get("used_at", float("inf"))
    if connection.run_async(lambda driver: _is_dead(driver, used_at)):
        raise DisconnectionError


async def _is_dead(driver: Any, used_at: float) -> bool:
    # A connection that the server has closed is known without a round trip.
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
    """A connection for Statements. Call give_back afterwards. Raises driver errors."""
    idle = pool_of(engine).idle
    while idle:
        connection = idle.pop()
        try:
            if not await _is_dead(connection.driver, connection.used_at):
                return connection
        except BaseException:  # Cancelled before the ping's answer came.
            connection.pooled.invalidate()
            raise
        connection.pooled.invalidate()
    try:
        pooled = await engine.raw_connection()
    except InvalidRequestError as error:  # The pool gave up after several attempts.
        raise ConnectionError("connections break as soon as they are made") from error
    return IdleConnection(pooled)


def give_back(engine: AsyncEngine, connection: IdleConnection) -> None:
    """Keep it for the next Statement; it must be in no transaction."""
    pool_of(engine).put(connection)
