# [Task]: T056 [From]: specs/decisions.md
"""Builds missing indexes while the table is in use, without blocking requests.

A migration can't do that, because CREATE INDEX CONCURRENTLY can't run in a transaction. models.py
defines the indexes.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import Index, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateIndex

from kit.database.database import LOCK_TIMEOUT, TABLES_LOCK, Database
from kit.database.pool import create_engine

logger = logging.getLogger("tasks.tables")

# Not TABLES_LOCK: processes that wait for that lock have a snapshot, and CREATE INDEX CONCURRENTLY
# would wait for those to end.
INDEXES_LOCK = TABLES_LOCK + 1
# Seconds between checks whether another process has built them.
LOOK_INTERVAL = 0.5


async def make_indexes(database: Database) -> None:
    """Build the indexes of `task` that are missing or invalid. PostgreSQL only.

    One process builds them and the others wait for it. Raises DatabaseUnavailable; that is a
    StatementTimeout while another session changes the table.
    """
    while await _lacking(database):
        with database.watched():
            async with _alone(database) as engine:
                if engine is not None:
                    # Checked again: another process may have built some meanwhile.
                    for index in await _lacking(database):
                        await _make(engine, index)
                    continue
        await asyncio.sleep(LOOK_INTERVAL)


async def _lacking(database: Database) -> list[Index]:
    async with database.gate:
        with database.watched():
            async with database.engine.connect() as connection:
                there = set(await connection.scalars(text(_VALID)))
    return [index for index in database.table.indexes if index.name not in there]


@asynccontextmanager
async def _alone(database: Database) -> AsyncIterator[AsyncEngine | None]:
    """An engine without a statement timeout; None while another process holds the lock."""
    # One connection holds the lock and one builds. The lock belongs to a transaction, so that it
    # works through a pooler.
    settings = database.settings.model_copy(update={"database_pool_size": 2})
    engine = create_engine(database.asked, settings, has_timeout=False)
    try:
        async with engine.begin() as connection:
            locked = await connection.scalar(select(func.pg_try_advisory_xact_lock(INDEXES_LOCK)))
            # This connection only holds the lock. SET leaves no snapshot; CREATE INDEX CONCURRENTLY
            # would wait for one.
            await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            yield engine if locked else None
    finally:
        await engine.dispose()


@asynccontextmanager
async def _quick_change(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction with a short lock timeout, so that others don't wait behind it for long."""
    async with engine.begin() as connection:
        await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        yield connection


async def _make(engine: AsyncEngine, index: Index) -> None:
    logger.info("the index %s is being made, beside the requests", index.name)
    name = str(index.name)
    sql = str(CreateIndex(index).compile(dialect=engine.dialect))
    await _drop_leftover(engine, name)
    table, partitions = await _full_names(engine)
    if not partitions:
        await _make_beside_requests(engine, sql.replace(" ON task ", f" ON {table} "))
    else:
        # PostgreSQL can't build an index CONCURRENTLY on a partitioned table, only on a partition.
        async with _quick_change(engine) as connection:
            await connection.execute(text(sql.replace(" ON task ", " ON ONLY task ")))
        for number, partition in enumerate(partitions):
            part = f"{name}_{number}"
            await _drop_leftover(engine, part)
            await _make_beside_requests(
                engine, sql.replace(f"{name} ON task ", f"{part} ON {partition} ")
            )
            async with _quick_change(engine) as connection:
                await connection.execute(text(f"ALTER INDEX {name} ATTACH PARTITION {part}"))
    logger.info("the index %s is there", name)


async def _full_names(engine: AsyncEngine) -> tuple[str, list[str]]:
    """The qualified names of the table and its partitions, valid outside of a transaction."""
    async with engine.connect() as connection:
        table, *partitions = await connection.scalars(text(_FULL_NAMES))
    return table, partitions


async def _drop_leftover(engine: AsyncEngine, name: str) -> None:
    """Drop an invalid or unattached index that an earlier process has left."""
    async with _quick_change(engine) as connection:
        # Every index build holds this lock, so none is in progress now.
        await connection.execute(text("LOCK TABLE task IN SHARE UPDATE EXCLUSIVE MODE"))
        await connection.execute(text(f"DROP INDEX IF EXISTS {name}"))


async def _make_beside_requests(engine: AsyncEngine, sql: str) -> None:
    async with engine.connect() as connection:
        alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await alone.exec_driver_sql(sql.replace("INDEX", "INDEX CONCURRENTLY", 1))


_VALID = """
    SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = to_regclass('task') AND indisvalid
"""
_FULL_NAMES = """
    SELECT format('%I.%I', nspname, relname)
    FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    LEFT JOIN pg_inherits ON inhrelid = pg_class.oid
    WHERE pg_class.oid = 'task'::regclass OR inhparent = 'task'::regclass
    ORDER BY pg_class.oid != 'task'::regclass, pg_class.oid
"""
