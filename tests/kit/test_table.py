# [Task]: T054 [From]: specs/requirements.md
"""Finding a route by its segments, held against Starlette's search by regular expressions."""

from collections.abc import Iterable

import pytest
from fastapi import APIRouter, FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Match, Mount, Route

from kit.routing import DirectRoute, RouteTable
from main import app


async def endpoint() -> Response: ...  # type: ignore[empty-body]


async def of_a_user(user_id: str) -> Response: ...  # type: ignore[empty-body]


def direct(path: str, *methods: str) -> DirectRoute:
    taking = of_a_user if "{user_id" in path else endpoint
    return DirectRoute(path, taking, methods=methods or ("GET",))


def table(*routes: BaseRoute) -> RouteTable:
    return RouteTable(APIRouter(routes=list(routes)))


def taken(found: RouteTable, method: str, path: str) -> BaseRoute | None:
    """The route that the table finds."""
    route = found.find(method, path)
    return route and route[0]


def starlettes(routes: Iterable[BaseRoute], method: str, path: str) -> BaseRoute | None:
    """The route that Starlette would take, if that is a direct one."""
    scope = {"type": "http", "method": method, "path": path}
    for route in routes:
        if route.matches(scope)[0] is Match.FULL:
            return route if isinstance(route, DirectRoute) else None
    return None


class ForMondays(Route):
    """A route of someone's own, which looks at more than the path."""


SEGMENTS = st.sampled_from(
    ["", "api", "tasks", "complete", "health", "ready", "docs", "alice", "1", "a%2Fb", "日本", "\n"]
)
PATHS = st.lists(SEGMENTS, max_size=6).map("/".join) | st.text()


class TestFind:
    @given(st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "BREW"]), PATHS)
    def test_finds_what_starlette_finds(self, method: str, path: str) -> None:
        for one in (path, f"/{path}", f"/api/alice/tasks/{path}"):
            found = RouteTable(app.router).find(method, one)
            route = starlettes(app.routes, method, one)
            if found is None:
                # Only a line break at the end is left to Starlette's regular expressions.
                assert route is None or one.endswith("\n")
            else:
                assert found[0] is route
                scope = {"type": "http", "method": method, "path": one}
                assert found[1] == found[0].matches(scope)[1]["path_params"]

    def test_finds_all_that_the_service_has(self) -> None:
        routes = [route for route in app.routes if isinstance(route, DirectRoute)]
        assert len(routes) == 14
        for route in routes:
            path = route.path.format(user_id="alice", task_id="1")
            for method in route.methods or ():
                assert taken(RouteTable(app.router), method, path) is route

    def test_first_one_wins(self) -> None:
        general, special = direct("/of/{user_id}"), direct("/of/me")
        for routes in ([general, special], [special, general]):
            assert taken(table(*routes), "GET", "/of/me") is routes[0]

    def test_method_counts(self) -> None:
        reading, writing = direct("/a"), direct("/a", "PUT", "POST")
        both = table(reading, writing)
        for method, route in (("GET", reading), ("PUT", writing), ("POST", writing)):
            assert taken(both, method, "/a") is route
        assert both.find("DELETE", "/a") is None

    @pytest.mark.parametrize(
        "before",
        [
            Mount("/of", app=Starlette()),
            ForMondays("/elsewhere", endpoint),
            Route("/of/{name}", PlainTextResponse("")),
            Route("/of/{number:int}", PlainTextResponse("")),
            Route("/of/{name}.{kind}", PlainTextResponse("")),
            Route("/of/{rest:path}", PlainTextResponse("")),
        ],
        ids=["mount", "mondays", "any", "number", "two names", "rest"],
    )
    def test_leaves_to_starlette_what_another_route_may_take(self, before: BaseRoute) -> None:
        later = direct("/of/{user_id}")
        assert table(before, later).find("GET", "/of/alice") is None
        # Whatever comes after it takes nothing away.
        assert taken(table(later, before), "GET", "/of/alice") is later

    def test_leaves_included_routers_to_fastapi(self) -> None:
        api, router = FastAPI(), APIRouter()
        router.get("/of/{user_id}")(of_a_user)
        api.include_router(router)
        api.router.routes.append(direct("/of/{user_id}"))
        assert RouteTable(api.router).find("GET", "/of/alice") is None

    def test_notices_what_has_changed(self) -> None:
        first, second = direct("/a"), direct("/b")
        router = APIRouter(routes=[first])
        found = RouteTable(router)
        assert found.find("GET", "/b") is None
        router.routes.append(second)
        assert found.find("GET", "/b") == (second, {})
        router.routes[0] = direct("/c")
        assert found.find("GET", "/a") is None
        router.routes = [first]
        assert found.find("GET", "/a") == (first, {})
        assert found.find("GET", "/b") is None
