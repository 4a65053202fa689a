# [Task]: T040 [From]: specs/design.md
"""A route that calls its dependencies and its endpoint directly: where much of the speed is.

FastAPI works out with each request which dependency wants what. Here that is done once, when the
route is made, and what is left of it is a few calls (specs/decisions.md, D15).
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

from fastapi import Request, Response
from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, request_response
from starlette.types import Receive, Scope, Send

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
