# [Task]: T081 [From]: specs/requirements.md
"""Ends the work of a request whose client has left."""

import asyncio
from types import TracebackType
from typing import Self

from starlette.requests import ClientDisconnect, Request

# Seconds after which a request is watched: most have ended by then.
PATIENCE = 0.1


class EndsWithClient:
    """Inside, the current task is cancelled when the client leaves. Raises ClientDisconnect then.

    For requests whose body nobody reads: what is received is thrown away.
    """

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._has_left = False
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._begin)
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
