# [Task]: T032 [From]: specs/requirements.md
"""/health/ready: what it says of the database, and that asking it leaves the database asleep."""

import asyncio
from pathlib import Path

import httpx
import pytest
from postgresql import PostgreSQL
from service import serving
from support import Caller

from faults.proxy import Proxy, proxying
from faults.stage import (
    AT_ONCE,
    BOUND,
    POOL,
    RECOVERY,
    assert_healthy,
    assert_in_time,
    assert_no_traceback,
    assert_unavailable,
    at_once,
    backends,
    complaints,
    connected,
    eventually,
    reads_and_writes,
    rows_locked,
    someone,
    statuses,
    stopped,
    timed,
)

# Without the cure, a probe that asks the database each time: every few seconds it wakes a compute
# that Neon has suspended, or keeps it from ever being suspended, and its owner pays for the night;
# in an outage, probes wait in the same line as requests. Or one that asks nothing at all, and
# sends users to a process whose database is away.


async def is_ready(http: httpx.AsyncClient) -> bool:
    """What it says, which has one of two forms."""
    answer = await timed(http.get("/health/ready"))
    assert answer.seconds < BOUND
    if answer.status == 200:
        assert answer.response.json() == {"status": "ready"}
        return True
    assert_unavailable(answer.response)
    return False


class TestReady:
    async def test_is_200_to_get_and_head(self, http: httpx.AsyncClient) -> None:
        assert await is_ready(http)
        head = await http.head("/health/ready")
        assert (head.status_code, head.content) == (200, b"")

    async def test_leaves_an_idle_database_without_a_query(
        self, proxy: Proxy, http: httpx.AsyncClient, alice: Caller
    ) -> None:
        await at_once(reads_and_writes(alice, 2 * POOL, "Before"))
        before = (proxy.round_trips, proxy.connections)
        for _ in range(50):
            assert await is_ready(http)
        assert statuses(await at_once(http.get("/health/ready") for _ in range(50))) == {200: 50}
        assert (proxy.round_trips, proxy.connections) == before

    async def test_leaves_a_database_without_a_query_when_its_connections_have_been_closed(
        self, proxy: Proxy, http: httpx.AsyncClient, alice: Caller
    ) -> None:
        # As when Neon suspends a compute. That is no failure: the next request wakes it.
        await at_once(reads_and_writes(alice, 2 * POOL, "Before"))
        proxy.cut()
        before = (proxy.round_trips, proxy.connections)
        for _ in range(50):
            assert await is_ready(http)
        assert (proxy.round_trips, proxy.connections) == before
        assert (await alice.get()).status_code == 200


class TestNotReady:
    async def test_before_the_database_is_there(
        self, tmp_path: Path, server: PostgreSQL, empty_url: str
    ) -> None:
        with proxying(server.port) as proxy:
            proxy.refuse()
            with serving(tmp_path, DATABASE_URL=proxy.url(empty_url)) as service:
                async with service.client() as http:
                    assert not await is_ready(http)
                    assert not await is_ready(http)
                    await assert_healthy(http)
                    proxy.accept()
                    # By itself: nobody sends requests to a process that is not ready.
                    await eventually(lambda: is_ready(http), RECOVERY)
                    assert (await someone(http).get()).status_code == 200

    @pytest.mark.parametrize("how", ["stopped", "stalled"])
    async def test_from_the_first_failure_until_it_is_back(
        self,
        server: PostgreSQL,
        proxy: Proxy,
        http: httpx.AsyncClient,
        alice: Caller,
        how: str,
    ) -> None:
        await alice.add()
        if how == "stopped":
            async with stopped(server):
                await self._assert_not_ready(http, alice)
        else:
            proxy.stall()
            await self._assert_not_ready(http, alice)
            proxy.resume()
        # By itself, without a request of anybody's.
        await eventually(lambda: is_ready(http), RECOVERY)
        assert (await alice.get()).status_code == 200

    async def _assert_not_ready(self, http: httpx.AsyncClient, alice: Caller) -> None:
        assert_unavailable(await alice.get())
        assert not await is_ready(http)
        # A crowd of probes neither waits for long nor wears the database out.
        answers = await at_once(http.get("/health/ready") for _ in range(50))
        assert statuses(answers) == {503: 50}
        assert_in_time(answers)
        await assert_healthy(http)

    async def test_probes_do_not_crowd_a_database_that_fails(
        self, proxy: Proxy, http: httpx.AsyncClient, alice: Caller
    ) -> None:
        await alice.add()
        proxy.mute()
        proxy.cut()
        await alice.get()
        before = proxy.connections
        await at_once(http.get("/health/ready") for _ in range(200))
        assert proxy.connections - before <= 3
        proxy.resume()
        await eventually(lambda: is_ready(http), RECOVERY)

    async def test_while_the_table_can_not_be_made(
        self, tmp_path: Path, server: PostgreSQL, empty_url: str
    ) -> None:
        async with connected(empty_url) as connection:
            await connection.execute("CREATE ROLE limited LOGIN")
            limited = empty_url.replace("postgres@", "limited@")
            with serving(tmp_path, DATABASE_URL=limited) as service:
                async with service.client() as http:
                    alice = someone(http)
                    assert not await is_ready(http)
                    assert_unavailable(await alice.get())
                    refused = server.log().count("permission denied")

                    async def tried_again() -> bool:
                        return server.log().count("permission denied") >= refused + 2

                    await eventually(tried_again)
                    [line] = complaints(service)
                    assert "privilege" in line or "permission" in line
                    assert_no_traceback(service)
                    await connection.execute("GRANT CREATE ON SCHEMA public TO limited")
                    await eventually(lambda: is_ready(http), BOUND)
                    await alice.add()
            await connection.execute("DROP OWNED BY limited; DROP ROLE limited")

    async def test_when_the_table_is_gone(
        self, url: str, http: httpx.AsyncClient, alice: Caller
    ) -> None:
        await alice.add()
        async with connected(url) as connection:
            await connection.execute("ALTER TABLE task RENAME TO task_away")
            assert_unavailable(await alice.get())
            assert not await is_ready(http)
            await connection.execute("ALTER TABLE task_away RENAME TO task")
        await eventually(lambda: is_ready(http), RECOVERY)
        assert (await alice.get()).status_code == 200


class TestStaysReady:
    async def test_while_one_row_is_locked(
        self, url: str, http: httpx.AsyncClient, alice: Caller
    ) -> None:
        # Without the cure, one user's stuck task takes the process, and then every other one,
        # out of its balancer.
        task = await alice.add()
        async with rows_locked(url, task["id"]):
            stuck = asyncio.create_task(alice.complete(task["id"]))

            async def waiting() -> bool:
                return await backends(url, "wait_event_type = 'Lock'") == 1

            await eventually(waiting)
            while not stuck.done():
                assert await is_ready(http)
                await asyncio.sleep(0.05)
            assert_unavailable(await stuck)
            await eventually(lambda: is_ready(http), AT_ONCE)
