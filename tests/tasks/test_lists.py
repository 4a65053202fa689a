# [Task]: T052 [From]: specs/decisions.md
"""Which tasks are listed, in which order, a page at a time, and a list that is known already."""

import asyncio
import itertools
import re
from typing import Any, get_args

import httpx
import pytest
from databases import execute, on_one_database
from support import Caller, assert_invalid

from kit.database.execute import Statement
from schemas import Order, Sort
from tasks.lists import AT_A_TIME, SHORT_LIST

type Task = dict[str, Any]

# In the order of their code points, which is that of no language.
TITLES = ["10", "9", "A", "Z", "_", "a", "z", "~", "Ä", "ä", "İ", "ß", "\ufb03", "\U0001f600"]


async def listed(who: Caller, **parameters: object) -> list[Task]:
    response = await who.get(params=parameters)
    assert response.status_code == 200, response.text
    tasks: list[Task] = response.json()
    return tasks


def target_of(page: httpx.Response) -> str:
    """Where its Link leads."""
    match = re.fullmatch(r'<(.*)>; rel="next"', page.headers["link"])
    assert match
    return match[1]


FILL = """
    INSERT INTO task (user_id, title, completed, created_at, updated_at)
    WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {last})
    SELECT 'alice', 'task ' || n, false, {instant}, {instant} FROM n
"""
AFTER = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', '2026-01-01', (n / 7) || ' seconds') || '000'",
    "postgresql": "timestamptz '2026-01-01Z' + (n / 7) * interval '1 second'",
}


async def fill(url: str, count: int) -> None:
    """Tasks of Alice's, seven at each instant."""
    await execute(url, FILL.format(last=count - 1, instant=AFTER[url.partition(":")[0]]))


@pytest.fixture
async def tasks(alice: Caller, bob: Caller) -> list[Task]:
    """Alice's, in the order in which they were made; every third one is completed and every other
    one was changed, the last of those first.
    """
    made = [
        await alice.add(title, description=f"Number {n}", completed=n % 3 == 0)
        for n, title in enumerate([*TITLES, *TITLES[:4]])
    ]
    await bob.add("Bob's", description="Number 1")
    for task in made[::-2]:
        changed = await alice.put(f"/{task['id']}", {"description": "Changed"})
        task.update(changed.json())
    return made


def expected(
    tasks: list[Task], sort: str = "created_at", order: str = "desc", completed: str | None = None
) -> list[Task]:
    found = [task for task in tasks if completed in (None, str(task["completed"]).lower())]
    return sorted(found, key=lambda task: (task[sort], task["id"]), reverse=order == "desc")


class TestFilters:
    async def test_search_in_title_or_description(self, alice: Caller, bob: Caller) -> None:
        milk = await alice.add("Buy MILK")
        oats = await alice.add("Buy oats", description="for the milkman")
        await alice.add("Buy tea")
        await bob.add("Bob's milk")
        assert await listed(alice, search="milk") == [oats, milk]
        assert await listed(alice, search="buy milk") == [milk]
        assert await listed(alice, search="milk oats") == []

    async def test_search_takes_signs_as_they_are(self, alice: Caller) -> None:
        with_it = {sign: await alice.add(f"100{sign} sure") for sign in "%_*?[]\\^(.'\""}
        for other in ("x", "xx", ""):
            await alice.add(f"100{other} sure")
        for sign, task in with_it.items():
            assert await listed(alice, search=f"00{sign} s") == [task]

    async def test_search_of_any_length_that_is_allowed(self, alice: Caller) -> None:
        task = await alice.add("i" * 200)
        assert await listed(alice, search="I" * 200) == [task]


async def test_order_is_the_same_on_every_database(alice: Caller, tasks: list[Task]) -> None:
    for sort, order in itertools.product(get_args(Sort), get_args(Order)):
        assert await listed(alice, sort=sort, order=order) == expected(tasks, sort, order)
        found = await listed(alice, sort=sort, order=order, completed="false", search="changed")
        changed = [task for task in tasks if task["description"] == "Changed"]
        assert found == expected(changed, sort, order, "false") != []
    assert await listed(alice, sort="title") == expected(tasks, "title", "desc")
    assert await listed(alice, order="asc") == expected(tasks, "created_at", "asc")


class TestWholeList:
    @pytest.mark.parametrize(
        "count", [AT_A_TIME, AT_A_TIME + 1, SHORT_LIST, SHORT_LIST + 1, 3 * SHORT_LIST + 7]
    )
    async def test_is_whole_and_in_order(
        self, alice: Caller, bob: Caller, database_url: str, count: int
    ) -> None:
        await fill(database_url, count)
        await bob.add("Bob's")
        response = await alice.get()
        assert response.headers["content-type"] == "application/json"
        assert int(response.headers["content-length"]) == len(response.content)
        tasks = response.json()
        assert [task["title"] for task in tasks] == [f"task {n}" for n in range(count)][::-1]
        assert {task["user_id"] for task in tasks} == {"alice"}
        known = {"If-None-Match": response.headers["etag"]}
        assert (await alice.get(headers=known)).status_code == 304

    async def test_is_one_moment_in_every_order(self, alice: Caller, database_url: str) -> None:
        count = 2 * SHORT_LIST
        await fill(database_url, count)
        there = sorted(task["id"] for task in (await alice.get()).json())

        async def change() -> None:
            for n, task_id in enumerate(itertools.cycle(there[::97])):
                await alice.put(f"/{task_id}", {"title": f"task {n * 7919 % count}"})

        changing = asyncio.create_task(change())
        for sort, order in itertools.product(get_args(Sort), get_args(Order)):
            tasks = await listed(alice, sort=sort, order=order)
            assert sorted(task["id"] for task in tasks) == there
            keys = [(task[sort], task["id"]) for task in tasks]
            assert keys == sorted(keys, reverse=order == "desc")
        assert not changing.done()
        changing.cancel()
        await asyncio.wait([changing])


class TestRefused:
    @on_one_database
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("completed", ["yes", "1", "True", ""]),
            ("search", ["", "x" * 201, "a\0b"]),
            ("sort", ["id", "Title", ""]),
            ("order", ["up", "DESC"]),
            ("limit", ["0", "201", "-1", "1.0", "+1", "01", " 1", "1_0", "ten", "9" * 5000, ""]),
        ],
    )
    async def test_values(self, alice: Caller, name: str, values: list[str]) -> None:
        for value in values:
            assert_invalid(await alice.get(params={name: value}), "query", name)

    async def test_what_is_no_utf_8_and_not_what_is_unknown(self, alice: Caller) -> None:
        assert_invalid(await alice.get("?search=%ff"), "query", "search")
        task = await alice.add()
        assert await listed(alice, offset="1", page="2") == [task]


class TestPages:
    """Every walk through them is in test_walks.py."""

    async def test_link_to_the_next_one(
        self, alice: Caller, tasks: list[Task], client: httpx.AsyncClient
    ) -> None:
        query = "?limit=5&search=Number+%26%25&search=N&sort=title&order=asc&other=%C3%A4"
        first = await alice.get(query)
        target = target_of(first)
        assert target.startswith("/api/alice/tasks?")
        assert target.isascii()
        assert first.headers["x-next-cursor"] in target
        headers = {"Authorization": f"Bearer {alice.token}"}
        second = await client.get(target, headers=headers)
        found = [task for task in tasks if "n" in (task["title"] + task["description"]).lower()]
        assert first.json() + second.json() == expected(found, "title", "asc")[:10]

    async def test_may_change_their_length(self, alice: Caller, tasks: list[Task]) -> None:
        first = await alice.get(params={"limit": 5})
        for length in ({}, {"limit": 200}):
            rest = await listed(alice, cursor=first.headers["x-next-cursor"], **length)
            assert first.json() + rest == expected(tasks)

    @pytest.mark.usefixtures("tasks")
    @pytest.mark.parametrize("sort", ["created_at", "updated_at", "title"])
    async def test_take_one_statement_each(
        self, alice: Caller, sort: str, sent: list[Statement]
    ) -> None:
        sent.clear()
        parameters = {"sort": sort, "search": "n", "completed": "false", "limit": 5}
        first = await alice.get(params=parameters)
        cursor = first.headers["x-next-cursor"]
        await listed(alice, **parameters, cursor=cursor)
        assert len(sent) == 2


class TestETag:
    async def test_is_weak_and_changes_with_the_list(self, alice: Caller, bob: Caller) -> None:
        tags = [(await alice.get()).headers["etag"]]
        assert re.fullmatch(r'W/"[\x21\x23-\x7e]+"', tags[0])
        task = await alice.add()
        tags.append((await alice.get()).headers["etag"])
        await alice.complete(task["id"])
        tags.append((await alice.get()).headers["etag"])
        await bob.add()
        assert (await alice.get()).headers["etag"] == tags[-1]
        await alice.put(f"/{task['id']}", {"title": task["title"]})
        assert (await alice.get()).headers["etag"] == tags[-1]
        await alice.delete(f"/{task['id']}")
        assert (await alice.get()).headers["etag"] == tags[0]
        assert len(set(tags)) == 3

    @pytest.mark.usefixtures("tasks")
    @pytest.mark.parametrize("form", ["{}", '{name}-gzip"', "*", '"other", {}', "{strong}"])
    async def test_spares_a_list_that_is_known(self, alice: Caller, form: str) -> None:
        for query in ("", "?completed=true", "?limit=3", "?limit=200&sort=title"):
            known = await alice.get(query)
            tag = known.headers["etag"]
            sent = form.format(tag, name=tag[:-1], strong=tag.removeprefix("W/"))
            answer = await alice.get(query, headers={"If-None-Match": sent})
            assert (answer.status_code, answer.content) == (304, b"")
            for name in ("etag", "link", "x-next-cursor", "cache-control", "vary"):
                assert answer.headers.get(name) == known.headers.get(name)
        await alice.add()
        other = (await alice.get("?limit=1")).headers["etag"]
        assert (await alice.get(headers={"If-None-Match": other})).status_code == 200

    async def test_tells_pages_apart_that_go_on_from_those_that_do_not(self, alice: Caller) -> None:
        older = await alice.add("Older")
        newer = await alice.add("Newer")
        first = await alice.get("?limit=1")
        assert first.json() == [newer]
        await alice.delete(f"/{older['id']}")
        answer = await alice.get("?limit=1", headers={"If-None-Match": first.headers["etag"]})
        assert (answer.status_code, answer.json()) == (200, [newer])
        assert "x-next-cursor" not in answer.headers

    async def test_costs_no_second_statement(self, alice: Caller, sent: list[Statement]) -> None:
        await alice.add()
        tag = (await alice.get()).headers["etag"]
        sent.clear()
        assert (await alice.get(headers={"If-None-Match": tag})).status_code == 304
        assert len(sent) == 1
