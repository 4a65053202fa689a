# [Task]: T056 [From]: specs/decisions.md
"""POSTs that are repeated with an Idempotency-Key, on both databases."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from databases import execute, on_one_database, stored
from support import Caller, assert_error, assert_invalid

from kit.database.execute import Statement
from kit.database.sql import utc_now
from main import app
from tasks.idempotency import KEY_LIFETIME

MILK = {"title": "Buy milk", "description": "2 litres", "completed": True}
KEYS = "SELECT idempotency_key FROM task ORDER BY id"


async def post(
    who: Caller, key: str = "a-key", body: dict[str, Any] | None = None
) -> httpx.Response:
    return await who.post(MILK if body is None else body, headers={"Idempotency-Key": key})


def assert_replays(first: httpx.Response, *others: httpx.Response) -> None:
    """Byte for byte, and with the same headers but for the one that says so."""
    assert first.status_code == 201
    assert "idempotency-replayed" not in first.headers
    for answer in others:
        assert (answer.status_code, answer.content) == (201, first.content)
        assert answer.headers["idempotency-replayed"] == "true"
        for name in ("location", "etag", "content-type"):
            assert answer.headers[name] == first.headers[name]


class TestReplay:
    async def test_adds_nothing(self, alice: Caller) -> None:
        # What is refused uses no key up.
        assert_invalid(await post(alice, body={"title": ""}), "body", "title")
        first = await post(alice, body={"title": "Buy milk"})
        same = {"completed": False, "description": None, "title": " Buy milk ", "id": 7}
        assert_replays(first, await post(alice, body={"title": "Buy milk"}))
        assert_replays(first, await post(alice, body=same))
        assert (await alice.get()).json() == [first.json()]
        assert (await alice.get(f"/{first.json()['id']}")).content == first.content

    async def test_of_twenty_at_once_makes_one_task(self, alice: Caller) -> None:
        answers = await asyncio.gather(*(post(alice) for _ in range(20)))
        [first] = [one for one in answers if "idempotency-replayed" not in one.headers]
        assert_replays(first, *(one for one in answers if one is not first))
        assert (await alice.get()).json() == [first.json()]

    @pytest.mark.parametrize(
        "other", [{"title": "Buy oats"}, {"description": None}, {"completed": False}]
    )
    async def test_of_another_body_is_422(self, alice: Caller, other: dict[str, Any]) -> None:
        first = await post(alice)
        refused = await post(alice, body=MILK | other)
        assert_invalid(refused, "header", "Idempotency-Key")
        assert [item["type"] for item in refused.json()["detail"]] == ["idempotency_key_reused"]
        assert (await alice.get()).json() == [first.json()]
        assert_replays(first, await post(alice))

    async def test_of_a_task_that_was_changed_is_the_first_answer(self, alice: Caller) -> None:
        first = await post(alice)
        path = f"/{first.json()['id']}"
        changed = await alice.put(path, {"title": "Buy oats", "description": None})
        toggled = await alice.complete(first.json()["id"])
        assert changed.json() != first.json()
        assert_replays(first, await post(alice))
        assert (await alice.get(path)).content == toggled.content

    async def test_of_a_task_that_was_deleted_is_the_first_answer(
        self, alice: Caller, database_url: str
    ) -> None:
        first = await post(alice)
        path = f"/{first.json()['id']}"
        assert (await alice.delete(path)).status_code == 204
        assert_replays(first, await post(alice))
        assert_invalid(await post(alice, body={"title": "x"}), "header", "Idempotency-Key")
        assert (await alice.get()).json() == []
        for answer in (
            await alice.get(path),
            await alice.put(path, {"title": "Back"}),
            await alice.complete(first.json()["id"]),
            await alice.delete(path),
            await alice.request("DELETE", path, headers={"If-Match": first.headers["etag"]}),
            await alice.request("DELETE", path, headers={"If-Match": "*"}),
        ):
            assert_error(answer, 404, "Task not found")
        # What it said is gone.
        for column in ("SELECT title FROM task", "SELECT coalesce(description, '') FROM task"):
            assert await stored(database_url, column) == [""]

    async def test_is_scoped_to_the_user(self, alice: Caller, bob: Caller) -> None:
        """What is kept for a key belongs to its user as any task does."""
        gone = await post(alice, body={"title": "alice"})
        await alice.delete(f"/{gone.json()['id']}")
        answers = [await post(bob, body={"title": "bob"}), await post(alice, "another")]
        assert answers[0].json()["id"] != gone.json()["id"]
        for who, answer in zip((bob, alice), answers, strict=True):
            assert "idempotency-replayed" not in answer.headers
            assert answer.json()["user_id"] == who.user
            assert (await who.get()).json() == [answer.json()]

    async def test_is_of_the_key_exactly(self, alice: Caller) -> None:
        keys = ["k", "K", "k.", "kk", "~" * 255, "~" * 254, '"k"', "%6b", "k%", "k_"]
        for key in keys:
            assert "idempotency-replayed" not in (await post(alice, key)).headers
        # Without a key, nothing is a replay.
        for _ in range(2):
            assert "idempotency-replayed" not in (await alice.post(MILK)).headers
        assert len((await alice.get()).json()) == len(keys) + 2


@on_one_database
async def test_a_key_that_is_none_is_422(alice: Caller) -> None:
    for key in ("", "x" * 256, "a b", "a\tb", "é", "\x7f"):
        headers: Any = [
            (b"Authorization", f"Bearer {alice.token}".encode()),
            (b"Idempotency-Key", key.encode("latin-1")),
        ]
        answer = await alice._client.post(alice.tasks, headers=headers, json=MILK)
        assert_invalid(answer, "header", "Idempotency-Key")
    assert (await alice.get()).json() == []


class TestDeletion:
    async def test_of_what_is_a_day_old_leaves_nothing(
        self, alice: Caller, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = [await post(alice, f"key-{n}", {"title": f"{n}"}) for n in range(3)]
        await alice.delete(f"/{made[0].json()['id']}")
        assert await stored(database_url, KEYS) == ["key-0", "key-1", "key-2"]
        tomorrow = utc_now() + KEY_LIFETIME + timedelta(seconds=1)
        monkeypatch.setattr("routes.tasks.utc_now", lambda: tomorrow)
        await alice.delete(f"/{made[1].json()['id']}")
        assert await stored(database_url, KEYS) == ["key-0", "key-2"]
        assert_replays(made[2], await post(alice, "key-2", {"title": "2"}))

    async def test_of_a_task_without_a_key_leaves_nothing(
        self, alice: Caller, database_url: str, sent: list[Statement]
    ) -> None:
        task = await alice.add()
        sent.clear()
        assert (await alice.delete(f"/{task['id']}")).status_code == 204
        assert len(sent) == 1
        assert await stored(database_url, KEYS) == []


async def until_stored(url: str, keys: list[str | None]) -> None:
    """Until these keys are left, in the order of their rows."""
    async with asyncio.timeout(10):
        while await stored(url, KEYS) != keys:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.02)


class TestTombstones:
    @pytest.mark.usefixtures("limited")
    async def test_are_as_many_as_tasks_and_the_youngest(
        self, alice: Caller, database_url: str
    ) -> None:
        await alice.add()
        for n in range(12):
            task = await post(alice, f"key-{n}")
            assert task.status_code == 201, "a task that is deleted makes room at once"
            await alice.delete(f"/{task.json()['id']}")
        await until_stored(database_url, [None, "key-10", "key-11"])
        assert "idempotency-replayed" in (await post(alice, "key-11")).headers

    async def test_that_have_expired_are_cleared_for_all_users(
        self, alice: Caller, bob: Caller, database_url: str
    ) -> None:
        for who in (alice, bob):
            for key in ("first", "second"):
                await alice.add()
                await who.delete(f"/{(await post(who, key)).json()['id']}")
        old = "SET created_at = '2026-01-01 00:00:00.000000'"
        await execute(database_url, f"UPDATE task {old} WHERE idempotency_key = 'first'")
        app.state.database.when_awake(0, app.state.tombstones.sweep)
        await asyncio.sleep(0.01)
        assert (await alice.get()).status_code == 200
        await until_stored(database_url, [None, None, "second", None, None, "second"])


@pytest.fixture
def limited(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKS_PER_USER", getattr(request, "param", "2"))


class TestLimit:
    @pytest.mark.usefixtures("limited")
    async def test_never_refuses_a_replay(self, alice: Caller) -> None:
        first, second = [await post(alice, key) for key in ("first", "second")]
        assert_error(await post(alice, "third"), 409, "Task limit reached")
        assert_replays(first, await post(alice, "first"))
        assert_replays(second, await post(alice, "second"))
        await alice.delete(f"/{first.json()['id']}")
        assert (await post(alice, "third")).status_code == 201
        assert_replays(first, await post(alice, "first"))

    @pytest.mark.usefixtures("limited")
    @pytest.mark.parametrize("limited", ["0"], indirect=True)
    async def test_may_be_none(self, alice: Caller) -> None:
        assert_replays(await post(alice), await post(alice))
