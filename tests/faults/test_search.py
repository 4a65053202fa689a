# [Task]: T081 [From]: specs/requirements.md
"""Searches that take long: what becomes of them, and of everybody else meanwhile."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from databases import execute
from service import PATIENCE, Service, serving
from support import Caller, assert_error

from faults.stage import BOUND, at_once, load, statuses

# What a search that compares letter by letter has most work with, in texts full of `a`.
WORST = "a" * 199 + "b"
# The same for the algorithms of `in` and strpos.
HARDER = "a" * 99 + "b" + "a" * 100
ADD = {
    "sqlite": """
        INSERT INTO task (user_id, title, description, created_at, updated_at)
        WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
        SELECT 'alice', 'Task ' || i, {text}, '2026-01-01 00:00:00.000000',
            '2026-01-01 00:00:00.000000' FROM n;
        """,
    "postgresql": """
        INSERT INTO task (user_id, title, description, created_at, updated_at)
        SELECT 'alice', 'Task ' || i, {text}, now(), now() FROM generate_series(1, {count}) i;
        ANALYZE task;
        """,
}
FULL_OF_A = f"'{'a' * 1000}'"
ORDINARY = "'Number ' || i || ': ' || '" + "some words about what is to be done today, " * 22 + "'"


async def fill(url: str, count: int, text: str) -> None:
    await execute(url, ADD[url.partition(":")[0]].format(count=count, text=text))


@pytest.fixture
def service(tmp_path: Path, database_url: str) -> Iterator[Service]:
    with serving(tmp_path, DATABASE_URL=database_url) as service:
        yield service


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with service.client() as http:
        yield http


async def look_around(http: httpx.AsyncClient, stop: asyncio.Event) -> None:
    """Another user, who is served as ever."""
    bob = Caller(http, "bob")
    task = await bob.add()
    while not stop.is_set():
        requests = [bob.get(f"/{task['id']}"), bob.get(), bob.complete(task["id"])]
        answers = await at_once([*requests, bob.get(params={"search": "milk", "limit": 50})])
        assert statuses(answers) == {200: len(answers)}
        assert max(answer.seconds for answer in answers) < 2
        assert (await http.get("/health/ready")).status_code == 200


class TestWorstSearch:
    async def test_of_one_user_leaves_others_alone(
        self, http: httpx.AsyncClient, database_url: str
    ) -> None:
        await fill(database_url, 3000, FULL_OF_A)
        alice = Caller(http, "alice")
        async with load(1, lambda stop: look_around(http, stop)):
            for word in (WORST, HARDER):
                answers = await at_once(alice.get(params={"search": word}) for _ in range(20))
                assert max(answer.seconds for answer in answers) < BOUND
                assert statuses(answers).keys() <= {200, 503}
        response = await alice.get(params={"search": WORST})
        assert (response.status_code, response.json()) == (200, [])

    async def test_that_can_not_end_in_time_says_so(
        self, http: httpx.AsyncClient, database_url: str
    ) -> None:
        await fill(database_url, 60_000, FULL_OF_A)
        async with load(1, lambda stop: look_around(http, stop)):
            [answer] = await at_once([Caller(http, "alice").get(params={"search": HARDER})])
        assert answer.seconds < BOUND
        assert_error(answer.response, 503, "The search takes too long")
        assert "Retry-After" not in answer.response.headers


class TestOrdinarySearch:
    async def test_answers_among_100_000_tasks(self, tmp_path: Path, database_url: str) -> None:
        await fill(database_url, 100_000, ORDINARY)
        # It takes 0.6 s of CPU. On a busy machine, that is more.
        settings = {"DATABASE_URL": database_url, "DATABASE_STATEMENT_TIMEOUT": "4"}
        with serving(tmp_path, **settings) as service:
            async with service.client() as http:
                query = {"search": "NUMBER 99999:", "limit": 50}
                response = await Caller(http, "alice").get(params=query)
        assert [task["title"] for task in response.json()] == ["Task 99999"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestSearchOnSQLite:
    async def test_ends_with_its_client(
        self, service: Service, http: httpx.AsyncClient, database_url: str
    ) -> None:
        await fill(database_url, 60_000, FULL_OF_A)
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            await Caller(http, "alice").get(
                params={"search": HARDER}, headers={"X-Request-ID": "left"}, timeout=0.3
            )
        line = (await asyncio.to_thread(service.logged, "left"))[-1]
        assert " 499 " in line
        assert time.monotonic() - began < 1.4

    async def test_does_not_delay_a_stop(
        self, service: Service, http: httpx.AsyncClient, database_url: str
    ) -> None:
        await fill(database_url, 60_000, FULL_OF_A)
        alice = Caller(http, "alice")
        searches = [asyncio.create_task(alice.get(params={"search": HARDER})) for _ in range(10)]
        await asyncio.sleep(0.5)
        service.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert await asyncio.to_thread(service.process.wait, PATIENCE) == 0
        assert time.monotonic() - began < BOUND
        await asyncio.gather(*searches, return_exceptions=True)
