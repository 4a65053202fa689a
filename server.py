# [Task]: T054 [From]: specs/decisions.md
"""What is asked of uvicorn, the server that runs the app: an orderly end, and whole responses."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import uvicorn


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


def send_whole_responses(before: Callable[[], None]) -> None:
    """Have uvicorn send the head of a response together with its body, after `before` (D34)."""
    if (server := running_server()) is not None:
        protocol: Any = server.config.http_protocol_class

        class WholeResponses(protocol):  # type: ignore[misc]  # httptools' or h11's, as installed.
            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(WholeWrites(transport, before))

        server.config.http_protocol_class = WholeResponses


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
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        """Whatever else is done with it comes after what was written."""
        self._send_held()
        return getattr(self._transport, name)
