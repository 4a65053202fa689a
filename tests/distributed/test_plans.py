# [Task]: T050 [From]: specs/requirements.md
"""Each statement goes to one shard, whatever the number of shards and nodes."""

import re

import pytest
from databases import execute, stored
from statements import STATEMENTS, prepared


@pytest.mark.parametrize("name", STATEMENTS)
async def test_statement_is_one_task(ready_citus_url: str, name: str) -> None:
    sql, arguments = prepared(STATEMENTS[name])
    written_out = re.sub(r"\$(\d+)", lambda number: arguments[int(number[1]) - 1], sql)
    plan = "\n".join(await stored(ready_citus_url, f"EXPLAIN (VERBOSE, COSTS OFF) {written_out}"))
    assert "Custom Scan (Citus" in plan
    assert set(re.findall(r"Task Count: (\d+)", plan)) == {"1"}, plan
    # Beyond the fifth time, PostgreSQL may look for a plan that fits any arguments.
    executed = 8 * f"EXECUTE statement ({', '.join(arguments)});"
    await execute(ready_citus_url, f"PREPARE statement AS {sql}; {executed}")


async def test_statement_of_no_user_is_more(ready_citus_url: str) -> None:
    """What the other test would find."""
    rows = await stored(ready_citus_url, "EXPLAIN SELECT * FROM task WHERE id = 1")
    assert "Task Count: 4" in "\n".join(rows)
