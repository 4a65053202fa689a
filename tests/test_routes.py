# [Task]: T016 [From]: specs/requirements.md
"""The six endpoints, each statement of the contract on both databases.

What users see of each other's tasks, and histories of many requests, are in test_isolation.py.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from databases import on_one_database
from support import JSON, Caller, assert_error, assert_invalid

from kit.database.sql import utc_now
from main import app

BAD_IDS = ["0", "-1", "+1", "01", "1.0", "1e3", "0x1", "1_0", "%201", "abc", str(2**63), "9" * 5000]
BAD_IDS += ["%D9%A1", "1%00", "null", "1%2F2"]
# Whole tasks have these, in this order.
MEMBERS = ["id", "user_id", "title", "description", "completed", "created_at", "updated_at"]
NOT_THE_CLIENTS: dict[str, Any] = {"id": 4711, "user_id": "bob", "owner": "bob", "priority": 1}
NOT_THE_CLIENTS |= dict.fromkeys(("created_at", "updated_at"), "2000-01-01T00:00:00Z")

# The operations on one task.
OPERATIONS: dict[str, Callable[[Caller, Any], Awaitable[httpx.Response]]] = {
    "get": lambda who, task_id: who.get(f"/{task_id}"),
    "put": lambda who, task_id: who.put(f"/{task_id}", {"title": "Changed"}),
    "delete": lambda who, task_id: who.delete(f"/{task_id}"),
    "toggle": lambda who, task_id: who.complete(task_id),
    "set": lambda who, task_id: who.complete(task_id, json={"completed": True}),
}


async def test_list_breaks_ties_by_the_highest_id(
    alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = utc_now()
    monkeypatch.setattr("routes.tasks.utc_now", lambda: now)
    ids = [(await alice.add())["id"] for _ in range(5)]
    tasks = (await alice.get()).json()
    assert len({task["created_at"] for task in tasks}) == 1
    assert [task["id"] for task in tasks] == sorted(ids, reverse=True)


class TestCreate:
    async def test_answers_201_with_the_whole_task(
        self, alice: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        response = await alice.post({"title": "Buy milk", **NOT_THE_CLIENTS})
        assert response.status_code == 201
        task = response.json()
        assert list(task) == MEMBERS
        assert isinstance(task["id"], int)
        assert task["id"] != NOT_THE_CLIENTS["id"]
        assert [task[name] for name in MEMBERS[1:5]] == ["alice", "Buy milk", None, False]
        assert task["created_at"] == task["updated_at"]
        assert not task["created_at"].startswith("2000")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", task["created_at"])
        monkeypatch.setattr("routes.tasks.utc_now", lambda: datetime(2026, 1, 31, 9, tzinfo=UTC))
        task = await alice.add()
        assert task["created_at"] == task["updated_at"] == "2026-01-31T09:00:00.000000Z"
        assert (await alice.get(f"/{task['id']}")).json() == task

    @pytest.mark.parametrize("user", ["alice", "a/b|日本 100%"])
    @pytest.mark.parametrize("root", ["", "/v 1"])
    @pytest.mark.usefixtures("client")
    async def test_says_where_the_task_is(self, user: str, root: str) -> None:
        # As a server has it that is told of a prefix which the proxy has removed.
        transport = httpx.ASGITransport(app, root_path=root)
        base = f"http://test{root}"
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            caller = Caller(client, user)
            response = await caller.post({"title": "Buy milk"})
            location = response.headers["location"]
            assert location == f"{quote(root)}{caller.tasks}/{response.json()['id']}"
            await caller.add()
            page = await caller.get(params={"limit": 1})
            token = {"Authorization": f"Bearer {caller.token}"}
            for link in (location, page.links["next"]["url"]):
                followed = (await client.get(f"http://test{link}", headers=token)).json()
                assert response.json() in (followed, *followed)

    @on_one_database
    async def test_strips_white_space_off_the_title(self, alice: Caller) -> None:
        for space in (" ", "\t\n", "\u00a0", "\u3000", "\u2028"):
            title = f"{space}Buy{space}milk{space}"
            assert (await alice.add(title))["title"] == f"Buy{space}milk"

    @pytest.mark.parametrize("letter", ["x", "é", "日", "👍"])
    async def test_counts_code_points(self, alice: Caller, letter: str) -> None:
        task = await alice.add(f"  {letter * 200}  ", description=letter * 1000)
        assert task["title"] == letter * 200
        assert task["description"] == letter * 1000
        assert_invalid(await alice.post({"title": letter * 201}), "body", "title")
        too_long = {"title": "x", "description": letter * 1001}
        assert_invalid(await alice.post(too_long), "body", "description")

    @pytest.mark.parametrize("description", ["", " padded ", "two\nlines", None])
    async def test_keeps_every_member(self, alice: Caller, description: str | None) -> None:
        for title in ("Buy milk", "'; DROP TABLE task; --", "$1 %s :x ?", "<b>&amp;</b>", "\\"):
            task = await alice.add(title, description=description, completed=True)
            assert [task[name] for name in MEMBERS[2:5]] == [title, description, True]
            assert (await alice.get(f"/{task['id']}")).json() == task


@on_one_database
@pytest.mark.parametrize(
    ("member", "values"),
    [
        ("title", ["", " ", "\u3000", None, 1, True, [], {}, "x" * 201, " " + "x" * 201]),
        ("description", [1, True, [], {}, "x" * 1001]),
        ("completed", ["true", "false", "", 0, 1, 1.0, None, [], {}]),
    ],
)
async def test_bad_member_is_refused(alice: Caller, member: str, values: list[object]) -> None:
    task = await alice.add()
    for value in values:
        body = {"title": "Other", "description": "Other", "completed": True, member: value}
        assert_invalid(await alice.post(body), "body", member)
        assert_invalid(await alice.put(f"/{task['id']}", body), "body", member)
    assert_invalid(await alice.post({"description": "x"}), "body", "title")
    assert (await alice.get()).json() == [task]


@pytest.mark.parametrize("operate", OPERATIONS.values(), ids=OPERATIONS)
class TestTaskId:
    """What GET, PUT, DELETE and PATCH have in common: whose task an id is."""

    async def test_is_404_or_403_unless_it_is_ones_own(
        self, alice: Caller, bob: Caller, operate: Callable[..., Any]
    ) -> None:
        task = await alice.add()
        for task_id in ("4711", str(2**63 - 1), task["id"]):
            assert_error(await operate(bob, task_id), 404, "Task not found")
        bobs, bob.tasks = bob.tasks, alice.tasks
        for task_id in (task["id"], 4711):
            assert_error(await operate(bob, task_id), 403, "Access denied")
        bob.tasks = bobs
        assert (await alice.get()).json() == [task]
        await alice.delete(f"/{task['id']}")
        assert_error(await operate(alice, task["id"]), 404, "Task not found")

    @on_one_database
    async def test_is_404_or_422_when_it_is_no_plain_decimal(
        self, alice: Caller, operate: Callable[..., Any]
    ) -> None:
        task = await alice.add()
        for task_id in BAD_IDS:
            assert (await operate(alice, task_id)).status_code in (404, 422), task_id
        assert (await alice.get()).json() == [task]


class TestUpdate:
    @pytest.mark.parametrize(
        "body",
        [
            {"title": "Other"},
            {"description": "Other"},
            {"description": None},
            {"completed": True},
            {"title": " Other ", "description": "1 kg", "completed": True},
        ],
    )
    async def test_changes_what_it_names(self, alice: Caller, body: dict[str, Any]) -> None:
        task = await alice.add("Buy milk", description="2 litres")
        path = f"/{task['id']}"
        response = await alice.put(path, body)
        assert response.status_code == 200
        changed = response.json()
        title = body.get("title", task["title"]).strip()
        assert changed == task | body | {"title": title, "updated_at": changed["updated_at"]}
        assert changed["updated_at"] > task["updated_at"]
        for same in (body, {}, {"unknown": 1}, {"title": f" {title} "}, NOT_THE_CLIENTS):
            response = await alice.put(path, same)
            assert (response.status_code, response.json()) == (200, changed)
        assert (await alice.get()).json() == [changed]

    async def test_moves_updated_at_though_the_clock_stands_still(
        self, alice: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = utc_now()
        monkeypatch.setattr("routes.tasks.utc_now", lambda: now)
        task = await alice.add()
        seen = [task["updated_at"]]
        for n in range(3):
            changed = await alice.put(f"/{task['id']}", {"title": f"Title {n}"})
            seen.append(changed.json()["updated_at"])
        assert seen == sorted(set(seen))

    async def test_of_different_members_at_once_loses_none(self, alice: Caller) -> None:
        task = await alice.add()
        changes = {"title": "New", "description": "New", "completed": True}
        bodies = [{name: value} for name, value in changes.items()]
        await asyncio.gather(*(alice.put(f"/{task['id']}", body) for body in bodies))
        changed = (await alice.get(f"/{task['id']}")).json()
        assert changed == {**task, **changes, "updated_at": changed["updated_at"]}


class TestComplete:
    async def test_toggles_without_a_body_and_sets_with_one(self, alice: Caller) -> None:
        task = await alice.add()
        for sent, completed in (
            ({}, True),
            ({"headers": JSON}, False),
            ({"json": {"completed": True}}, True),
            ({"json": {"completed": False}}, False),
        ):
            response = await alice.complete(task["id"], **sent)
            assert response.status_code == 200
            changed = response.json()
            moved = {"completed": completed, "updated_at": changed["updated_at"]}
            assert changed == task | moved
            assert changed["updated_at"] > task["updated_at"]
            task = changed
            if "json" in sent:
                assert (await alice.complete(task["id"], **sent)).json() == task

    @on_one_database
    async def test_refuses_a_body_that_sets_nothing(self, alice: Caller) -> None:
        task = await alice.add()
        bodies: list[Any] = [{}, {"completed": None}, {"completed": 1}, {"done": True}]
        for body in bodies:
            assert_invalid(await alice.complete(task["id"], json=body), "body", "completed")
        assert (await alice.get(f"/{task['id']}")).json() == task

    async def test_toggled_101_times_at_once_alternates(self, alice: Caller) -> None:
        task = await alice.add()
        answers = await asyncio.gather(*(alice.complete(task["id"]) for _ in range(101)))
        states = sorted((r.json()["updated_at"], r.json()["completed"]) for r in answers)
        assert len({instant for instant, _ in states}) == 101
        assert [completed for _, completed in states] == [n % 2 == 0 for n in range(101)]
        assert states[0][0] > task["updated_at"]


class TestDelete:
    async def test_answers_204_with_nothing_once(self, alice: Caller) -> None:
        other, task = await alice.add(), await alice.add()
        answers = await asyncio.gather(*(alice.delete(f"/{task['id']}") for _ in range(20)))
        assert Counter(answer.status_code for answer in answers) == {204: 1, 404: 19}
        [response] = [answer for answer in answers if answer.status_code == 204]
        assert response.content == b""
        assert "content-type" not in response.headers
        assert (await alice.get()).json() == [other]
        # Nor is the id given away again.
        assert (await alice.add())["id"] > task["id"]
