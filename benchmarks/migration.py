# [Task]: T056 [From]: specs/requirements.md
"""How long a write waits while the newest migration is applied to ten million tasks in use:
`make bench-migration`, three minutes. It exits with 1 if one waits for more than half a second.
"""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
from faults.stage import postgresql
from service import create_database, serving
from support import SECRET

from benchmarks import ROOT
from benchmarks.growth import Table, say
from kit.database.tables import versions

ROWS = 10_000_000
WRITERS = 4
# Seconds between a writer's writes, and that it writes before the migration and after it.
PAUSE = 0.005
BEFORE_AND_AFTER = 2.0
# Seconds that a write may wait.
MOST = 0.5
# Those that the newest migration leaves to be made beside the requests, and seconds for all of it.
INDEXES = 2
TIMEOUT = 600.0
# An INSERT and an UPDATE as the release before sends them.
WRITES = (
    "INSERT INTO task (user_id, title, completed, created_at, updated_at) "
    "VALUES ('writer', 'new', false, now(), now())",
    "UPDATE task SET completed = NOT completed, updated_at = now() WHERE id = 1",
)


def migrate(url: str, version: str) -> None:
    """Bring an empty database to a version."""
    environment = {**os.environ, "DATABASE_URL": url, "BETTER_AUTH_SECRET": SECRET}
    command = [sys.executable, "-m", "alembic", "upgrade", version]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


async def write(url: str, stop: asyncio.Event, waits: list[float]) -> None:
    connection = await asyncpg.connect(url)
    while not stop.is_set():
        for statement in WRITES:
            began = time.monotonic()
            await connection.execute(statement)
            waits.append(time.monotonic() - began)
        await asyncio.sleep(PAUSE)
    await connection.close()


async def measure(url: str, folder: Path) -> tuple[list[float], float]:
    """Seconds that each write took, and those until the table was up to date."""
    stop = asyncio.Event()
    waits: list[float] = []
    writers = [asyncio.create_task(write(url, stop, waits)) for _ in range(WRITERS)]
    await asyncio.sleep(BEFORE_AND_AFTER)
    began = time.monotonic()
    with ExitStack() as stack:
        # In a thread, since it waits for the service, and the writers must not wait with it.
        service = await asyncio.to_thread(stack.enter_context, serving(folder, DATABASE_URL=url))
        async with asyncio.timeout(TIMEOUT):
            # Nobody tells but the log: one line for each index.
            while service.log().count("is there") < INDEXES:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        took = time.monotonic() - began
        await asyncio.sleep(BEFORE_AND_AFTER)
    stop.set()
    await asyncio.gather(*writers)
    return waits, took


def main() -> int:
    """The exit status: 1 if a write waited for too long."""
    with (
        postgresql(shared_buffers="2GB", max_wal_size="8GB") as server,
        TemporaryDirectory() as name,
    ):
        table = Table(create_database(server), ROWS)
        migrate(table.url, versions()[-2])
        say(f"loading {ROWS:,} tasks")
        asyncio.run(table.load())
        say(f"migrating to {versions()[-1]}")
        waits, took = asyncio.run(measure(table.url, Path(name)))
    waits.sort()
    print(
        f"{len(waits):,} writes beside the migration of {ROWS:,} tasks, which took {took:.0f} s: "
        f"median {waits[len(waits) // 2] * 1000:.1f} ms, longest {waits[-1] * 1000:.0f} ms"
    )
    return int(waits[-1] > MOST)


if __name__ == "__main__":
    sys.exit(main())
