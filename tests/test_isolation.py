# [Task]: T019 [From]: specs/requirements.md
"""Users can't see, change or infer each other's tasks: random histories against a plain model."""

import itertools
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import sign

# Each is another's prefix, pattern, case, path, encoding or normal form.
NAMES = ["alice", "alice%", "alic_", "Alice", "alice ", "a/b", "a%2Fb", "日本", "é", "e\u0301"]
NAMES += ["' OR 1=1 --"]
USERS = 3
# Ids that no database will get to.
NEVER = (2**63 - 1, 2**62, 10**15)

FIELDS = ("title", "description", "completed")

type Task = dict[str, Any]
type Model = dict[str, dict[int, Task]]


@dataclass(frozen=True)
class Step:
    """One request. Users are counted from the caller on, who is 0 in `path` and `whose`."""

    action: str
    caller: int = 0
    # Whose path is called.
    path: int = 0
    # Whose task the path names; None is nobody's, ever.
    whose: int | None = 0
    # Which of them, the deleted ones included.
    nth: int = 0
    body: Any = None


titles = st.sampled_from(["Buy milk", "buy milk", "%", "牛乳", "x" * 200])
descriptions = st.none() | st.sampled_from(["", "2 l", "\\ ' \" %"])
others = {"description": descriptions, "completed": st.booleans()}
# Members that nobody may choose.
strangers = {"user_id": st.sampled_from(NAMES), "id": st.integers(1, 99)}
not_tasks = st.sampled_from([{"title": None}, {"title": " "}, {"completed": "yes"}, [], "task"])
bodies = {
    "create": st.fixed_dictionaries({"title": titles}, optional={**others, **strangers}),
    "put": st.fixed_dictionaries({}, optional={"title": titles, **others, **strangers}),
    "complete": st.none() | st.fixed_dictionaries({"completed": st.booleans()}),
}
steps = st.sampled_from(["create", "list", "get", "put", "complete", "delete"]).flatmap(
    lambda action: st.builds(
        Step,
        action=st.just(action),
        caller=st.integers(0, USERS - 1),
        path=st.sampled_from([0, 0, 0, 1, 2]),
        whose=st.sampled_from([0, 0, 1, 2, None]),
        nth=st.integers(0, 9),
        body=bodies[action] | not_tasks if action in bodies else st.none(),
    )
)
histories = st.lists(steps, min_size=5, max_size=30)
casts = st.lists(st.sampled_from(NAMES), min_size=USERS, max_size=USERS, unique=True)

_examples = itertools.count()


class World:
    """The service, and the model that it is to equal."""

    def __init__(self, client: httpx.AsyncClient, cast: list[str]) -> None:
        # Nobody comes back in a later example, and what names have in common stays at their end.
        number = next(_examples)
        self.users = [f"{number}-{name}" for name in cast]
        self.model: Model = {user: {} for user in self.users}
        self._made: dict[str, list[int]] = {user: [] for user in self.users}
        self._client = client
        self._headers = {
            user: {"Authorization": f"Bearer {sign(user)}"} for user in (*self.users, "nobody")
        }

    async def call(
        self, step: Step, *, caller: str, owner: str, task_id: int | None
    ) -> httpx.Response:
        method, path = {
            "create": ("POST", ""),
            "list": ("GET", ""),
            "get": ("GET", f"/{task_id}"),
            "put": ("PUT", f"/{task_id}"),
            "complete": ("PATCH", f"/{task_id}/complete"),
            "delete": ("DELETE", f"/{task_id}"),
        }[step.action]
        body = {} if step.body is None else {"json": step.body}
        target = f"/api/{quote(owner, safe='')}/tasks{path}"
        return await self._client.request(method, target, headers=self._headers[caller], **body)

    async def play(self, step: Step) -> None:
        """Make the request, and see that it meets what the model says and tells no more."""
        user, owner = (self.users[(step.caller + offset) % USERS] for offset in (0, step.path))
        task_id = self._target(step)
        response = await self.call(step, caller=user, owner=owner, task_id=task_id)
        if owner != user:
            assert response.status_code == 403
            blank = await self.call(
                Step("get"), caller=user, owner="who-never-was", task_id=NEVER[0]
            )
            assert seen(response) == seen(blank)
        elif not is_valid(step):
            assert response.status_code == 422
            blank = await self.call(step, caller=user, owner=user, task_id=NEVER[0])
            assert seen(response) == seen(blank)
        elif step.action == "list":
            assert response.status_code == 200
            assert response.json() == self.listed(user)
        elif step.action == "create":
            self._created(user, step, response)
        elif task_id not in self.model[user]:
            assert response.status_code == 404
            blank = await self.call(step, caller=user, owner=user, task_id=NEVER[1])
            assert seen(response) == seen(blank)
        else:
            self._done(self.model[user], task_id, step, response)

    async def check(self) -> None:
        """See that each user has what the model says, listed and one by one."""
        for caller, user in enumerate(self.users):
            await self.play(Step("list", caller))
            for nth in range(len(self._made[user])):
                await self.play(Step("get", caller, nth=nth))

    def listed(self, user: str) -> list[Task]:
        """Newest first: a dict keeps the order in which its keys came."""
        return list(reversed(self.model[user].values()))

    def _target(self, step: Step) -> int:
        made: tuple[int, ...] = NEVER
        if step.whose is not None:
            made = tuple(self._made[self.users[(step.caller + step.whose) % USERS]])
        return made[step.nth % len(made)] if made else NEVER[0]

    def _created(self, user: str, step: Step, response: httpx.Response) -> None:
        assert response.status_code == 201
        task: Task = response.json()
        assert task == {
            "id": task["id"],
            "user_id": user,
            "title": step.body["title"],
            "description": step.body.get("description"),
            "completed": step.body.get("completed", False),
            "created_at": task["created_at"],
            "updated_at": task["created_at"],
        }
        for made in self._made.values():
            assert task["id"] not in made
        self.model[user][task["id"]] = task
        self._made[user].append(task["id"])

    def _done(
        self, tasks: dict[int, Task], task_id: int, step: Step, response: httpx.Response
    ) -> None:
        before = tasks[task_id]
        if step.action == "delete":
            assert (response.status_code, response.content) == (204, b"")
            del tasks[task_id]
            return
        assert response.status_code == 200
        after: Task = response.json()
        changes: Task = {}
        if step.action == "put":
            changes = {name: step.body[name] for name in FIELDS if name in step.body}
        elif step.action == "complete":
            changes = step.body or {"completed": not before["completed"]}
        if before | changes == before:
            assert after == before
        else:
            assert after == {**before, **changes, "updated_at": after["updated_at"]}
            assert after["updated_at"] > before["updated_at"]
        tasks[task_id] = after


def is_valid(step: Step) -> bool:
    if step.action not in bodies or (step.action == "complete" and step.body is None):
        return True
    body = step.body
    if not isinstance(body, dict) or body.get("title", "x") in (None, " "):
        return False
    required = {"create": "title", "put": None, "complete": "completed"}[step.action]
    return body.get("completed") != "yes" and (required is None or required in body)


def seen(response: httpx.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All that a client learns from an answer, but for the number of the request."""
    headers = [item for item in response.headers.multi_items() if item[0] != "x-request-id"]
    return response.status_code, response.content, headers


class TestIsolation:
    async def test_holds_for_every_path_and_target(self, client: httpx.AsyncClient) -> None:
        world = World(client, ["alice", "alice%", "Alice"])
        for caller in range(USERS):
            await world.play(Step("create", caller, body={"title": f"First of {caller}"}))
        for path, whose, caller in itertools.product(
            range(USERS), (*range(USERS), None), range(USERS)
        ):
            for action, body in (
                ("list", None),
                ("create", {"title": "Mine", "user_id": world.users[0], "id": 1}),
                ("get", None),
                ("put", {"title": "Mine", "user_id": world.users[0]}),
                ("put", {"title": None}),
                ("complete", None),
                ("complete", {"completed": True}),
                ("delete", None),
            ):
                # Own tasks stay until the end, so that there is something to see and to take.
                if action != "delete" or path or whose != 0:
                    await world.play(Step(action, caller, path=path, whose=whose, body=body))
            await world.check()
        for caller in range(USERS):
            for _ in range(2):
                await world.play(Step("delete", caller))
            await world.check()

    @settings(
        max_examples=30,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        # The app is shared by the examples; their users are not.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(cast=casts, history=histories)
    async def test_holds_whatever_users_do(
        self, client: httpx.AsyncClient, cast: list[str], history: list[Step]
    ) -> None:
        world = World(client, cast)
        for caller in range(USERS):
            await world.play(Step("create", caller, body={"title": f"First of {caller}"}))
        for step in history:
            await world.play(step)
        await world.check()
