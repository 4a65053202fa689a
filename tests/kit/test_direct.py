# [Task]: T020 [From]: specs/requirements.md
"""DirectRoute, held against FastAPI's own solver in small apps."""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any

import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Cookie,
    Depends,
    FastAPI,
    Header,
    Path,
    Query,
    Request,
    Response,
)
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, BaseModel
from starlette.applications import Starlette

from kit.routing import DirectRoute
from main import app as service
from schemas import TaskId


def client(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def direct(endpoint: Callable[..., Any], path: str = "/", **options: Any) -> APIRouter:
    router = APIRouter(route_class=DirectRoute, **options)
    router.get(path)(endpoint)
    return router


async def nothing() -> None:
    """A dependency that no endpoint has."""


def ways(router: APIRouter) -> list[FastAPI]:
    """The router mounted as it is; the same with an override in place; included in an app."""
    mounted, overridden, included = FastAPI(routes=router.routes), FastAPI(), FastAPI()
    overridden.router.routes.extend(router.routes)
    overridden.dependency_overrides[nothing] = nothing
    included.include_router(router)
    return [mounted, overridden, included]


def told(response: httpx.Response) -> Any:
    """The JSON, or of a 422 the places of what is wrong."""
    assert response.status_code in (200, 422)
    said = response.json()
    return said if response.is_success else [item["loc"] for item in said["detail"]]


async def got(router: APIRouter, *requests: tuple[str, dict[str, str]]) -> list[Any]:
    """What is told in all ways."""
    answers = []
    for app in ways(router):
        async with client(app) as http:
            answers.append([told(await http.get(url, headers=sent)) for url, sent in requests])
    assert answers == answers[:1] * 3
    return answers[0]


class TestDirectRoute:
    def test_takes_annotations_that_are_text(self) -> None:
        # As all are where a module has `from __future__ import annotations`.
        async def endpoint() -> "Response": ...  # type: ignore[empty-body]

        [route] = direct(endpoint).routes
        assert isinstance(route, DirectRoute)

    def test_is_what_every_task_endpoint_is(self) -> None:
        routes = [route for route in service.routes if "/tasks" in getattr(route, "path", "")]
        assert len(routes) == 8  # HEAD of a list and of a task are routes, too.
        assert all(isinstance(route, DirectRoute) for route in routes)

    async def test_gives_what_is_declared(self) -> None:
        calls = []

        async def whoami(request: Request) -> str:
            calls.append("whoami")
            return request.headers["x-user"]

        async def endpoint(
            task_id: TaskId,
            user: Annotated[str, Depends(whoami)],
            limit: int,
            if_match: Annotated[str, Header()],
            colour: Annotated[str, Cookie()],
            search: Annotated[str, Query(max_length=5)] = "all",
        ) -> Response:
            return JSONResponse([task_id, user, limit, if_match, colour, search])

        router = direct(endpoint, "/{task_id}", dependencies=[Depends(whoami)])
        headers = {"X-User": "alice", "If-Match": "an-etag", "Cookie": "colour=blue"}
        assert await got(router, ("/7?limit=1&search=milk", headers), ("/7?limit=2", headers)) == [
            [7, "alice", 1, "an-etag", "blue", "milk"],
            [7, "alice", 2, "an-etag", "blue", "all"],
        ]
        assert calls == ["whoami"] * 6
        wrong = [["path", "task_id"], ["query", "search"]]
        missing = [["query", "limit"], ["header", "if-match"], ["cookie", "colour"]]
        requests = [("/0?limit=1&search=buttermilk", headers), ("/7", {"X-User": "bob"})]
        assert await got(router, *requests) == [wrong, missing]

    async def test_gives_parameters_that_are_not_sent_their_defaults(self) -> None:
        async def endpoint(
            request: Request,
            limit: Annotated[int, Query(le=5)] = 3,
            tags: Annotated[list[str], Query()] = [],  # noqa: B006  # To be found unchanged.
            if_match: Annotated[str | None, Header()] = None,
            colour: Annotated[str, Cookie()] = "red",
        ) -> Response:
            tags.append("own")
            return JSONResponse([request.url.path, limit, tags, if_match, colour])

        sent = {"If-Match": "tag", "Cookie": "colour=blue"}
        requests = [("/", {}), ("/?limit=5&tags=a", sent), ("/", {"IF-MATCH": "x"})]
        plain = ["/", 3, ["own"], None, "red"]
        # Neither what an endpoint did to its default nor what another request sent stays.
        assert await got(direct(endpoint), *requests, ("/", {}), ("/?limit=6", {})) == [
            plain,
            ["/", 5, ["a", "own"], "tag", "blue"],
            ["/", 3, ["own"], "x", "red"],
            plain,
            [["query", "limit"]],
        ]

    async def test_makes_defaults_that_are_made_anew(self) -> None:
        numbers: list[int] = []

        async def endpoint(
            number: Annotated[int, Query(default_factory=lambda: len(numbers))],
        ) -> Response:
            numbers.append(number)
            return JSONResponse([])

        await got(direct(endpoint), ("/", {}), ("/", {}))
        assert numbers == [0, 1, 2, 3, 4, 5]

    async def test_ends_dependencies_before_it_answers(self) -> None:
        events: list[str] = []

        async def session(request: Request) -> AsyncIterator[str]:  # noqa: ARG001
            events.append("begin")
            try:
                yield "session"
                events.append("commit")
            finally:
                events.append("close")

        async def endpoint(session: Annotated[str, Depends(session, scope="function")]) -> Response:
            events.append(session)
            return Response()

        async def note(_: httpx.Response) -> None:
            events.append("answer")

        for app in ways(direct(endpoint)):
            async with client(app) as http:
                http.event_hooks["response"].append(note)
                await http.get("/")
        assert events == ["begin", "session", "commit", "close", "answer"] * 3

    async def test_tells_a_dependency_of_a_failure(self) -> None:
        seen: list[str] = []

        async def session(request: Request) -> AsyncIterator[None]:  # noqa: ARG001
            try:
                yield
                seen.append("commit")
            except Exception as error:
                seen.append(type(error).__name__)
                raise

        async def endpoint(
            task_id: TaskId, _session: Annotated[None, Depends(session, scope="function")]
        ) -> Response:
            raise LookupError(task_id)

        async def not_found(_request: Request, _error: Exception) -> Response:
            return Response(status_code=404)

        for app in ways(direct(endpoint, "/{task_id}")):
            app.add_exception_handler(LookupError, not_found)
            async with client(app) as http:
                assert (await http.get("/1")).status_code == 404
                assert (await http.get("/x")).status_code == 422
        assert seen == ["LookupError", "RequestValidationError"] * 3

    async def test_lets_no_dependency_swallow_a_failure(self) -> None:
        async def session(request: Request) -> AsyncIterator[None]:  # noqa: ARG001
            with suppress(LookupError):
                yield

        async def endpoint(
            _session: Annotated[None, Depends(session, scope="function")],
        ) -> Response:
            raise LookupError("hunter2")

        async with client(FastAPI(routes=direct(endpoint).routes)) as http:
            with pytest.raises(RuntimeError, match="session swallowed"):
                await http.get("/")

    async def test_lets_a_dependency_be_overridden(self) -> None:
        async def whoami(request: Request) -> str:
            return request.headers["x-user"]

        async def anyone(name: str = "anyone") -> str:
            return name

        async def endpoint(user: Annotated[str, Depends(whoami)]) -> Response:
            return Response(user)

        app = FastAPI(routes=direct(endpoint).routes)
        app.dependency_overrides[whoami] = anyone
        async with client(app) as http:
            assert (await http.get("/?name=carol")).text == "carol"
            app.dependency_overrides.clear()
            assert (await http.get("/", headers={"X-User": "alice"})).text == "alice"

    async def test_keeps_the_dependencies_of_an_app_that_includes_it(self) -> None:
        async def refuse() -> None:
            raise PermissionError

        async def endpoint() -> Response:
            return Response()

        app = FastAPI()
        app.include_router(direct(endpoint), dependencies=[Depends(refuse)])
        async with client(app) as http:
            with pytest.raises(PermissionError):
                await http.get("/")

    def test_refuses_what_it_could_not_call(self) -> None:
        class Body(BaseModel):
            title: str

        async def chained(user: Annotated[None, Depends(nothing)]) -> None: ...

        async def lasting(request: Request) -> AsyncIterator[None]:  # noqa: ARG001
            yield

        def blocking(request: Request) -> None: ...

        async def fine(request: Request) -> None: ...

        async def with_a_body(body: Body) -> Response: ...  # type: ignore[empty-body]

        async def with_background_tasks(tasks: BackgroundTasks) -> Response: ...  # type: ignore[empty-body]

        async def with_a_model() -> Body: ...  # type: ignore[empty-body]

        async def with_a_whole_path(path: Annotated[Body, Path()]) -> Response: ...  # type: ignore[empty-body]

        async def with_a_fresh_one(
            fresh: Annotated[None, Depends(fine, use_cache=False)],  # noqa: ARG001
        ) -> Response:
            return Response()

        async def with_a_header_of_two_names(
            tag: Annotated[str, Header(validation_alias=AliasChoices("a", "b"))],  # noqa: ARG001
        ) -> Response:
            return Response()

        def blocking_endpoint() -> Response:
            return Response()

        async def good() -> JSONResponse: ...  # type: ignore[empty-body]

        for endpoint, cure in (
            (with_a_body, "with_a_body .*takes body.* JsonBody"),
            (with_background_tasks, "with_background_tasks .*takes .*APIRoute"),
            (with_a_model, "with_a_model .*return a Response"),
            (blocking_endpoint, "blocking_endpoint .*write `async def`"),
            (with_a_whole_path, "with_a_whole_path"),
            (with_a_fresh_one, "use_cache"),
            (with_a_header_of_two_names, "several names"),
        ):
            with pytest.raises(TypeError, match=cure):
                direct(endpoint, "/{title}")
        for dependency in (chained, lasting, blocking):
            with pytest.raises(TypeError, match=f"{dependency.__name__} .*(APIRoute|function)"):
                direct(good, dependencies=[Depends(dependency)])
        assert direct(good, dependencies=[Depends(fine)]).routes

    async def test_serves_in_an_app_that_is_not_fastapis(self) -> None:
        async def endpoint() -> Response:
            return Response("fine")

        app = Starlette(routes=direct(endpoint).routes)
        async with client(app) as http:
            assert (await http.get("/")).text == "fine"
