# [Task]: T043 [From]: specs/requirements.md
"""The SQL of docs/scaling.md: a partitioned table, under a service that runs on unchanged."""

import asyncio
import re
from pathlib import Path

import pytest
from databases import execute
from postgresql import PostgreSQL
from service import ROOT

from benchmarks.growth import PLAN_MODES, REQUESTS, Plan, create_table, plans
from faults.stage import complaints, connected, listed, someone, used

ROWS = 20_000
BETTER_AUTH = """
    CREATE TABLE "user" (id text PRIMARY KEY);
    INSERT INTO "user" SELECT DISTINCT user_id FROM task;
"""


def sql_of_the_document() -> tuple[str, str]:
    """To partition the table, and to tie it to Better Auth's users again."""
    document = (ROOT / "docs" / "scaling.md").read_text()
    section = document.partition("\n## Partitions\n")[2].partition("\n## ")[0]
    partition, tie = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)
    return partition, tie


async def test_service_runs_on(server: PostgreSQL, folder: Path) -> None:
    table = await asyncio.to_thread(create_table, server, folder, ROWS)
    partition, tie = sql_of_the_document()
    async with (
        used(folder, DATABASE_URL=table.url) as (service, http),
        connected(table.url) as connection,
    ):
        alice = someone(http)
        old, gone = await alice.add("old"), await alice.add("gone")
        await alice.delete(f"/{gone['id']}")
        await connection.execute(partition)
        await connection.execute(BETTER_AUTH)
        await connection.execute(tie)

        new = await alice.add("new")
        # The id of a deleted task is not given again.
        assert new["id"] > gone["id"]
        assert await listed(alice) == [new, old]
        assert (await alice.get(f"/{old['id']}")).json() == old
        await alice.put(f"/{old['id']}", {"title": "changed"})
        completed = (await alice.complete(old["id"])).json()
        assert (completed["title"], completed["completed"]) == ("changed", True)
        assert (await alice.delete(f"/{old['id']}")).status_code == 204
        assert await listed(alice) == [new]
        # A user whom Better Auth does not know, and one whom it deletes.
        assert (await someone(http).post({"title": "Nobody's"})).status_code == 401
        await connection.execute('DELETE FROM "user" WHERE id = $1', alice.user)
        assert await listed(alice) == []
        bob = someone(http)
        await connection.execute('INSERT INTO "user" VALUES ($1)', bob.user)
        for n in range(5):
            await bob.add(f"task {n}")

        rows = await connection.fetchval("SELECT count(*) FROM task")
        touched = await connection.fetch("SELECT DISTINCT tableoid FROM task")
        assert (rows, len(touched)) == (ROWS + 5, 16)
        # Each user's are in one, what a POST has added included.
        homes = await connection.fetch("SELECT count(DISTINCT tableoid) FROM task GROUP BY user_id")
        assert {home[0] for home in homes} == {1}
    async with used(folder, DATABASE_URL=table.url) as (service, http):
        # The next start finds nothing to do.
        assert await listed(someone(http)) == []
        assert complaints(service) == []


@pytest.fixture(scope="module")
def planned(server: PostgreSQL, folder: Path) -> dict[tuple[str, str], Plan]:
    table = create_table(server, folder, ROWS)
    asyncio.run(execute(table.url, sql_of_the_document()[0]))
    return {(plan.request, plan.mode): plan for plan in plans(server, table, folder)}


@pytest.mark.parametrize("mode", PLAN_MODES)
@pytest.mark.parametrize("request_name", REQUESTS)
def test_statement_touches_one_partition(
    planned: dict[tuple[str, str], Plan], request_name: str, mode: str
) -> None:
    text = planned[request_name, mode].text
    touched = [line for line in text.splitlines() if "(actual" in line]
    partitions = {name for line in touched for name in re.findall(r" on (task_\d+)\b", line)}
    assert "Seq Scan" not in text
    if request_name == "POST":
        # An INSERT is planned for the table as a whole.
        assert "Insert on task " in text
    else:
        assert len(partitions) == 1, text
