# [Task]: T009 [From]: specs/design.md
"""Connections: how they are made, taken from the pool and given back.

What the URL says of them is in urls.py; who may have one is decided in gate.py.
"""

import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection

from kit.database import sqlite
from kit.database.failures import DRIVER_ERRORS
from kit.database.hosts import Hosts, Linked
from kit.database.tls import connect
from kit.database.urls import DatabaseURL
from settings import Settings

logger = logging.getLogger("tasks.db")

# Seconds an idle connection is trusted: beyond, a firewall may have forgotten it without a word.
IDLE_BEFORE_PING = 15.0
PING_TIMEOUT = 0.5
# Seconds to wait for a connection that is still being recovered: its request has left the gate.
POOL_GRACE = 0.4


class ConnectTimeout(OSError):
    """The server let an attempt to connect wait too long, which a slow statement never does."""


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """Names its prepared statements as no other process does, or not at all.

    asyncpg counts alike in each process. Behind a pooler that hands one server connection to
    several, and that loses track of statements, a process would run what another prepared under its
    name: a read may be a deletion. Names that nobody else has make that an error, 26000.
    """

    connector: "Connector"
    names_statements: bool

    def _get_unique_id(self, prefix: str) -> str:
        return f"{super()._get_unique_id(prefix)}{secrets.token_hex(6)}"

    async def fetch(self, query: str, *arguments: Any) -> Any:
        """As asyncpg's, but for five calls less on the way of a prepared statement: 9 µs."""
        statement = self._stmt_cache.get((query, asyncpg.Record, False))
        if statement is not None:
            try:
                with self._stmt_exclusive_section:
                    return await self._protocol.bind_execute(
                        statement, arguments, "", 0, False, None
                    )
            except asyncpg.exceptions.InvalidCachedStatementError:
                pass  # The table has been changed since, which asyncpg's own way allows for.
        return await super().fetch(query, *arguments)

    @property
    def is_usable(self) -> bool:
        """Whether it is open, as far as is known without asking, and names no more than it may."""
        may_name = self.connector.may_name or not self.names_statements
        return may_name and not self.is_closed()

    def was_read_only(self) -> None:
        """A write has been refused: behind the same name, another may be the primary by now."""
        self.terminate()


class LinkedConnection(Linked, Connection):
    """One to one of several hosts."""

    @property
    def is_usable(self) -> bool:
        return super().is_usable and not self.is_to_be_moved


class Connector:
    """Makes the connections to PostgreSQL, whose statements have names until a pooler loses one.

    `connect` is one in the manner of asyncpg's.
    """

    def __init__(self, connect: Callable[..., Awaitable[Any]]) -> None:
        self.may_name = True
        self._connect = connect

    async def __call__(self, *arguments: Any, **options: Any) -> Connection:
        if not self.may_name:
            options["statement_cache_size"] = 0
        try:
            connection: Connection = await self._connect(*arguments, **options)
        except TimeoutError as error:
            raise ConnectTimeout("it did not answer in time") from error
        connection.connector = self
        connection.names_statements = options.get("statement_cache_size") != 0
        return connection

    def go_without_names(self) -> None:
        """A pooler has lost a statement that was prepared: name none from now on."""
        if self.may_name:
            self.may_name = False
            logger.warning(
                "a pooler in front of the database loses prepared statements: from now on they "
                "have no names here, which costs each a second round trip"
            )


class AtHand:
    """A connection without a transaction, in the pool's form and in the driver's."""

    __slots__ = ("driver", "pooled", "used_at")

    def __init__(self, pooled: PoolProxiedConnection) -> None:
        self.pooled = pooled
        self.driver: Any = pooled.driver_connection
        self.used_at = time.monotonic()


class Pool(AsyncAdaptedQueuePool):
    """SQLAlchemy's pool, and the connections that statements on their own hand to each other.

    To check a connection out and in again takes SQLAlchemy as long as a statement takes asyncpg. So
    what a Statement has used stays out of SQLAlchemy's pool, at hand for the next one, until a
    session asks SQLAlchemy for it (specs/decisions.md, D18).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.at_hand: deque[AtHand] = deque()
        self._asking = 0

    def _do_get(self) -> ConnectionPoolEntry:
        if self.at_hand and not self.checkedin():
            self._release()
        self._asking += 1
        try:
            return super()._do_get()
        finally:
            self._asking -= 1

    def put(self, connection: AtHand) -> None:
        """Have it at hand, or let SQLAlchemy have it where somebody waits for that."""
        connection.used_at = time.monotonic()
        self.at_hand.append(connection)
        if self._asking:
            self._release()

    def dispose(self) -> None:
        while self.at_hand:
            self._release()
        super().dispose()

    def _release(self) -> None:
        connection = self.at_hand.popleft()
        info = connection.pooled.info
        connection.pooled.close()
        info["used_at"] = connection.used_at  # Not now, as _note_use would have it.


def create_engine(
    asked: DatabaseURL, settings: Settings, *, is_patient: bool = False
) -> AsyncEngine:
    """An engine for a database, on SQLite for writing. If it is patient, a statement may take any
    time.
    """
    url, arguments = asked.url, asked.arguments
    timeout = settings.database_statement_timeout
    if url.get_backend_name() == "sqlite":
        return sqlite.create_engine(settings, url, None if is_patient else timeout)
    has_several_hosts = "," in url.query.get("host", "")
    timeout = min(timeout, asked.statement_timeout or timeout)
    arguments = {
        "async_creator_fn": Connector(Hosts().connect if has_several_hosts else connect),
        "connection_class": LinkedConnection if has_several_hosts else Connection,
        "timeout": settings.database_connect_timeout,
        "command_timeout": None if is_patient else timeout,
        **arguments,
    }
    engine = create_async_engine(
        url,
        hide_parameters=True,
        poolclass=Pool,
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=POOL_GRACE,
        # Whoever begins a transaction ends it, so that to give a connection back waits for nothing.
        pool_reset_on_return=None,
        connect_args=arguments,
    )
    event.listen(engine.sync_engine, "checkin", _note_use)
    event.listen(engine.sync_engine, "checkout", _discard_dead)
    if asked.search_path:
        # A pooler forgets what a session has set, so each transaction sets it anew.
        command = set_search_path(asked.search_path)
        event.listen(engine.sync_engine, "begin", lambda begun: begun.exec_driver_sql(command))
    return engine


def set_search_path(schemas: Iterable[str]) -> str:
    """SQL that has names without a schema mean these, to the end of the transaction."""
    return f"SET LOCAL search_path = {', '.join(map(quoted, schemas))}"


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _discard_dead(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
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


async def take(engine: AsyncEngine) -> AtHand:
    """A connection for statements on their own, to be given back. Raises driver errors."""
    at_hand = pool_of(engine).at_hand
    while at_hand:
        connection = at_hand.pop()
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
    return AtHand(pooled)


def give_back(engine: AsyncEngine, connection: AtHand) -> None:
    """Leave it to the next; it must be in no transaction."""
    pool_of(engine).put(connection)
