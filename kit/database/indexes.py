# [Task]: T056 [From]: specs/decisions.md
"""Indexes that a table in use still lacks: made beside the requests, which wait for nothing.

A migration can't do that, since it is a transaction. Which indexes there are to be is in models.py.
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

# Another than the tables' own: who waits for that one has a snapshot, for whose end an index that
# is made CONCURRENTLY waits.
INDEXES_LOCK = TABLES_LOCK + 1
# Seconds between looks whether another process has made them.
LOOK_INTERVAL = 0.5


async def make_indexes(database: Database) -> None:
    """Make those of `task` that are missing, or that were left half-made. PostgreSQL only.

    One process does so, and others wait until it has. Raises DatabaseUnavailable, as
    StatementTimeout while somebody else is changing the table.
    """
    while await _lacking(database):
        with database.watched():
            async with _alone(database) as engine:
                if engine is not None:
                    # Asked again: another process may have made some until just now.
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
    """An engine whose statements may take their time, or None while another process has one."""
    # One connection for the lock, which is a transaction's so that it works through a pooler, too,
    # and one for the work.
    settings = database.settings.model_copy(update={"database_pool_size": 2})
    engine = create_engine(database.asked, settings, is_patient=True)
    try:
        async with engine.begin() as connection:
            locked = await connection.scalar(select(func.pg_try_advisory_xact_lock(INDEXES_LOCK)))
            # To be idle is all it does from now on. And a last word that is no query leaves it
            # without a snapshot, for whose end the work would wait.
            await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            yield engine if locked else None
    finally:
        await engine.dispose()


@asynccontextmanager
async def _quick_change(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that gives up rather than keep others waiting behind it."""
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
        # Of a partitioned table, PostgreSQL makes none beside requests: but of each partition.
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
    """The table and its partitions, by names that mean the same outside of a transaction."""
    async with engine.connect() as connection:
        table, *partitions = await connection.scalars(text(_FULL_NAMES))
    return table, partitions


async def _drop_leftover(engine: AsyncEngine, name: str) -> None:
    """Drop what a process that is gone has left half-made, or has not got to use."""
    async with _quick_change(engine) as connection:
        # Whoever makes an index has this lock, so that nobody is at it now.
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
