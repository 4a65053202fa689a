# [Task]: T040 [From]: specs/design.md
"""Routing: DirectRoute, which calls an endpoint directly, the table that finds a route, and the app
that uses both (specs/decisions.md, D15, D33).

FastAPI works out with each request which dependency wants what. Here that is done once, when the
route is made, and what is left of it is a few calls.
"""

import inspect
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute, request_response
from fastapi.telemetry import TelemetryConfig
from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from starlette.applications import Starlette
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from kit.middleware import RequestMiddleware
from kit.openapi import complete

# What the dependencies have given so far, by their callables.
type Given = dict[Callable[..., Any], Any]

type Step = Callable[[Request, Given], Awaitable[Response]]


class DirectRoute(APIRoute):
    """An APIRoute whose endpoint returns a Response and whose dependencies take just the request.

    Mount it as it is: `FastAPI(routes=router.routes)`. FastAPI's own solver does the same in its
    place while `app.dependency_overrides` holds anything, and in an app that includes the router.
    Raises TypeError for an endpoint or a dependency that it can't call.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if (
            not {field.alias for field in self.dependant.path_params}
            <= self.param_convertors.keys()
        ):
            raise TypeError(f"{endpoint} takes the path in a form that a DirectRoute can't give")
        step = _endpoint_step(self.dependant)
        called: list[Any] = []
        # What several parameters ask for is given once.
        dependencies: dict[Any, Dependant] = {d.call: d for d in self.dependant.dependencies}
        for call, dependency in reversed(dependencies.items()):
            if _is_entered(dependency):
                step, called = _within(call, _after(called, step)), []
            else:
                called.insert(0, call)
        self._first_step = _after(called, step)
        self.app = self._respond

    def respond(self, request: Request) -> Awaitable[Response]:
        """The endpoint's answer; every dependency has ended by then. Raises what they raise."""
        return self._first_step(request, {})

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        if getattr(scope["app"], "dependency_overrides", None):
            self.dependency_overrides_provider = scope["app"]
            await request_response(self.get_route_handler())(scope, receive, send)
            return
        response = await self.respond(Request(scope, receive, send))
        await response(scope, receive, send)


def _endpoint_step(dependant: Dependant) -> Step:
    """Validate the declared parameters and call the endpoint."""
    endpoint: Any = dependant.call
    signature = inspect.signature(endpoint, eval_str=True)
    given = [(d.name, d.call) for d in dependant.dependencies if d.name and d.call]
    path = [(field.name, field.alias, field.validate) for field in dependant.path_params]
    others = [
        _Others(fields, source)
        for fields, source in (
            (dependant.query_params, "query_params"),
            (dependant.header_params, "headers"),
            (dependant.cookie_params, "cookies"),
        )
        if fields
    ]
    request_name = dependant.request_param_name
    names = {name for name, *_ in given + path} | ({request_name} - {None})
    names |= {field.name for other in others for field in other.fields}
    if names != signature.parameters.keys() or signature.return_annotation is not Response:
        raise TypeError(f"{endpoint} takes what a DirectRoute can't give, or gives no Response")

    async def call(request: Request, solved: Given) -> Response:
        arguments = {name: solved[dependency] for name, dependency in given}
        if request_name is not None:
            arguments[request_name] = request
        errors: list[Any] = []
        path_params = request.scope["path_params"]
        for name, alias, validate in path:
            # A part of the path is always there, and once.
            loc = ("path", alias)
            arguments[name], its_errors = validate(path_params[alias], loc=loc)
            errors += its_errors
        for other in others:
            values, its_errors = other.read(request)
            arguments.update(values)
            errors += its_errors
        if errors:
            raise RequestValidationError(errors)
        response: Response = await endpoint(**arguments)
        return response

    return call


class _Others:
    """The query, header or cookie parameters of an endpoint.

    Most requests send none of them. What FastAPI makes of nothing is then taken as it was found
    when the route was made, unless that is an error or might be changed by whoever gets it.
    """

    def __init__(self, fields: list[ModelField], source: str) -> None:
        self.fields = fields
        self._source = source
        self._headers = _headers(fields, source)
        values, errors = request_params_to_args(fields, {})
        infos = [field.field_info for field in fields]
        fixed = not errors and all(info.default_factory is None for info in infos)
        # A copy of what can't be changed is the thing itself.
        fixed = fixed and all(deepcopy(value) is value for value in values.values())
        self._of_nothing = (values, errors) if fixed else None

    def read(self, request: Request) -> tuple[dict[str, Any], list[Any]]:
        """Values by the names of parameters, and errors."""
        if self._of_nothing is not None and not self._are_sent(request.scope):
            return self._of_nothing
        return request_params_to_args(self.fields, getattr(request, self._source))

    def _are_sent(self, scope: Scope) -> bool:
        if self._headers is None:
            return bool(scope["query_string"])
        return not self._headers.isdisjoint(dict(scope["headers"]))


def _headers(fields: list[ModelField], source: str) -> set[bytes] | None:
    """The names of the headers that parameters come in; None for those of the query."""
    match source:
        case "query_params":
            return None
        case "cookies":
            return {b"cookie"}
    if not all(isinstance(f.field_info.validation_alias, str | None) for f in fields):
        raise TypeError("a header of several names is more than a DirectRoute can give")
    return {(field.validation_alias or field.alias).lower().encode() for field in fields}


def _is_entered(dependency: Dependant) -> bool:
    """Whether a dependency yields what it gives, rather than returns it.

    Raises TypeError for one that a DirectRoute can't call.
    """
    call: Any = dependency.call
    if not dependency.request_param_name or len(inspect.signature(call).parameters) != 1:
        raise TypeError(f"{call} takes more than the request, which a DirectRoute can't give")
    if not dependency.use_cache:
        raise TypeError(f"{call} is to be called for each who asks, which a DirectRoute can't do")
    if inspect.isasyncgenfunction(call) and dependency.scope == "function":
        return True
    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__):
        return False
    raise TypeError(f"{call} is no coroutine, nor a generator whose scope is the function's")


def _after(calls: Sequence[Callable[..., Any]], step: Step) -> Step:
    """Call dependencies, one after the other, before the next step."""
    if not calls:
        return step

    async def after(request: Request, solved: Given) -> Response:
        for call in calls:
            solved[call] = await call(request)
        return await step(request, solved)

    return after


def _within(call: Callable[..., Any], step: Step) -> Step:
    """Enter a dependency that yields, and leave it after the next step."""

    # What asynccontextmanager does, for half of its time.
    async def within(request: Request, solved: Given) -> Response:
        generator = call(request)
        solved[call] = await anext(generator)
        try:
            response = await step(request, solved)
        except BaseException as error:
            with suppress(StopAsyncIteration):  # It may end; the error is not its own to swallow.
                await generator.athrow(error)
            raise
        await anext(generator, None)
        return response

    return within


# Those of which it is known that they match by their path's segments and their methods alone.
_KNOWN = (Route, APIRoute, DirectRoute)


class _Entry(NamedTuple):
    """A route, and by their places the segments of its path: literal ones, names of parameters.

    None stands for a route that is not called directly.
    """

    route: DirectRoute | None
    literals: list[tuple[int, str]]
    parameters: list[tuple[int, str]]


class RouteTable:
    """A router's routes by method and number of segments.

    Starlette tries the regular expression of one route after the other. The first that matches wins
    here, too: the table ends before the first route that it can't judge, such as a mount.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._routes: list[BaseRoute] = []
        self._entries: dict[tuple[str, int], list[_Entry]] = {}

    def find(self, method: str, path: str) -> tuple[DirectRoute, dict[str, str]] | None:
        """The DirectRoute and its parameters, or None if Starlette is to look."""
        if self._routes != self._router.routes:
            self._routes = list(self._router.routes)
            self._entries = _entries(self._routes)
        segments = path.split("/")
        for route, literals, parameters in self._entries.get((method, len(segments)), ()):
            for place, literal in literals:
                if segments[place] != literal:
                    break
            else:
                given = {name: segments[place] for place, name in parameters}
                if all(given.values()):
                    return None if route is None else (route, given)
        return None


def _entries(routes: Sequence[BaseRoute]) -> dict[tuple[str, int], list[_Entry]]:
    entries = defaultdict(list)
    for route in routes:
        if type(route) not in _KNOWN:
            break
        assert isinstance(route, Route)  # noqa: S101  # All of _KNOWN are.
        segments = list(enumerate(route.path.split("/")))
        literals = [(at, segment) for at, segment in segments if "{" not in segment]
        parameters = [(at, segment[1:-1]) for at, segment in segments if "{" in segment]
        if any(name not in route.param_convertors for _, name in parameters) or not route.methods:
            break  # A segment that is more than a parameter, or one of a type; any method.
        entry = _Entry(route if isinstance(route, DirectRoute) else None, literals, parameters)
        for method in route.methods:
            entries[method, len(segments)].append(entry)
    return entries


_ERROR = "tasks.error"


class TaskAPI(FastAPI):
    """A FastAPI app that answers a request for a DirectRoute by as few calls as can be."""

    # Whether OpenTelemetry is set up, as the first request after a start finds it.
    _is_observed: bool | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As FastAPI's, which asks for OpenTelemetry with each request: 6 µs."""
        if scope["type"] != "http":
            self._is_observed = None
        elif self._is_observed is None:
            self._is_observed = self._native_telemetry.enabled()
        if scope["type"] != "http" or self._is_observed or self.root_path:
            await super().__call__(scope, receive, send)
        else:
            await Starlette.__call__(self, scope, receive, send)

    @contextmanager
    def observed_by(
        self, tracer: TracerProvider, meter: MeterProvider, logger: LoggerProvider
    ) -> Iterator[None]:
        """Inside, FastAPI's telemetry goes to these."""
        config = self._native_telemetry.config
        before = config.copy()
        config.update(
            TelemetryConfig(tracer_provider=tracer, meter_provider=meter, logger_provider=logger)
        )
        self._is_observed = None
        try:
            yield
        finally:
            config.update(before)
            self._is_observed = None

    def openapi(self) -> dict[str, Any]:
        """As FastAPI's, made once, and completed."""
        if self.openapi_schema is None:
            complete(super().openapi())
        return super().openapi()

    def build_middleware_stack(self) -> ASGIApp:
        """RequestMiddleware, then what `add_middleware` was given, then the routes."""
        app: ASGIApp = _Routes(self)
        for cls, args, kwargs in reversed(self.user_middleware):
            app = cls(app, *args, **kwargs)
        return RequestMiddleware(app)


class _Routes:
    """DirectRoutes, called directly, and all else in FastAPI's way.

    FastAPI's way is also taken where it may know more: while `dependency_overrides` holds anything,
    and where OpenTelemetry follows the request.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._table = RouteTable(app.router)
        handlers = app.exception_handlers
        routes = AsyncExitStackMiddleware(app.router)
        self._frameworks_way = ExceptionMiddleware(routes, handlers, app.debug)
        self._answer_error = ExceptionMiddleware(_raise_error, handlers, app.debug)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = None
        if scope["type"] == "http" and not self._app.dependency_overrides:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            found = self._table.find(scope["method"], path)
        if found is None or "fastapi.telemetry" in scope:
            await self._frameworks_way(scope, receive, send)
            return
        route, parameters = found
        scope.setdefault("router", self._app.router)
        scope["route"], scope["endpoint"] = route, route.endpoint
        scope["path_params"] = scope.get("path_params", {}) | parameters
        try:
            response = await route.respond(Request(scope, receive, send))
        except Exception as error:
            scope[_ERROR] = error
            await self._answer_error(scope, receive, send)
        else:
            await response(scope, receive, send)


async def _raise_error(scope: Scope, _receive: Receive, _send: Send) -> None:
    raise scope[_ERROR]
