# [Task]: T061 [From]: specs/requirements.md
"""How many connections there may be, and how long one may wait for its client (D41).

What a request waits for is bounded elsewhere: its body in kit/body.py, its answer by settings.
"""

import asyncio
import logging
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from kit.errors import Unavailable
from kit.logs import Outage
from kit.middleware import RequestMiddleware
from settings import Settings

logger = logging.getLogger("tasks.connections")

# Seconds between two looks at all connections, at most; it is shorter than a short timeout.
LOOK_INTERVAL = 0.5
# Seconds after which an idle connection may be closed for the sake of a new one.
LEAST_IDLE = 1.0

# A connection, its last request, and whether what comes next must come soon.
type _Waiting = tuple[Any, Any, bool]


async def _no_room(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {**(Unavailable.headers or {}), "Connection": "close"}
    response = JSONResponse({"detail": Unavailable.detail}, Unavailable.status_code, headers)
    await response(scope, receive, send)


class Connections:
    """Those of one uvicorn: `connections` is its set of them, `protocol` their class.

    All of them are looked at from time to time, so that a request pays nothing for it.
    """

    def __init__(self, connections: set[Any], protocol: type[Any], settings: Settings) -> None:
        self._connections = connections
        self._protocol = protocol
        self._most = settings.max_connections
        self._timeout = settings.headers_timeout
        self._interval = min(LOOK_INTERVAL, self._timeout / 4)
        # Who was waiting at the last look, and since when.
        self._since: dict[_Waiting, float] = {}
        # With the headers that each answer has, CORS among them, and a line in the log.
        self._refuse = RequestMiddleware(_no_room)
        self._crowd = Outage(logger, "there are more connections than MAX_CONNECTIONS")
        self._loop = asyncio.get_running_loop()

    def made(self, connection: Any) -> None:
        """Make room for a new connection, or have its request refused where there is none."""
        if len(self._connections) <= self._most:
            return
        self._crowd.begins("idle ones are closed, and what finds no room then gets 503")
        if (idle := self._longest_idle()) is not None:
            # uvicorn would count it until the next turn of the loop.
            self._connections.discard(idle)
            idle.transport.abort()
        elif len(self._connections) <= 2 * self._most:
            connection.app = self._refuse
        else:
            connection.transport.abort()

    def _longest_idle(self) -> Any:
        patient = self._loop.time() - LEAST_IDLE
        idle = [
            (since, waiting[0])
            for waiting, since in self._since.items()
            if since <= patient and self._waiting(waiting[0]) == waiting
        ]
        return min(idle, key=lambda one: one[0])[1] if idle else None

    def watch(self) -> None:
        """Close those that have waited for too long, from now on."""
        now = self._loop.time()
        waiting = [found for one in self._connections if (found := self._waiting(one)) is not None]
        self._since = {one: self._since.get(one, now) for one in waiting}
        for (connection, _, soon), since in self._since.items():
            if soon and now - since >= self._timeout:
                self._give_up(connection)
        if len(self._connections) <= self._most:
            self._crowd.ends()
        self._loop.call_later(self._interval, self.watch)

    def _waiting(self, connection: Any) -> _Waiting | None:
        """What a connection is that waits for its client, and is not in the middle of a request.

        Between two requests, uvicorn has a timer for it; not before the first, nor when a next has
        begun.
        """
        if connection not in self._connections or not isinstance(connection, self._protocol):
            return None
        cycle = connection.cycle
        if cycle is not None and not cycle.response_complete:
            return None
        soon = connection.timeout_keep_alive_task is None or connection.transport.is_closing()
        return connection, cycle, soon

    def _give_up(self, connection: Any) -> None:
        if connection.transport.is_closing():
            # Its client does not read the last answer.
            connection.transport.abort()
            return
        connection.transport.close()
        host, port = connection.client or ("a socket", 0)
        logger.info(
            "closed %s:%d, whose request's headers did not arrive in %g s",
            host,
            port,
            self._timeout,
        )
