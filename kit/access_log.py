# [Task]: T054 [From]: specs/decisions.md
"""The access log: one line for each request, in place of uvicorn's (D32).

Its form is that of the other lines, kit/logs.py; it is made by itself, since a LogRecord and its
formatter take longer than all of the routing.
"""

import asyncio
import json
import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from typing import Any, TextIO

from starlette.types import Scope

from kit.logs import is_json, is_uvicorns_own, timestamp
from settings import Settings

type Form = Callable[[str, str, str, int, float, str, str], str | None]

# Where verify_user_access leaves whose request it is, in the request's scope.
USER = "tasks.user"

logger = logging.getLogger("tasks.access")


class AccessLog:
    """Writes the lines of one turn of the event loop in one go, at its end and before the answers
    are sent (server.py), so that whoever has an answer has its line in the log. While it is not
    open, nothing is logged.
    """

    def __init__(self) -> None:
        # Makes a line, or deals with it and gives nothing.
        self._form: Form | None = None
        self._stream: TextIO = sys.stdout
        self._lines: list[str] = []
        self._pseudonym: Callable[[str], str] = str

    def note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        """A request is answered, which took so long."""
        if self._form is None:
            return
        route, client, user = scope.get("route"), scope.get("client"), scope.get(USER)
        line = self._form(
            request_id,
            _escaped(scope["method"]),
            "-" if route is None else _escaped(route.path),
            status,
            seconds * 1000,
            "-" if client is None else _address(client[0], client[1]),
            "-" if user is None else self._pseudonym(user),
        )
        if line is not None:
            if not self._lines:
                asyncio.get_running_loop().call_soon(self.flush)
            self._lines.append(line)

    def flush(self) -> None:
        """Write what has been noted. A log that can't be written to stops no service."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        with suppress(OSError, ValueError):
            self._stream.write("".join(lines))
            self._stream.flush()

    @contextmanager
    def opened(self, settings: Settings) -> Iterator[None]:
        """Inside, requests are logged: to an operator's handlers of `tasks.access`, else where
        uvicorn logs them by default. An access log of uvicorn's that an operator set up stays.
        """
        uvicorns = logging.getLogger("uvicorn.access")
        own = [handler for handler in uvicorns.handlers if is_uvicorns_own(handler)]
        before = self._form, self._stream, self._pseudonym, uvicorns.handlers
        self._pseudonym = _pseudonyms(settings)
        self._form = None
        if logger.handlers:
            self._form = _record
        elif own and logger.isEnabledFor(logging.INFO) and uvicorns.isEnabledFor(logging.INFO):
            self._stream = own[0].stream
            self._form = _json if is_json(self._stream) else _text
        # uvicorn asks with each connection whether it is to log.
        uvicorns.handlers = [handler for handler in uvicorns.handlers if handler not in own]
        try:
            yield
        finally:
            self.flush()
            self._form, self._stream, self._pseudonym, uvicorns.handlers = before

    @contextmanager
    def told_to(
        self, tell: Callable[[str, str, str, int, float, str, str], None]
    ) -> Iterator[None]:
        """Inside, what is logged of a request is told as well, while the log is open."""
        form = self._form
        if form is None:
            yield
            return

        def told(*parts: Any) -> str | None:
            tell(*parts)
            return form(*parts)

        self._form = told
        try:
            yield
        finally:
            self._form = form


access_log = AccessLog()


def _json(
    request_id: str, method: str, route: str, status: int, ms: float, client: str, user: str
) -> str:
    # Each part is ASCII that JSON can hold as it is.
    return (
        f'{{"time": "{timestamp(time.time())}", "level": "info", "logger": "{logger.name}", '
        f'"message": "{method} {route} {status}", "request_id": "{request_id}", '
        f'"method": "{method}", "route": "{route}", "status": {status}, "ms": {ms:.1f}, '
        f'"client": "{client}", "user": "{user}"}}\n'
    )


def _text(
    request_id: str, method: str, route: str, status: int, ms: float, client: str, user: str
) -> str:
    return (
        f"INFO:     [{request_id}] {method} {route} {status} {ms:.1f} ms "
        f"client={client} user={user}\n"
    )


def _record(
    request_id: str,  # noqa: ARG001  # In every record as it is.
    method: str,
    route: str,
    status: int,
    ms: float,
    client: str,
    user: str,
) -> None:
    fields = {"method": method, "route": route, "status": status, "ms": round(ms, 1)}
    extra = {**fields, "client": client, "user": user}
    logger.info("%s %s %s", method, route, status, extra=extra)


@lru_cache(maxsize=1024)
def _escaped(text: str) -> str:
    """As it may stand in a line of any form: printable ASCII, and no quote that would end it."""
    return json.dumps(text)[1:-1]


@lru_cache(maxsize=1024)
def _address(host: str, port: int) -> str:
    # The host may be what a client sent, where a proxy hands X-Forwarded-For on.
    return _escaped(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _pseudonyms(settings: Settings) -> Callable[[str], str]:
    """What stands for a user: the same in all processes that share a secret, and of no use without
    it to whoever has the log.
    """
    secret = settings.better_auth_secret
    shared = secret.get_secret_value().encode() if secret else secrets.token_bytes(32)
    key = blake2b(shared, digest_size=32, person=b"tasks.access").digest()

    @lru_cache(maxsize=4096)
    def pseudonym(user: str) -> str:
        return blake2b(user.encode(), key=key, digest_size=8).hexdigest()

    return pseudonym
