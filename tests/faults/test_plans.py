# [Task]: T042 [From]: specs/requirements.md
"""How PostgreSQL finds the rows of each request: by an index, in the order that is asked for."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
from postgresql import PostgreSQL

from benchmarks.growth import PLAN_MODES, REQUESTS, Plan, Table, create_table, plans

ROWS = 200_000


@pytest.fixture(scope="module")
def table(server: PostgreSQL, folder: Path) -> Table:
    return create_table(server, folder, ROWS)


@pytest.fixture(scope="module")
def planned(server: PostgreSQL, table: Table, folder: Path) -> dict[tuple[str, str], Plan]:
    return {(plan.request, plan.mode): plan for plan in plans(server, table, folder)}


@pytest.mark.parametrize("mode", PLAN_MODES)
@pytest.mark.parametrize("request_name", REQUESTS)
def test_statement_is_an_index_scan(
    planned: dict[tuple[str, str], Plan], request_name: str, mode: str
) -> None:
    plan = planned[request_name, mode]
    assert not plan.faults(), plan.text


def test_missing_index_is_noticed(server: PostgreSQL, folder: Path) -> None:
    # Small enough for one process to read.
    table = create_table(server, folder, ROWS // 10)

    async def drop_index() -> None:
        connection = await asyncpg.connect(table.url)
        await connection.execute("DROP INDEX ix_task_user_id_created_at_id")
        await connection.close()

    asyncio.run(drop_index())
    listing, *_ = plans(server, table, folder)
    assert {"Sort", "Seq Scan"} <= set(listing.faults()), listing.text
