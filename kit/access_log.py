# [Task]: T054 [From]: specs/decisions.md
"""The access log: one line per request, instead of the server's own (D32).

It has the format of kit/logs.py, but makes no LogRecord: that would cost more than all routing.
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

# Takes a request's id, method, route, status, milliseconds, client and user.
type Sink = Callable[[str, str, str, int, float, str, str], None]

# The key in the request's scope where verify_user_access stores the user id.
USER = "tasks.user"

logger = logging.getLogger("tasks.access")

# The paths of probes, which come every few seconds. Successful ones are logged at debug only.
PROBES = "/health"


class AccessLog:
    """Writes one line for each request under any server, while it is open."""

    def __init__(self) -> None:
        # Writes a line or a LogRecord.
        self._sink: Sink | None = None
        self._pseudonym: Callable[[str], str] = str
        self._logs_probes = True

    def write(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        """Write the line of a request that has been answered."""
        if self._sink is None:
            return
        route, client, user = scope.get("route"), scope.get("client"), scope.get(USER)
        if not self._logs_probes and status < 400 and route and route.path.startswith(PROBES):
            return
        self._sink(
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
        """Inside, requests are logged to an operator's handlers of `tasks.access`, else to stdout.

        uvicorn's access log is turned off, since its lines contain the query.
        """
        before = self._sink, self._pseudonym, self._logs_probes
        self._logs_probes = settings.log_level == "debug"
        uvicorns = logging.getLogger("uvicorn.access")
        self._pseudonym = _pseudonyms(settings)
        with ExitStack() as stack:
            stack.callback(setattr, uvicorns, "disabled", uvicorns.disabled)
            uvicorns.disabled = True
            if logger.handlers:
                self._sink = _record
            elif logger.isEnabledFor(logging.INFO):
                form = _json if is_json(sys.stdout) else _text
                writer = stack.enter_context(closing(LineWriter(sys.stdout)))
                self._sink = lambda *parts: writer.write(form(*parts))
            try:
                yield
            finally:
                self._sink, self._pseudonym, self._logs_probes = before

    @contextmanager
    def observed_by(self, observer: Sink) -> Iterator[None]:
        """Inside, the observer gets the same values as the log, if the log is open."""
        before = self._sink
        if before is None:
            yield
            return

        def write_both(*parts: Any) -> None:
            observer(*parts)
            before(*parts)

        self._sink = write_both
        try:
            yield
        finally:
            self._sink = before


access_log = AccessLog()


def _json(
    request_id: str, method: str, route: str, status: int, ms: float, client: str, user: str
) -> str:
    # Each part is ASCII that needs no escaping in JSON.
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
    request_id: str,  # noqa: ARG001  # The record factory adds it to every record.
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
    """The text as printable ASCII, escaped as in a JSON string."""
    return json.dumps(text)[1:-1]


@lru_cache(maxsize=1024)
def _address(host: str, port: int) -> str:
    # Behind a proxy that passes X-Forwarded-For on, the host may be any text of the client.
    return _escaped(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _pseudonyms(settings: Settings) -> Callable[[str], str]:
    """A function that gives users' pseudonyms. They are the same in all processes with the same
    secret, and can't be traced to users without it.
    """
    shared = settings.secrets[0] if settings.secrets else secrets.token_bytes(32)
    key = blake2b(shared, digest_size=32, person=b"tasks.access").digest()

    @lru_cache(maxsize=4096)
    def pseudonym(user: str) -> str:
        return blake2b(user.encode(), key=key, digest_size=8).hexdigest()

    return pseudonym
