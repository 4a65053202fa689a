# [Task]: T081 [From]: specs/requirements.md
"""Cancels the work of a request whose client has disconnected."""

import asyncio
from types import TracebackType
from typing import Self

from starlette.requests import ClientDisconnect, Request

# Seconds before a request is watched. Most end sooner.
WATCH_AFTER = 0.1


class EndsWithClient:
    """Inside, the current task is cancelled if the client disconnects. Raises ClientDisconnect.

    It discards the body, so use it only for requests whose body nobody reads.
    """

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._has_left = False
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER, self._begin)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._has_left and self._task is not None:
            self._task.uncancel()
            raise ClientDisconnect

    def _begin(self) -> None:
        self._watch = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        if self._task is not None:
            self._task.cancel()
