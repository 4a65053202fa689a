# [Task]: T054 [From]: specs/decisions.md
"""Finding a request's route by the segments of its path (D33)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Route, Router

from routes.direct import DirectRoute

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
