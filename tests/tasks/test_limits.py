# [Task]: T055 [From]: specs/decisions.md
"""Who is counted with each POST, and who is not."""

import asyncio

import pytest
from databases import execute
from support import Caller, assert_error, assert_invalid

from kit.database.database import Database
from kit.database.execute import Statement
from settings import get_settings
from tasks.limits import COUNTED_ONE_BY_ONE, MAX_USERS, SHARES, TaskLimit
from tasks.queries import COUNT, CREATE, CREATE_WITHIN

LIMIT = 3 * SHARES


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKS_PER_USER", f"{LIMIT}")


async def add(who: Caller, sent: list[Statement], count: int) -> list[Statement]:
    """With what so many tasks were added, one after the other."""
    sent.clear()
    for _ in range(count):
        await who.add()
        for _ in range(100):
            # The background's turn.
            await asyncio.sleep(0)
    return [statement for statement in sent if statement is not COUNT]


async def until_counted(sent: list[Statement]) -> None:
    async with asyncio.timeout(5):
        while COUNT not in sent:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("limited")
class TestTaskLimit:
    async def test_counts_a_user_who_adds_many_once(
        self, alice: Caller, bob: Caller, sent: list[Statement]
    ) -> None:
        assert set(await add(alice, sent, COUNTED_ONE_BY_ONE)) == {CREATE_WITHIN}
        await until_counted(sent)
        # A 64th of what is left, rounded down.
        assert await add(alice, sent, 3) == [CREATE, CREATE, CREATE_WITHIN]
        assert set(await add(bob, sent, 1)) == {CREATE_WITHIN}

    async def test_is_kept_though_not_every_one_is_counted(
        self, alice: Caller, bob: Caller, sent: list[Statement], caplog: pytest.LogCaptureFixture
    ) -> None:
        tasks = [await alice.add() for _ in range(LIMIT)]
        assert_error(await alice.post({"title": "x"}), 409, "Task limit reached")
        assert {CREATE, CREATE_WITHIN} <= set(sent)
        # The input is checked before. Others have room, and so has who makes some.
        assert_invalid(await alice.post({"title": ""}), "body", "title")
        await bob.add()
        await alice.delete(f"/{tasks[0]['id']}")
        await alice.add("in its place")
        assert_error(await alice.post({"title": "x"}), 409, "Task limit reached")
        assert len((await alice.get()).json()) == LIMIT
        [line] = [line for line in caplog.messages if "TASKS_PER_USER" in line]
        assert "alice" not in line

    async def test_counts_each_while_the_user_can_not_be_counted(
        self, database: Database, database_url: str
    ) -> None:
        limit = TaskLimit(database)
        await execute(database_url, "ALTER TABLE task RENAME TO other")
        for _ in range(COUNTED_ONE_BY_ONE):
            assert limit.must_count("alice")
        async with asyncio.timeout(5):
            while limit._allowance["alice"] < 0:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.01)
        assert limit.must_count("alice")

    async def test_forgets_rather_than_to_grow(self) -> None:
        limit = TaskLimit()
        for number in range(3 * MAX_USERS):
            assert limit.must_count(f"user {number}")
        assert len(limit._allowance) <= MAX_USERS

    async def test_may_be_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TASKS_PER_USER", "0")
        assert get_settings().tasks_per_user == 0
        assert not TaskLimit().must_count("alice")
