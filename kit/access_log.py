# [Task]: T054 [From]: specs/decisions.md
"""The access log: one line for each request, in place of the server's (D32).

Its form is that of the other lines, kit/logs.py. It makes no LogRecord, which takes longer than all
of the routing.
"""

import json
import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from starlette.types import Scope

from kit.logs import LineWriter, is_json, timestamp
from settings import Settings

# Of a request: its id, method, route, status, milliseconds, client and user.
type Tell = Callable[[str, str, str, int, float, str, str], None]

# Where verify_user_access leaves whose request it is, in the request's scope.
USER = "tasks.user"

logger = logging.getLogger("tasks.access")

# Paths of probes, which come every few seconds: what went well is noted at LOG_LEVEL=debug only.
PROBES = "/health"


class AccessLog:
    """Writes one line for each request under any server, while it is open."""

    def __init__(self) -> None:
        # Writes a line, or makes a record of it.
        self._tell: Tell | None = None
        self._pseudonym: Callable[[str], str] = str
        self._notes_probes = True

    def write(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        """A request is answered, which took so long."""
        if self._tell is None:
            return
        route, client, user = scope.get("route"), scope.get("client"), scope.get(USER)
        if not self._notes_probes and status < 400 and route and route.path.startswith(PROBES):
            return
        self._tell(
            request_id,
            _escaped(scope["method"]),
            "-" if route is None else _escaped(route.path),
            status,
            seconds * 1000,
            "-" if client is None else _address(client[0], client[1]),
            "-" if user is None else self._pseudonym(user),
        )

    @contextmanager
    def opened(self, settings: Settings) -> Iterator[None]:
        """Inside, requests are logged: to an operator's handlers of `tasks.access`, else to stdout.

        uvicorn's own line for each request, which has the query in it, is left out.
        """
        before = self._tell, self._pseudonym, self._notes_probes
        self._notes_probes = settings.log_level == "debug"
        uvicorns = logging.getLogger("uvicorn.access")
        self._pseudonym = _pseudonyms(settings)
        with ExitStack() as stack:
            stack.callback(setattr, uvicorns, "disabled", uvicorns.disabled)
            uvicorns.disabled = True
            if logger.handlers:
                self._tell = _record
            elif logger.isEnabledFor(logging.INFO):
                form = _json if is_json(sys.stdout) else _text
                writer = stack.enter_context(closing(LineWriter(sys.stdout)))
                self._tell = lambda *parts: writer.write(form(*parts))
            try:
                yield
            finally:
                self._tell, self._pseudonym, self._notes_probes = before

    @contextmanager
    def observed_by(self, tell: Tell) -> Iterator[None]:
        """Inside, what is logged of a request is told as well, while the log is open."""
        before = self._tell
        if before is None:
            yield
            return

        def tell_both(*parts: Any) -> None:
            tell(*parts)
            before(*parts)

        self._tell = tell_both
        try:
            yield
        finally:
            self._tell = before


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
    shared = settings.secrets[0] if settings.secrets else secrets.token_bytes(32)
    key = blake2b(shared, digest_size=32, person=b"tasks.access").digest()

    @lru_cache(maxsize=4096)
    def pseudonym(user: str) -> str:
        return blake2b(user.encode(), key=key, digest_size=8).hexdigest()

    return pseudonym
