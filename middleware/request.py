# [Task]: T007 [From]: specs/requirements.md
"""What every request gets, whatever becomes of it: an id, protective headers, a strict path."""

import itertools
import re
import secrets
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logs import current_request_id

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestMiddleware:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        # Unlike any other process's; within one, a number is enough, and needs no random bytes.
        self._process = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _sent_request_id(scope) or self._fresh_request_id()
        current_request_id.set(request_id.decode())

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                headers.append((b"x-request-id", request_id))
                headers.append((b"x-content-type-options", b"nosniff"))
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"private, no-cache"))
                message["headers"] = headers
            await send(message)

        await self.app(_with_whole_segments(scope), receive, send_with_headers)

    def _fresh_request_id(self) -> bytes:
        return f"{self._process}-{next(self._numbers):08x}".encode()


def _sent_request_id(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value)
    return None


def _with_whole_segments(scope: Scope) -> Scope:
    """The scope with `%2F` and `%25` left encoded in its path, so that a slash inside a user id
    never splits it; schemas.decode_user_id does the rest.
    """
    raw_path: bytes = scope.get("raw_path") or b""
    if b"%" not in raw_path:
        return scope
    path = raw_path.decode("latin-1").replace("%25", "%2525")
    path = path.replace("%2F", "%252F").replace("%2f", "%252F")
    return {**scope, "path": unquote(path)}
