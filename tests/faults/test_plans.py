# [Task]: T042 [From]: specs/requirements.md
"""How PostgreSQL finds the rows of each request: by an index, in the order that is asked for."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from databases import execute
from postgresql import PostgreSQL
from statements import LISTINGS, prepared

from benchmarks.growth import (
    PLAN_MODES,
    REQUESTS,
    TASKS_PER_USER,
    Plan,
    Table,
    create_table,
    explain,
    plans,
    statements_sent,
)
from faults.stage import connected

ROWS = 100_000
# A tenth of them: to whom half of a table belongs, it may as well be read as a whole.
HOARDED = 10_000
FILL = f"""
    INSERT INTO task (user_id, title, description, completed, created_at, updated_at)
    SELECT 'hoarder', 'Buy milk ' || n, repeat('x', 100), false, now() - n * interval '1 second',
        now() - n * interval '1 second'
    FROM generate_series(1, {HOARDED}) n
"""  # noqa: S608  # a test's own words
# When half of those were added.
MIDDLE = datetime.now(UTC) - timedelta(seconds=HOARDED / 2)


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
    sent = statements_sent(server, table, folder)
    # Once no service is there, which would make it anew at its start.
    asyncio.run(execute(table.url, "DROP INDEX ix_task_user_id_created_at_id"))
    listing, *_ = explain(table, sent)
    assert {"Sort", "Seq Scan"} <= set(listing.faults()), listing.text


@pytest.fixture(scope="module")
def hoarder(table: Table) -> str:
    """A user with very many tasks beside those with 50."""
    asyncio.run(execute(table.url, FILL))
    asyncio.run(execute(table.url, "VACUUM ANALYZE task"))
    return "hoarder"


class TestListings:
    """In which order tasks are listed, which of them, and from where on."""

    async def explained(self, url: str, name: str, mode: str, **values: object) -> str:
        sql, arguments = prepared(LISTINGS[name], **values)
        executed = f"EXECUTE it({', '.join(arguments)})"
        async with connected(url) as connection:
            await connection.execute(f"SET plan_cache_mode = {mode}; PREPARE it AS {sql}")
            lines = await connection.fetch(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {executed}")
            return "\n".join(line[0] for line in lines)

    def assert_reads_ones_own(self, plan: str, name: str) -> None:
        """By the index, to the rows of this user; in its order where it has that."""
        assert "Seq Scan" not in plan, plan
        assert "Bitmap" not in plan, plan
        scans = re.findall(r"Index Scan.* using ix_task_user_id_created_at_id", plan)
        assert len(scans) == 1, plan
        assert re.search(r"Index Cond: \(.*user_id", plan), plan
        if name.startswith("created_at"):
            assert "Sort" not in plan, plan
            if name.endswith("on"):
                assert re.search(r"Index Cond: .*ROW\(created_at, id\)", plan), plan

    @pytest.mark.parametrize("mode", PLAN_MODES)
    @pytest.mark.parametrize("name", LISTINGS)
    async def test_read_the_users_own_rows_only(
        self, table: Table, hoarder: str, name: str, mode: str
    ) -> None:
        few = {"owner": table.place(0).user, "completed": False}
        plan = await self.explained(table.url, name, mode, **few)
        self.assert_reads_ones_own(plan, name)
        # Of ten million rows or of ten thousand: what is looked at is the user's.
        looked_at = sum(map(int, re.findall(r"Rows Removed by Filter: (\d+)", plan)))
        assert looked_at <= TASKS_PER_USER
        deep = {"title": "Buy milk 5", "updated_at": MIDDLE, "created_at": MIDDLE}
        many = {"owner": hoarder, "completed": False, "search": "milk", **deep}
        plan = await self.explained(table.url, name, mode, **many)
        self.assert_reads_ones_own(plan, name)
        if name.startswith("created_at"):
            # A page deep among them is read from where it begins.
            assert re.search(r"Index Scan.*rows=51\b", plan), plan
            assert "Rows Removed" not in plan, plan
