# [Task]: T020 [From]: specs/requirements.md
"""What a client is told when something goes wrong, and what it is never told."""

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send
from support import JSON, Caller, assert_error, assert_invalid

import errors
import kit.errors
from db import get_session
from kit.errors import ServiceError, install_error_handlers
from kit.middleware import RequestMiddleware
from kit.routing import TaskAPI
from main import app as main_app

ORIGIN = "http://localhost:3000"
ERROR = ' error="invalid_token", error_description="{}"'
CLOSE = {"connection": "close"}
RETRY = {"retry-after": "1"}
BUSY = "Service temporarily unavailable"


def bearer(form: str, description: str = "") -> dict[str, str]:
    return {"www-authenticate": "Bearer" + form.format(description)}


# Name, status, detail, headers of its own, log level: the table of CONTRACT.md.
# Of an outage, its beginning and end are logged, not every request that meets it.
ERRORS: dict[str, tuple[int, str, dict[str, str], int]] = {
    "InvalidCursor": (400, "Invalid cursor", {}, logging.INFO),
    "BodyLost": (400, "Request body did not arrive in full", CLOSE, logging.INFO),
    "TooManyTags": (400, "If-Match and If-None-Match may name 32 tags each", {}, logging.INFO),
    "MissingToken": (401, "Missing authorization token", bearer(""), logging.INFO),
    "InvalidToken": (401, "Invalid token", bearer(ERROR, "Invalid token"), logging.INFO),
    "ExpiredToken": (401, "Token has expired", bearer(ERROR, "Token has expired"), logging.INFO),
    "AccessDenied": (403, "Access denied", {}, logging.INFO),
    "TaskNotFound": (404, "Task not found", {}, logging.INFO),
    "BodyTimeout": (408, "Request body did not arrive in time", CLOSE, logging.INFO),
    "TaskLimitReached": (409, "Task limit reached", {}, logging.INFO),
    "PreconditionFailed": (412, "Task has changed", {}, logging.INFO),
    "BodyTooLarge": (413, "Request body is too large", {}, logging.INFO),
    "UnsupportedMediaType": (415, "Content-Type must be application/json", {}, logging.INFO),
    "Unavailable": (503, BUSY, RETRY, logging.DEBUG),
    "DatabaseUnavailable": (503, BUSY, RETRY, logging.DEBUG),
    "StatementTimeout": (503, BUSY, RETRY, logging.WARNING),
    "StatementTooSlow": (503, BUSY, RETRY, logging.WARNING),
    "SearchTooSlow": (503, "The search takes too long", {}, logging.WARNING),
    "KeysUnavailable": (503, BUSY, RETRY, logging.DEBUG),
    "TooManyLongAnswers": (503, BUSY, RETRY, logging.DEBUG),
}


def tree(root: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for error in root.__subclasses__():
        yield error
        yield from tree(error)


@pytest.fixture
def database_url(ready_sqlite_url: str) -> str:
    """One database will do: nothing here depends on which."""
    return ready_sqlite_url


@pytest.fixture
def app() -> FastAPI:
    """An app of a test's own endpoints behind the service's own layer and handlers."""
    app = TaskAPI()
    install_error_handlers(app)
    return app


def client_of(app: FastAPI, **transport: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, **transport), base_url="http://test"
    )


class TestServiceErrors:
    def test_the_table_has_all_of_them(self) -> None:
        assert {error.__name__ for error in tree(ServiceError)} == ERRORS.keys()

    @pytest.mark.parametrize("name", ERRORS)
    async def test_are_answered_and_logged(
        self, app: FastAPI, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def endpoint() -> None:
            raise getattr(errors if hasattr(errors, name) else kit.errors, name)("hunter2")

        caplog.set_level(logging.DEBUG, "tasks.errors")
        status, detail, headers, level = ERRORS[name]
        for api in (app, FastAPI()):
            api.get("/")(endpoint)
            async with client_of(api) as web:
                response = await web.get("/", headers={"Origin": ORIGIN})
            assert_error(response, status, detail)
            assert response.headers.items() >= headers.items()
            for header in {"www-authenticate", "retry-after", "connection"} - headers.keys():
                assert header not in response.headers
            assert "hunter2" not in f"{response.headers} {response.text}"
            if api is app:
                assert response.headers["access-control-allow-origin"] == ORIGIN
        [record] = [record for record in caplog.records if record.name == "tasks.errors"]
        assert record.getMessage() == f"{status} {detail}: hunter2"
        assert (record.levelno, record.exc_info) == (level, None)


UNKNOWN_PATHS = """
    /nowhere /api /api/alice /api/alice/task /favicon.ico /health/ /tasks /%00
    /api/a/tasks/ /api/a/tasks/1/ /api/a/tasks/1/other /api/a/tasks/1/complete/2
"""


class TestHTTPErrors:
    @pytest.mark.parametrize("path", UNKNOWN_PATHS.split())
    async def test_unknown_path_is_404(self, client: httpx.AsyncClient, path: str) -> None:
        assert_error(await client.get(path), 404, "Not Found")

    @pytest.mark.parametrize(
        ("path", "methods"),
        [
            ("/api/alice/tasks", "GET, HEAD, POST"),
            ("/api/a%2Fb/tasks", "GET, HEAD, POST"),
            ("/api/alice/tasks/1", "DELETE, GET, HEAD, PUT"),
            ("/api/alice/tasks/1/complete", "PATCH"),
            ("/health", "GET, HEAD"),
            ("/health/ready", "GET, HEAD"),
            ("/docs", "GET, HEAD"),
            ("/openapi.json", "GET, HEAD"),
        ],
    )
    async def test_405_allows_every_method_of_the_path(
        self, client: httpx.AsyncClient, path: str, methods: str
    ) -> None:
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"}:
            if method not in methods.split(", "):
                response = await client.request(method, path, headers={"Origin": ORIGIN})
                assert_error(response, 405, "Method Not Allowed")
                assert response.headers["allow"] == methods
                assert response.headers["access-control-allow-origin"] == ORIGIN

    async def test_405_allows_the_same_below_a_root_path(self) -> None:
        # As `uvicorn --root-path /v1` has it, behind a proxy that takes the prefix off.
        async with client_of(main_app, root_path="/v1") as client:
            response = await client.put("/v1/api/alice/tasks")
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, POST")


class TestValidationErrors:
    @pytest.mark.parametrize(
        ("loc", "bodies"),
        [
            (["body"], [b'{"title": NaN}', b'{"title": ' + b"9" * 5000 + b"}", b'"hunter2"']),
            (["body"], [b'{"title": "hunter2', b'{"title": "hunter2\xff"}']),
            (["body", "title"], [b'{"title": 1e999}', b'{"title": {"hunter2": "hunter2"}}']),
            (["body", "title"], [b'{"title": "hunter2\\ud800"}', b'{"title": "hunter2\\u0000"}']),
            (["body", "title"], [b'{"title": "' + b"hunter2" * 100 + b'"}', b'{"hunter2": 1}']),
            (["body", "completed"], [b'{"title": "t", "completed": "hunter2"}']),
        ],
    )
    async def test_say_where_and_echo_nothing(
        self, alice: Caller, loc: list[str], bodies: list[bytes]
    ) -> None:
        for body in bodies:
            response = await alice.request("POST", content=body, headers=JSON)
            assert_invalid(response, *loc)
            for echo in ("hunter2", "NaN", "inf", "9999", "\x00"):
                assert echo not in response.text

    @pytest.mark.parametrize("task_id", ["hunter2", "0", "-1", "1.0", f"{2**63}", "9" * 5000])
    async def test_of_a_path_echo_nothing(self, alice: Caller, task_id: str) -> None:
        response = await alice.get(f"/{task_id}")
        assert_invalid(response, "path", "task_id")
        assert task_id not in response.json()["detail"][0]["msg"].split()


async def answered(error: Exception, sent: list[Message], *, begun: bool = False) -> None:
    """Have an app raise this, after the start of its response or before, and note what is sent."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    async def receive() -> Message:
        raise AssertionError("nobody should read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await RequestMiddleware(app)(scope, receive, send)


class TestUnhandledErrors:
    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("postgresql://user:hunter2@host/database"),
            ExceptionGroup("hunter2", [ValueError("hunter2")]),
            UnicodeEncodeError("utf-8", "hunter2", 0, 1, "hunter2"),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_are_500_with_the_request_id(
        self,
        alice: Caller,
        error: Exception,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        async def session() -> None:
            raise error

        overrides: dict[Any, Any] = main_app.dependency_overrides
        monkeypatch.setitem(overrides, get_session, session)
        headers = {"Origin": ORIGIN, "X-Request-ID": "known-to-the-client"}
        response = await alice.get(headers=headers)
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {
            "detail": "Internal Server Error",
            "request_id": "known-to-the-client",
        }
        assert response.headers["x-request-id"] == "known-to-the-client"
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "private, no-cache"
        assert "hunter2" not in f"{response.headers} {response.text}"
        [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.exc_info is not None
        assert record.exc_info[1] is error
        assert vars(record)["request_id"] == "known-to-the-client"

        response = await alice.get(headers={"Origin": "https://evil.example"})
        assert response.status_code == 500
        assert response.json()["request_id"] == response.headers["x-request-id"]
        assert "access-control-allow-origin" not in response.headers
        del overrides[get_session]
        assert (await alice.get()).status_code == 200

    async def test_after_the_start_of_a_response_say_nothing_more(self) -> None:
        sent: list[Message] = []
        # The server closes the connection then.
        with pytest.raises(ValueError, match="hunter2"):
            await answered(ValueError("hunter2"), sent, begun=True)
        await answered(ClientDisconnect(), sent, begun=True)
        assert [message["type"] for message in sent] == ["http.response.start"] * 2

    async def test_body_whose_client_went_away_is_no_bug(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        sent: list[Message] = []
        await answered(ClientDisconnect(), sent)
        lost = b'{"detail":"Request body did not arrive in full"}'
        assert (sent[0]["status"], sent[1]["body"]) == (400, lost)
        assert [record for record in caplog.records if record.levelno > logging.INFO] == []
