# [Task]: T018 [From]: specs/requirements.md
"""The contract from outside: HTTP against a `python -m serve` process on either database."""

import asyncio
import contextlib
import json
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import asyncpg
import httpx
import pytest
from postgresql import PostgreSQL
from service import PATIENCE, Service, create_database, running, serving, until
from support import SECRET, Caller, assert_error, assert_invalid, sign

ORIGIN = "http://localhost:3000"
MAX_BODY = 64 * 1024
# As nginx's log has it.
CLIENT_WENT_AWAY = 499


# --- The process ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sqlite_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, DATABASE_URL=f"sqlite:///{folder}/tasks.db") as service:
        yield service


@pytest.fixture(scope="session")
def postgresql_process(
    tmp_path_factory: pytest.TempPathFactory, postgresql_server: PostgreSQL
) -> Iterator[Service]:
    url = create_database(postgresql_server)
    with serving(tmp_path_factory.mktemp("service"), DATABASE_URL=url) as service:
        yield service


@pytest.fixture(params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The service that the tests share, on each database in turn; no test may upset it."""
    service: Service = request.getfixturevalue(f"{request.param}_process")
    before = len(service.log())
    yield service
    assert "Traceback" not in service.log()[before:]
    assert service.process.poll() is None


on_sqlite = pytest.mark.parametrize("service", ["sqlite"], indirect=True)


@pytest.fixture
def durable_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that outlives the service, of the kind that the test asks for."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tasks.db"
    return create_database(request.getfixturevalue("postgresql_server"))


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with service.client() as client:
        yield client


def someone(name: str) -> str:
    """A user whom no other test knows."""
    return f"{name}-{secrets.token_hex(4)}"


@pytest.fixture
def alice(client: httpx.AsyncClient) -> Caller:
    return Caller(client, someone("alice"))


# --- The wire ---------------------------------------------------------------------------------


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {sign(user)}"}


def bearer_json(user: str) -> dict[str, str]:
    return {**bearer(user), "Content-Type": "application/json"}


def message(method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as it is written here: no client has tidied its target or headers."""
    lines = [f"{method} {target} HTTP/1.1", "Host: test"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


class Wire:
    """A bare connection."""

    def __init__(self, service: Service) -> None:
        self._socket = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self, method: str = "POST") -> httpx.Response:
        """The next answer, which to `method` may have no body."""
        with HTTPResponse(self._socket, method=method) as response:
            response.begin()
            return httpx.Response(
                response.status, headers=response.getheaders(), content=response.read()
            )

    def rest(self) -> bytes:
        """All there is until the server closes."""
        return b"".join(iter(lambda: self._socket.recv(65536), b""))


def ask(
    service: Service,
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> httpx.Response:
    """Send one request raw and read its answer."""
    length = {} if body is None else {"Content-Length": str(len(body))}
    with Wire(service) as wire:
        wire.send(message(method, target, {**(headers or {}), **length}, body or b""))
        return wire.answer(method)


# --- The API ----------------------------------------------------------------------------------


class TestEndpoints:
    async def test_serve_the_life_of_a_task(self, client: httpx.AsyncClient, alice: Caller) -> None:
        listed = await alice.get()
        assert (listed.status_code, listed.json()) == (200, [])

        created = await alice.post({"title": "  Buy milk  ", "description": "2 l"})
        assert created.status_code == 201
        task = created.json()
        assert task == {
            "id": task["id"],
            "user_id": alice.user,
            "title": "Buy milk",
            "description": "2 l",
            "completed": False,
            "created_at": task["created_at"],
            "updated_at": task["created_at"],
        }
        assert type(task["id"]) is int
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", task["created_at"])
        one = f"/{task['id']}"
        assert created.headers["location"] == alice.tasks + one

        followed = await client.get(created.headers["location"], headers=bearer(alice.user))
        assert (followed.status_code, followed.json()) == (200, task)

        changed = await alice.put(one, {"title": "Buy oat milk", "description": None})
        assert changed.status_code == 200
        after = changed.json()
        assert after == {
            **task,
            "title": "Buy oat milk",
            "description": None,
            "updated_at": after["updated_at"],
        }
        assert after["updated_at"] > task["updated_at"]

        unchanged = await alice.put(one, {})
        assert (unchanged.status_code, unchanged.json()) == (200, after)

        toggled = await alice.complete(task["id"])
        assert (toggled.status_code, toggled.json()["completed"]) == (200, True)
        repeated = await alice.complete(task["id"], json={"completed": True})
        assert (repeated.status_code, repeated.json()) == (200, toggled.json())
        cleared = await alice.complete(task["id"], json={"completed": False})
        assert (cleared.status_code, cleared.json()["completed"]) == (200, False)

        newer = await alice.add("Call mum")
        assert (await alice.get()).json() == [newer, cleared.json()]

        deleted = await alice.delete(one)
        assert (deleted.status_code, deleted.content) == (204, b"")
        assert_error(await alice.get(one), 404, "Task not found")
        assert_error(await alice.delete(one), 404, "Task not found")
        assert (await alice.get()).json() == [newer]

    async def test_keep_every_character(self, alice: Caller) -> None:
        title, description = (
            "'; DROP TABLE task; -- \\ % _ 日本 👩‍👩‍👧",
            "line\r\nline\t" + "😀" * 989,
        )
        task = await alice.add(title, description=description)
        assert (task["title"], task["description"]) == (title, description)
        assert (await alice.get()).json() == [task]


class TestUserIds:
    IDS = (
        "auth0|123",
        "a@b.co",
        "日本",
        "a b",
        "100%",
        "a/b",
        "a%2Fb",
        "..",
        ".",
        "a'b;--",
        "a",
        "A",
    )

    def test_reach_their_own_tasks_and_only_those(self, service: Service) -> None:
        own: dict[str, Any] = {}
        for user in self.IDS:
            tasks = f"/api/{quote(user, safe='')}/tasks"
            created = ask(service, "POST", tasks, bearer_json(user), b'{"title": "mine"}')
            assert created.status_code == 201, (user, created.text)
            own[user] = created.json()
            assert own[user]["user_id"] == user
            assert created.headers["location"] == f"{tasks}/{own[user]['id']}"
        for user in self.IDS:
            tasks = f"/api/{quote(user, safe='')}/tasks"
            assert ask(service, "GET", tasks, bearer(user)).json() == [own[user]]
            one = ask(service, "GET", f"{tasks}/{own[user]['id']}", bearer(user))
            assert (one.status_code, one.json()) == (200, own[user])
            for other in self.IDS:
                if other != user:
                    assert_error(ask(service, "GET", tasks, bearer(other)), 403, "Access denied")

    @pytest.mark.parametrize(
        ("user", "segment"),
        [("a/b", "a%2fb"), ("a@b.co", "a@b.co"), ("..", "%2E%2e"), ("alice", "%61lice")],
    )
    @on_sqlite
    def test_may_be_encoded_in_any_way(self, service: Service, user: str, segment: str) -> None:
        answer = ask(service, "GET", f"/api/{segment}/tasks", bearer(user))
        assert answer.status_code == 200, answer.text


class TestPaths:
    """No spelling of a path leads from one user to another."""

    @pytest.mark.parametrize(
        "target",
        [
            "/api/alice/../bob/tasks",
            "/api/alice/%2e%2e/bob/tasks",
            "/api/alice%2F..%2Fbob/tasks",
            "/api/alice%2f..%2fbob/tasks",
            "/api/alice%2F../bob/tasks",
            "/api/alice/..%2Fbob/tasks",
            "/api/bob/tasks",
            "/api/bob%2Ftasks",
            "/api/%62ob/tasks",
            "//api//alice/tasks",
            "/api//bob/tasks",
            "/api/alice/tasks/",
            "/api/alice/tasks/1/",
            "/api/alice/tasks/../../bob/tasks",
            "/api/alice/tasks/..%2F..%2Fbob%2Ftasks",
            "/api/bob/tasks;alice",
            "/api/bob/tasks?user_id=alice",
            "/./api/bob/tasks",
            "/API/alice/tasks",
            "/api/alice%00/tasks",
        ],
    )
    @on_sqlite
    def test_stay_with_their_user(self, service: Service, target: str) -> None:
        alice, bob = someone("alice"), someone("bob")
        target = target.replace("alice", alice).replace("bob", bob)
        target = target.replace("%62ob", "%62" + bob[1:])
        created = ask(
            service, "POST", f"/api/{bob}/tasks", bearer_json(bob), b'{"title": "of bob"}'
        )
        before = ask(service, "GET", f"/api/{bob}/tasks", bearer(bob))
        assert before.json() == [created.json()]
        for suffix in ("", f"/{created.json()['id']}", f"/{created.json()['id']}/complete"):
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                answer = ask(
                    service, method, target + suffix, bearer_json(alice), b'{"title": "of alice"}'
                )
                assert answer.status_code in (403, 404, 405, 422), (method, answer.text)
                assert "of bob" not in answer.text
        assert ask(service, "GET", f"/api/{bob}/tasks", bearer(bob)).json() == before.json()
        assert ask(service, "GET", f"/api/{alice}/tasks", bearer(alice)).json() == []

    @pytest.mark.parametrize(
        "target",
        [
            b"/api/\xe6\x97\xa5\xe6\x9c\xac/tasks",
            b"/api/%E6%97/tasks",
            b"/api/%/tasks",
            b"/api/%zz/tasks",
            b"/api/a/tasks/" + b"9" * 30_000,
            b"/" * 30_000,
            b"http://elsewhere/api/a/tasks",
            b"*",
            b"api/a/tasks",
            b"/api/a/tasks/%ff",
            b"/api/\x01/tasks",
        ],
    )
    @on_sqlite
    def test_that_make_no_sense_are_the_clients_fault(
        self, service: Service, target: bytes
    ) -> None:
        with Wire(service) as wire:
            wire.send(message("GET", "@", bearer("nobody")).replace(b"@", target, 1))
            assert 400 <= wire.answer("GET").status_code < 500
        assert ask(service, "GET", "/health").status_code == 200


def padded(size: int) -> bytes:
    return b'{"title": "big"}'.ljust(size)


@on_sqlite
class TestBodies:
    def test_may_be_64_kib(self, service: Service) -> None:
        user = someone("alice")
        answer = ask(service, "POST", f"/api/{user}/tasks", bearer_json(user), padded(MAX_BODY))
        assert answer.status_code == 201, answer.text
        long = b'{"title": "' + b"x" * (MAX_BODY - 13) + b'"}'
        answer = ask(service, "POST", f"/api/{user}/tasks", bearer_json(user), long)
        assert len(long) == MAX_BODY
        assert_invalid(answer, "body", "title")

    def test_may_be_64_kib_in_chunks(self, service: Service) -> None:
        user = someone("alice")
        headers = {**bearer_json(user), "Transfer-Encoding": "chunked"}
        body = padded(MAX_BODY)
        with Wire(service) as wire:
            wire.send(message("POST", f"/api/{user}/tasks", headers))
            for start in range(0, MAX_BODY, 10_000):
                wire.send(chunk(body[start : start + 10_000]))
            wire.send(LAST_CHUNK)
            assert wire.answer().status_code == 201

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
    def test_above_are_413_and_the_connection_goes_on(self, service: Service, method: str) -> None:
        user = someone("alice")
        tasks = f"/api/{user}/tasks"
        target = {"POST": tasks, "PUT": f"{tasks}/1", "PATCH": f"{tasks}/1/complete"}[method]
        body = padded(MAX_BODY + 1)
        headers = {**bearer_json(user), "Content-Length": str(len(body))}
        with Wire(service) as wire:
            wire.send(message(method, target, headers, body))
            assert_error(wire.answer(), 413, "Request body is too large")
            wire.send(message("GET", tasks, bearer(user)))
            following = wire.answer("GET")
        assert (following.status_code, following.json()) == (200, [])

    def test_above_are_413_before_they_are_sent(self, service: Service) -> None:
        user = someone("alice")
        headers = {**bearer_json(user), "Content-Length": str(MAX_BODY + 1)}
        with Wire(service) as wire:
            wire.send(message("POST", f"/api/{user}/tasks", headers))
            assert_error(wire.answer(), 413, "Request body is too large")

    def test_above_are_413_in_chunks_without_an_end(self, service: Service) -> None:
        user = someone("alice")
        headers = {**bearer_json(user), "Transfer-Encoding": "chunked"}
        with Wire(service) as wire:
            wire.send(message("POST", f"/api/{user}/tasks", headers, chunk(padded(MAX_BODY))))
            wire.send(chunk(b" "))
            assert_error(wire.answer(), 413, "Request body is too large")

    def test_of_10_mb_get_an_answer_that_can_be_read(self, service: Service) -> None:
        user = someone("alice")
        body = padded(10_000_000)
        answer = ask(service, "POST", f"/api/{user}/tasks", bearer_json(user), body)
        assert_error(answer, 413, "Request body is too large")
        with Wire(service) as wire:
            headers = {**bearer_json(user), "Transfer-Encoding": "chunked"}
            wire.send(message("POST", f"/api/{user}/tasks", headers, chunk(body) + LAST_CHUNK))
            assert_error(wire.answer(), 413, "Request body is too large")

    def test_are_not_awaited_from_strangers(self, service: Service) -> None:
        tasks = f"/api/{someone('alice')}/tasks"
        length = {"Content-Type": "application/json", "Content-Length": "1000"}
        with Wire(service) as wire:
            wire.send(message("POST", tasks, length))
            assert_error(wire.answer(), 401, "Missing authorization token")
        with Wire(service) as wire:
            wire.send(message("POST", tasks, {**bearer(someone("bob")), **length}))
            assert_error(wire.answer(), 403, "Access denied")

    def test_are_asked_for_only_when_wanted(self, service: Service) -> None:
        user = someone("alice")
        expecting = {**bearer_json(user), "Expect": "100-continue"}
        with Wire(service) as wire:
            headers = {**expecting, "Content-Length": str(MAX_BODY + 1), "Connection": "close"}
            wire.send(message("POST", f"/api/{user}/tasks", headers))
            assert wire.rest().startswith(b"HTTP/1.1 413 ")
        with Wire(service) as wire:
            body = b'{"title": "mine"}'
            headers = {**expecting, "Content-Length": str(len(body)), "Connection": "close"}
            wire.send(message("POST", f"/api/{user}/tasks", headers))
            wire.send(body)
            interim, _, final = wire.rest().partition(b"\r\n\r\n")
            assert interim == b"HTTP/1.1 100 Continue"
            assert final.startswith(b"HTTP/1.1 201 ")

    def test_may_be_broken_off(self, service: Service) -> None:
        user = someone("alice")
        lengths = {"length": {"Content-Length": "1000"}, "chunks": {"Transfer-Encoding": "chunked"}}
        for name, length in lengths.items():
            for n in range(10):
                request_id = f"{user}-{name}-{n}"
                headers = {**bearer_json(user), **length, "X-Request-ID": request_id}
                with Wire(service) as wire:
                    wire.send(message("POST", f"/api/{user}/tasks", headers, chunk(b'{"title"')))
                [line] = service.logged(request_id)
                assert f"POST /api/{{user_id}}/tasks {CLIENT_WENT_AWAY} " in line
        answer = ask(service, "GET", f"/api/{user}/tasks", bearer(user))
        assert (answer.status_code, answer.json()) == (200, [])


@on_sqlite
class TestMethods:
    def test_get_of_health_says_ok(self, service: Service) -> None:
        answer = ask(service, "GET", "/health")
        assert (answer.status_code, answer.content) == (200, b'{"status":"ok"}')
        assert answer.headers["content-type"] == "application/json"

    @pytest.mark.parametrize(
        ("path", "methods"),
        [
            ("/api/{user}/tasks", {"GET", "HEAD", "POST"}),
            ("/api/{user}/tasks/1", {"GET", "HEAD", "PUT", "DELETE"}),
            ("/api/{user}/tasks/1/complete", {"PATCH"}),
            ("/health", {"GET", "HEAD"}),
        ],
    )
    def test_that_a_path_has_not_are_405_and_allow_names_the_others(
        self, service: Service, path: str, methods: set[str]
    ) -> None:
        user = someone("alice")
        every = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
        for method in every - methods:
            answer = ask(service, method, path.format(user=user), bearer(user))
            assert answer.status_code == 405, method
            assert set(answer.headers["allow"].split(", ")) == methods
            if method != "HEAD":
                assert_error(answer, 405, "Method Not Allowed")

    def test_unknown_are_the_clients_fault(self, service: Service) -> None:
        assert ask(service, "BREW", "/health").status_code in (400, 405, 501)
        assert ask(service, "GET", "/health").status_code == 200

    @pytest.mark.parametrize(
        "path",
        [
            "/api",
            "/api/alice",
            "/api/alice/task",
            "/favicon.ico",
            "/health/",
            "/tasks",
            "/%00",
        ],
    )
    def test_on_unknown_paths_are_404(self, service: Service, path: str) -> None:
        assert_error(ask(service, "GET", path, bearer("alice")), 404, "Not Found")

    def test_documentation_is_there(self, service: Service) -> None:
        assert ask(service, "GET", "/docs").status_code == 200
        schema = ask(service, "GET", "/openapi.json").json()
        [scheme] = schema["components"]["securitySchemes"].values()
        assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


# --- Every answer -----------------------------------------------------------------------------


class Case(NamedTuple):
    """A request, and the status that it is to meet."""

    status: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None = None


def cases() -> dict[str, Case]:
    user = "cases"
    tasks = f"/api/{user}/tasks"
    own, json = bearer(user), bearer_json(user)
    expired = {"Authorization": f"Bearer {sign(user, exp=1)}"}
    return {
        "200": Case(200, "GET", tasks, own),
        "201": Case(201, "POST", tasks, json, b'{"title": "mine"}'),
        "401-missing": Case(401, "GET", tasks, {}),
        "401-invalid": Case(401, "GET", tasks, {"Authorization": "Bearer a.b.c"}),
        "401-expired": Case(401, "GET", tasks, expired),
        "403": Case(403, "GET", tasks, bearer("another")),
        "404-task": Case(404, "GET", f"{tasks}/{2**63 - 1}", own),
        "404-path": Case(404, "GET", "/nowhere", own),
        "405": Case(405, "DELETE", tasks, own),
        "413": Case(413, "POST", tasks, json, padded(MAX_BODY + 1)),
        "415": Case(415, "POST", tasks, own, b'{"title": "mine"}'),
        "422-body": Case(422, "POST", tasks, json, b"{"),
        "422-field": Case(422, "POST", tasks, json, b"{}"),
        "422-path": Case(422, "GET", f"{tasks}/0", own),
    }


@on_sqlite
@pytest.mark.parametrize("name", cases())
class TestEveryAnswer:
    def ask(self, service: Service, name: str, **headers: str) -> httpx.Response:
        case = cases()[name]
        answer = ask(service, case.method, case.path, {**case.headers, **headers}, case.body)
        assert answer.status_code == case.status, answer.text
        return answer

    def test_is_json_and_protected(self, service: Service, name: str) -> None:
        answer = self.ask(service, name)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        [caching] = answer.headers.get_list("cache-control")
        assert {"private", "no-store"} & set(caching.split(", "))
        if answer.status_code >= 400:
            assert list(answer.json()) == ["detail"]

    def test_has_the_clients_request_id(self, service: Service, name: str) -> None:
        request_id = f"Client.{secrets.token_hex(4)}_-"
        answer = self.ask(service, name, **{"X-Request-ID": request_id})
        assert answer.headers.get_list("x-request-id") == [request_id]
        lines = service.logged(request_id)
        assert any(f" {answer.status_code} " in line for line in lines)

    def test_has_a_request_id_of_its_own(self, service: Service, name: str) -> None:
        first, second = (self.ask(service, name).headers["x-request-id"] for _ in range(2))
        assert re.fullmatch(r"[A-Za-z0-9._-]{8,128}", first)
        assert first != second

    def test_can_be_read_by_the_frontend(self, service: Service, name: str) -> None:
        answer = self.ask(service, name, Origin=ORIGIN)
        assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN]
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "Origin" in answer.headers["vary"].split(", ")
        exposed = {
            header.lower() for header in answer.headers["access-control-expose-headers"].split(", ")
        }
        assert exposed >= {
            "x-request-id",
            "location",
            "retry-after",
            "www-authenticate",
            "etag",
            "link",
            "x-next-cursor",
            "idempotency-replayed",
        }

    def test_can_not_be_read_by_strangers(self, service: Service, name: str) -> None:
        for origin in ("https://evil.example", "null", ORIGIN + ".evil.example", ORIGIN + "0"):
            answer = self.ask(service, name, Origin=origin)
            assert "access-control-allow-origin" not in answer.headers
            assert "Origin" in answer.headers["vary"].split(", ")

    def test_varies_with_the_origin_though_there_is_none(self, service: Service, name: str) -> None:
        answer = self.ask(service, name)
        assert "access-control-allow-origin" not in answer.headers
        assert "Origin" in answer.headers.get("vary", "").split(", ")


@on_sqlite
class TestRequestIds:
    @pytest.mark.parametrize("request_id", ["a", "A.b_c-9", "x" * 128])
    def test_that_fit_are_kept(self, service: Service, request_id: str) -> None:
        answer = ask(service, "GET", "/health", {"X-Request-ID": request_id})
        assert answer.headers["x-request-id"] == request_id

    @pytest.mark.parametrize(
        "request_id", ["", "x" * 129, "a b", "a,b", 'a"b', "a/b", "é", "{}", "%0a"]
    )
    def test_that_do_not_are_replaced(self, service: Service, request_id: str) -> None:
        answer = ask(service, "GET", "/health", {"X-Request-ID": request_id})
        assert answer.status_code == 200
        assert re.fullmatch(r"[A-Za-z0-9._-]{8,64}", answer.headers["x-request-id"])

    def test_stand_in_the_line_of_a_failed_token(self, service: Service) -> None:
        request_id = someone("failed")
        headers = {"Authorization": "Bearer a.b.c", "X-Request-ID": request_id}
        assert_error(ask(service, "GET", "/api/alice/tasks", headers), 401, "Invalid token")
        lines = service.logged(request_id)
        assert any("GET /api/{user_id}/tasks 401" in line for line in lines)
        assert any("Invalid token" in line for line in lines)

    def test_are_not_mixed_up(self, service: Service) -> None:
        run = someone("run")

        def fail(n: int) -> None:
            headers = {"Authorization": "Bearer a.b.c", "X-Request-ID": f"{run}-{n:02}"}
            assert ask(service, "GET", f"/api/{run}-{n:02}/tasks", headers).status_code == 401

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(fail, range(40)))
        for n in range(40):
            reason, access = service.logged(f"{run}-{n:02}")
            assert "Invalid token" in reason
            assert "GET /api/{user_id}/tasks 401" in access


class TestLog:
    def test_is_json_from_the_first_line_to_the_last(self, tmp_path: Path) -> None:
        with serving(tmp_path, LOG_FORMAT="") as service:
            ask(service, "GET", "/api/alice/tasks", {"Authorization": "Bearer a.b.c"})
            service.process.terminate()
            assert service.process.wait(PATIENCE) == 0
            lines = [json.loads(line) for line in service.log().splitlines()]
        for line in lines:
            assert list(line)[:5] == ["time", "level", "logger", "message", "request_id"]
        messages = [line["message"] for line in lines]
        assert messages[0].startswith("serving on")
        assert messages[-1].startswith("Granian shutdown completed")
        [access] = [line for line in lines if line["message"] == "GET /api/{user_id}/tasks 401"]
        assert access["logger"] == "tasks.access"
        [reason] = [line for line in lines if "Invalid token" in line["message"]]
        assert reason["request_id"] == access["request_id"] != "-"

    @pytest.mark.parametrize("uvicorn", [None, [], ["--workers", "2"]])
    def test_has_one_line_of_each_request_soon(
        self, uvicorn: list[str] | None, tmp_path: Path
    ) -> None:
        with serving(tmp_path, uvicorn=uvicorn) as service:
            for _ in range(20):
                request_id = someone("soon")
                ask(service, "GET", "/?secret=query", {"X-Request-ID": request_id})
                began = time.monotonic()
                [line] = service.logged(request_id)
                assert time.monotonic() - began < 1
                assert "GET / 200" in line
            log = service.log()
        assert "query" not in log
        assert "HTTP/1.1" not in log


# --- Starting and stopping --------------------------------------------------------------------


# The variable at fault and its value; None is not set at all.
BAD_SETTINGS = {
    "secret-missing": ("BETTER_AUTH_SECRET", None),
    "secret-short": ("BETTER_AUTH_SECRET", "hunter2-too-short"),
    "origins-any": ("ALLOWED_ORIGINS", "*"),
    "origins-path": ("ALLOWED_ORIGINS", "https://app.example.com/hunter2"),
    "url-nonsense": ("DATABASE_URL", "nonsense"),
    "url-mysql": ("DATABASE_URL", "mysql://u:hunter2@h/db"),
    "url-sslmode": ("DATABASE_URL", "postgresql://u:hunter2@h/db?sslmode=bogus"),
    "url-port": ("DATABASE_URL", "postgresql://u:hunter2@h:port/db"),
    "url-blank": ("DATABASE_URL", " "),
    "pool-size": ("DATABASE_POOL_SIZE", "abc"),
}


@pytest.fixture(scope="module")
def refused_starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and output of a start with each bad setting."""

    def start(setting: str) -> tuple[int, str]:
        name, value = BAD_SETTINGS[setting]
        environment = {"BETTER_AUTH_SECRET": SECRET, "DATABASE_URL": "sqlite:///tasks.db"}
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
        refused = Service(tmp_path_factory.mktemp(setting), environment)
        try:
            return refused.process.wait(PATIENCE), refused.log()
        finally:
            refused.kill()

    with ThreadPoolExecutor(2) as threads:
        return dict(zip(BAD_SETTINGS, threads.map(start, BAD_SETTINGS), strict=True))


class TestRefusedStart:
    @pytest.mark.parametrize("setting", BAD_SETTINGS)
    def test_names_the_variable_and_gives_nothing_away(
        self, refused_starts: dict[str, tuple[int, str]], setting: str
    ) -> None:
        code, output = refused_starts[setting]
        assert code > 0
        assert BAD_SETTINGS[setting][0] in output
        assert "Traceback" not in output
        assert "hunter2" not in output
        assert SECRET not in output


class TestDotEnv:
    def test_is_read_and_gives_way_to_the_environment(self, tmp_path: Path) -> None:
        of_file = "the secret of the .env file, over 32 bytes"
        own = {"Authorization": f"Bearer {sign('alice', secret=of_file)}"}
        (tmp_path / ".env").write_text(
            f"BETTER_AUTH_SECRET={of_file!r}\nALLOWED_ORIGINS=https://app.example.com\n"
        )
        with (
            running(Service(tmp_path, {})) as bare,
            running(Service(tmp_path, {"BETTER_AUTH_SECRET": SECRET})) as set_up,
        ):
            target = "/api/alice/tasks"
            assert ask(bare, "GET", target, own).status_code == 200
            assert_error(ask(bare, "GET", target, bearer("alice")), 401, "Invalid token")
            assert_error(ask(set_up, "GET", target, own), 401, "Invalid token")
            assert ask(set_up, "GET", target, bearer("alice")).status_code == 200
            for service in (bare, set_up):
                origin = {"Origin": "https://app.example.com"}
                allowed = ask(service, "GET", "/health", origin).headers
                assert allowed["access-control-allow-origin"] == origin["Origin"]
                default = ask(service, "GET", "/health", {"Origin": ORIGIN}).headers
                assert "access-control-allow-origin" not in default
        # Neither of the two was told where to keep its tasks.
        assert (tmp_path / "tasks.db").exists()


def assert_unavailable(answer: httpx.Response) -> None:
    assert_error(answer, 503, "Service temporarily unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["x-request-id"]


class TestDatabaseDown:
    def test_is_503_and_health_is_200(self, tmp_path: Path) -> None:
        headers = {**bearer_json("alice"), "Origin": ORIGIN, "X-Request-ID": "down"}
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # Nobody listens, and nobody else may.
            port = closed.getsockname()[1]
            url = f"postgresql://ledger:hunter2@127.0.0.1:{port}/books"
            with serving(tmp_path, DATABASE_URL=url) as service:
                for method, path, body in (
                    ("GET", "", None),
                    ("POST", "", b'{"title": "mine"}'),
                    ("GET", "/1", None),
                    ("PUT", "/1", b"{}"),
                    ("PATCH", "/1/complete", None),
                    ("DELETE", "/1", None),
                ):
                    answer = ask(service, method, f"/api/alice/tasks{path}", headers, body)
                    assert_unavailable(answer)
                    assert not re.search(f"{port}|127|ledger|books|asyncpg", str(answer.headers))
                    assert ask(service, "GET", "/health").status_code == 200
                # What is wrong with the request is still said first.
                assert ask(service, "GET", "/api/bob/tasks", headers).status_code == 403
                assert ask(service, "POST", "/api/alice/tasks", headers, b"{").status_code == 422
                assert "hunter2" not in service.log()
                assert "Traceback" not in service.log()

    @pytest.fixture
    def server(self) -> Iterator[PostgreSQL]:
        """A server that is not started."""
        # As root, the server runs as a user to whom every start of pytest closes its own folder.
        with tempfile.TemporaryDirectory() as folder:
            server = PostgreSQL(Path(folder))
            yield server
            with contextlib.suppress(subprocess.CalledProcessError):  # It may be down.
                server.stop("immediate")

    def test_ends_without_a_restart(self, server: PostgreSQL, tmp_path: Path) -> None:
        with serving(tmp_path, DATABASE_URL=server.url()) as waiting:
            headers = {**bearer_json("alice"), "Origin": ORIGIN}

            def list_tasks() -> httpx.Response:
                answer = ask(waiting, "GET", "/api/alice/tasks", headers)
                assert answer.status_code in (200, 503), answer.text
                assert ask(waiting, "GET", "/health").status_code == 200
                return answer

            def served() -> httpx.Response | None:
                answer = list_tasks()
                return answer if answer.is_success else None

            assert_unavailable(list_tasks())
            server.start()
            assert until(served).json() == []
            assert asyncio.run(column_names(server.url())) >= {"id", "user_id", "title"}
            body = b'{"title": "Outlive the server"}'
            created = ask(waiting, "POST", "/api/alice/tasks", headers, body)
            assert created.status_code == 201

            server.stop()
            assert_unavailable(list_tasks())
            server.start()
            assert until(served).json() == [created.json()]
            assert "Traceback" not in waiting.log()


async def column_names(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'task'"
    )
    await connection.close()
    return {row["column_name"] for row in rows}


class TestShutdown:
    @pytest.fixture
    def stopping(self, tmp_path: Path) -> Iterator[Service]:
        with serving(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db") as service:
            yield service

    def test_on_sigterm_is_orderly(self, stopping: Service) -> None:
        with Wire(stopping) as wire:
            wire.send(message("GET", "/health", {}))
            assert wire.answer("GET").status_code == 200
            stopping.process.send_signal(signal.SIGTERM)
            assert stopping.process.wait(10) == 0
        assert "Traceback" not in stopping.log()

    def test_on_sigterm_answers_who_is_quick_and_awaits_nobody_else(
        self, stopping: Service
    ) -> None:
        body = b'{"title": "Said in time"}'
        headers = {**bearer_json("alice"), "Content-Length": str(len(body))}
        request = message("POST", "/api/alice/tasks", headers, body)
        with Wire(stopping) as quick, Wire(stopping) as stuck:
            quick.send(request[:-1])
            stuck.send(request[:-1])
            assert ask(stopping, "GET", "/health").status_code == 200
            stopping.process.send_signal(signal.SIGTERM)
            until(lambda: "Stopping worker" in stopping.log())
            quick.send(request[-1:])
            assert quick.answer().status_code == 201
            assert stopping.process.wait(10) == 0
        assert "Traceback" not in stopping.log()


class TestDurability:
    @pytest.mark.parametrize("durable_url", ["sqlite", "postgresql"], indirect=True)
    async def test_what_was_acknowledged_outlives_a_kill(
        self, durable_url: str, tmp_path: Path
    ) -> None:
        acknowledged: list[dict[str, Any]] = []
        with serving(tmp_path, DATABASE_URL=durable_url) as victim:
            async with victim.client() as http:

                async def write(writer: int) -> None:
                    for n in range(10_000):
                        try:
                            response = await Caller(http, "alice").post({"title": f"{writer}-{n}"})
                        except httpx.TransportError:
                            return
                        assert response.status_code == 201, response.text
                        acknowledged.append(response.json())
                        if len(acknowledged) == 100:
                            victim.process.kill()

                await asyncio.gather(*map(write, range(8)))
        assert len(acknowledged) >= 100
        with serving(tmp_path, DATABASE_URL=durable_url) as successor:
            async with successor.client() as http:
                kept = (await Caller(http, "alice").get()).json()
        assert [task for task in acknowledged if task not in kept] == []
        assert max(Counter(task["title"] for task in kept).values()) == 1


# --- At once ----------------------------------------------------------------------------------


class TestConcurrency:
    @on_sqlite
    async def test_posts_all_succeed(self, alice: Caller) -> None:
        responses = await asyncio.gather(*(alice.post({"title": f"{n}"}) for n in range(100)))
        assert [response.status_code for response in responses] == [201] * 100
        tasks = [response.json() for response in responses]
        assert len({task["id"] for task in tasks}) == 100
        newest_first = sorted(
            tasks, key=lambda task: (task["created_at"], task["id"]), reverse=True
        )
        assert (await alice.get()).json() == newest_first

    async def test_toggles_alternate(self, alice: Caller) -> None:
        task = await alice.add()
        responses = await asyncio.gather(*(alice.complete(task["id"]) for _ in range(101)))
        assert [response.status_code for response in responses] == [200] * 101
        states = {r.json()["updated_at"]: r.json()["completed"] for r in responses}
        assert len(states) == 101
        assert [states[instant] for instant in sorted(states)] == [True, False] * 50 + [True]
        assert min(states) > task["updated_at"]
        now = (await alice.get(f"/{task['id']}")).json()
        assert (now["completed"], now["updated_at"]) == (True, max(states))

    async def test_puts_of_different_fields_lose_none(self, alice: Caller) -> None:
        for n in range(20):
            task = await alice.add("Before")
            one = f"/{task['id']}"
            changes = {"title": f"After {n}", "description": f"Round {n}", "completed": True}
            responses = await asyncio.gather(
                *(alice.put(one, {name: value}) for name, value in changes.items())
            )
            assert [response.status_code for response in responses] == [200] * 3
            after = (await alice.get(one)).json()
            assert after == {**task, **changes, "updated_at": after["updated_at"]}

    async def test_a_task_is_deleted_once(self, alice: Caller) -> None:
        task = await alice.add()
        responses = await asyncio.gather(*(alice.delete(f"/{task['id']}") for _ in range(20)))
        assert Counter(response.status_code for response in responses) == {204: 1, 404: 19}
