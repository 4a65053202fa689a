# [Task]: T056 [From]: specs/decisions.md
"""Indexes that a table in use still lacks: made beside the requests, which wait for nothing.

A migration can't do that, since it is a transaction. Which indexes there are to be is in models.py.
"""

import logging

from sqlalchemy import Index, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateIndex

from database.database import LOCK_TIMEOUT, Database
from database.pool import create_engine
from models import TASK_TABLE

logger = logging.getLogger("tasks.tables")


async def make_indexes(database: Database) -> None:
    """Make those of `task` that are missing, or that were left half-made. PostgreSQL only.

    Raises DatabaseUnavailable, as StatementTimeout while another process is making them.
    """
    while lacking := await _lacking(database):
        with database.watched():
            # To make one may take longer than a statement is given.
            patient = create_engine(database.settings, statement_timeout=None)
            try:
                for index in lacking:
                    await _drop_leftover(patient, index)
                    await _make(patient, index)
            finally:
                await patient.dispose()


async def _lacking(database: Database) -> list[Index]:
    async with database.gate:
        with database.watched():
            async with database.engine.connect() as connection:
                there = set(await connection.scalars(text(_VALID)))
    return [index for index in TASK_TABLE.indexes if index.name not in there]


async def _drop_leftover(engine: AsyncEngine, index: Index) -> None:
    """Drop what a process that is gone has left half-made."""
    async with engine.begin() as connection:
        await connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        # Whoever makes an index has this lock, so that nobody is at it now.
        await connection.execute(text("LOCK TABLE task IN SHARE UPDATE EXCLUSIVE MODE"))
        if index.name not in await connection.scalars(text(_VALID)):
            await connection.execute(text(f"DROP INDEX IF EXISTS {index.name}"))


async def _make(engine: AsyncEngine, index: Index) -> None:
    logger.info("the index %s is being made, beside the requests", index.name)
    sql = str(CreateIndex(index, if_not_exists=True).compile(dialect=engine.dialect))
    async with engine.connect() as connection:
        alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await alone.exec_driver_sql(sql.replace("INDEX", "INDEX CONCURRENTLY", 1))
    logger.info("the index %s is there", index.name)


_VALID = """
    SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = to_regclass('task') AND indisvalid
"""
