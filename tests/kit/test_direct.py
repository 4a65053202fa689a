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

type Events = list[str]


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def direct(endpoint: Callable[..., Any], path: str = "/", **options: Any) -> APIRouter:
    router = APIRouter(route_class=DirectRoute, **options)
    router.get(path)(endpoint)
    return router


async def nothing() -> None:
    """A dependency that no endpoint has."""


def ways(router: APIRouter) -> dict[str, FastAPI]:
    """The router mounted as it is; the same with an override in place; included in an app."""
    mounted = FastAPI(routes=router.routes)
    overridden = FastAPI(routes=router.routes)
    overridden.dependency_overrides[nothing] = nothing
    included = FastAPI()
    included.include_router(router)
    return {"direct": mounted, "overridden": overridden, "included": included}


WAYS = ("direct", "overridden", "included")


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

    @pytest.mark.parametrize("way", WAYS)
    async def test_gives_what_is_declared(self, way: str) -> None:
        calls = []

        async def whoami(request: Request) -> str:
            calls.append("whoami")
            return request.headers["x-user"]

        async def endpoint(
            task_id: TaskId,
            user: Annotated[str, Depends(whoami)],
            search: Annotated[str, Query(max_length=5)] = "all",
            if_match: Annotated[str | None, Header()] = None,
        ) -> Response:
            return Response(f"{task_id} {user} {search} {if_match}")

        app = ways(direct(endpoint, "/{task_id}", dependencies=[Depends(whoami)]))[way]
        async with client(app) as http:
            headers = {"X-User": "alice", "If-Match": "an-etag"}
            assert (await http.get("/7?search=milk", headers=headers)).text == (
                "7 alice milk an-etag"
            )
            assert (await http.get("/7", headers={"X-User": "bob"})).text == "7 bob all None"
            assert calls == ["whoami", "whoami"]
            refused = await http.get("/0?search=buttermilk", headers=headers)
        assert refused.status_code == 422
        wrong = [item["loc"] for item in refused.json()["detail"]]
        assert wrong == [["path", "task_id"], ["query", "search"]]

    @pytest.mark.parametrize("way", WAYS)
    async def test_gives_parameters_that_are_not_sent_their_defaults(self, way: str) -> None:
        async def endpoint(
            request: Request,
            limit: Annotated[int, Query(le=5)] = 3,
            tags: Annotated[list[str], Query()] = [],  # noqa: B006  # To be found unchanged.
            if_match: Annotated[str | None, Header()] = None,
            colour: Annotated[str, Cookie()] = "red",
        ) -> Response:
            tags.append("own")
            return JSONResponse([request.url.path, limit, tags, if_match, colour])

        async with client(ways(direct(endpoint))[way]) as http:
            plain = ["/", 3, ["own"], None, "red"]
            assert (await http.get("/")).json() == plain
            sent = {"If-Match": "tag", "Cookie": "colour=blue"}
            answer = await http.get("/?limit=5&tags=a", headers=sent)
            assert answer.json() == ["/", 5, ["a", "own"], "tag", "blue"]
            assert (await http.get("/", headers={"IF-MATCH": "x"})).json()[3] == "x"
            # Neither what an endpoint did to its default nor what another request sent stays.
            assert (await http.get("/")).json() == plain
            assert (await http.get("/?limit=6")).status_code == 422

    @pytest.mark.parametrize("way", WAYS)
    async def test_makes_defaults_that_are_made_anew(self, way: str) -> None:
        made = iter(range(10))

        async def endpoint(
            number: Annotated[int, Query(default_factory=lambda: next(made))],
        ) -> Response:
            return JSONResponse(number)

        async with client(ways(direct(endpoint))[way]) as http:
            first, second = [(await http.get("/")).json() for _ in range(2)]
        assert second == first + 1

    @pytest.mark.parametrize("way", WAYS)
    async def test_asks_for_parameters_that_are_required(self, way: str) -> None:
        async def endpoint(
            limit: int, if_match: Annotated[str, Header()], colour: Annotated[str, Cookie()]
        ) -> Response:
            return Response(f"{limit} {if_match} {colour}")

        async with client(ways(direct(endpoint))[way]) as http:
            refused = await http.get("/")
            headers = {"If-Match": "tag", "Cookie": "colour=blue"}
            assert (await http.get("/?limit=1", headers=headers)).text == "1 tag blue"
        assert refused.status_code == 422
        missing = [item["loc"] for item in refused.json()["detail"]]
        assert missing == [["query", "limit"], ["header", "if-match"], ["cookie", "colour"]]

    @pytest.mark.parametrize("way", WAYS)
    async def test_ends_dependencies_before_it_answers(self, way: str) -> None:
        events: Events = []

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

        async with client(ways(direct(endpoint))[way]) as http:

            async def note(_: httpx.Response) -> None:
                events.append("answer")

            http.event_hooks["response"].append(note)
            await http.get("/")
        assert events == ["begin", "session", "commit", "close", "answer"]

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("cause", ["endpoint", "input"])
    async def test_tells_a_dependency_of_a_failure(self, way: str, cause: str) -> None:
        seen: Events = []

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

        app = ways(direct(endpoint, "/{task_id}"))[way]

        @app.exception_handler(LookupError)
        async def not_found(_request: Request, _error: Exception) -> Response:
            return Response(status_code=404)

        async with client(app) as http:
            response = await http.get("/1" if cause == "endpoint" else "/x")
        if cause == "endpoint":
            assert (response.status_code, seen) == (404, ["LookupError"])
        else:
            assert (response.status_code, seen) == (422, ["RequestValidationError"])

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

        direct(good)
        for endpoint, cure in (
            (with_a_body, "takes body.* JsonBody"),
            (with_background_tasks, "takes .*APIRoute"),
            (with_a_model, "return a Response"),
            (blocking_endpoint, "write `async def`"),
        ):
            with pytest.raises(TypeError, match=f"{endpoint.__name__} .*{cure}"):
                direct(endpoint)
        for dependency in (chained, lasting, blocking):
            with pytest.raises(TypeError, match=f"{dependency.__name__} .*(APIRoute|function)"):
                direct(good, dependencies=[Depends(dependency)])
        with pytest.raises(TypeError, match="with_a_whole_path"):
            direct(with_a_whole_path, "/{title}")
        with pytest.raises(TypeError, match="use_cache"):
            direct(with_a_fresh_one)
        with pytest.raises(TypeError, match="several names"):
            direct(with_a_header_of_two_names)
        assert direct(good, dependencies=[Depends(fine)]).routes

    async def test_serves_in_an_app_that_is_not_fastapis(self) -> None:
        async def endpoint() -> Response:
            return Response("fine")

        app = Starlette(routes=direct(endpoint).routes)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            assert (await http.get("/")).text == "fine"
