# [Task]: T055 [From]: specs/requirements.md
"""A list that is longer than one statement reads, and how many tasks there may be."""

import asyncio
import json

import pytest
from databases import execute, stored
from support import Caller, assert_error

from tasks.queries import LIST_PART, NEXT_PART

FILL = """
    INSERT INTO task (user_id, title, completed, created_at, updated_at)
    WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {last})
    SELECT '{owner}', 'task ' || n, false, {instant}, {instant} FROM n
"""
INSTANT = "2026-01-01 00:00:00"


def fill(url: str, owner: str, count: int, *, at_once: int = 1) -> str:
    """SQL for tasks of which `at_once` have one instant each."""
    after = {
        "sqlite": "strftime('%Y-%m-%d %H:%M:%f', '{}', ({}) || ' seconds') || '000'",
        "postgresql": "timestamptz '{}Z' + ({}) * interval '1 second'",
    }[url.partition(":")[0]].format(INSTANT, f"n / {at_once}")
    return FILL.format(owner=owner, last=count - 1, instant=after)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKS_PER_USER", "3")


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKS_PER_USER", "0")


class TestLongList:
    @pytest.mark.parametrize(
        "count",
        [
            LIST_PART - 1,
            LIST_PART,
            LIST_PART + 1,
            LIST_PART + NEXT_PART,
            LIST_PART + 3 * NEXT_PART + 7,
        ],
    )
    @pytest.mark.parametrize("at_once", [1, 17])
    async def test_is_whole_and_in_order(
        self, alice: Caller, bob: Caller, database_url: str, count: int, at_once: int
    ) -> None:
        await execute(database_url, fill(database_url, "alice", count, at_once=at_once))
        await bob.add("Bob's")
        response = await alice.get()
        assert response.headers["content-type"] == "application/json"
        assert int(response.headers["content-length"]) == len(response.content)
        tasks = response.json()
        assert [task["title"] for task in tasks] == [f"task {n}" for n in range(count)][::-1]
        assert {task["user_id"] for task in tasks} == {"alice"}

    async def test_is_what_it_would_be_in_one_part(
        self, alice: Caller, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await execute(database_url, fill(database_url, "alice", LIST_PART + 5))
        in_parts = await alice.get()
        monkeypatch.setattr("routes.tasks.LIST_PART", 10**9)
        assert json.loads(in_parts.content)[:LIST_PART] == (await alice.get()).json()

    async def test_stays_right_while_it_changes(self, alice: Caller, database_url: str) -> None:
        """Nothing twice, nothing missing that was there throughout."""
        count = LIST_PART + 10 * NEXT_PART
        await execute(database_url, fill(database_url, "alice", count, at_once=10))
        before = {task["id"] for task in (await alice.get()).json()}
        going = sorted(before)[:: len(before) // 40]

        async def change() -> None:
            for task_id in going:
                await alice.delete(f"/{task_id}")
                await alice.add("meanwhile")

        changing = asyncio.create_task(change())
        while not changing.done():
            ids = [task["id"] for task in (await alice.get()).json()]
            assert len(ids) == len(set(ids))
            assert before - set(going) <= set(ids)
        await changing

    async def test_that_fails_half_way_is_a_503(
        self, alice: Caller, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await execute(database_url, fill(database_url, "alice", LIST_PART + 5))

        async def fails(*_: object, **__: object) -> None:
            raise ConnectionResetError

        monkeypatch.setattr("kit.database.execute.take", fails)
        assert_error(await alice.get(), 503, "Service temporarily unavailable")


class TestTasksPerUser:
    @pytest.mark.usefixtures("limited")
    async def test_is_a_limit(self, alice: Caller, bob: Caller, database_url: str) -> None:
        tasks = [await alice.add(f"task {n}") for n in range(3)]
        assert_error(await alice.post({"title": "one more"}), 409, "Task limit reached")
        assert await stored(database_url) == ["task 0", "task 1", "task 2"]
        # Others have room, and so has who makes some.
        assert (await bob.post({"title": "Bob's"})).status_code == 201
        await alice.delete(f"/{tasks[0]['id']}")
        assert (await alice.post({"title": "in its place"})).status_code == 201
        assert_error(await alice.post({"title": "one more"}), 409, "Task limit reached")

    @pytest.mark.usefixtures("limited")
    async def test_is_asked_about_after_the_input(self, alice: Caller) -> None:
        for n in range(3):
            await alice.add(f"task {n}")
        assert (await alice.post({"title": ""})).status_code == 422

    @pytest.mark.usefixtures("unlimited")
    async def test_of_0_is_none(self, alice: Caller) -> None:
        assert (await alice.add("without limit"))["title"] == "without limit"
