# [Task]: T050 [From]: specs/requirements.md
"""Each statement goes to one shard, whatever the number of shards and nodes."""

import re

import asyncpg
import pytest
from sqlalchemy import make_url

import queries
from db import Statement
from models import utc_now

STATEMENTS = {name: item for name, item in vars(queries).items() if isinstance(item, Statement)}
POSTGRESQL = make_url("postgresql+asyncpg://").get_dialect()
# For every bind parameter that a statement has: without a value, it can't be explained.
VALUES = {
    "owner": "alice",
    "task_id": 1,
    "new_title": "title",
    "new_description": None,
    "new_completed": True,
    "describe": True,
    "now": utc_now(),
    "created_at": utc_now(),
    "task_limit": 100,
    "version": utc_now(),
}


def prepared(statement: Statement) -> tuple[str, list[str]]:
    """It as PREPARE takes it, and its arguments as EXECUTE does."""
    compiled = statement.core.compile(dialect=POSTGRESQL())
    values = {name: bind.value for name, bind in compiled.binds.items()} | VALUES
    return str(compiled), [literal(values[name]) for name in compiled.positiontup or ()]


def literal(value: object) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else f"'{value}'"


@pytest.mark.parametrize("name", STATEMENTS)
async def test_statement_is_one_task(citus_url: str, name: str) -> None:
    sql, arguments = prepared(STATEMENTS[name])
    written_out = re.sub(r"\$(\d+)", lambda number: arguments[int(number[1]) - 1], sql)
    connection = await asyncpg.connect(citus_url)
    rows = await connection.fetch(f"EXPLAIN (VERBOSE, COSTS OFF) {written_out}")
    plan = "\n".join(row[0] for row in rows)
    assert "Custom Scan (Citus" in plan
    assert set(re.findall(r"Task Count: (\d+)", plan)) == {"1"}, plan
    await connection.execute(f"PREPARE statement AS {sql}")
    # Beyond the fifth time, PostgreSQL may look for a plan that fits any arguments.
    for _ in range(8):
        await connection.execute(f"EXECUTE statement ({', '.join(arguments)})")
    await connection.close()


async def test_statement_of_no_user_is_more(citus_url: str) -> None:
    """What the other test would find."""
    connection = await asyncpg.connect(citus_url)
    rows = await connection.fetch("EXPLAIN SELECT * FROM task WHERE id = 1")
    await connection.close()
    assert "Task Count: 4" in "\n".join(row[0] for row in rows)
