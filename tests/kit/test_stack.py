# [Task]: T054 [From]: specs/requirements.md
"""TaskAPI is a FastAPI app in all that its users may do with one."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from opentelemetry import trace
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kit.body import read_body
from kit.errors import install_error_handlers
from kit.routing import DirectRoute, TaskAPI


async def hello(name: str, request: Request) -> Response:
    return Response(f"{name} {request.url.path}")


async def link(request: Request) -> Response:
    return Response(str(request.url_for("hello", name="you")))


async def fail() -> Response:
    raise LookupError("hunter2")


def router() -> APIRouter:
    router = APIRouter(route_class=DirectRoute)
    router.get("/hello/{name}")(hello)
    router.get("/link")(link)
    router.get("/fail")(fail)
    return router


@pytest.fixture
def app() -> TaskAPI:
    app = TaskAPI(routes=router().routes)
    install_error_handlers(app)
    return app


def client(app: ASGIApp, root_path: str = "") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.fixture
async def web(app: TaskAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client(app) as web:
        yield web


class Note:
    """A user's own middleware."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app = app
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-note", self.name.encode())]
            await send(message)

        await self.app(scope, receive, send_noted)


class TestMiddleware:
    async def test_of_a_user_is_passed_in_order(self, app: TaskAPI, web: httpx.AsyncClient) -> None:
        app.add_middleware(Note, name="inner")
        app.add_middleware(Note, name="outer")
        app.add_middleware(GZipMiddleware, minimum_size=1)
        response = await web.get("/hello/you")
        assert response.headers["content-encoding"] == "gzip"
        assert response.text == "you /hello/you"
        assert response.headers.get_list("x-note") == ["inner", "outer"]
        # What every response has is outside of it.
        assert response.headers.get_list("x-content-type-options") == ["nosniff"]
        assert (await web.get("/nowhere")).headers.get_list("x-note") == ["inner", "outer"]

    async def test_of_a_user_may_answer_by_itself(
        self, app: TaskAPI, web: httpx.AsyncClient
    ) -> None:
        @app.middleware("http")
        async def refuse(request: Request, call_next: object) -> Response:  # noqa: ARG001
            return Response("closed", 418)

        response = await web.get("/hello/you")
        assert (response.status_code, response.text) == (418, "closed")
        assert response.headers["x-request-id"]


class TestRoutes:
    async def test_know_their_request(self, web: httpx.AsyncClient) -> None:
        assert (await web.get("/hello/me?a=b")).text == "me /hello/me"
        assert (await web.get("/link")).text == "http://test/hello/you"

    async def test_below_a_root_path_and_in_a_mounted_app(self, app: TaskAPI) -> None:
        async def tenant(request: Request) -> Response:
            return Response(request.path_params["tenant"])

        async with client(app, root_path="/v1") as web:
            assert (await web.get("/v1/hello/me")).text == "me /v1/hello/me"
        parent = FastAPI()
        parent.mount("/of/{tenant}", app)
        app.router.routes.append(DirectRoute("/tenant", tenant, methods=["GET"]))
        async with client(parent) as web:
            assert (await web.get("/of/acme/hello/me")).text == "me /of/acme/hello/me"
            assert (await web.get("/of/acme/tenant")).text == "acme"

    async def test_may_be_added_later(self, app: TaskAPI, web: httpx.AsyncClient) -> None:
        assert (await web.get("/later")).status_code == 404

        async def later() -> str:
            return "later"

        app.get("/later")(later)
        assert (await web.get("/later")).json() == "later"
        app.router.routes.append(DirectRoute("/direct/{name}", hello, methods=["GET"]))
        assert (await web.get("/direct/me")).text == "me /direct/me"

    async def test_that_are_fastapis_own_work(self, app: TaskAPI, web: httpx.AsyncClient) -> None:
        async def double(number: int) -> int:
            return 2 * number

        @app.get("/double/{number}")
        async def endpoint(doubled: Annotated[int, Depends(double)]) -> dict[str, int]:
            return {"doubled": doubled}

        assert (await web.get("/double/4")).json() == {"doubled": 8}
        assert (await web.get("/double/x")).status_code == 422
        assert (await web.get("/docs")).status_code == 200


class TestExceptionHandlers:
    @pytest.mark.parametrize("blocking", [False, True], ids=["async", "sync"])
    async def test_of_a_user_answer(
        self, app: TaskAPI, web: httpx.AsyncClient, blocking: bool
    ) -> None:
        async def refuse() -> Response:
            raise HTTPException(410)

        async def handle(_request: Request, error: Exception) -> Response:
            return Response(type(error).__name__, 404)

        def handle_in_a_thread(_request: Request, error: Exception) -> Response:
            return Response(type(error).__name__, 404)

        app.router.routes.append(DirectRoute("/gone", refuse, methods=["GET"]))
        for of in (LookupError, 410):
            app.add_exception_handler(of, handle_in_a_thread if blocking else handle)
        for path, text in (("/fail", "LookupError"), ("/gone", "HTTPException")):
            response = await web.get(path)
            assert (response.status_code, response.text) == (404, text)
            assert response.headers["x-request-id"]

    async def test_missing_means_500(self, web: httpx.AsyncClient) -> None:
        response = await web.get("/fail")
        assert response.status_code == 500
        assert "hunter2" not in response.text


class Spans(trace.TracerProvider, trace.NoOpTracer):
    """An OpenTelemetry set-up that notes which spans are begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def get_tracer(self, *_: object, **__: object) -> trace.Tracer:
        return self

    def start_span(self, name: str, *_: object, **__: object) -> trace.Span:
        self.begun.append(name)
        return trace.INVALID_SPAN


async def test_error_keeps_no_request_alive(app: TaskAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Granian closes the connection of a body that was not read once `receive` is freed."""
    monkeypatch.setattr("kit.body.BODY_TIMEOUT", 0.01)

    async def read(request: Request) -> Response:
        return Response(await read_body(request))

    async def receive() -> Message:
        await asyncio.sleep(10)
        return {"type": "http.disconnect"}

    statuses = []

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    app.router.routes.append(DirectRoute("/stalled", read, methods=["PUT"]))
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "PUT",
        "path": "/stalled",
        "query_string": b"",
        "headers": [(b"host", b"test"), (b"content-length", b"9")],
    }
    left = weakref.ref(receive)
    gc.disable()
    try:
        await app(scope, receive, send)
        del receive, scope
        await asyncio.sleep(0)
        assert left() is None
    finally:
        gc.enable()
    assert statuses[0] == 408


class TestTelemetry:
    async def test_that_is_configured_follows_every_request(self) -> None:
        spans = Spans()
        app = TaskAPI(routes=router().routes, telemetry={"tracer_provider": spans})
        async with client(app) as web:
            assert (await web.get("/hello/you")).status_code == 200
            assert spans.begun
            seen = len(spans.begun)
            assert (await web.get("/hello/you")).status_code == 200
        assert len(spans.begun) == 2 * seen

    async def test_is_looked_for_again_at_each_start(
        self, app: TaskAPI, web: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await web.get("/hello/you")
        spans = Spans()
        monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: spans)
        # A start and an end, as of a server.
        messages = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> Message:
            return {"type": next(messages)}

        async def send(message: Message) -> None:
            assert message["type"].endswith(".complete")

        await app({"type": "lifespan", "state": {}}, receive, send)
        assert (await web.get("/hello/you")).status_code == 200
        assert spans.begun
