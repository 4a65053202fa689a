# [Task]: T052 [From]: specs/decisions.md
"""Walks from page to page while tasks are added, changed and deleted, against a plain model."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from support import Caller

from main import app

type Task = dict[str, Any]

TITLES = st.sampled_from(["Buy milk", "buy Milk", "Äpfel", "10", "9", "~"])
NTH = st.integers(0, 30)


@dataclass
class Walk:
    """The way through one list."""

    parameters: dict[str, Any]
    limit: int
    cursor: str | None = None
    # The sort key and id of the last task that was seen.
    place: tuple[Any, int] | None = None
    seen: list[int] = field(default_factory=list)
    # The tasks of the list that nobody has touched since the walk began.
    untouched: set[int] = field(default_factory=set)
    # Those that moved in the order of the walk.
    moved: set[int] = field(default_factory=set)

    def lists(self, task: Task) -> bool:
        word = self.parameters.get("search", "").casefold()
        completed = self.parameters.get("completed", task["completed"])
        return word in task["title"].casefold() and task["completed"] == completed

    def key(self, task: Task) -> tuple[Any, int]:
        return task[self.parameters["sort"]], task["id"]

    def expected(self, tasks: dict[int, Task]) -> list[Task]:
        """All that is to come, as the model has it."""
        backwards = self.parameters["order"] == "desc"
        found = sorted(filter(self.lists, tasks.values()), key=self.key, reverse=backwards)
        place = self.place
        if place is None:
            return found
        return [
            task
            for task in found
            if (self.key(task) < place if backwards else self.key(task) > place)
        ]

    def touched(self, task_id: int, *, moved: bool) -> None:
        self.untouched.discard(task_id)
        if moved:
            self.moved.add(task_id)


class Walks(RuleBasedStateMachine):
    """One user's requests, in any order."""

    run: Callable[[Awaitable[Any]], Any]
    client: httpx.AsyncClient
    users = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.alice = Caller(self.client, f"alice {next(self.users)}")
        self.tasks: dict[int, Task] = {}
        self.walks: list[Walk] = []

    def nth(self, number: int) -> Task:
        return list(self.tasks.values())[number % len(self.tasks)]

    @rule(title=TITLES, completed=st.booleans(), count=st.integers(1, 4))
    def add(self, title: str, completed: bool, count: int) -> None:
        for _ in range(count):
            task = self.run(self.alice.add(title, completed=completed))
            self.tasks[task["id"]] = task

    @precondition(lambda self: self.tasks)
    @rule(number=NTH, title=TITLES)
    def rename(self, number: int, title: str) -> None:
        self.changed(self.nth(number), {"title": title})

    @precondition(lambda self: self.tasks)
    @rule(number=NTH)
    def toggle(self, number: int) -> None:
        task = self.nth(number)
        self.changed(task, {"completed": not task["completed"]})

    def changed(self, task: Task, members: Task) -> None:
        response = self.run(self.alice.put(f"/{task['id']}", members))
        assert response.status_code == 200
        after = self.tasks[task["id"]] = response.json()
        for walk in self.walks:
            if after != task:
                walk.touched(task["id"], moved=walk.key(after) != walk.key(task))

    @precondition(lambda self: self.tasks)
    @rule(number=NTH)
    def delete(self, number: int) -> None:
        task = self.nth(number)
        assert self.run(self.alice.delete(f"/{task['id']}")).status_code == 204
        del self.tasks[task["id"]]
        for walk in self.walks:
            walk.touched(task["id"], moved=False)

    @rule(
        parameters=st.fixed_dictionaries(
            {
                "sort": st.sampled_from(["created_at", "updated_at", "title"]),
                "order": st.sampled_from(["asc", "desc"]),
            },
            optional={
                "completed": st.booleans(),
                "search": st.sampled_from(["milk", "BUY", "ä", "0"]),
            },
        ),
        limit=st.integers(1, 3),
    )
    def set_out(self, parameters: dict[str, Any], limit: int) -> None:
        walk = Walk(parameters, limit)
        walk.untouched = {task["id"] for task in walk.expected(self.tasks)}
        self.walks.append(walk)

    @precondition(lambda self: self.walks)
    @rule(number=NTH)
    def go_on(self, number: int) -> None:
        self.step(self.walks[number % len(self.walks)])

    def step(self, walk: Walk) -> None:
        cursor = {} if walk.cursor is None else {"cursor": walk.cursor}
        parameters = {**walk.parameters, "limit": walk.limit, **cursor}
        response = self.run(self.alice.get(params=parameters))
        assert response.status_code == 200, response.text
        page: list[Task] = response.json()
        to_come = walk.expected(self.tasks)
        assert page == to_come[: walk.limit]
        assert ("x-next-cursor" in response.headers) == (len(to_come) > walk.limit)
        twice = {task["id"] for task in page} & set(walk.seen)
        assert twice <= walk.moved
        walk.seen += [task["id"] for task in page]
        if len(to_come) > walk.limit:
            walk.cursor, walk.place = response.headers["x-next-cursor"], walk.key(page[-1])
        else:
            assert walk.untouched <= set(walk.seen)
            self.walks.remove(walk)

    def teardown(self) -> None:
        """Every walk comes to its end."""
        while self.walks:
            self.step(self.walks[-1])


def test_show_nothing_twice_and_miss_nothing(
    monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        try:
            members = {"run": staticmethod(runner.run), "client": client}
            machine = type("TheseWalks", (Walks,), members)
            run_state_machine_as_test(
                machine, settings=settings(max_examples=25, stateful_step_count=30, deadline=None)
            )
        finally:
            runner.run(lifespan.__aexit__(None, None, None))
