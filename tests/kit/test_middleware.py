# [Task]: T020 [From]: specs/requirements.md
"""What every request gets: an id, protective headers, a strict path, and CORS."""

import re
from collections.abc import AsyncIterator
from itertools import product

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send
from support import JSON, SECRET, Caller, sign

from kit.logs import current_request_id
from kit.middleware import RequestMiddleware

ORIGIN = "http://localhost:3000"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
REQUEST_HEADERS = [
    *("Authorization", "Content-Type", "X-Request-ID", "If-Match", "If-None-Match"),
    *("Idempotency-Key", "traceparent", "tracestate", "baggage", "sentry-trace", "Cache-Control"),
    "Pragma",
]
RESPONSE_HEADERS = {
    *("Allow", "ETag", "Idempotency-Replayed", "Link", "Location", "Retry-After"),
    *("WWW-Authenticate", "X-Next-Cursor", "X-Request-ID"),
}
BEARER = {"Authorization": f"Bearer {sign('alice')}"}

# Requests to send in this order, and the status that each gets.
REQUESTS: list[tuple[int, str, str, dict[str, str], bytes]] = [
    (404, "GET", "/api/alice/tasks/1", BEARER, b""),
    (201, "POST", "/api/alice/tasks", BEARER | JSON, b'{"title": "t"}'),
    (200, "GET", "/api/alice/tasks", BEARER, b""),
    (204, "DELETE", "/api/alice/tasks/1", BEARER, b""),
    (401, "GET", "/api/alice/tasks", {}, b""),
    (403, "GET", "/api/bob/tasks", BEARER, b""),
    (404, "GET", "/nowhere", {}, b""),
    (405, "PUT", "/api/alice/tasks", {}, b""),
    (413, "POST", "/api/alice/tasks", BEARER | JSON, b" " * 65537),
    (415, "POST", "/api/alice/tasks", BEARER, b"{}"),
    (422, "POST", "/api/alice/tasks", BEARER | JSON, b"{}"),
    *((200, "GET", path, {}, b"") for path in ("/health", "/health/ready", "/docs")),
    (200, "GET", "/openapi.json", {}, b""),
]


@pytest.fixture
def database_url(ready_sqlite_url: str) -> str:
    """One database will do: nothing here depends on which."""
    return ready_sqlite_url


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """The smallest app: it answers with what the middleware handed it."""
    seen = {"path": scope["path"], "id": current_request_id.get()}
    await JSONResponse(seen)(scope, receive, send)


@pytest.fixture
async def web() -> AsyncIterator[httpx.AsyncClient]:
    """A client of that app behind RequestMiddleware."""
    transport = httpx.ASGITransport(RequestMiddleware(echo))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as web:
        yield web


class TestRequestID:
    @pytest.mark.parametrize("sent", ["a", "0", "Az09._-", "-", "x" * 128, f"{'f' * 8}-{'0' * 4}"])
    async def test_of_the_client_is_kept(self, web: httpx.AsyncClient, sent: str) -> None:
        response = await web.get("/", headers={"X-Request-ID": sent})
        assert response.headers["x-request-id"] == sent
        assert response.json()["id"] == sent

    @pytest.mark.parametrize(
        "sent",
        [
            *(b"", b" ", b"x" * 129, b"a b", b"a,b", b"a/b", b"a\tb", b"a\nb", b"a\n", b'"quoted"'),
            *(b"<script>", b"${jndi:x}", b"%41", b"a\x00", b"a\x1b[31m"),
            *("é".encode(), "é".encode("latin-1")),
        ],
    )
    async def test_that_is_anything_else_is_replaced(
        self, web: httpx.AsyncClient, sent: bytes
    ) -> None:
        response = await web.get("/", headers=[(b"X-Request-ID", sent)])
        [given] = response.headers.get_list("x-request-id")
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given)
        assert given.encode() != sent
        assert response.json()["id"] == given

    async def test_is_a_fresh_one_each_time(self, web: httpx.AsyncClient) -> None:
        await web.get("/", headers={"X-Request-ID": "first"})
        ids = {(await web.get("/")).headers["x-request-id"] for _ in range(20)}
        assert len({"first", *ids}) == 21


EVIL = "https://evil.example"


class TestEveryResponse:
    @pytest.mark.parametrize("origin", [ORIGIN, EVIL, "null", None])
    async def test_has_its_id_protective_headers_and_cors(
        self, client: httpx.AsyncClient, origin: str | None
    ) -> None:
        sent = {"X-Request-ID": "mine"} | ({"Origin": origin} if origin else {})
        for status, method, path, own, content in REQUESTS:
            response = await client.request(method, path, headers=own | sent, content=content)
            assert response.status_code == status, response.text
            headers = response.headers
            assert headers.get_list("x-request-id") == ["mine"]
            assert headers.get_list("x-content-type-options") == ["nosniff"]
            [cache_control] = headers.get_list("cache-control")
            # An endpoint's own headers win.
            own_caching = path in ("/health", "/health/ready")
            assert cache_control == ("no-store" if own_caching else "private, no-cache"), path
            assert "Origin" in listed(headers["vary"])
            if origin == ORIGIN:
                assert headers.get_list("access-control-allow-origin") == [ORIGIN]
                assert headers["access-control-allow-credentials"] == "true"
                assert listed(headers["access-control-expose-headers"]) >= RESPONSE_HEADERS
            else:
                assert "access-control-allow-origin" not in headers


class TestPath:
    @pytest.mark.parametrize(
        ("raw", "path"),
        [
            ("/api/alice/tasks", "/api/alice/tasks"),
            ("/api/a%40b.co/tasks", "/api/a@b.co/tasks"),
            ("/api/auth0%7C123/tasks", "/api/auth0|123/tasks"),
            ("/api/%E6%97%A5%E6%9C%AC/tasks", "/api/日本/tasks"),
            ("/api/a%20b/tasks", "/api/a b/tasks"),
            ("/api/a%2Fb/tasks", "/api/a%2Fb/tasks"),
            ("/api/a%2fb/tasks", "/api/a%2Fb/tasks"),
            ("/api/%2F/tasks", "/api/%2F/tasks"),
            ("/api/..%2Fbob/tasks", "/api/..%2Fbob/tasks"),
            ("/api/50%25/tasks", "/api/50%25/tasks"),
            ("/api/a%252Fb/tasks", "/api/a%252Fb/tasks"),
            ("/api/a%25252Fb/tasks", "/api/a%25252Fb/tasks"),
            ("/api/a%2Fb%25%40/tasks", "/api/a%2Fb%25@/tasks"),
            ("/health?a=%2F%25", "/health"),
        ],
    )
    async def test_keeps_slashes_and_percents_encoded(
        self, web: httpx.AsyncClient, raw: str, path: str
    ) -> None:
        response = await web.get(raw)
        assert response.request.url.raw_path == raw.encode()
        assert response.json()["path"] == path

    async def test_leads_back_to_the_user(self, client: httpx.AsyncClient) -> None:
        users = ("alice", "a/b", "/", "50%", "%2F", "a%252Fb", "a%41", "%", "auth0|1", "日本")
        for user in (*users, "a b+c"):
            caller = Caller(client, user)
            task = await caller.add()
            assert task["user_id"] == user
            assert (await caller.get()).json() == [task]
            assert (await caller.get(f"/{task['id']}")).json() == task

    @pytest.mark.parametrize(
        "scope",
        [
            {"type": "lifespan", "path": "/a", "raw_path": b"/a%2Fb", "headers": []},
            {"type": "websocket", "path": "/a", "raw_path": b"/a%2Fb", "headers": []},
            # Without its raw form.
            {"type": "http", "method": "GET", "path": "/api/a%b", "headers": []},
        ],
    )
    async def test_that_can_not_be_prepared_stays(self, scope: Scope) -> None:
        [seen] = await scopes_behind(RequestMiddleware, dict(scope))
        assert seen["path"] == scope["path"]


async def scopes_behind(middleware: type[RequestMiddleware], scope: Scope) -> list[Scope]:
    """The scopes that reach an app behind the middleware."""
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def receive() -> Message:
        raise AssertionError("nobody should read")

    async def discard(_message: Message) -> None:
        raise AssertionError("nobody should answer")

    await middleware(app)(scope, receive, discard)
    return seen


async def preflight(
    client: httpx.AsyncClient,
    method: str = "GET",
    *,
    origin: str = ORIGIN,
    headers: str | None = None,
    path: str = "/api/alice/tasks",
) -> httpx.Response:
    sent = {"Origin": origin, "Access-Control-Request-Method": method}
    if headers is not None:
        sent["Access-Control-Request-Headers"] = headers
    return await client.options(path, headers=sent)


def listed(header: str) -> set[str]:
    return {name.strip() for name in header.split(",")}


class TestPreflight:
    async def test_allows_what_the_documents_name_on_any_path(
        self, client: httpx.AsyncClient
    ) -> None:
        paths = ("/api/alice/tasks", "/api/a%2Fb/tasks/1/complete", "/health", "/nowhere")
        # Browsers send the names in lower case.
        sent = (None, "", "authorization", ",".join(REQUEST_HEADERS).lower())
        for path, method, names in product(paths, METHODS, sent):
            response = await preflight(client, method, headers=names, path=path)
            assert response.status_code == 200
            headers = response.headers
            assert headers["access-control-allow-origin"] == ORIGIN
            assert headers["access-control-allow-credentials"] == "true"
            assert listed(headers["access-control-allow-methods"]) == set(METHODS)
            allowed = listed(headers["access-control-allow-headers"].lower())
            assert allowed >= (listed(names) if names else set())
            assert "Origin" in listed(headers["vary"])

    @pytest.mark.parametrize(
        ("method", "origin", "headers", "reason"),
        [
            ("GET", EVIL, None, "origin"),
            ("GET", "null", None, "origin"),
            ("GET", "http://localhost:3001", None, "origin"),
            ("GET", "https://localhost:3000", None, "origin"),
            ("GET", "http://localhost:3000.evil.example", None, "origin"),
            ("TRACE", ORIGIN, None, "method"),
            ("get", ORIGIN, None, "method"),
            ("GET", ORIGIN, "x-colour", "headers"),
            ("GET", ORIGIN, "authorization, x-colour", "headers"),
        ],
    )
    async def test_refuses_everything_else_in_json(
        self, client: httpx.AsyncClient, method: str, origin: str, headers: str | None, reason: str
    ) -> None:
        response = await preflight(client, method, origin=origin, headers=headers)
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {"detail": f"Disallowed CORS {reason}"}
        if reason == "origin":
            assert "access-control-allow-origin" not in response.headers
        for answer in (response, await preflight(client)):
            assert answer.headers["x-request-id"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-length"] == f"{len(answer.content)}"


class TestOrigins:
    async def test_are_those_of_the_settings(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ALLOWED_ORIGINS", "https://a.example/, https://b.example:8443")
        for origin in ("https://a.example", "https://b.example:8443"):
            assert (await preflight(client, origin=origin)).status_code == 200
            response = await client.get("/health", headers={"Origin": origin})
            assert response.headers["access-control-allow-origin"] == origin
        assert (await preflight(client, origin=ORIGIN)).status_code == 400
        response = await client.get("/health", headers={"Origin": ORIGIN})
        assert "access-control-allow-origin" not in response.headers

    async def test_are_not_asked_for_without_need(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Making the middleware reads no settings, and neither does a request of no browser."""
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        transport = httpx.ASGITransport(RequestMiddleware(echo))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/")).status_code == 200
            monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET)
            response = await client.get("/", headers={"Origin": ORIGIN})
        assert response.headers["access-control-allow-origin"] == ORIGIN
