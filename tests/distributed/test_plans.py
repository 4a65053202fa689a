# [Task]: T050 [From]: specs/requirements.md
"""Each statement goes to one shard, whatever the number of shards and nodes."""

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
}


def prepared(statement: Statement) -> tuple[str, str]:
    """It as PREPARE takes it, and its arguments as EXECUTE does."""
    compiled = statement.core.compile(dialect=POSTGRESQL())
    values = {name: bind.value for name, bind in compiled.binds.items()} | VALUES
    arguments = ", ".join(literal(values[name]) for name in compiled.positiontup or ())
    return str(compiled), arguments


def literal(value: object) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else f"'{value}'"


@pytest.mark.parametrize("name", STATEMENTS)
async def test_statement_is_one_task(citus_url: str, name: str) -> None:
    sql, arguments = prepared(STATEMENTS[name])
    connection = await asyncpg.connect(citus_url)
    await connection.execute(f"PREPARE statement AS {sql}")
    # Beyond the fifth time, PostgreSQL may keep a plan for any arguments.
    for _ in range(7):
        explained = f"EXPLAIN (VERBOSE, COSTS OFF) EXECUTE statement ({arguments})"
        plan = "\n".join(row[0] for row in await connection.fetch(explained))
        assert "Custom Scan (Citus Adaptive)" in plan
        assert "Task Count: 1\n" in plan, plan
        assert "Distributed Subplan" not in plan, plan
    await connection.close()


async def test_statement_of_no_user_is_more(citus_url: str) -> None:
    """What the other test would find."""
    connection = await asyncpg.connect(citus_url)
    rows = await connection.fetch("EXPLAIN SELECT * FROM task WHERE id = 1")
    await connection.close()
    assert "Task Count: 4" in "\n".join(row[0] for row in rows)
