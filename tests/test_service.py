# [Task]: T018 [From]: specs/requirements.md
"""The contract from outside: HTTP against a `python -m serve` process on either database.

How HTTP itself is read is in wire/, what becomes of requests in an outage in faults/.
"""

import re
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from postgresql import PostgreSQL
from service import PLAIN, Service, create_database, serving
from support import Caller, assert_error
from wire.test_http import CHUNKED, JSON, ORIGIN, TITLE, Wire

MAX_BODY = 64 * 1024
# As nginx's log has it.
CLIENT_WENT_AWAY = 499
TOO_LARGE = "Request body is too large"


@pytest.fixture(scope="module")
def sqlite_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, DATABASE_URL=f"sqlite:///{folder}/tasks.db") as service:
        yield service


@pytest.fixture(scope="module")
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
def wire(service: Service) -> Iterator[Wire]:
    """A connection of a user whom no other test knows."""
    with Wire(service.port) as wire:
        yield wire


def ask(service: Service, method: str, target: str, user: str, body: bytes = b"") -> httpx.Response:
    """Send one request, whose target no client has tidied."""
    with Wire(service.port, user) as wire:
        wire.tasks = target
        return wire.ask(method, "", JSON, body=body)


async def test_serves_the_life_of_a_task(service: Service) -> None:
    async with service.client() as client:
        alice = Caller(client, f"alice-{secrets.token_hex(4)}")
        text = {
            "title": "'; DROP TABLE task; -- \\ % _ 日本 👩‍👩‍👧",
            "description": "\r\n\t" + "😀" * 997,
        }
        task = await alice.add(**text)
        assert task.items() >= text.items()
        one = f"/{task['id']}"
        changed = (await alice.put(one, {"title": "Buy oat milk", "description": None})).json()
        assert changed["updated_at"] > task["updated_at"]
        toggled = (await alice.complete(task["id"])).json()
        assert toggled == {**changed, "completed": True, "updated_at": toggled["updated_at"]}
        newer = await alice.add("Call mum")
        assert (await alice.get()).json() == [newer, toggled]
        assert (await alice.get(one)).json() == toggled
        assert (await alice.delete(one)).status_code == 204
        assert_error(await alice.get(one), 404, "Task not found")
        assert (await alice.get()).json() == [newer]


USER_IDS = ("auth0|123", "a@b.co", "日本", "a b", "100%", "a/b", "a%2Fb", "..", ".", "a'b;--")


def test_user_ids_reach_their_own_tasks_and_only_those(service: Service) -> None:
    own: dict[str, Any] = {}
    for user in (*USER_IDS, "a", "A"):
        tasks = f"/api/{quote(user, safe='')}/tasks"
        created = ask(service, "POST", tasks, user, TITLE)
        assert created.status_code == 201, (user, created.text)
        own[user] = created.json()
        assert own[user]["user_id"] == user
        assert created.headers["location"] == f"{tasks}/{own[user]['id']}"
    for user, task in own.items():
        tasks = f"/api/{quote(user, safe='')}/tasks"
        assert ask(service, "GET", tasks, user).json() == [task]
        assert ask(service, "GET", f"{tasks}/{task['id']}", user).json() == task
        for other in own.keys() - {user}:
            assert_error(ask(service, "GET", tasks, other), 403, "Access denied")


@on_sqlite
def test_user_ids_may_be_encoded_in_any_way(service: Service) -> None:
    ways = {"a%2fb": "a/b", "a@b.co": "a@b.co", "%2E%2e": "..", "%61lice": "alice"}
    for segment, user in ways.items():
        assert ask(service, "GET", f"/api/{segment}/tasks", user).status_code == 200, segment


# With alice's token; none leads to bob.
TARGETS = """
    /api/alice/../bob/tasks /api/alice/%2e%2e/bob/tasks /api/alice%2F..%2Fbob/tasks
    /api/alice%2f..%2fbob/tasks /api/alice%2F../bob/tasks /api/alice/..%2Fbob/tasks
    /api/bob/tasks /api/bob%2Ftasks /api/%62ob/tasks //api//alice/tasks /api//bob/tasks
    /api/alice/tasks/ /api/alice/tasks/1/ /api/alice/tasks/../../bob/tasks
    /api/alice/tasks/..%2F..%2Fbob%2Ftasks /api/bob/tasks;alice /api/bob/tasks?user_id=alice
    /./api/bob/tasks /API/alice/tasks /api/alice%00/tasks
"""
NONSENSE = [
    *(b"/api/\xe6\x97\xa5\xe6\x9c\xac/tasks", b"/api/%E6%97/tasks", b"/api/%/tasks"),
    *(b"/api/%zz/tasks", b"/api/a/tasks/" + b"9" * 30_000, b"/" * 30_000, b"*"),
    *(b"http://elsewhere/api/a/tasks", b"api/a/tasks", b"/api/a/tasks/%ff", b"/api/\x01/tasks"),
]


@on_sqlite
@pytest.mark.parametrize("target", TARGETS.split())
def test_paths_stay_with_their_user(service: Service, target: str) -> None:
    with Wire(service.port) as alice, Wire(service.port) as bob:
        target = target.replace("alice", alice.user).replace("bob", bob.user)
        target = target.replace("%62ob", "%62" + bob.user[1:])
        one = bob.add()
        before = bob.ask("GET").json()
        for suffix in ("", one, f"{one}/complete"):
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                answer = ask(service, method, target + suffix, alice.user, b'{"title": "mine"}')
                assert answer.status_code in (403, 404, 405, 422), (method, answer.text)
                assert "Buy milk" not in answer.text
        assert bob.ask("GET").json() == before
        assert alice.ask("GET").json() == []


@on_sqlite
@pytest.mark.parametrize("target", NONSENSE)
def test_paths_that_make_no_sense_are_the_clients_fault(wire: Wire, target: bytes) -> None:
    wire.tasks = "@"
    wire.send(wire.request("GET").replace(b"@", target, 1))
    assert 400 <= wire.answer().status_code < 500


@on_sqlite
def test_paths_are_asked_by_known_methods(wire: Wire) -> None:
    assert wire.ask("BREW").status_code in (400, 405, 501)


def in_chunks(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


LARGE = TITLE.ljust(MAX_BODY + 1)
HUGE = TITLE.ljust(10_000_000)


@on_sqlite
class TestBodies:
    """Their size, and what becomes of the connection; the rest is in kit/test_body.py."""

    def test_may_be_64_kib(self, wire: Wire) -> None:
        body = LARGE[:MAX_BODY]
        parts = [body[at : at + 10_000] for at in range(0, MAX_BODY, 10_000)]
        assert wire.ask("POST", "", JSON, CHUNKED, body=in_chunks(*parts)).status_code == 201
        assert_error(wire.ask("PATCH", "/1/complete", JSON, body=LARGE), 413, TOO_LARGE)
        # The connection goes on.
        assert wire.ask("POST", "", JSON, body=body).status_code == 201

    @pytest.mark.parametrize(
        ("length", "body"),
        [
            (f"Content-Length: {len(LARGE)}", b""),
            (CHUNKED, in_chunks(LARGE[:MAX_BODY], b" ", end=b"")),
            (f"Content-Length: {len(HUGE)}", HUGE),
            (CHUNKED, in_chunks(HUGE)),
        ],
        ids=["not sent yet", "in chunks without an end", "of 10 MB", "of 10 MB in a chunk"],
    )
    def test_above_are_413_that_can_be_read(self, wire: Wire, length: str, body: bytes) -> None:
        assert_error(wire.ask("POST", "", JSON, length, body=body), 413, TOO_LARGE)

    def test_are_not_awaited_from_strangers(self, wire: Wire) -> None:
        answer = wire.ask("POST", "", JSON, "Content-Length: 1000", token="")
        assert_error(answer, 401, "Missing authorization token")

    def test_are_asked_for_only_when_wanted(self, wire: Wire) -> None:
        expecting = [JSON, "Expect: 100-continue", "Connection: close"]
        for body, interim, status in ((LARGE, b"", b"413"), (TITLE, b"100", b"201")):
            wire.reconnect()
            wire.send(wire.request("POST", "", *expecting, f"Content-Length: {len(body)}"))
            if interim:
                wire.send(body)
            said = b"".join(iter(lambda: wire.socket.recv(65536), b""))
            statuses = re.findall(rb"HTTP/1\.1 (\d+) ", said)
            assert statuses == [*filter(None, [interim]), status]

    def test_may_be_broken_off(self, service: Service, wire: Wire) -> None:
        for length in ("Content-Length: 1000", CHUNKED):
            for _ in range(10):
                request_id = secrets.token_hex(8)
                lines = [JSON, length, f"X-Request-ID: {request_id}"]
                wire.reconnect()
                wire.send(wire.request("POST", "", *lines, body=in_chunks(b'{"title"', end=b"")))
                wire.close()
                [line] = service.logged(request_id)
                assert f"POST /api/{{user_id}}/tasks {CLIENT_WENT_AWAY} " in line
        wire.connect()
        assert wire.titles() == []


def test_log_has_one_line_of_each_request_soon(sqlite_process: Service, tmp_path: Path) -> None:
    with serving(tmp_path, uvicorn=["--workers", "2"]) as uvicorn:
        for service in (sqlite_process, uvicorn):
            url = f"http://127.0.0.1:{service.port}/?secret=query"
            for _ in range(20):
                request_id = secrets.token_hex(8)
                httpx.get(url, headers={"X-Request-ID": request_id}, **PLAIN)
                began = time.monotonic()
                [line] = service.logged(request_id)
                assert time.monotonic() - began < 1
                assert "GET / 200" in line
            assert "query" not in service.log()
            assert "HTTP/1.1" not in service.log()


def test_outage_of_the_database_is_503_and_gives_nothing_away(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # Nobody listens, and nobody else may.
        port = closed.getsockname()[1]
        url = f"postgresql://ledger:hunter2@127.0.0.1:{port}/books"
        with serving(tmp_path, DATABASE_URL=url) as service, Wire(service.port) as wire:
            for method, path, body in (
                *(("GET", "", b""), ("POST", "", TITLE), ("GET", "/1", b"")),
                *(("PUT", "/1", b"{}"), ("PATCH", "/1/complete", b""), ("DELETE", "/1", b"")),
            ):
                answer = wire.ask(method, path, JSON, body=body)
                assert_error(answer, 503, "Service temporarily unavailable")
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.headers["access-control-allow-origin"] == ORIGIN
                assert answer.headers["x-request-id"]
                assert not re.search(f"{port}|127|ledger|books|asyncpg", str(answer.headers))
            # What is wrong with the request is still said first.
            assert ask(service, "GET", "/api/bob/tasks", "alice").status_code == 403
            assert wire.ask("POST", "", JSON, body=b"{").status_code == 422
            wire.tasks = "/health"
            assert wire.ask("GET").status_code == 200
            assert "hunter2" not in service.log()
            assert "Traceback" not in service.log()
