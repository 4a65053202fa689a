# [Task]: T020 [From]: specs/requirements.md
"""Who may ask the database: as many at a time as there are permits, in the order they came."""

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from kit.database.gate import Gate, Turn
from kit.errors import DatabaseUnavailable


@pytest.fixture
def gate() -> Gate:
    return Gate(permits=1, patience=5.0)


async def pass_through(gate: Gate, name: str, passed: list[str]) -> None:
    async with gate:
        passed.append(name)


async def begun(gate: Gate, name: str, passed: list[str]) -> asyncio.Task[None]:
    """A request that has come to the gate."""
    task = asyncio.create_task(pass_through(gate, name, passed))
    await asyncio.sleep(0)
    return task


class TestGate:
    async def test_lets_in_as_many_as_it_has_permits(self) -> None:
        gate = Gate(permits=2, patience=0.05)
        for _ in range(2):  # Who has left makes room for one.
            async with gate, gate:
                with pytest.raises(DatabaseUnavailable):
                    await gate.__aenter__()
        assert gate.waiting == 0

    async def test_gives_each_as_long_as_the_others(self) -> None:
        gate = Gate(permits=1, patience=0.2)
        loop = asyncio.get_running_loop()
        waited: list[float] = []

        async def wait() -> None:
            began = loop.time()
            with pytest.raises(DatabaseUnavailable):
                await gate.__aenter__()
            waited.append(loop.time() - began)

        async with gate, asyncio.timeout(5), asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(wait())
                await asyncio.sleep(0.1)
        assert len(waited) == 3
        assert min(waited) > 0.19

    async def test_lets_nobody_overtake(self, gate: Gate) -> None:
        passed: list[str] = []
        await gate.__aenter__()
        waiting = [await begun(gate, name, passed) for name in ("first", "second", "third")]
        await gate.__aexit__()
        # In the turn in which the permit became free, before who waits has had a turn.
        await asyncio.gather(pass_through(gate, "newcomer", passed), *waiting)
        assert passed == ["first", "second", "third", "newcomer"]

    async def test_turns_away_who_waits_too_long(self) -> None:
        gate = Gate(permits=1, patience=0.05)
        passed: list[str] = []
        async with gate:
            with pytest.raises(DatabaseUnavailable, match="no free connection"):
                await pass_through(gate, "late", passed)
            assert gate.waiting == 0
        await pass_through(gate, "after", passed)
        assert passed == ["after"]

    async def test_forgets_who_gives_up(self, gate: Gate) -> None:
        passed: list[str] = []
        async with gate:
            gone = await begun(gate, "gone", passed)
            patient = await begun(gate, "patient", passed)
            gone.cancel()
            await asyncio.sleep(0)
            assert gate.waiting == 1
        await patient
        assert passed == ["patient"]

    @pytest.mark.parametrize("first", ["the permit", "giving up"])
    async def test_passes_on_the_permit_of_who_gives_up_in_the_same_moment(
        self, gate: Gate, first: str
    ) -> None:
        passed: list[str] = []
        await gate.__aenter__()
        gone = await begun(gate, "gone", passed)
        patient = await begun(gate, "patient", passed)
        if first == "giving up":
            gone.cancel()
        await gate.__aexit__()
        gone.cancel()
        await patient
        assert gone.cancelled()
        assert passed == ["patient"]
        await pass_through(gate, "after", passed)

    async def test_gives_the_permit_back_after_an_error(self, gate: Gate) -> None:
        for _ in range(2):
            with pytest.raises(ValueError, match="in the gate"):
                async with gate:
                    raise ValueError("in the gate")


class TestTurn:
    async def test_of_one_user_leaves_permits_for_others(self) -> None:
        gate = Gate(permits=8, patience=0.05)
        async with AsyncExitStack() as stack:
            for _ in range(6):
                await stack.enter_async_context(Turn(gate, "alice"))
            with pytest.raises(DatabaseUnavailable):
                await Turn(gate, "alice").__aenter__()
            for _ in range(2):
                await stack.enter_async_context(Turn(gate, "bob"))
            with pytest.raises(DatabaseUnavailable):
                await Turn(gate, "carol").__aenter__()
            assert (gate.in_use, gate.waiting) == (8, 0)
        assert gate.in_use == 0
        async with AsyncExitStack() as stack:  # Nothing is left of those who waited in vain.
            for _ in range(6):
                await stack.enter_async_context(Turn(gate, "alice"))

    async def test_lets_who_waits_aside_in_when_the_user_leaves(self) -> None:
        gate = Gate(permits=4, patience=5.0)
        passed: list[str] = []

        async def ask(user: str, name: str) -> None:
            async with Turn(gate, user):
                passed.append(name)

        async with Turn(gate, "alice"), Turn(gate, "alice"):
            async with Turn(gate, "alice"):
                aside = [asyncio.create_task(ask("alice", f"alice {n}")) for n in range(3)]
                await asyncio.sleep(0)
                aside[0].cancel()
                await asyncio.sleep(0)
                await ask("bob", "bob")
                assert gate.waiting == 2
            await asyncio.wait_for(asyncio.gather(*aside[1:]), 1)
        assert passed == ["bob", "alice 1", "alice 2"]

    async def test_forgets_nobody_and_gives_nobody_more(self) -> None:
        """Many requests of few users: some give up, some are turned away."""
        gate = Gate(permits=4, patience=0.02)
        chance = random.Random(7)  # noqa: S311
        held: Counter[str | None] = Counter()
        ends: Counter[str] = Counter()

        async def ask(user: str | None) -> None:
            try:
                async with Turn(gate, user):
                    held[user] += 1
                    assert held.total() <= gate.in_use <= 4
                    assert user is None or held[user] <= 3
                    try:
                        await asyncio.sleep(chance.random() / 100)
                    finally:
                        held[user] -= 1
                ends["passed"] += 1
            except DatabaseUnavailable:
                ends["turned away"] += 1

        tasks = []
        for _ in range(1500):
            tasks.append(asyncio.create_task(ask(chance.choice(["alice", "alice", "bob", None]))))
            if chance.random() < 0.2:
                tasks[chance.randrange(len(tasks))].cancel()
            if chance.random() < 0.5:
                await asyncio.sleep(chance.random() / 1000)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
        assert min(ends["passed"], ends["turned away"]) > 50
        assert (gate.in_use, gate.waiting) == (0, 0)
        async with AsyncExitStack() as stack:
            for user in ("alice", "alice", "alice", "bob"):
                await stack.enter_async_context(Turn(gate, user))
