# [Task]: T032 [From]: specs/requirements.md
"""/health/ready asks no database that sleeps, and follows one whose table is not there.

What it says in outages is in test_database.py.
"""

import asyncio

import pytest
from databases import execute, opened
from postgresql import PostgreSQL

from faults import stage
from faults.proxy import Proxy

# With a probe that asks the database each time: every few seconds it wakes a compute that Neon has
# suspended, or keeps it from being suspended. With one that asks nothing at all: a balancer sends
# users to a process whose database is away.


async def settled(proxy: Proxy) -> tuple[int, int]:
    """Round trips and connections, once no work runs in the background."""
    counts = (-1, -1)
    while counts != (counts := (proxy.round_trips, proxy.connections)):  # noqa: ASYNC110
        await asyncio.sleep(0.3)
    return counts


class TestReady:
    # Closed connections are no failure, as when Neon suspends a compute: the next request wakes it.
    @pytest.mark.parametrize("connections", ["idle", "closed"])
    async def test_leaves_a_database_without_a_query(
        self, scene: stage.Scene, connections: str
    ) -> None:
        await stage.at_once(stage.reads_and_writes(scene.alice, 2 * stage.POOL, "Before"))
        if connections == "closed":
            scene.proxy.cut()
        before = await settled(scene.proxy)
        assert await stage.is_ready(scene.http)
        head = await scene.http.head("/health/ready")
        assert (head.status_code, head.content) == (200, b"")
        answers = await stage.at_once(scene.http.get("/health/ready") for _ in range(50))
        assert stage.statuses(answers) == {200: 50}
        assert (scene.proxy.round_trips, scene.proxy.connections) == before
        assert (await scene.alice.get()).status_code == 200


class TestNotReady:
    async def test_while_the_table_can_not_be_made(
        self, server: PostgreSQL, empty_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # What it says of that is in test_migrations.py.
        monkeypatch.setattr("kit.database.tables.REFUSED_RETRY_INTERVAL", 0.1)
        await execute(empty_url, "CREATE ROLE limited LOGIN")
        refused = server.log().count("permission denied")
        async with opened(empty_url.replace("postgres@", "limited@")) as database:
            await stage.eventually(lambda: server.log().count("permission denied") >= refused + 3)
            assert not await database.is_ready()
            await execute(empty_url, "GRANT CREATE ON SCHEMA public TO limited")
            await stage.eventually(database.is_ready, stage.BOUND)
        await execute(empty_url, "DROP OWNED BY limited; DROP ROLE limited")

    async def test_when_the_table_is_gone(self, scene: stage.Scene) -> None:
        await scene.alice.add()
        async with stage.connected(scene.url) as connection:
            await connection.execute("ALTER TABLE task RENAME TO task_away")
            stage.assert_unavailable(await scene.alice.get())
            assert not await stage.is_ready(scene.http)
            await connection.execute("ALTER TABLE task_away RENAME TO task")
        await stage.eventually(lambda: stage.is_ready(scene.http), stage.RECOVERY)
        assert (await scene.alice.get()).status_code == 200
