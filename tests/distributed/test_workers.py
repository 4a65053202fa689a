# [Task]: T050 [From]: specs/requirements.md
"""A worker that is away is away for its own users, and for as long as it is."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from cluster import Cluster
from faults.stage import assert_unavailable, eventually, timed
from service import Service, serving
from support import Caller

BOUND = 6.0


@pytest.fixture
async def http(ready_citus_url: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    with serving(tmp_path, DATABASE_URL=ready_citus_url) as service:
        async with service.client() as http:
            yield http
        assert "Traceback" not in service.log()


async def users_of(url: str, port: int, count: int) -> list[str]:
    """Users whose shard is on the node with this port."""
    connection = await asyncpg.connect(url)
    found = await connection.fetch(
        """
        SELECT name FROM (SELECT format('user-%s', n) AS name FROM generate_series(1, 200) n) users
        WHERE (
            SELECT nodeport FROM citus_shards
            WHERE shardid = get_shard_id_for_distribution_column('task', name)
        ) = $1 LIMIT $2
        """,
        port,
        count,
    )
    await connection.close()
    assert len(found) == count
    return [row["name"] for row in found]


async def test_stopped_worker_is_a_503_for_its_own_users(
    citus_cluster: Cluster, ready_citus_url: str, http: httpx.AsyncClient
) -> None:
    gone, there = citus_cluster.workers
    unlucky = [Caller(http, user) for user in await users_of(ready_citus_url, gone.port, 5)]
    lucky = [Caller(http, user) for user in await users_of(ready_citus_url, there.port, 5)]
    tasks = {caller.user: await caller.add("before") for caller in unlucky + lucky}
    gone.stop("immediate")
    try:
        for caller in unlucky:
            for request in (caller.get(), caller.post({"title": "in vain"})):
                answer = await timed(request)
                assert_unavailable(answer.response)
                assert answer.seconds < BOUND
        for caller in lucky:
            assert (await caller.get()).json() == [tasks[caller.user]]
            assert (await caller.post({"title": "meanwhile"})).status_code == 201
    finally:
        gone.start()

    async def served() -> bool:
        return (await unlucky[0].get()).status_code == 200

    assert await eventually(served, within=2.0) < 2.0
    for caller in unlucky:
        assert (await caller.get()).json() == [tasks[caller.user]]
        assert (await caller.post({"title": "afterwards"})).status_code == 201


EARLIER_TASK = """
    INSERT INTO task (user_id, title, completed, created_at, updated_at)
    VALUES ($1, 'Buy milk', false, now(), now())
"""


async def test_second_start_finds_nothing_to_do(ready_citus_url: str, tmp_path: Path) -> None:
    for _ in range(2):
        with serving(tmp_path, DATABASE_URL=ready_citus_url) as service:
            async with service.client() as http:
                await Caller(http, "alice").add()
                assert (await http.get("/health/ready")).status_code == 200
            assert complaints(service) == []


def complaints(service: Service) -> list[str]:
    return [line for line in service.log().splitlines() if not line.startswith("INFO")]


async def test_users_of_better_auth_can_t_be_referred_to(
    ready_citus_url: str, tmp_path: Path
) -> None:
    connection = await asyncpg.connect(ready_citus_url)
    await connection.execute('CREATE TABLE "user" (id text PRIMARY KEY)')
    await connection.close()
    with serving(tmp_path, DATABASE_URL=ready_citus_url) as service:
        async with service.client() as http:
            task = await Caller(http, "alice").add()
            assert (await Caller(http, "alice").get()).json() == [task]
        [line] = complaints(service)
        assert "the foreign key to its users can't be added" in line


@pytest.mark.parametrize("tasks", [0, 100])
async def test_migrations_are_applied_to_a_distributed_table(
    ready_citus_url: str, tmp_path: Path, tasks: int
) -> None:
    """As an earlier service left it, which knew nothing of migrations."""
    connection = await asyncpg.connect(ready_citus_url)
    for left_out in (
        "DROP TABLE task_schema",
        "DROP INDEX ix_task_user_id_created_at_id",
        "ALTER TABLE task DROP COLUMN idempotency_key, DROP COLUMN idempotency_mark",
        "DROP INDEX IF EXISTS ix_task_user_id_created_at_deleted",
        "ALTER TABLE task DROP COLUMN deleted_at",
    ):
        await connection.execute(left_out)
    for number in range(tasks):
        await connection.execute(EARLIER_TASK, f"user {number}")
    with serving(tmp_path, DATABASE_URL=ready_citus_url) as service:
        async with service.client() as http:
            await Caller(http, "alice").add()
            assert (await http.get("/health/ready")).status_code == 200

        async def made() -> bool:
            # The primary key's and ours, on each shard.
            found = await connection.fetch(
                "SELECT result FROM run_command_on_shards('task', 'SELECT count(*) FROM pg_index "
                "WHERE indisvalid AND indrelid = ''%s''::regclass')"
            )
            return [row["result"] for row in found] == ["4"] * 4

        await eventually(made)
        assert complaints(service) == []
    assert await connection.fetchval("SELECT version_num FROM task_schema")
    await connection.close()
