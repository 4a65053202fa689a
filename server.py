# [Task]: T054 [From]: specs/decisions.md
"""What is asked of uvicorn, however it was started: an orderly end, whole responses, and limits.

How `python -m serve` starts it is told in serve.py, what the limits are in connections.py.
"""

import asyncio
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn

from connections import Connections
from settings import Settings

# Seconds that a stop waits for the requests under way: what one may wait for, and some of its body.
STOP_TIMEOUT = 8


def running_server() -> uvicorn.Server | None:
    """The uvicorn that runs this process, if one does."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if isinstance(server, uvicorn.Server) else None


def stop_in_order() -> None:
    """Let an orderly stop by SIGTERM end with status 0.

    uvicorn raises the signal once more when it has stopped, and would be killed by it as if it had
    crashed. Blocked, the signal stays pending until the process has ended by itself.
    """
    if running_server() is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def take_connections(settings: Settings, before_answers: Callable[[], None]) -> None:
    """Have uvicorn send the head of a response together with its body (D34), and keep limits (D41).

    `before_answers` is called each time that something is sent. An operator's own limit of a stop
    stays.
    """
    server = running_server()
    if server is None:
        return
    protocol: Any = server.config.http_protocol_class
    connections = Connections(server.server_state.connections, protocol, settings)

    class Connection(protocol):  # type: ignore[misc]  # httptools' or h11's, as installed.
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(WholeWrites(transport, before_answers))
            connections.made(self)

    server.config.http_protocol_class = Connection
    if server.config.timeout_graceful_shutdown is None:
        server.config.timeout_graceful_shutdown = STOP_TIMEOUT
    connections.watch()
    # Each connection is an open file, of which a process may have 1,024 by default.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # macOS says "any number", and takes none.
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class WholeWrites:
    """A transport that sends what is written in one turn of the event loop at its end, as one.

    uvicorn writes the head of a response and its body apart, and uvloop sends either at once.
    `before` is called each time.
    """

    def __init__(self, transport: asyncio.Transport, before: Callable[[], None]) -> None:
        self._transport = transport
        self._before = before
        self._held = b""

    def write(self, data: bytes) -> None:
        if not self._held and data:
            asyncio.get_running_loop().call_soon(self._send_held)
        self._held += data

    def _send_held(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._before()
            if not self._transport.is_closing():  # As when its client has hung up meanwhile.
                self._transport.write(data)

    def is_closing(self) -> bool:
        # uvicorn asks after each answer, which needs not have been sent for that.
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        """Whatever else is done with it comes after what was written."""
        self._send_held()
        return getattr(self._transport, name)
