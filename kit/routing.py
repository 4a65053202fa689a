# [Task]: T040 [From]: specs/design.md
"""Routing: DirectRoute calls an endpoint directly, RouteTable finds the route, TaskAPI is the app
that uses both (specs/decisions.md, D15, D33).

FastAPI resolves dependencies anew for each request. DirectRoute does that once, when the route is
made, so a request costs only the calls themselves.
"""

import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from copy import deepcopy
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute, request_response
from fastapi.security.base import SecurityBase
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kit.body import read_body
from kit.middleware import RequestMiddleware
from kit.openapi import complete

# The values of dependencies, by their callables.
type Given = dict[Callable[..., Any], Any]

type Step = Callable[[Request, Given], Awaitable[Response]]


class EndsBeforeResponse[T]:
    """A generator dependency that ends after the endpoint and before the response is sent.

    FastAPI would end it after the response, unless every `Depends` on it has scope="function".
    """

    def __init__(self, function: Callable[[Request], AsyncIterator[T]]) -> None:
        self.enter = asynccontextmanager(function)
        self.__doc__ = function.__doc__

    async def __call__(self, request: Request) -> T:
        stack: AsyncExitStack = request.scope["fastapi_function_astack"]
        return await stack.enter_async_context(self.enter(request))


def ends_before_response[T](
    function: Callable[[Request], AsyncIterator[T]],
) -> EndsBeforeResponse[T]:
    """Make a generator that yields once a dependency that ends before the response is sent."""
    return EndsBeforeResponse(function)


class DirectRoute(APIRoute):
    """An APIRoute whose endpoint returns a Response and whose dependencies take just the request.

    Mount it with `FastAPI(routes=router.routes)`. FastAPI's own solver is used instead, with the
    same results, if `app.dependency_overrides` is not empty or an app includes the router. Raises
    TypeError for an endpoint or a dependency that it can't call.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if (
            not {field.alias for field in self.dependant.path_params}
            <= self.param_convertors.keys()
        ):
            raise TypeError(
                f"{_name(endpoint)} takes the path in a form that a DirectRoute can't give: "
                "declare each parameter of the path by itself, or use FastAPI's APIRoute"
            )
        step = _endpoint_step(self.dependant)
        called: list[Any] = []
        # A dependency of several parameters is called once.
        dependencies: dict[Any, Dependant] = {d.call: d for d in self.dependant.dependencies}
        for call, dependency in reversed(dependencies.items()):
            enter = _context(dependency)
            if enter is not None:
                step, called = _within(call, enter, _after(called, step)), []
            else:
                called.insert(0, call)
        self._first_step = _after(called, step)
        self.app = self._respond

    def respond(self, request: Request) -> Awaitable[Response]:
        """The endpoint's response, after all dependencies have ended."""
        return self._first_step(request, {})

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        if getattr(scope["app"], "dependency_overrides", None):
            self.dependency_overrides_provider = scope["app"]
            await request_response(self.get_route_handler())(scope, receive, send)
            return
        response = await self.respond(Request(scope, receive, send))
        await response(scope, receive, send)


def _endpoint_step(dependant: Dependant) -> Step:
    """A step that validates the declared parameters and calls the endpoint."""
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
    _check_endpoint(endpoint, signature, names)

    async def call(request: Request, solved: Given) -> Response:
        arguments = {name: solved[dependency] for name, dependency in given}
        if request_name is not None:
            arguments[request_name] = request
        errors: list[Any] = []
        path_params = request.scope["path_params"]
        for name, alias, validate in path:
            # A path parameter is always present, exactly once.
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


def _check_endpoint(endpoint: Any, signature: inspect.Signature, names: set[str | None]) -> None:
    """Raise TypeError if a DirectRoute can't call the endpoint."""
    name, cure = _name(endpoint), "or use FastAPI's APIRoute"
    if not inspect.iscoroutinefunction(endpoint):
        raise TypeError(f"{name} is not async: write `async def`, {cure}")
    unknown = ", ".join(signature.parameters.keys() - names)
    if unknown:
        raise TypeError(
            f"{name} takes {unknown}, which a DirectRoute can't give: it gives path, query, header "
            f"and cookie parameters, the Request, dependencies, and a body by JsonBody; {cure[3:]}"
        )
    returned = signature.return_annotation
    if not (inspect.isclass(returned) and issubclass(returned, Response)):
        raise TypeError(f"{name} must be annotated to return a Response, {cure}")


class _Others:
    """The query, header or cookie parameters of an endpoint.

    Most requests send none of them. Then the values that FastAPI computed when the route was made
    are used again, unless they include an error or a mutable value.
    """

    def __init__(self, fields: list[ModelField], source: str) -> None:
        self.fields = fields
        self._source = source
        self._headers = _headers(fields, source)
        values, errors = request_params_to_args(fields, {})
        infos = [field.field_info for field in fields]
        fixed = not errors and all(info.default_factory is None for info in infos)
        # deepcopy returns an immutable value itself.
        fixed = fixed and all(deepcopy(value) is value for value in values.values())
        self._if_absent = (values, errors) if fixed else None

    def read(self, request: Request) -> tuple[dict[str, Any], list[Any]]:
        """Values by the names of parameters, and errors."""
        if self._if_absent is not None and not self._are_sent(request.scope):
            return self._if_absent
        return request_params_to_args(self.fields, getattr(request, self._source))

    def _are_sent(self, scope: Scope) -> bool:
        if self._headers is None:
            return bool(scope["query_string"])
        return not self._headers.isdisjoint(dict(scope["headers"]))


def _headers(fields: list[ModelField], source: str) -> set[bytes] | None:
    """The names of the headers that contain the parameters; None for query parameters."""
    match source:
        case "query_params":
            return None
        case "cookies":
            return {b"cookie"}
    if not all(isinstance(f.field_info.validation_alias, str | None) for f in fields):
        raise TypeError("a header of several names is more than a DirectRoute can give")
    return {(field.validation_alias or field.alias).lower().encode() for field in fields}


def _context(dependency: Dependant) -> Callable[[Request], Any] | None:
    """The context manager of a generator dependency; None for any other dependency.

    Raises TypeError for one that a DirectRoute can't call.
    """
    call: Any = dependency.call
    name, cure = _name(call), "or use FastAPI's APIRoute"
    others = inspect.signature(call).parameters.keys() - {dependency.request_param_name}
    if others or dependency.request_param_name is None:
        raise TypeError(
            f"{name} takes {', '.join(others) or 'nothing'}, but a dependency of a DirectRoute "
            f"takes the Request and nothing else: read the rest from the request, {cure}"
        )
    if not dependency.use_cache:
        raise TypeError(f"{name} has use_cache=False, but is called once here: remove that, {cure}")
    if isinstance(call, EndsBeforeResponse):
        return call.enter
    if inspect.isasyncgenfunction(call):
        if dependency.scope == "function":
            return asynccontextmanager(call)
        raise TypeError(
            f"{name} yields, and so would end after the response: "
            'declare it by Depends(…, scope="function")'
        )
    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__):
        return None
    raise TypeError(f"{name} is not async: write `async def`, {cure}")


def _name(call: Any) -> str:
    return getattr(call, "__name__", type(call).__name__)


def _after(calls: Sequence[Callable[..., Any]], step: Step) -> Step:
    """A step that calls dependencies in turn, then the next step."""
    if not calls:
        return step

    async def after(request: Request, solved: Given) -> Response:
        for call in calls:
            solved[call] = await call(request)
        return await step(request, solved)

    return after


def _within(call: Callable[..., Any], enter: Callable[[Request], Any], step: Step) -> Step:
    """A step that runs the next step inside a dependency's context."""

    async def within(request: Request, solved: Given) -> Response:
        async with enter(request) as solved[call]:
            return await step(request, solved)
        raise RuntimeError(f"{_name(call)} swallowed the exception of the endpoint")

    return within


# Route classes that match by path segments and method alone.
_KNOWN = (Route, APIRoute, DirectRoute)


class _Entry(NamedTuple):
    """A route with the positions of its literal segments and of its parameters.

    The route is None if it can't be called directly.
    """

    route: DirectRoute | None
    literals: list[tuple[int, str]]
    parameters: list[tuple[int, str]]


class RouteTable:
    """A router's routes by method and number of segments.

    Starlette tries the regular expressions of all routes in turn. The first match wins here, too:
    the table ends before the first route of a class that it does not know, such as a mount.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._routes: list[BaseRoute] = []
        self._entries: dict[tuple[str, int], list[_Entry]] = {}

    def find(self, method: str, path: str) -> tuple[DirectRoute, dict[str, str]] | None:
        """The DirectRoute and its parameters, or None if Starlette must find the route."""
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
            break  # A convertor, text around a parameter, or a route for any method.
        entry = _Entry(route if isinstance(route, DirectRoute) else None, literals, parameters)
        for method in route.methods:
            entries[method, len(segments)].append(entry)
    return entries


_ERROR = "tasks.error"


class TaskAPI(FastAPI):
    """A FastAPI app that calls DirectRoutes without FastAPI's router layers."""

    def openapi(self) -> dict[str, Any]:
        """FastAPI's document, completed and cached."""
        if self.openapi_schema is None:
            complete(super().openapi())
        return super().openapi()

    def build_middleware_stack(self) -> ASGIApp:
        """RequestMiddleware, then the middleware of `add_middleware`, then the routes."""
        app: ASGIApp = _Routes(self)
        for cls, args, kwargs in reversed(self.user_middleware):
            app = cls(app, *args, **kwargs)
        return RequestMiddleware(app)


class _Routes:
    """Calls DirectRoutes directly and passes all other requests to FastAPI.

    FastAPI also gets requests while `dependency_overrides` is not empty or telemetry is on.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._table = RouteTable(app.router)
        handlers = app.exception_handlers
        routes = AsyncExitStackMiddleware(app.router)
        self._fastapi = ExceptionMiddleware(routes, handlers, app.debug)
        self._answer_error = ExceptionMiddleware(_raise_error, handlers, app.debug)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = None
        if scope["type"] == "http" and not self._app.dependency_overrides:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            found = self._table.find(scope["method"], path)
        if found is None or "fastapi.telemetry" in scope:
            # A DirectRoute reads its body after the token is judged.
            if scope["type"] == "http" and found is None:
                receive = _GuardedBody(self._app, scope, receive)
            await self._fastapi(scope, receive, send)
            return
        route, parameters = found
        scope.setdefault("router", self._app.router)
        scope["route"], scope["endpoint"] = route, route.endpoint
        scope["path_params"] = scope.get("path_params", {}) | parameters
        try:
            response = await route.respond(Request(scope, receive, send))
        except Exception as error:
            scope[_ERROR] = error
            try:
                await self._answer_error(scope, receive, send)
            finally:
                # The error's frames refer to the scope. Together they would keep an unread body
                # alive, and Granian keeps a connection open as long as its body lives.
                del scope[_ERROR]
        else:
            await response(scope, receive, send)


async def _raise_error(scope: Scope, _receive: Receive, _send: Send) -> None:
    raise scope[_ERROR]


class _GuardedBody:
    """The `receive` for FastAPI's solver. It checks the token before it reads the body.

    FastAPI reads a declared body before it solves dependencies. So this calls the route's security
    dependencies first, then reads the body within the limits of kit/body.py.
    """

    def __init__(self, app: FastAPI, scope: Scope, receive: Receive) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._is_read = False

    async def __call__(self) -> Message:
        if self._is_read:
            return await self._receive()
        self._is_read = True
        request = Request(self._scope, self._receive)
        for guard in _guards(getattr(self._scope.get("route"), "dependant", None)):
            if guard not in self._app.dependency_overrides:
                await guard(request)
        return {"type": "http.request", "body": await read_body(request), "more_body": False}


def _guards(dependant: Dependant | None) -> Iterator[Any]:
    for dependency in dependant.dependencies if dependant else ():
        if isinstance(dependency.call, SecurityBase):
            yield dependency.call
        yield from _guards(dependency)
