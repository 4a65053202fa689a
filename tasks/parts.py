# [Task]: T055 [From]: specs/requirements.md
"""A long JSON array, sent in parts with a turn for other requests between."""

import asyncio
from collections import deque

from fastapi import Response
from starlette.types import Receive, Scope, Send

from tasks.conditional import ContentTag


class JSONParts(Response):
    """One JSON array from several; each part is let go when it has been sent."""

    media_type = "application/json"

    def __init__(self) -> None:
        super().__init__()
        self._parts: deque[bytes] = deque()
        self._tag = ContentTag()

    def add(self, array: bytes) -> None:
        """One more array that is not empty; without its brackets, with what separates it."""
        self._append((b"," if self._parts else b"[") + array[1:-1])

    def finish(self) -> None:
        """That was the last one."""
        self._append(b"]")
        self.headers["content-length"] = str(sum(map(len, self._parts)))
        self.headers["ETag"] = str(self._tag)

    def _append(self, part: bytes) -> None:
        self._parts.append(part)
        self._tag.add(part)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        while self._parts:
            body = self._parts.popleft()
            more = bool(self._parts)
            await send({"type": "http.response.body", "body": body, "more_body": more})
            await asyncio.sleep(0)
