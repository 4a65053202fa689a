# [Task]: T082 [From]: specs/requirements.md
"""This service on an SQLite file, beside itself on PostgreSQL, with the same tasks."""

import sqlite3
from contextlib import closing
from pathlib import Path
from statistics import median

from benchmarks.contestants import OURS, running
from benchmarks.database import Database
from benchmarks.load import Load
from benchmarks.operations import GET, LIST, MIX, POST

OPERATIONS = (GET, LIST, POST)

# By operation: requests per second on PostgreSQL and on SQLite.
type OnSQLite = dict[str, tuple[float, float]]

_COPIED = "id, user_id, title, description, completed, created_at, updated_at"


async def measure_sqlite(
    load: Load, database: Database, folder: Path, connections: int, rounds: int
) -> OnSQLite:
    """Medians of rounds in which both take turns."""
    file = folder / "tasks.db"
    url = f"sqlite:///{file}"
    with running([OURS], folder, url):
        pass  # It has made its table.
    await _copy_tasks(database, file)
    figures: dict[str, tuple[list[float], list[float]]] = {o.name: ([], []) for o in OPERATIONS}
    with (
        running([OURS], folder, database.url) as [on_postgresql],
        running([OURS], folder, url) as [on_sqlite],
    ):
        servers = (on_postgresql, on_sqlite)
        for server in servers:
            await load.run(server, MIX, connections)
        for _ in range(rounds):
            await database.tidy()
            for operation in OPERATIONS:
                for server, found in zip(servers, figures[operation.name], strict=True):
                    found.append((await load.run(server, operation, connections)).throughput)
    return {name: (median(one), median(other)) for name, (one, other) in figures.items()}


async def _copy_tasks(database: Database, file: Path) -> None:
    tasks = await database.rows(f"""
        SELECT id, user_id, title, description, completed,
            to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'),
            to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')
        FROM task WHERE id < {2**30}
    """)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany(f"INSERT INTO task ({_COPIED}) VALUES (?, ?, ?, ?, ?, ?, ?)", tasks)
