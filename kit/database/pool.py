# [Task]: T009 [From]: specs/design.md
"""Connections to PostgreSQL and how they are made.

idle.py hands them on, urls.py reads the URL, gate.py decides who may have one.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from kit.database import sqlite
from kit.database.hosts import Hosts, Linked
from kit.database.idle import Pool, discard_dead, note_use
from kit.database.tls import connect
from kit.database.urls import DatabaseURL
from settings import Settings

logger = logging.getLogger("tasks.db")

# Seconds to wait for a connection that is still being recovered: its request has left the gate.
POOL_GRACE = 0.4


_OUTDATED = (
    asyncpg.exceptions.InvalidCachedStatementError,
    asyncpg.exceptions.OutdatedSchemaCacheError,
)


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
    # By their SQL; there are as many as the service has Statements.
    prepared: dict[str, Any]

    def _get_unique_id(self, prefix: str) -> str:
        return f"{super()._get_unique_id(prefix)}{secrets.token_hex(6)}"

    async def run_prepared(self, sql: str, *arguments: Any) -> Any:
        """The rows of a statement that this connection prepares once, under a name of its own."""
        if not self.names_statements:
            return await self.fetch(sql, *arguments)
        statement = self.prepared.get(sql)
        if statement is None:
            name = f"task_api_{secrets.token_hex(8)}"
            statement = self.prepared[sql] = await self.prepare(sql, name=name)
        try:
            return await statement.fetch(*arguments)
        except _OUTDATED:
            del self.prepared[sql]  # The table has been changed: prepare it anew next time.
            raise

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
        connection.prepared = {}
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
    event.listen(engine.sync_engine, "checkin", note_use)
    event.listen(engine.sync_engine, "checkout", discard_dead)
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
