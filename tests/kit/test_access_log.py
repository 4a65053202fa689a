# [Task]: T054 [From]: specs/requirements.md
"""The line that each request gets in the log."""

import asyncio
import io
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.types import Scope
from support import JSON, SECRET, Caller
from uvicorn.logging import AccessFormatter

from kit.access_log import USER, AccessLog
from kit.routing import DirectRoute
from main import app
from settings import get_settings

ORIGIN = "http://localhost:3000"
TITLE = "a title that is nobody's business"
FIELDS = [
    "time",
    "level",
    "logger",
    "message",
    "request_id",
    "method",
    "route",
    "status",
    "ms",
    "client",
    "user",
]


class Log(io.StringIO):
    """A stream that counts what is written to it, and may be a terminal."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal
        self.writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)

    def isatty(self) -> bool:
        return self.terminal

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def database_url(ready_sqlite_url: str) -> str:
    """One database will do: nothing here depends on which."""
    return ready_sqlite_url


@pytest.fixture
def uvicorns() -> Iterator[logging.Logger]:
    """uvicorn's access logger, as it is before uvicorn is set up and again afterwards."""
    logger = logging.getLogger("uvicorn.access")
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [], False
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers, logger.propagate, level = before
    logger.setLevel(level)


@pytest.fixture
def log(uvicorns: logging.Logger) -> Log:
    """Where uvicorn would write its access log by its defaults."""
    log = Log()
    uvicorns.handlers = [by_default(log)]
    return log


def by_default(stream: io.StringIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    form = '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s'
    handler.setFormatter(AccessFormatter(form))
    return handler


async def one_turn() -> None:
    await asyncio.sleep(0)


@asynccontextmanager
async def serving() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711), raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def take_time(client: httpx.AsyncClient) -> float:
    """A request whose body takes 30 ms to arrive; the milliseconds until its answer is there."""

    async def in_no_hurry() -> AsyncIterator[bytes]:
        yield b'{"title": '
        await asyncio.sleep(0.03)
        yield b'"Buy milk"}'

    began = time.perf_counter()
    await Caller(client, "alice").request("POST", content=in_no_hurry(), headers=JSON)
    return (time.perf_counter() - began) * 1000


class TestLine:
    """In a running app, with uvicorn's access log as it is by default."""

    @pytest.fixture(autouse=True)
    def settings(self, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
        monkeypatch.setenv("DATABASE_URL", database_url)

    async def test_tells_of_the_request_in_json(self, log: Log) -> None:
        async with serving() as client:
            alice = Caller(client, "alice")
            task = await alice.add(TITLE)
            await alice.get(f"/{task['id']}", headers={"X-Request-ID": "mine"})
            await one_turn()
        line = log.lines()[-1]
        assert list(line) == FIELDS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert re.fullmatch("[0-9a-f]{16}", line["user"])
        told = {name: line[name] for name in FIELDS if name not in ("time", "ms", "user")}
        assert told == {
            "level": "info",
            "logger": "tasks.access",
            "message": "GET /api/{user_id}/tasks/{task_id} 200",
            "request_id": "mine",
            "method": "GET",
            "route": "/api/{user_id}/tasks/{task_id}",
            "status": 200,
            "client": "192.0.2.7:4711",
        }

    async def test_tells_how_many_milliseconds_it_took(self, log: Log) -> None:
        async with serving() as client:
            took = await take_time(client)
            await one_turn()
        # The line has one decimal.
        assert 29.9 < log.lines()[-1]["ms"] < took + 0.1

    async def test_tells_of_it_in_text_on_a_terminal(self, log: Log) -> None:
        log.terminal = True
        async with serving() as client:
            await client.get("/health", headers={"X-Request-ID": "mine"})
        told = re.sub(r"\d+\.\d ms", "1.0 ms", log.getvalue())
        assert told == "INFO:     [mine] GET /health 200 1.0 ms client=192.0.2.7:4711 user=-\n"

    @pytest.mark.parametrize(
        ("method", "path", "headers", "status", "route"),
        [
            ("GET", "/api/alice/tasks", {}, 200, "/api/{user_id}/tasks"),
            ("GET", "/api/bob/tasks", {}, 403, "/api/{user_id}/tasks"),
            ("GET", "/api/alice/tasks", {"Authorization": ""}, 401, "/api/{user_id}/tasks"),
            ("GET", "/api/alice/tasks/7", {}, 404, "/api/{user_id}/tasks/{task_id}"),
            ("POST", "/api/alice/tasks", {}, 422, "/api/{user_id}/tasks"),
            ("PUT", "/api/alice/tasks", {}, 405, "/api/{user_id}/tasks"),
            ("GET", "/secret-path", {}, 404, "-"),
            ("GET", "/docs", {}, 200, "-"),
            (
                "OPTIONS",
                "/api/alice/tasks",
                {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"},
                200,
                "-",
            ),
        ],
    )
    async def test_there_is_one_whatever_becomes_of_it(
        self,
        log: Log,
        method: str,
        path: str,
        headers: dict[str, str],
        status: int,
        route: str,
    ) -> None:
        async with serving() as client:
            token = {"Authorization": f"Bearer {Caller(client, 'alice').token}"}
            response = await client.request(method, path, headers=token | headers)
        assert response.status_code == status
        [line] = log.lines()
        assert (line["method"], line["status"], line["route"]) == (method, status, route)
        assert line["request_id"] == response.headers["x-request-id"]
        assert "secret-path" not in log.getvalue()

    async def test_there_is_one_for_a_bug(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fail(*_: object) -> None:
            raise RuntimeError

        monkeypatch.setattr(DirectRoute, "respond", fail)
        async with serving() as client:
            assert (await client.get("/health")).status_code == 500
        [line] = log.lines()
        assert line["status"] == 500

    async def test_tells_users_apart_and_nothing_of_them(
        self, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        users = ("someone@example.com", "someone@example.com", "other@example.com")

        async def pseudonyms() -> list[str]:
            log.seek(0)
            log.truncate()
            async with serving() as client:
                for user in users:
                    await Caller(client, user).get()
            assert "example" not in log.getvalue()
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

    async def test_has_nothing_that_is_secret(self, log: Log) -> None:
        async with serving() as client:
            alice = Caller(client, "alice")
            await alice.add(TITLE)
            await alice.get("?search=hunter2")
            await client.get("/api/alice/tasks?token=hunter2", headers={"X-Note": "hunter2"})
            for secret in (TITLE, SECRET, alice.token, alice.token.split(".")[2], "hunter2"):
                assert secret not in log.getvalue()

    async def test_there_is_none_at_a_higher_level(
        self, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOG_LEVEL", "warning")
        async with serving() as client:
            await client.get("/health")
        assert log.getvalue() == ""

    async def test_there_is_none_if_uvicorn_is_told_so(
        self, log: Log, uvicorns: logging.Logger
    ) -> None:
        uvicorns.setLevel(logging.WARNING)  # uvicorn --log-level warning
        async with serving() as client:
            await client.get("/health")
        uvicorns.setLevel(logging.INFO)
        uvicorns.handlers = []  # uvicorn --no-access-log
        async with serving() as client:
            await client.get("/health")
        assert log.getvalue() == ""

    async def test_takes_the_place_of_uvicorns(self, log: Log, uvicorns: logging.Logger) -> None:
        [handler] = [h for h in uvicorns.handlers if getattr(h, "stream", None) is log]
        async with serving():
            assert handler not in uvicorns.handlers
        assert handler in uvicorns.handlers


class TestOperators:
    """A log configuration of the operator's own, as `uvicorn --log-config` reads one."""

    @pytest.fixture(autouse=True)
    def settings(self, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
        monkeypatch.setenv("DATABASE_URL", database_url)

    async def test_handlers_get_records(self, log: Log, caplog: pytest.LogCaptureFixture) -> None:
        access = logging.getLogger("tasks.access")
        access.addHandler(logging.NullHandler())
        try:
            with caplog.at_level(logging.INFO, "tasks.access"):
                async with serving() as client:
                    await client.get("/health", headers={"X-Request-ID": "mine"})
                    took = await take_time(client)
        finally:
            access.handlers.clear()
        record, slow = (vars(one) for one in caplog.records if one.name == "tasks.access")
        assert record["msg"] % record["args"] == "GET /health 200"
        told = {name: record[name] for name in FIELDS[5:] if name != "ms"}
        assert told == {
            "method": "GET",
            "route": "/health",
            "status": 200,
            "client": "192.0.2.7:4711",
            "user": "-",
        }
        assert 29.9 < slow["ms"] < took + 0.1
        assert record["request_id"] == "mine"
        assert log.getvalue() == ""

    async def test_log_of_uvicorns_lines_is_left_to_uvicorn(self, uvicorns: logging.Logger) -> None:
        log = Log()
        handler = logging.StreamHandler(log)
        handler.setFormatter(logging.Formatter("%(request_id)s|%(message)s"))
        uvicorns.handlers = [handler]
        async with serving() as client:
            await client.get("/health")
            assert uvicorns.handlers == [handler]
        assert log.getvalue() == ""


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

    async def test_is_done_once_for_a_turn_of_the_loop(self, log: Log) -> None:
        access = AccessLog()
        with access.opened(get_settings()):
            for number in range(3):
                access.note(scope(), f"id-{number}", 200, 0.001)
            assert log.writes == 0
            await one_turn()
            assert log.writes == 1
            assert [line["request_id"] for line in log.lines()] == ["id-0", "id-1", "id-2"]
            access.note(scope(), "id-3", 200, 0.001)
            await one_turn()
            assert log.writes == 2

    async def test_is_done_when_the_service_ends(self, log: Log) -> None:
        access = AccessLog()
        with access.opened(get_settings()):
            access.note(scope(), "the last one", 200, 0.001)
        assert [line["request_id"] for line in log.lines()] == ["the last one"]
        access.note(scope(), "later", 200, 0.001)
        await one_turn()
        assert len(log.lines()) == 1

    @pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("I/O on closed file")])
    async def test_that_fails_stops_nothing(
        self,
        log: Log,
        error: Exception,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def fail(_: str) -> int:
            raise error

        access = AccessLog()
        with access.opened(get_settings()):
            with monkeypatch.context() as broken:
                broken.setattr(log, "write", fail)
                access.note(scope(), "lost", 200, 0.001)
                await one_turn()
            access.note(scope(), "kept", 200, 0.001)
            await one_turn()
        assert [line["request_id"] for line in log.lines()] == ["kept"]
        # asyncio logs what is raised in a callback.
        assert caplog.records == []

    @pytest.mark.parametrize("terminal", [False, True], ids=["json", "text"])
    def test_is_of_one_line_whatever_is_in_it(self, terminal: bool) -> None:
        """A client may choose its address where a proxy hands it on, and its method."""

        @settings(deadline=None)
        @example("\x7f", "\x85\u2028\ud800", "a\nb")
        @given(method=st.text(), host=st.text(), path=st.text())
        def write(method: str, host: str, path: str) -> None:
            log = Log(terminal=terminal)
            written(log, scope(method=method, client=(host, 1), route=Route(path)))
            [line] = log.getvalue().splitlines()
            assert line.isascii()
            assert line.isprintable()
            if not terminal:
                line = json.loads(line)
                assert (line["method"], line["route"]) == (method, path)
                assert line["client"] == (f"[{host}]:1" if ":" in host else f"{host}:1")

        write()

    def test_needs_no_client(self) -> None:
        log = Log()
        written(log, scope(client=None))
        assert log.lines()[0]["client"] == "-"

    def test_hides_users_without_a_secret_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        monkeypatch.setenv("BETTER_AUTH_URL", "http://localhost:3000")
        told = []
        for _ in range(2):
            log = Log()
            written(log, scope(**{USER: "alice"}), scope(**{USER: "alice"}))
            first, second = (line["user"] for line in log.lines())
            assert first == second != "alice"
            told.append(first)
        # Nothing stands for a user from one process to the next.
        assert told[0] != told[1]


class Route:
    def __init__(self, path: str) -> None:
        self.path = path


def written(log: Log, *scopes: Scope) -> None:
    """Write lines for these requests, as a process of its own would."""
    uvicorns = logging.getLogger("uvicorn.access")
    before, level = uvicorns.handlers, uvicorns.level
    uvicorns.handlers = [by_default(log)]
    uvicorns.setLevel(logging.INFO)

    async def note() -> None:
        access = AccessLog()
        with access.opened(get_settings()):
            for one in scopes:
                access.note(one, "id", 200, 0.001)

    try:
        asyncio.run(note())
    finally:
        uvicorns.handlers = before
        uvicorns.setLevel(level)
