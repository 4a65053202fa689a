# [Task]: T009 [From]: specs/design.md
"""Makes engines and the connections to PostgreSQL.

idle.py reuses connections, urls.py parses the URL, gate.py limits who may use one.
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

# Seconds to wait for a connection that is being recovered after its request has left the gate.
POOL_GRACE = 0.4


_OUTDATED = (
    asyncpg.exceptions.InvalidCachedStatementError,
    asyncpg.exceptions.OutdatedSchemaCacheError,
)


# SQLSTATE classes of refused connections that failures.py explains. A refusal with any other, such
# as Neon's XX000, is an outage, too.
_REFUSALS = ("08", "28", "3D", "53", "57")


class ConnectTimeout(OSError):
    """Connecting took too long. It differs from the TimeoutError of a slow statement."""


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection whose prepared statements have globally unique names, or none.

    asyncpg uses the same names in each process. Some poolers share a server connection and lose
    track of its statements. A process could then run another one's statement of the same name: a
    DELETE instead of a SELECT. With unique names, that is an error (26000) instead.
    """

    connector: "Connector"
    names_statements: bool
    # By SQL. Their number is bounded by that of the service's Statements.
    prepared: dict[str, Any]

    def _get_unique_id(self, prefix: str) -> str:
        return f"{super()._get_unique_id(prefix)}{secrets.token_hex(6)}"

    async def run_prepared(self, sql: str, *arguments: Any) -> Any:
        """The rows of a statement, which this connection prepares once, under a unique name."""
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
        """Whether it is open as far as known, and uses no names if the pooler loses them."""
        may_name = self.connector.may_name or not self.names_statements
        return may_name and not self.is_closed()

    def was_read_only(self) -> None:
        """A write was refused. Close the connection: the host's name may lead to a new primary."""
        self.terminate()


class LinkedConnection(Linked, Connection):
    """A connection to one of several hosts."""

    @property
    def is_usable(self) -> bool:
        return super().is_usable and not self.is_to_be_moved


class Connector:
    """Makes connections to PostgreSQL. Statements have names until a pooler loses one.

    `connect` has the signature of asyncpg.connect.
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
        except asyncpg.PostgresError as error:
            if (error.sqlstate or "").startswith(_REFUSALS):
                raise
            # Its text quotes no value: nothing has been sent but the URL's parts.
            refusal = f"{type(error).__name__} ({error.sqlstate}): {error}"
            raise ConnectionRefusedError(refusal) from None
        connection.connector = self
        connection.prepared = {}
        connection.names_statements = options.get("statement_cache_size") != 0
        return connection

    def go_without_names(self) -> None:
        """A pooler has lost a prepared statement: use unnamed ones from now on."""
        if self.may_name:
            self.may_name = False
            logger.warning(
                "a pooler in front of the database loses prepared statements: from now on they "
                "have no names here, which costs each a second round trip"
            )


def create_engine(
    asked: DatabaseURL, settings: Settings, *, has_timeout: bool = True
) -> AsyncEngine:
    """An engine for a database. On SQLite, it is the engine for writing.

    Without a timeout, statements may run for any time.
    """
    url, arguments = asked.url, asked.arguments
    timeout = settings.database_statement_timeout
    if url.get_backend_name() == "sqlite":
        return sqlite.create_engine(settings, url, timeout if has_timeout else None)
    has_several_hosts = "," in url.query.get("host", "")
    timeout = min(timeout, asked.statement_timeout or timeout)
    arguments = {
        "async_creator_fn": Connector(Hosts().connect if has_several_hosts else connect),
        "connection_class": LinkedConnection if has_several_hosts else Connection,
        "timeout": settings.database_connect_timeout,
        "command_timeout": timeout if has_timeout else None,
        **arguments,
    }
    engine = create_async_engine(
        url,
        hide_parameters=True,
        poolclass=Pool,
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=POOL_GRACE,
        # Each user of a connection ends its own transaction, so returning it needs no round trip.
        pool_reset_on_return=None,
        connect_args=arguments,
    )
    event.listen(engine.sync_engine, "checkin", note_use)
    event.listen(engine.sync_engine, "checkout", discard_dead)
    if asked.search_path:
        # A pooler forgets session settings, so each transaction sets the path again.
        command = set_search_path(asked.search_path)
        event.listen(engine.sync_engine, "begin", lambda begun: begun.exec_driver_sql(command))
    return engine


def set_search_path(schemas: Iterable[str]) -> str:
    """SQL that sets the search path to these schemas until the transaction ends."""
    return f"SET LOCAL search_path = {', '.join(map(quoted, schemas))}"


def quoted(name: str) -> str:
    """The name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
