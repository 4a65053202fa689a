# [Task]: T009 [From]: specs/design.md
"""How a statement is run: compiled once, on the driver's own connection, in one round trip.

What the statements say is in queries.py.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import asyncpg
from sqlalchemy import Dialect, Select, UpdateBase
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.pool import PoolProxiedConnection
from sqlmodel.ext.asyncio.session import AsyncSession

from database.database import Database, Session
from database.failures import DRIVER_ERRORS, database_errors, nothing_sent
from database.pool import checkin, checkout
from errors import DatabaseUnavailable

# The connection broke while the statement ran: it may have been done.
_CONNECTION_LOST = (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, ConnectionError)
# It had broken before, or the table has been changed since the statement was prepared: it was not.
_TABLE_CHANGED = asyncpg.exceptions.InvalidCachedStatementError
_NOT_BEGUN = (_TABLE_CHANGED, asyncpg.InterfaceError, asyncpg.InternalClientError)
# Seconds within which a statement may be run again.
REPEAT_WITHIN = 0.5
# Seconds within which a replica that fails leaves the primary time enough.
AT_ONCE = 0.1
# Seconds a connection has to answer again after its statement was cut off.
RECOVERY_TIMEOUT = 2.0

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
            if isinstance(session, Session) and not session.has_begun:
                return await self._run_alone(session, values)
            # SQLAlchemy knows how the transaction stands, and sends its BEGIN if need be.
            await session.flush()
            connection = await session.connection()
            result = await connection.execute(self._statement, values)
            return [dict(row) for row in result.mappings()]

    async def row(self, session: AsyncSession, **values: object) -> dict[str, Any] | None:
        """The first of `rows`, if there is one."""
        rows = await self.rows(session, **values)
        return rows[0] if rows else None

    async def _run_alone(self, session: Session, values: Mapping[str, object]) -> Rows:
        database, primary = session.database, session.primary
        if database is not primary:
            try:
                with database.watched():
                    return await self._run_on(database, values)
            except (DatabaseUnavailable, asyncpg.PostgresError):
                # What the replica lacks, such as a new column, the primary has already.
                if time.monotonic() - session.waiting_since > AT_ONCE:
                    raise
            async with primary.gate:
                with primary.watched():
                    return await self._run_on(primary, values)
        return await self._run_on(database, values)

    async def _run_on(self, database: Database, values: Mapping[str, object]) -> Rows:
        # Run again where that can't mean doing the same twice: specs/decisions.md, D11.
        deadline = time.monotonic() + REPEAT_WITHIN
        repeatable = isinstance(self._statement, Select)
        while True:
            try:
                rows = await self._try_on(database, values)
            except _CONNECTION_LOST:
                if not repeatable or time.monotonic() > deadline:
                    raise
                repeatable = False
            except _NOT_BEGUN as error:
                begun = not isinstance(error, _TABLE_CHANGED) and not nothing_sent(error)
                if begun or time.monotonic() > deadline:
                    raise
            else:
                database.works()
                return rows

    async def _try_on(self, database: Database, values: Mapping[str, object]) -> Rows:
        try:
            pooled = await checkout(database.engine)
        except InvalidRequestError as error:  # The pool has tried several.
            raise DatabaseUnavailable("connections break as soon as they are made") from error
        connection: Any = pooled.driver_connection
        try:
            rows = await self._for(database.engine.dialect).fetch(connection, values)
            if not database.is_postgresql and connection.in_transaction:
                # sqlite3 begins a transaction before it writes.
                await connection.commit()
        except BaseException as error:
            if database.is_postgresql and not isinstance(error, asyncpg.PostgresError):
                # Cut off half-way: what its answer is must be known before it is used again.
                database.in_background(_recover(database, pooled))
            else:
                await checkin(database.engine, pooled)
            raise
        await checkin(database.engine, pooled)
        return rows

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
        self._literals = {name: b.value for name, b in compiled.binds.items() if not b.required}
        self._arguments: list[tuple[str, Converter | None]] = []
        for name in compiled.positiontup or ():
            bind_type = compiled.binds[name].type.dialect_impl(dialect)
            self._arguments.append((name, bind_type.bind_processor(dialect)))
        self._columns: list[str] = []
        self._converters: list[tuple[str, Converter]] = []
        for column in statement.exported_columns:
            name = str(column.key)
            self._columns.append(name)
            convert = column.type.dialect_impl(dialect).result_processor(dialect, None)
            if convert is not None:
                self._converters.append((name, convert))

    async def fetch(self, connection: Any, values: Mapping[str, object]) -> Rows:
        values = {**self._literals, **values}
        arguments = [
            values[name] if convert is None else convert(values[name])
            for name, convert in self._arguments
        ]
        found = await self._execute(connection, self._sql, arguments)
        # The SQL names these columns and no others; to have that checked takes half as long again.
        rows = [dict(zip(self._columns, row, strict=False)) for row in found]
        for name, convert in self._converters:
            for row in rows:
                row[name] = convert(row[name])
        return rows


async def _execute_postgresql(connection: Any, sql: str, arguments: list[object]) -> Sequence[Any]:
    rows: Sequence[Any] = await connection.fetch(sql, *arguments)
    return rows


async def _execute_sqlite(connection: Any, sql: str, arguments: list[object]) -> Sequence[Any]:
    rows: Sequence[Any] = await connection.execute_fetchall(sql, arguments)
    return rows


_EXECUTE = {"postgresql": _execute_postgresql, "sqlite": _execute_sqlite}


async def _recover(database: Database, pooled: PoolProxiedConnection) -> None:
    """Give back a connection whose statement was cut off, once it answers again, or closed.

    asyncpg asks the server to cancel such a statement, and waits for that before the next one.
    """
    connection: Any = pooled.driver_connection
    try:
        await connection.fetchval("SELECT 1", timeout=RECOVERY_TIMEOUT)
    except DRIVER_ERRORS:
        connection.terminate()
    finally:
        await checkin(database.engine, pooled)
