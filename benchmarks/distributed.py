# [Task]: T050 [From]: specs/requirements.md
"""What a statement costs on Citus, beside PostgreSQL alone: `make bench-distributed`, a minute.

The six statements on one connection, one after the other, on two tables of one coordinator: an
ordinary one and one that is distributed over two workers, all on this machine. Rounds take turns.
"""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cluster import DISTRIBUTE, Node, citus
from databases import opened

from kit.database.database import Database
from kit.database.session import Session
from kit.database.sql import utc_now
from tasks import queries

ROUNDS = 7
STATEMENTS = 300
LISTED = 50
OWNERS = 2_000

FILL = f"""
    INSERT INTO task (user_id, title, description, completed, created_at, updated_at)
    SELECT format('user-%s', n % {OWNERS}), 'title', 'a description', false,
        now() - n * interval '1 second', now() FROM generate_series(1, {LISTED * OWNERS}) n;
    ANALYZE task;
"""


type Work = Callable[[Database, int], Awaitable[object]]


async def _list(database: Database, number: int) -> object:
    return await queries.LIST.records(Session(database), owner=f"user-{number}")


async def _get(database: Database, number: int) -> object:
    return await queries.GET.row(Session(database), owner=f"user-{number}", task_id=number)


async def _post(database: Database, number: int) -> object:
    values = {"new_title": "new", "new_description": None, "new_completed": False}
    return await queries.CREATE.rows(
        Session(database), owner=f"new-{number}", now=utc_now(), **values
    )


async def _put(database: Database, number: int) -> object:
    values = {"new_title": "changed", "describe": False, "new_description": None}
    return await queries.UPDATE.any_version.row(
        Session(database),
        owner=f"user-{number}",
        task_id=number,
        new_completed=None,
        now=utc_now(),
        **values,
    )


async def _toggle(database: Database, number: int) -> object:
    return await queries.COMPLETE.any_version.row(
        Session(database),
        owner=f"user-{number}",
        task_id=number,
        new_completed=None,
        now=utc_now(),
    )


async def _delete(database: Database, number: int) -> object:
    return await queries.DELETE.any_version.row(
        Session(database), owner=f"user-{number}", task_id=number + OWNERS, expired=utc_now()
    )


WORK: dict[str, tuple[int, Work]] = {
    "GET one": (1, _get),
    f"GET list of {LISTED}": (LISTED, _list),
    "POST": (1, _post),
    "PUT": (1, _put),
    "PATCH complete": (1, _toggle),
    "DELETE": (1, _delete),
}


async def _measured(database: Database, work: Work, start: int) -> float:
    """Microseconds a statement."""
    began = time.perf_counter()
    for number in range(start, start + STATEMENTS):
        await work(database, number % OWNERS)
    return (time.perf_counter() - began) / STATEMENTS * 1e6


async def measure(plain_url: str, distributed_url: str) -> list[tuple[str, int, float, float]]:
    """Name, rows, and the medians of the microseconds on either."""
    settings = {"database_pool_size": 1, "database_statement_timeout": 60.0}
    results = []
    async with (
        opened(plain_url, **settings) as plain,
        opened(distributed_url, **settings) as distributed,
    ):
        for name, (rows, work) in WORK.items():
            times: dict[Database, list[float]] = {plain: [], distributed: []}
            for turn in range(ROUNDS):
                for database, measured in times.items():
                    measured.append(await _measured(database, work, turn * STATEMENTS))
            one, other = (statistics.median(measured) for measured in times.values())
            results.append((name, rows, one, other))
    return results


async def prepare(coordinator: Node) -> tuple[str, str]:
    """An ordinary table in a database of its own, and a distributed one."""
    plain_url, coordinator_url = coordinator.url("plain"), coordinator.url()
    connection = await asyncpg.connect(coordinator_url)
    await connection.execute("CREATE DATABASE plain")
    await connection.close()
    for url, sql in ((plain_url, FILL), (coordinator_url, DISTRIBUTE + FILL)):
        async with opened(url):
            pass
        connection = await asyncpg.connect(url)
        await connection.execute(sql)
        await connection.close()
    return plain_url, coordinator_url


def report(results: list[tuple[str, int, float, float]]) -> str:
    lines = [
        "| statement | rows | PostgreSQL, µs | Citus, µs | ratio |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {rows} | {plain:.0f} | {distributed:.0f} | {distributed / plain:.1f} |"
        for name, rows, plain, distributed in results
    ]
    return "\n".join(lines)


def main() -> None:
    os.environ.setdefault("BETTER_AUTH_SECRET", "of no use to a database " * 2)
    with citus() as cluster:
        urls = asyncio.run(prepare(cluster.coordinator))
        table = report(asyncio.run(measure(*urls)))
    print(table)
    Path(__file__).with_name("results").joinpath("distributed.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
