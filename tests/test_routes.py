# [Task]: T016 [From]: specs/requirements.md
"""The six endpoints, each statement of the contract on both databases."""

import asyncio
import re
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

MISSING_IDS = ["1", str(2**63 - 1)]
BAD_IDS = ["0", "-1", "+1", "01", "1.0", "1e3", "0x1", "1_0", "%201", "abc", str(2**63), "9" * 5000]
BAD_IDS += ["%D9%A1", "1%00", "null", "1%2F2"]

# The operations on one task.
OPERATIONS: dict[str, Callable[[Caller, Any], Awaitable[httpx.Response]]] = {
    "get": lambda who, task_id: who.get(f"/{task_id}"),
    "put": lambda who, task_id: who.put(f"/{task_id}", {"title": "Changed"}),
    "delete": lambda who, task_id: who.delete(f"/{task_id}"),
    "toggle": lambda who, task_id: who.complete(task_id),
    "set": lambda who, task_id: who.complete(task_id, json={"completed": True}),
}


def timestamps(task: dict[str, Any]) -> tuple[str, str]:
    return task["created_at"], task["updated_at"]


class TestList:
    async def test_is_an_empty_array_for_a_new_user(self, alice: Caller) -> None:
        response = await alice.get()
        assert response.status_code == 200
        assert response.content == b"[]"
        assert response.headers["content-type"] == "application/json"

    async def test_is_newest_first(self, alice: Caller) -> None:
        tasks = [await alice.add(f"Task {n}") for n in range(5)]
        assert (await alice.get()).json() == tasks[::-1]

    async def test_breaks_ties_by_the_highest_id(
        self, alice: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = utc_now()
        monkeypatch.setattr("routes.tasks.utc_now", lambda: now)
        ids = [(await alice.add())["id"] for _ in range(5)]
        tasks = (await alice.get()).json()
        assert len({task["created_at"] for task in tasks}) == 1
        assert [task["id"] for task in tasks] == sorted(ids, reverse=True)

    async def test_keeps_its_order_when_tasks_change(self, alice: Caller) -> None:
        first, second = await alice.add("First"), await alice.add("Second")
        await alice.complete(first["id"])
        assert [task["id"] for task in (await alice.get()).json()] == [second["id"], first["id"]]

    async def test_holds_only_ones_own(self, alice: Caller, bob: Caller) -> None:
        mine = await alice.add("Mine")
        await bob.add("Not mine")
        assert (await alice.get()).json() == [mine]

    async def test_is_never_cut_off(self, alice: Caller) -> None:
        for _ in range(10):  # few enough at once that none waits too long for a connection
            await asyncio.gather(*(alice.add(f"Task {n}") for n in range(25)))
        assert len((await alice.get()).json()) == 250


class TestCreate:
    async def test_answers_201_with_the_whole_task(self, alice: Caller) -> None:
        response = await alice.post({"title": "Buy milk"})
        assert response.status_code == 201
        task = response.json()
        assert list(task) == [
            "id",
            "user_id",
            "title",
            "description",
            "completed",
            "created_at",
            "updated_at",
        ]
        assert isinstance(task["id"], int)
        assert task["user_id"] == "alice"
        assert task["title"] == "Buy milk"
        assert task["description"] is None
        assert task["completed"] is False
        assert task["created_at"] == task["updated_at"]

    async def test_takes_every_member(self, alice: Caller) -> None:
        task = await alice.add("Buy milk", description="2 litres", completed=True)
        assert (task["title"], task["description"], task["completed"]) == (
            "Buy milk",
            "2 litres",
            True,
        )
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

    async def test_writes_timestamps_in_rfc_3339_with_microseconds(self, alice: Caller) -> None:
        for instant in timestamps(await alice.add()):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", instant)

    async def test_writes_six_digits_even_for_a_whole_second(
        self, alice: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("routes.tasks.utc_now", lambda: datetime(2026, 1, 31, 9, tzinfo=UTC))
        task = await alice.add()
        assert timestamps(task) == ("2026-01-31T09:00:00.000000Z",) * 2
        assert (await alice.get(f"/{task['id']}")).json() == task

    async def test_ignores_members_that_are_not_the_clients_to_set(self, alice: Caller) -> None:
        task = await alice.add(
            id=4711,
            user_id="bob",
            created_at="2000-01-01T00:00:00Z",
            updated_at="2000-01-01T00:00:00Z",
            owner="bob",
            priority=1,
        )
        assert task["id"] != 4711
        assert task["user_id"] == "alice"
        assert not task["created_at"].startswith("2000")
        assert not task["updated_at"].startswith("2000")
        assert "priority" not in task

    @pytest.mark.parametrize("space", [" ", "\t\n", "\u00a0", "\u3000", "\u2028"])
    async def test_strips_white_space_off_the_title(self, alice: Caller, space: str) -> None:
        assert (await alice.add(f"{space}Buy{space}milk{space}"))["title"] == f"Buy{space}milk"

    @on_one_database
    @pytest.mark.parametrize(
        "title", ["", " ", "\u3000", None, 1, True, [], {}, "x" * 201, " " + "x" * 201]
    )
    async def test_refuses_a_bad_title(self, alice: Caller, title: object) -> None:
        assert_invalid(await alice.post({"title": title}), "body", "title")
        assert (await alice.get()).json() == []

    async def test_refuses_a_missing_title(self, alice: Caller) -> None:
        assert_invalid(await alice.post({"description": "x"}), "body", "title")

    @pytest.mark.parametrize("letter", ["x", "é", "日", "👍"])
    async def test_counts_code_points(self, alice: Caller, letter: str) -> None:
        task = await alice.add(f"  {letter * 200}  ", description=letter * 1000)
        assert task["title"] == letter * 200
        assert task["description"] == letter * 1000
        assert_invalid(await alice.post({"title": letter * 201}), "body", "title")
        too_long = {"title": "x", "description": letter * 1001}
        assert_invalid(await alice.post(too_long), "body", "description")

    @on_one_database
    @pytest.mark.parametrize("description", [1, True, [], {}])
    async def test_refuses_a_description_that_is_no_string(
        self, alice: Caller, description: object
    ) -> None:
        body = {"title": "x", "description": description}
        assert_invalid(await alice.post(body), "body", "description")

    @pytest.mark.parametrize("description", ["", " padded ", "two\nlines", None])
    async def test_keeps_a_description_as_it_is(
        self, alice: Caller, description: str | None
    ) -> None:
        assert (await alice.add(description=description))["description"] == description

    @on_one_database
    @pytest.mark.parametrize("completed", ["true", "false", "", 0, 1, 1.0, None, [], {}])
    async def test_takes_nothing_but_a_boolean(self, alice: Caller, completed: object) -> None:
        body = {"title": "x", "completed": completed}
        assert_invalid(await alice.post(body), "body", "completed")

    @pytest.mark.parametrize(
        "title", ["'; DROP TABLE task; --", "$1 %s :x ?", "<b>&amp;</b>", "\\"]
    )
    async def test_stores_hostile_text_as_text(self, alice: Caller, title: str) -> None:
        task = await alice.add(title)
        assert (await alice.get(f"/{task['id']}")).json()["title"] == title


class TestGet:
    async def test_answers_the_task(self, alice: Caller) -> None:
        task = await alice.add("Buy milk", description="2 litres")
        response = await alice.get(f"/{task['id']}")
        assert response.status_code == 200
        assert response.json() == task


class TestTaskId:
    """What GET, PUT, DELETE and PATCH have in common: whose task an id is."""

    @pytest.fixture(params=OPERATIONS)
    def operate(self, request: pytest.FixtureRequest) -> Callable[..., Any]:
        return OPERATIONS[request.param]

    @pytest.mark.parametrize("task_id", MISSING_IDS)
    async def test_is_404_when_there_is_no_such_task(
        self, alice: Caller, operate: Callable[..., Any], task_id: str
    ) -> None:
        assert_error(await operate(alice, task_id), 404, "Task not found")

    async def test_is_404_when_the_task_is_anothers(
        self, alice: Caller, bob: Caller, operate: Callable[..., Any]
    ) -> None:
        task = await alice.add()
        assert_error(await operate(bob, task["id"]), 404, "Task not found")
        assert (await alice.get()).json() == [task]

    async def test_is_403_in_anothers_path(
        self,
        alice: Caller,
        bob: Caller,
        operate: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        task = await alice.add()
        monkeypatch.setattr(bob, "tasks", alice.tasks)
        assert_error(await operate(bob, task["id"]), 403, "Access denied")
        assert_error(await operate(bob, 4711), 403, "Access denied")
        assert (await alice.get()).json() == [task]

    async def test_is_404_once_the_task_is_deleted(
        self, alice: Caller, operate: Callable[..., Any]
    ) -> None:
        task = await alice.add()
        await alice.delete(f"/{task['id']}")
        assert_error(await operate(alice, task["id"]), 404, "Task not found")

    @on_one_database
    @pytest.mark.parametrize("task_id", BAD_IDS)
    async def test_is_404_or_422_when_it_is_no_plain_decimal(
        self, alice: Caller, operate: Callable[..., Any], task_id: str
    ) -> None:
        await alice.add()
        response = await operate(alice, task_id)
        assert response.status_code in (404, 422), response.text
        assert len((await alice.get()).json()) == 1


class TestUpdate:
    async def test_changes_what_it_names(self, alice: Caller) -> None:
        task = await alice.add("Buy milk", description="2 litres")
        body = {"title": " Buy oats ", "description": "1 kg", "completed": True}
        response = await alice.put(f"/{task['id']}", body)
        assert response.status_code == 200
        changed = response.json()
        assert changed == {
            **task,
            "title": "Buy oats",
            "description": "1 kg",
            "completed": True,
            "updated_at": changed["updated_at"],
        }
        assert changed["updated_at"] > task["updated_at"]
        assert (await alice.get(f"/{task['id']}")).json() == changed

    @pytest.mark.parametrize(
        "body", [{"title": "Other"}, {"description": "Other"}, {"completed": True}]
    )
    async def test_leaves_what_it_does_not_name(
        self, alice: Caller, body: dict[str, object]
    ) -> None:
        task = await alice.add("Buy milk", description="2 litres")
        changed = (await alice.put(f"/{task['id']}", body)).json()
        assert changed == {**task, **body, "updated_at": changed["updated_at"]}
        assert changed["updated_at"] > task["updated_at"]

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"unknown": 1},
            {"title": "Buy milk"},
            {"title": " Buy milk "},
            {"description": "2 litres"},
            {"completed": False},
            {"title": "Buy milk", "description": "2 litres", "completed": False},
        ],
    )
    async def test_that_is_no_change_moves_nothing(
        self, alice: Caller, body: dict[str, object]
    ) -> None:
        task = await alice.add("Buy milk", description="2 litres")
        response = await alice.put(f"/{task['id']}", body)
        assert response.status_code == 200
        assert response.json() == task

    async def test_clears_a_description_with_null(self, alice: Caller) -> None:
        task = await alice.add(description="2 litres")
        cleared = (await alice.put(f"/{task['id']}", {"description": None})).json()
        assert cleared["description"] is None
        assert cleared["updated_at"] > task["updated_at"]
        again = await alice.put(f"/{task['id']}", {"description": None})
        assert again.json() == cleared

    @pytest.mark.parametrize("member", ["title", "completed"])
    async def test_refuses_null_for(self, alice: Caller, member: str) -> None:
        task = await alice.add()
        assert_invalid(await alice.put(f"/{task['id']}", {member: None}), "body", member)

    @pytest.mark.parametrize(
        ("member", "value"),
        [
            ("title", ""),
            ("title", 1),
            ("title", "x" * 201),
            ("description", 1),
            ("description", "x" * 1001),
            ("completed", "true"),
            ("completed", 1),
        ],
    )
    async def test_refuses_a_bad_member_and_changes_nothing(
        self, alice: Caller, member: str, value: object
    ) -> None:
        task = await alice.add()
        body = {"title": "Other", "description": "Other", "completed": True, member: value}
        assert_invalid(await alice.put(f"/{task['id']}", body), "body", member)
        assert (await alice.get(f"/{task['id']}")).json() == task

    async def test_ignores_members_that_are_not_the_clients_to_set(
        self, alice: Caller, bob: Caller
    ) -> None:
        task = await alice.add()
        body = {"id": 4711, "user_id": "bob", "created_at": "2000-01-01T00:00:00Z"}
        assert (await alice.put(f"/{task['id']}", body)).json() == task
        assert (await bob.get()).json() == []

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
        bodies = ({"title": "New"}, {"description": "New"}, {"completed": True})
        await asyncio.gather(*(alice.put(f"/{task['id']}", body) for body in bodies))
        changed = (await alice.get(f"/{task['id']}")).json()
        assert (changed["title"], changed["description"], changed["completed"]) == (
            "New",
            "New",
            True,
        )


class TestComplete:
    async def test_toggles_without_a_body(self, alice: Caller) -> None:
        task = await alice.add()
        response = await alice.complete(task["id"])
        assert response.status_code == 200
        done = response.json()
        assert done == {**task, "completed": True, "updated_at": done["updated_at"]}
        assert done["updated_at"] > task["updated_at"]
        undone = (await alice.complete(task["id"])).json()
        assert undone["completed"] is False
        assert undone["updated_at"] > done["updated_at"]

    @pytest.mark.parametrize("completed", [True, False])
    async def test_sets_with_a_body(self, alice: Caller, completed: bool) -> None:
        task = await alice.add(completed=not completed)
        body = {"completed": completed}
        changed = (await alice.complete(task["id"], json=body)).json()
        assert changed["completed"] is completed
        assert changed["updated_at"] > task["updated_at"]
        assert (await alice.complete(task["id"], json=body)).json() == changed

    async def test_toggles_when_only_the_content_type_is_there(self, alice: Caller) -> None:
        task = await alice.add()
        assert (await alice.complete(task["id"], headers=JSON)).json()["completed"] is True

    @on_one_database
    @pytest.mark.parametrize("body", [{}, {"completed": None}, {"completed": 1}, {"done": True}])
    async def test_refuses_a_body_that_sets_nothing(
        self, alice: Caller, body: dict[str, object]
    ) -> None:
        task = await alice.add()
        assert_invalid(await alice.complete(task["id"], json=body), "body", "completed")
        assert (await alice.get(f"/{task['id']}")).json() == task

    async def test_toggled_101_times_at_once_alternates(self, alice: Caller) -> None:
        task = await alice.add()
        answers = await asyncio.gather(*(alice.complete(task["id"]) for _ in range(101)))
        states = sorted((r.json()["updated_at"], r.json()["completed"]) for r in answers)
        assert len({instant for instant, _ in states}) == 101
        assert [completed for _, completed in states] == [n % 2 == 0 for n in range(101)]


class TestDelete:
    async def test_answers_204_with_nothing(self, alice: Caller) -> None:
        task, other = await alice.add(), await alice.add()
        response = await alice.delete(f"/{task['id']}")
        assert response.status_code == 204
        assert response.content == b""
        assert "content-type" not in response.headers
        assert (await alice.get()).json() == [other]

    async def test_never_gives_an_id_away_again(self, alice: Caller) -> None:
        task = await alice.add()
        await alice.delete(f"/{task['id']}")
        assert (await alice.add())["id"] > task["id"]


class TestMethods:
    @on_one_database
    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [
            ("PUT", "", "GET, HEAD, POST"),
            ("PATCH", "", "GET, HEAD, POST"),
            ("DELETE", "", "GET, HEAD, POST"),
            ("OPTIONS", "", "GET, HEAD, POST"),
            ("POST", "/1", "DELETE, GET, HEAD, PUT"),
            ("PATCH", "/1", "DELETE, GET, HEAD, PUT"),
            ("GET", "/1/complete", "PATCH"),
        ],
    )
    async def test_others_are_405_and_told_which_there_are(
        self, alice: Caller, method: str, path: str, allow: str
    ) -> None:
        response = await alice.request(method, path)
        assert response.status_code == 405
        assert response.headers["allow"] == allow

    @on_one_database
    @pytest.mark.parametrize("path", ["/", "/1/", "/1/complete/", "/1/other", "/1/complete/2"])
    async def test_an_unknown_path_is_404(self, alice: Caller, path: str) -> None:
        assert_error(await alice.get(path), 404, "Not Found")


class TestHealth:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_is_public(self, client: httpx.AsyncClient, method: str) -> None:
        response = await client.request(method, "/health")
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.content == (b'{"status":"ok"}' if method == "GET" else b"")
