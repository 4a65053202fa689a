# [Task]: T054 [From]: specs/design.md
"""The one middleware around the whole app.

Every request gets: an id, the HTTP checks that servers leave to applications, a prepared path
(paths.py), CORS (cors.py), protective headers, a 500 for a bug (errors.py), and an access line
(access_log.py).
"""

import asyncio
import itertools
import re
import secrets
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv6Address

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kit.access_log import access_log
from kit.cors import answer_preflight, cors_headers, is_preflight
from kit.errors import BodyLost, internal_error
from kit.logs import current_request_id
from kit.paths import keep_whole_segments
from settings import SettingsError

_NOSNIFF = (b"x-content-type-options", b"nosniff")

_CACHE_CONTROL = (b"cache-control", b"private, no-cache")

# nginx logs this status if the client disconnected before it got an answer.
_CLIENT_DISCONNECTED = 499
# Statuses of answers that may be sent before the body is read.
_BEFORE_BODIES = frozenset({401, 403, 405, 413})
# Seconds in which the rest of such a body is discarded, and the longest pause between its parts.
_DISCARDING, _PAUSE = 2.0, 0.1


class RequestMiddleware:
    """ASGI middleware for all requests. For a lifespan, it only shortens startup errors.

    It is one layer with one `send`, because every further layer would cost some microseconds.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._ids = RequestIDs()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, plain_startup_errors(send))
            return
        began = time.perf_counter()
        method = scope["method"]
        sent, fault = headers_of(scope)
        request_id = self._ids.id_for(sent.get(b"x-request-id"))
        current_request_id.set(request_id)
        keep_whole_segments(scope)
        app, common = self.app, [_NOSNIFF, (b"x-request-id", request_id.encode())]
        if fault is None and is_preflight(method, sent):
            app = answer_preflight
        else:
            common += cors_headers(sent.get(b"origin"))
        if fault is not None:
            app = JSONResponse({"detail": fault}, 400, {"Connection": "close"})
        has_begun = disconnected = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = [*message.get("headers", ()), *common]
                if b"cache-control" not in dict(headers):
                    headers.append(_CACHE_CONTROL)
                message["headers"] = headers
                status = message["status"]
                if status in _BEFORE_BODIES and not sent.keys().isdisjoint(_FRAMING):
                    await _discard_body(sent, receive)
                shown = _CLIENT_DISCONNECTED if disconnected else status
                access_log.write(scope, request_id, shown, time.perf_counter() - began)
            elif method == "HEAD":
                message["body"] = b""
            await send(message)

        try:
            await app(scope, receive, send_with_headers)
        except ClientDisconnect:
            if not has_begun:
                # Granian reports a malformed body in the same way; its client gets this answer.
                disconnected = True
                answer = JSONResponse({"detail": BodyLost.detail}, 400, BodyLost.headers)
                await answer(scope, receive, send_with_headers)
        except Exception:
            answer_bug = internal_error(request_id)
            if has_begun:
                raise
            await answer_bug(scope, receive, send_with_headers)


_FRAMING = (b"content-length", b"transfer-encoding")


async def _discard_body(sent: Mapping[bytes, bytes], receive: Receive) -> None:
    """Read and discard the rest of a body.

    If a server closes a connection with unread bytes, it is reset and the client loses the answer.
    """
    if b"expect" in sent:  # The client has not sent the body.
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARDING):
            more = True
            while more:
                message = await asyncio.wait_for(receive(), _PAUSE)
                more = message.get("more_body", False)


# RFC 3986 §3.2.2 and §3.2.3, without IPvFuture.
_NAME = re.compile(rb"(?:[\w.~!$&'()*+,;=-]++|%[0-9A-Fa-f]{2})++(?::[0-9]*)?")
_PORT = re.compile(rb"(?::[0-9]*)?")
# Headers that are no lists, so that two lines contradict each other.
_SINGLE = (b"host", b"content-length", b"content-type", b"idempotency-key")


def headers_of(scope: Scope) -> tuple[dict[bytes, bytes], str | None]:
    """The headers by name, and a sentence for the client if the request violates HTTP.

    It joins repeated headers in the scope into one line (RFC 9110 §5.3), except Authorization: two
    of those count as a missing token.
    """
    headers = dict(scope["headers"])
    if len(headers) < len(scope["headers"]):
        lines: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            lines.setdefault(name, []).append(value)
        for name in _SINGLE:
            if len(lines.get(name, ())) > 1:
                return headers, f"{name.decode().title()} must be sent once"
        authorizations = [(b"authorization", value) for value in lines.pop(b"authorization", ())]
        headers = {
            name: (b"; " if name == b"cookie" else b", ").join(values)
            for name, values in lines.items()
        }
        scope["headers"] = [*headers.items(), *authorizations]
    return headers, _fault(scope, headers)


def _fault(scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
    host = headers.get(b"host", b"")
    # Granian gives an empty Host if the header is missing.
    if not _is_host(host) and (host or scope.get("http_version") == "1.1"):
        return "Host must be one host, with or without a port"
    if b"transfer-encoding" in headers:
        if b"content-length" in headers:
            return "Content-Length and Transfer-Encoding exclude each other"
        # Granian takes away the chunks alone, and those once.
        if headers[b"transfer-encoding"].lower() != b"chunked":
            return "Transfer-Encoding must be chunked"
    if not ((scope.get("raw_path") or b"").isascii() and scope.get("query_string", b"").isascii()):
        return "Path and query must be percent-encoded"
    return None


@lru_cache(maxsize=256)
def _is_host(value: bytes) -> bool:
    if value[:1] != b"[":
        return _NAME.fullmatch(value) is not None
    address, bracket, port = value[1:].partition(b"]")
    try:
        IPv6Address(address.decode())
    except ValueError:
        return False
    return bool(bracket) and _PORT.fullmatch(port) is not None


_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestIDs:
    """Gives each request an id."""

    def __init__(self) -> None:
        # Random per process. Within a process, a counter is enough and is faster.
        self._process = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def id_for(self, sent: bytes | None) -> str:
        """The `X-Request-ID` that was sent if it is well-formed, else a new one."""
        if sent is not None and _REQUEST_ID.fullmatch(sent):
            return sent.decode()
        return f"{self._process}-{next(self._numbers):08x}"


def plain_startup_errors(send: Send) -> Send:
    """The `send` of a lifespan. It reports a SettingsError as its message, without a traceback."""

    async def send_plainly(message: Message) -> None:
        # Starlette sends this message while it handles the exception.
        error = sys.exception()
        if message["type"] == "lifespan.startup.failed" and isinstance(error, SettingsError):
            message = {**message, "message": str(error)}
        await send(message)

    return send_plainly
