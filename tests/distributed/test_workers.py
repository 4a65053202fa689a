# [Task]: T050 [From]: specs/requirements.md
"""A worker that is away is away for its own users, and for as long as it is."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from cluster import Cluster, Node
from databases import execute, stored
from faults.stage import (
    BOUND,
    assert_unavailable,
    complaints,
    connected,
    eventually,
    served,
    timed,
)
from service import serving
from support import Caller


@pytest.fixture
async def http(ready_citus_url: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    with serving(tmp_path, DATABASE_URL=ready_citus_url) as service:
        async with service.client() as http:
            yield http
        assert "Traceback" not in service.log()


USERS = """
    SELECT name FROM (SELECT format('user-%s', n) AS name FROM generate_series(1, 200) n) users
    WHERE (
        SELECT nodeport FROM citus_shards
        WHERE shardid = get_shard_id_for_distribution_column('task', name)
    ) = $1 LIMIT 5
"""


async def users_of(url: str, node: Node, http: httpx.AsyncClient) -> list[Caller]:
    """Some users whose shard is on this node."""
    async with connected(url) as connection:
        found = await connection.fetch(USERS, node.port)
    assert len(found) == 5
    return [Caller(http, row["name"]) for row in found]


async def test_stopped_worker_is_a_503_for_its_own_users(
    citus_cluster: Cluster, ready_citus_url: str, http: httpx.AsyncClient
) -> None:
    gone, there = citus_cluster.workers
    unlucky = await users_of(ready_citus_url, gone, http)
    lucky = await users_of(ready_citus_url, there, http)
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
    await served(unlucky[0], within=2.0)
    for caller in unlucky:
        assert (await caller.get()).json() == [tasks[caller.user]]
        assert (await caller.post({"title": "afterwards"})).status_code == 201


async def test_second_start_finds_nothing_to_do(ready_citus_url: str, tmp_path: Path) -> None:
    for _ in range(2):
        with serving(tmp_path, DATABASE_URL=ready_citus_url) as service:
            async with service.client() as http:
                await Caller(http, "alice").add()
                assert (await http.get("/health/ready")).status_code == 200
            assert complaints(service) == []


async def test_users_of_better_auth_can_t_be_referred_to(
    ready_citus_url: str, tmp_path: Path
) -> None:
    await execute(ready_citus_url, 'CREATE TABLE "user" (id text PRIMARY KEY)')
    with serving(tmp_path, DATABASE_URL=ready_citus_url) as service:
        async with service.client() as http:
            task = await Caller(http, "alice").add()
            assert (await Caller(http, "alice").get()).json() == [task]
        [line] = complaints(service)
        assert "the foreign key to its users can't be added" in line


# As an earlier service left it, which knew nothing of migrations.
EARLIER = """
    DROP TABLE task_schema;
    DROP INDEX ix_task_user_id_created_at_id;
    ALTER TABLE task DROP COLUMN idempotency_key, DROP COLUMN idempotency_mark;
    DROP INDEX IF EXISTS ix_task_user_id_created_at_deleted;
    ALTER TABLE task DROP COLUMN deleted_at
"""
EARLIER_TASK = """
    INSERT INTO task (user_id, title, completed, created_at, updated_at)
    VALUES ($1, 'Buy milk', false, now(), now())
"""
# Of the primary key and ours, on each shard.
INDEXES = """
    SELECT result FROM run_command_on_shards('task',
        'SELECT count(*) FROM pg_index WHERE indisvalid AND indrelid = ''%s''::regclass')
"""


@pytest.mark.parametrize("tasks", [0, 100])
async def test_migrations_are_applied_to_a_distributed_table(
    ready_citus_url: str, tmp_path: Path, tasks: int
) -> None:
    async with connected(ready_citus_url) as connection:
        for statement in EARLIER.split(";"):
            await connection.execute(statement)
        for number in range(tasks):
            await connection.execute(EARLIER_TASK, f"user {number}")
    with serving(tmp_path, DATABASE_URL=ready_citus_url) as service:
        async with service.client() as http:
            await Caller(http, "alice").add()
            assert (await http.get("/health/ready")).status_code == 200

        async def made() -> bool:
            return await stored(ready_citus_url, INDEXES) == ["4"] * 4

        await eventually(made)
        assert complaints(service) == []
    assert await stored(ready_citus_url, "SELECT version_num FROM task_schema")
