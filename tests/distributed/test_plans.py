# [Task]: T050 [From]: specs/requirements.md
"""Each statement goes to one shard, whatever the number of shards and nodes."""

import re

import asyncpg
import pytest
from statements import STATEMENTS, prepared


@pytest.mark.parametrize("name", STATEMENTS)
async def test_statement_is_one_task(ready_citus_url: str, name: str) -> None:
    sql, arguments = prepared(STATEMENTS[name])
    written_out = re.sub(r"\$(\d+)", lambda number: arguments[int(number[1]) - 1], sql)
    connection = await asyncpg.connect(ready_citus_url)
    rows = await connection.fetch(f"EXPLAIN (VERBOSE, COSTS OFF) {written_out}")
    plan = "\n".join(row[0] for row in rows)
    assert "Custom Scan (Citus" in plan
    assert set(re.findall(r"Task Count: (\d+)", plan)) == {"1"}, plan
    await connection.execute(f"PREPARE statement AS {sql}")
    # Beyond the fifth time, PostgreSQL may look for a plan that fits any arguments.
    for _ in range(8):
        await connection.execute(f"EXECUTE statement ({', '.join(arguments)})")
    await connection.close()


async def test_statement_of_no_user_is_more(ready_citus_url: str) -> None:
    """What the other test would find."""
    connection = await asyncpg.connect(ready_citus_url)
    rows = await connection.fetch("EXPLAIN SELECT * FROM task WHERE id = 1")
    await connection.close()
    assert "Task Count: 4" in "\n".join(row[0] for row in rows)
