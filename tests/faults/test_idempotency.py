# [Task]: T056 [From]: specs/requirements.md
"""A POST with an Idempotency-Key whose answer is lost on the way, and one that is killed there."""

import asyncio
from pathlib import Path

import pytest
from service import serving
from support import Caller

from faults.proxy import Proxy
from faults.stage import connected, eventually, used

KEY = {"Idempotency-Key": "8f14e45f-ceea-467f-a8d2"}
MILK = {"title": "Buy milk"}


async def test_is_repeated_by_the_service_when_its_answer_is_lost(
    alice: Caller, proxy: Proxy
) -> None:
    await alice.add()
    proxy.lose_answers(1)
    first = await alice.post(MILK, headers=KEY)
    assert first.status_code == 201
    assert "idempotency-replayed" not in first.headers
    titles = [task["title"] for task in (await alice.get()).json()]
    assert titles == ["Buy milk", "Buy milk"]
    assert (await alice.post(MILK, headers=KEY)).content == first.content


async def test_without_a_key_is_not(alice: Caller, proxy: Proxy) -> None:
    """Since it may have been done."""
    await alice.add()
    proxy.lose_answers(1)
    assert (await alice.post(MILK)).status_code == 503
    assert len((await alice.get()).json()) == 2


async def test_survives_a_kill_between_write_and_answer(
    tmp_path: Path, empty_url: str, proxy: Proxy
) -> None:
    with serving(tmp_path, DATABASE_URL=proxy.url(empty_url)) as victim:
        async with victim.client() as http, connected(empty_url) as database:
            alice = Caller(http, "alice")
            # So that the statement is prepared, which takes an answer, too.
            await alice.post({"title": "An earlier one"}, headers={"Idempotency-Key": "earlier"})
            with proxy.delayed(0, 60):
                answer = asyncio.create_task(alice.post(MILK, headers=KEY))
                is_written = "SELECT count(*) > 1 FROM task"
                await eventually(lambda: database.fetchval(is_written))
                victim.kill()
                with pytest.raises(Exception, match=r"disconnected|ReadError|^$"):
                    await answer
    async with used(tmp_path, DATABASE_URL=empty_url) as (_, http):
        alice = Caller(http, "alice")
        again = await alice.post(MILK, headers=KEY)
        assert again.status_code == 201
        assert again.headers["idempotency-replayed"] == "true"
        assert (await alice.get()).json()[:-1] == [again.json()]
