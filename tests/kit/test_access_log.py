# [Task]: T054 [From]: specs/requirements.md
"""The line that each request gets in the log."""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.types import Scope
from support import JSON, SECRET, Caller

from kit.access_log import USER, AccessLog
from kit.routing import DirectRoute
from main import app
from settings import get_settings

PREFLIGHT = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "GET"}
TITLE = "a title that is nobody's business"
FIELDS = [
    *("time", "level", "logger", "message", "request_id", "method", "route", "status", "ms"),
    *("client", "user"),
]


class Log:
    """A stdout that is a pipe, a file or a terminal, and what has been written to it."""

    def __init__(self, path: Path, *, terminal: bool = False) -> None:
        self.path = path
        self.terminal = terminal
        self._file = path.open("a")

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        return self.path.read_text()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def close(self) -> None:
        self._file.close()


@pytest.fixture(autouse=True)
def database(monkeypatch: pytest.MonkeyPatch, ready_sqlite_url: str) -> None:
    """One will do: nothing here depends on which."""
    monkeypatch.setenv("DATABASE_URL", ready_sqlite_url)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """stdout, which pytest sets anew after this."""
    log = Log(tmp_path / "log")
    monkeypatch.setattr("kit.access_log.sys", SimpleNamespace(stdout=log))
    yield log
    log.close()


@asynccontextmanager
async def serving() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711), raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def take_time(client: httpx.AsyncClient, **headers: str) -> float:
    """A request whose body takes 30 ms to arrive; the milliseconds until its answer is there."""

    async def in_no_hurry() -> AsyncIterator[bytes]:
        yield b'{"title": '
        await asyncio.sleep(0.03)
        yield f'"{TITLE}"}}'.encode()

    began = time.perf_counter()
    alice = Caller(client, "alice")
    await alice.request("POST", content=in_no_hurry(), headers=JSON | headers)
    return (time.perf_counter() - began) * 1000


class TestLine:
    """In a running app, with uvicorn's access log as it is by default."""

    async def test_tells_of_the_request_in_json_and_nothing_secret(self, log: Log) -> None:
        async with serving() as client:
            alice = Caller(client, "alice")
            await alice.get("?search=hunter2&token=hunter2", headers={"X-Note": "hunter2"})
            took = await take_time(client, **{"X-Request-ID": "mine"})
        line = log.lines()[-1]
        assert list(line) == FIELDS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert re.fullmatch("[0-9a-f]{16}", line["user"])
        assert 29.9 < line["ms"] < took + 0.1  # It has one decimal.
        told = {name: line[name] for name in FIELDS if name not in ("time", "ms", "user")}
        route = "/api/{user_id}/tasks"
        assert told == {
            "level": "info",
            "logger": "tasks.access",
            "message": f"POST {route} 201",
            "request_id": "mine",
            "method": "POST",
            "route": route,
            "status": 201,
            "client": "192.0.2.7:4711",
        }
        for secret in (TITLE, SECRET, alice.token, alice.token.split(".")[2], "hunter2"):
            assert secret not in log.text()

    async def test_tells_of_it_in_text_on_a_terminal(self, log: Log) -> None:
        log.terminal = True
        async with serving() as client:
            await client.get("/", headers={"X-Request-ID": "mine"})
        told = re.sub(r"\d+\.\d ms", "1.0 ms", log.text())
        assert told == "INFO:     [mine] GET / 200 1.0 ms client=192.0.2.7:4711 user=-\n"

    async def test_there_is_one_whatever_becomes_of_it(self, log: Log) -> None:
        tasks, wrong = "/api/{user_id}/tasks", {"Authorization": ""}
        requests: list[tuple[str, str, dict[str, str], int, str]] = [
            ("GET", "/api/alice/tasks", {}, 200, tasks),
            ("GET", "/api/bob/tasks", {}, 403, tasks),
            ("GET", "/api/alice/tasks", wrong, 401, tasks),
            ("GET", "/api/alice/tasks/7", {}, 404, f"{tasks}/{{task_id}}"),
            ("POST", "/api/alice/tasks", {}, 422, tasks),
            ("PUT", "/api/alice/tasks", {}, 405, tasks),
            ("GET", "/secret-path", {}, 404, "-"),
            ("GET", "/docs", {}, 200, "-"),
            ("OPTIONS", "/api/alice/tasks", PREFLIGHT, 200, "-"),
        ]
        async with serving() as client:
            token = {"Authorization": f"Bearer {Caller(client, 'alice').token}"}
            responses = [
                await client.request(method, path, headers=token | headers)
                for method, path, headers, *_ in requests
            ]
        for request, response, line in zip(requests, responses, log.lines(), strict=True):
            told = (line["method"], response.status_code, line["status"], line["route"])
            assert told == (request[0], request[3], request[3], request[4])
            assert line["request_id"] == response.headers["x-request-id"]
        assert "secret-path" not in log.text()

    async def test_there_is_one_for_a_bug(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fail(*_: object) -> None:
            raise RuntimeError

        monkeypatch.setattr(DirectRoute, "respond", fail)
        async with serving() as client:
            assert (await client.get("/")).status_code == 500
        [line] = log.lines()
        assert line["status"] == 500

    async def test_tells_users_apart_and_nothing_of_them(
        self, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        users = ("someone@example.com", "someone@example.com", "other@example.com")

        async def pseudonyms() -> list[str]:
            log.path.write_text("")
            async with serving() as client:
                for user in users:
                    await Caller(client, user).get()
            assert "example" not in log.text()
            return [line["user"] for line in log.lines()]

        first, second, other = await pseudonyms()
        assert first == second != other
        # Processes that share the secret agree.
        assert await pseudonyms() == [first, second, other]
        monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET[::-1])
        monkeypatch.setattr("support.SECRET", SECRET[::-1])
        with monkeypatch.context() as context:
            context.setattr("support.sign.__kwdefaults__", {"secret": SECRET[::-1]})
            assert first not in await pseudonyms()

    async def test_takes_the_place_of_uvicorns_and_is_none_at_a_higher_level(
        self, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOG_LEVEL", "warning")
        uvicorns = logging.getLogger("uvicorn.access")
        async with serving() as client:
            await client.get("/")
            assert not uvicorns.isEnabledFor(logging.CRITICAL)
        assert uvicorns.isEnabledFor(logging.CRITICAL)
        assert log.text() == ""


class TestOperators:
    """A log configuration of the operator's own, as `uvicorn --log-config` reads one."""

    async def test_handlers_get_records(self, log: Log, caplog: pytest.LogCaptureFixture) -> None:
        access = logging.getLogger("tasks.access")
        access.addHandler(logging.NullHandler())
        try:
            with caplog.at_level(logging.INFO, "tasks.access"):
                async with serving() as client:
                    await client.get("/", headers={"X-Request-ID": "mine"})
                    took = await take_time(client)
        finally:
            access.handlers.clear()
        record, slow = (vars(one) for one in caplog.records if one.name == "tasks.access")
        assert record["msg"] % record["args"] == "GET / 200"
        told = [record[name] for name in FIELDS[5:] if name != "ms"]
        assert told == ["GET", "/", 200, "192.0.2.7:4711", "-"]
        assert 29.9 < slow["ms"] < took + 0.1
        assert record["request_id"] == "mine"
        assert log.text() == ""


def scope(**parts: object) -> Scope:
    return {"type": "http", "method": "GET", "client": ("192.0.2.7", 4711), **parts}


class TestWriting:
    @pytest.fixture(autouse=True)
    def shown(self) -> Iterator[None]:
        """The level that LOG_LEVEL gives this service's lines."""
        service = logging.getLogger("tasks")
        before = service.level
        service.setLevel(logging.INFO)
        yield
        service.setLevel(before)

    def test_is_done_when_the_service_ends(self, log: Log) -> None:
        access = AccessLog()
        with access.opened(get_settings()):
            access.write(scope(client=None), "the last one", 200, 0.001)
        assert [(line["request_id"], line["client"]) for line in log.lines()] == [
            ("the last one", "-")
        ]
        access.write(scope(), "later", 200, 0.001)
        assert len(log.lines()) == 1

    @pytest.mark.parametrize("terminal", [False, True], ids=["json", "text"])
    def test_is_of_one_line_whatever_is_in_it(self, terminal: bool, log: Log) -> None:
        """A client may choose its address where a proxy hands it on, and its method."""
        log.terminal = terminal

        @settings(deadline=None, max_examples=50)
        @example("\x7f", "\x85\u2028\ud800", "a\nb")
        @given(method=st.text(), host=st.text(), path=st.text())
        def write(method: str, host: str, path: str) -> None:
            log.path.write_text("")
            written(scope(method=method, client=(host, 1), route=SimpleNamespace(path=path)))
            [line] = log.text().splitlines()
            assert line.isascii()
            assert line.isprintable()
            if not terminal:
                line = json.loads(line)
                assert (line["method"], line["route"]) == (method, path)
                assert line["client"] == (f"[{host}]:1" if ":" in host else f"{host}:1")

        write()

    def test_hides_users_without_a_secret_too(
        self, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        monkeypatch.setenv("BETTER_AUTH_URL", "http://localhost:3000")
        for _ in range(2):
            written(scope(**{USER: "alice"}), scope(**{USER: "alice"}))
        first, second, third, fourth = (line["user"] for line in log.lines())
        # Nothing stands for a user from one process to the next.
        assert first == second != third == fourth
        assert "alice" not in log.text()


def written(*scopes: Scope) -> None:
    """Write lines for these requests, as a process of its own would."""
    access = AccessLog()
    with access.opened(get_settings()):
        for one in scopes:
            access.write(one, "id", 200, 0.001)
