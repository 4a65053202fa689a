# [Task]: T009 [From]: specs/design.md
"""Runs statements: compiled once, on the driver's own connection, in one round trip.

tasks/queries.py has the statements.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import batched
from typing import Any, cast, overload

import asyncpg
from sqlalchemy import Dialect, Select, UpdateBase
from sqlmodel.ext.asyncio.session import AsyncSession

from kit.database import sqlite
from kit.database.database import Core, Database
from kit.database.failures import (
    DRIVER_ERRORS,
    database_errors,
    is_conflict,
    nothing_sent,
    shard_has_moved,
)
from kit.database.idle import IdleConnection, give_back, take
from kit.database.session import AnySelect, ReadSession, Session
from kit.errors import DatabaseUnavailable

# The connection broke while the statement ran. The statement may have taken effect.
_CONNECTION_LOST = (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, ConnectionError)
# A pooler moved the session to a server connection that does not know the prepared statement, or
# that has another one of this name.
_NAME_LOST = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
# The table has been changed since the statement was prepared.
_TABLE_CHANGED = asyncpg.exceptions.InvalidCachedStatementError
# Seconds after the first attempt in which a statement may be repeated.
REPEAT_WITHIN = 0.5
# Seconds to wait before a statement is repeated after a conflict.
CONFLICT_PAUSE = 0.003
# Seconds. Fall back to the primary only if the replica failed this quickly.
FALLBACK_WITHIN = 0.1
# Seconds a connection has to answer again after its statement was cancelled.
RECOVERY_TIMEOUT = 1.0

# Records to convert before other requests get a turn.
AT_A_TIME = 1000

# A row of the driver: values in the order of the statement's columns.
type Record = Sequence[Any]
type Row = dict[str, Any]
type Converter = Callable[[Any], Any]


class Statement[S: ReadSession = AsyncSession]:
    """A Core statement, compiled once per kind of database and run on the driver's connection.

    By default a statement is its own transaction, in one round trip without BEGIN or COMMIT
    (specs/decisions.md, D2). If its session has begun a transaction, or is not one of ours, the
    statement runs in that session.
    """

    @overload
    def __init__(self: "Statement[ReadSession]", statement: AnySelect) -> None: ...
    @overload
    def __init__(
        self: "Statement[AsyncSession]", statement: UpdateBase, *, repeatable: bool = ...
    ) -> None: ...
    def __init__(self, statement: Core, *, repeatable: bool = False) -> None:
        """`repeatable` marks a write that may run twice with the effect of running once."""
        self.core = statement
        self._names = [str(column.key) for column in statement.exported_columns]
        self._is_repeatable = repeatable or isinstance(statement, Select)
        self._compiled: dict[tuple[str, str | None], _Compiled] = {}

    async def records(self, session: S, **values: object) -> Sequence[Record]:
        """Run it with values for its bind parameters. Raises DatabaseUnavailable."""
        if isinstance(session, Session) and not session.has_begun:
            return await self._run_alone(session, values)
        in_transaction = cast(AsyncSession, session)
        with database_errors():
            # SQLAlchemy keeps track of the transaction and sends BEGIN if needed.
            await in_transaction.flush()
            connection = await in_transaction.connection()
            if connection.dialect.name == "sqlite":
                await sqlite.add_functions(connection)
            result = await connection.execute(self.core, values)
            return result.all()

    async def rows(self, session: S, **values: object) -> list[Row]:
        """The same as dicts. For a long list this doubles the time."""
        return [self.named(record) for record in await self.records(session, **values)]

    async def row(self, session: S, **values: object) -> Row | None:
        """The first of `rows`, if there is one."""
        records = await self.records(session, **values)
        return self.named(records[0]) if records else None

    def named(self, record: Record) -> Row:
        """A record as a dict by column name."""
        # strict=True would take half as long again, and the columns always match.
        return dict(zip(self._names, record, strict=False))

    async def _run_alone(self, session: Session, values: Mapping[str, object]) -> Sequence[Record]:
        database, primary = session.database, session.primary
        run = self._run_on if primary.statement_span is None else self._run_in_span
        if database is not primary:
            try:
                return await run(database, values)
            except (DatabaseUnavailable, asyncpg.PostgresError):
                # The primary may have what the replica lacks, such as a new column.
                if time.monotonic() - session.waiting_since > FALLBACK_WITHIN:
                    raise
            async with primary.gate:
                return await run(primary, values)
        return await run(database, values)

    async def _run_in_span(
        self, database: Database, values: Mapping[str, object]
    ) -> Sequence[Record]:
        assert database.statement_span is not None  # noqa: S101  # as _run_alone has seen
        with database.statement_span(self.core, self._for(database).sql):
            return await self._run_on(database, values)

    async def _run_on(self, database: Database, values: Mapping[str, object]) -> Sequence[Record]:
        # Repeat only if the statement can't take effect twice (specs/decisions.md, D11).
        deadline = time.monotonic() + REPEAT_WITHIN
        losses = 0 if self._is_repeatable else 1
        while True:
            try:
                records = await self._run_once(database, values)
            except DRIVER_ERRORS as error:
                if is_conflict(error):
                    return await self._repeat(database, values, error)
                losses += isinstance(error, _CONNECTION_LOST)
                harmless = _not_begun(error) or (isinstance(error, _CONNECTION_LOST) and losses < 2)
                if not harmless or time.monotonic() > deadline:
                    database.handle_error(error)
                    raise
            else:
                database.mark_up()
                return records

    async def _repeat(
        self, database: Database, values: Mapping[str, object], error: Exception
    ) -> Sequence[Record]:
        """Repeat a statement that the database rolled back because of a conflict."""
        now = asyncio.get_running_loop().time
        deadline = now() + REPEAT_WITHIN
        while is_conflict(error) and now() < deadline:
            await asyncio.sleep(CONFLICT_PAUSE)
            # One at a time: in parallel, all but one would conflict again.
            try:
                async with asyncio.timeout_at(deadline):
                    await database.repeat_lock.acquire()
            except TimeoutError:
                break
            try:
                records = await self._run_once(database, values)
            except DRIVER_ERRORS as again:
                error = again
            else:
                database.mark_up()
                return records
            finally:
                database.repeat_lock.release()
        database.handle_error(error)
        raise error

    async def _run_once(self, database: Database, values: Mapping[str, object]) -> Sequence[Record]:
        compiled = self._for(database)
        if database.file is not None:
            return await compiled.fetch(database.file, values)
        connection = await take(database.engine)
        driver = connection.driver
        try:
            records = await compiled.fetch(driver, values)
        except asyncpg.PostgresError as error:
            if isinstance(error, _NAME_LOST):
                driver.connector.go_without_names()
            elif shard_has_moved(error):
                # The connection's cached plans refer to shards that have moved.
                driver.terminate()
            elif isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                driver.was_read_only()
            give_back(database.engine, connection)
            raise
        except BaseException:
            # Cancelled: the answer must have arrived before the connection is used again.
            database.in_background(_recover(database, connection))
            raise
        give_back(database.engine, connection)
        return records

    def _for(self, database: Database) -> "_Compiled":
        compiled = self._compiled.get(database.sql_form)
        if compiled is None:
            compiled = _Compiled(self.core, database.engine.dialect, database.schema)
            self._compiled[database.sql_form] = compiled
        return compiled


class _Compiled:
    """A statement's SQL for one dialect, with SQLAlchemy's own conversions of values."""

    def __init__(self, statement: Core, dialect: Dialect, schema: str | None = None) -> None:
        # With a schema, names are qualified, because a pooler forgets a session's search path.
        # Without one, nothing is translated: SQLAlchemy would insert the first schema of the path.
        translated: dict[str, Any] = {}
        if schema is not None:
            translated = {"schema_translate_map": {None: schema}, "render_schema_translate": True}
        compiled = statement.compile(dialect=dialect, **translated)
        self.sql = str(compiled)
        # The method of pool.Connection or sqlite.File that runs it.
        self._method = "run_prepared"
        if dialect.name == "sqlite":
            self._method = "read" if isinstance(statement, Select) else "write"
        if compiled.insert_prefetch:
            names = ", ".join(column.name for column in compiled.insert_prefetch)
            raise TypeError(f"a Statement computes no defaults: give {names} in its values()")
        self._literals = {name: b.value for name, b in compiled.binds.items() if not b.required}
        # Values computed for each execution, such as the time in Task.updated_at's `onupdate`.
        self._computed = {n: b.callable for n, b in compiled.binds.items() if b.callable}
        self._arguments: list[tuple[str, Converter | None]] = []
        for name in compiled.positiontup or ():
            bind_type = compiled.binds[name].type.dialect_impl(dialect)
            self._arguments.append((name, bind_type.bind_processor(dialect)))
        self._converters: list[tuple[int, Converter]] = []
        for place, column in enumerate(statement.exported_columns):
            convert = column.type.dialect_impl(dialect).result_processor(dialect, None)
            if convert is not None:
                self._converters.append((place, convert))

    async def fetch(self, on: Any, values: Mapping[str, object]) -> Sequence[Record]:
        values = {**self._literals, **values}
        if self._computed:
            values |= {name: compute() for name, compute in self._computed.items()}
        arguments = [
            values[name] if convert is None else convert(values[name])
            for name, convert in self._arguments
        ]
        found: Sequence[Record] = await getattr(on, self._method)(self.sql, *arguments)
        if not self._converters:
            return found
        if len(found) <= AT_A_TIME:
            return list(map(self._converted, found))
        records: list[Record] = []
        for some in batched(found, AT_A_TIME, strict=False):
            if records:
                await asyncio.sleep(0)
            records += map(self._converted, some)
        return records

    def _converted(self, record: Record) -> Record:
        values = list(record)
        for place, convert in self._converters:
            values[place] = convert(values[place])
        return values


def _not_begun(error: Exception) -> bool:
    """Whether the statement was refused before it took any effect."""
    refused = isinstance(error, (_TABLE_CHANGED, *_NAME_LOST)) or shard_has_moved(error)
    return refused or nothing_sent(error)


async def _recover(database: Database, connection: IdleConnection) -> None:
    """Give back a connection whose statement was cancelled once it answers again, else close it.

    asyncpg has sent a cancel request. Its next statement waits until that is done.
    """
    try:
        if connection.driver.is_usable:
            await connection.driver.fetchval("SELECT 1", timeout=RECOVERY_TIMEOUT)
    except DRIVER_ERRORS as error:
        connection.pooled.invalidate()
        database.mark_down(f"a connection does not answer any more ({type(error).__name__})")
    except BaseException:
        connection.pooled.invalidate()
        raise
    else:
        give_back(database.engine, connection)
