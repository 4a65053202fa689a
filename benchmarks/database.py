# [Task]: T041 [From]: specs/requirements.md
"""The one PostgreSQL, and the one table, that all contestants use.

This service's migration makes it, which is generous to the others: they get its index, too.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
from postgresql import PostgreSQL
from service import create_database, serving

from benchmarks.operations import CHANGED, CHANGER, LISTED, READER, Operation, Request

# Tasks in the table; whoever is not measured has 50 of them, too.
TASKS = 100_000
# Enough for all contestants, workers included, with 10 connections each.
MAX_CONNECTIONS = 100
# Connections of contestants that are in the middle of something.
_BUSY = """
    SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'
"""


class Database:
    """Its `url` is the contestants', `folder` holds the server's data."""

    def __init__(self, url: str, port: int, folder: Path, connection: Any) -> None:
        self.url = url
        self.port = port
        self._folder = folder
        self._connection = connection
        self._read: list[int] = []
        self._changed: list[int] = []

    @property
    def pid(self) -> int:
        """Of the server's first process, the parent of all others."""
        return int((self._folder / "postmaster.pid").read_text().split()[0])

    async def stage(self, operation: Operation) -> None:
        """Make the rows what it begins with, when all that was asked before is done with."""
        await self._quiet()
        if operation.stage:
            await self._connection.execute(operation.stage)

    async def _quiet(self) -> None:
        # A server goes on with the requests whose client has left, and may pause between two.
        quiet = 0
        while quiet < 3:
            await asyncio.sleep(0.01)
            quiet = 0 if await self.value(_BUSY) else quiet + 1

    async def value(self, sql: str) -> Any:
        return await self._connection.fetchval(sql)

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self._connection.fetch(sql)]

    def requests(self, operation: Operation) -> list[Request]:
        return operation.requests(self._read, self._changed)

    async def tidy(self) -> None:
        """Do now what the server would do at some time while it is measured."""
        for sql in ("VACUUM ANALYZE task", "CHECKPOINT"):
            await self._connection.execute(sql)

    async def seed(self) -> None:
        columns = ("user_id", "title", "description", "completed", "created_at", "updated_at")
        await self._connection.copy_records_to_table("task", columns=columns, records=_tasks())
        self._read = await self._ids(READER)
        self._changed = await self._ids(CHANGER)
        await self.tidy()

    async def _ids(self, user: str) -> list[int]:
        rows = await self._connection.fetch("SELECT id FROM task WHERE user_id = $1", user)
        return [row["id"] for row in rows]


@asynccontextmanager
async def open_database() -> AsyncIterator[Database]:
    """A server that keeps its promises, with a seeded table, until it is stopped."""
    with TemporaryDirectory(prefix="bench-") as name:
        (data := Path(name) / "data").mkdir()
        server = PostgreSQL(data)
        server.start(
            fsync="on",
            max_connections=MAX_CONNECTIONS,
            # Both would fall into some runs and not into others: see Database.tidy.
            autovacuum="off",
            max_wal_size="8GB",
        )
        try:
            url = await asyncio.to_thread(create_database, server)
            with serving(Path(name), DATABASE_URL=url):
                pass  # It has made its table.
            connection = await asyncpg.connect(url)
            database = Database(url, server.port, data, connection)
            await database.seed()
            yield database
            await connection.close()
        finally:
            server.stop("immediate")


def _tasks() -> list[tuple[object, ...]]:
    owners = [READER] * LISTED + [CHANGER] * CHANGED
    owners += [f"user {n // LISTED}" for n in range(TASKS - len(owners))]
    # Microseconds that are never a whole second, which pydantic would write in a shorter way.
    start = datetime(2026, 1, 1, 0, 0, 0, 123_457, UTC)
    tasks: list[tuple[object, ...]] = []
    for n, owner in enumerate(owners):
        instant = start + timedelta(seconds=n)
        # Some text of everyday's length, beyond ASCII now and then.
        description = None if n % 5 == 0 else f"Für {owner}: what is to be done, in some words, {n}"
        tasks.append((owner, f"Task number {n}", description, n % 3 == 0, instant, instant))
    return tasks
