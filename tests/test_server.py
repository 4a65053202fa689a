# [Task]: T054 [From]: specs/requirements.md
"""What is asked of uvicorn: that a response goes out in one piece, after its line in the log."""

import asyncio
import signal
import struct
from contextlib import ExitStack
from pathlib import Path
from socket import IPPROTO_TCP, TCP_INFO, create_connection
from typing import Any

import pytest
from service import serving

from server import WholeWrites


class Wire:
    """The transport behind, which notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[object] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("close")

    def is_closing(self) -> bool:
        return "close" in self.done


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def transport(wire: Wire) -> Any:
    return WholeWrites(wire, lambda: wire.done.append("before"))  # type: ignore[arg-type]


class TestWholeWrites:
    async def test_are_one_of_those_in_a_turn(self, wire: Wire, transport: Any) -> None:
        transport.write(b"head")
        transport.write(b"")
        transport.write(b"body")
        assert wire.done == []
        await asyncio.sleep(0)
        assert wire.done == ["before", b"headbody"]

    async def test_wait_for_no_other_turn(self, wire: Wire, transport: Any) -> None:
        """A head is sent in time before a body that takes its time."""
        for part in (b"head", b"body"):
            transport.write(part)
            await asyncio.sleep(0)
        assert wire.done == ["before", b"head", "before", b"body"]

    async def test_of_nothing_are_none(self, wire: Wire, transport: Any) -> None:
        transport.write(b"")
        await asyncio.sleep(0)
        assert wire.done == []

    async def test_come_before_what_is_done_next(self, wire: Wire, transport: Any) -> None:
        transport.write(b"head")
        transport.close()
        await asyncio.sleep(0)
        assert wire.done == ["before", b"head", "close"]

    async def test_are_logged_and_not_sent_to_a_client_that_has_hung_up(
        self, wire: Wire, transport: Any
    ) -> None:
        """uvloop raises an error for what is written to a connection that is closed."""
        transport.write(b"answer")
        wire.close()
        await asyncio.sleep(0)
        assert wire.done == ["close", "before"]

    async def test_are_held_when_it_is_asked_whether_it_closes(
        self, wire: Wire, transport: Any
    ) -> None:
        """uvicorn asks after each answer."""
        transport.write(b"answer")
        assert not transport.is_closing()
        assert wire.done == []
        transport.close()
        assert transport.is_closing()
        assert wire.done == ["before", b"answer", "close"]


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_responses_come_in_one_segment_each(tmp_path: Path, http: str) -> None:
    with (
        serving(tmp_path, "--http", http) as service,
        create_connection(("127.0.0.1", service.port), timeout=10) as connection,
    ):
        for _ in range(5):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += connection.recv(4096)
        # tcpi_data_segs_in of Linux's tcp_info.
        information = connection.getsockopt(IPPROTO_TCP, TCP_INFO, 160)
    assert struct.unpack_from("I", information, 152) == (5,)


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_requests_that_come_at_once_are_logged_in_one_go(tmp_path: Path, http: str) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"
    with serving(tmp_path, "--http", http) as service, ExitStack() as stack:
        address = ("127.0.0.1", service.port)
        connections = [
            stack.enter_context(create_connection(address, timeout=10)) for _ in range(20)
        ]
        for connection in connections:
            connection.sendall(request)
            assert connection.recv(4096).endswith(b'{"status":"ok"}')
        logged = service.log().count("/health")
        before = _writes(service.process.pid)
        service.process.send_signal(signal.SIGSTOP)
        for connection in connections:
            connection.sendall(request)
        service.process.send_signal(signal.SIGCONT)
        for connection in connections:
            assert connection.recv(4096).endswith(b'{"status":"ok"}')
        assert service.log().count("/health") == logged + len(connections)
        # One for each answer, and few for the lines.
        assert _writes(service.process.pid) - before < 1.5 * len(connections)


def _writes(process: int) -> int:
    """How many times a process has written so far."""
    io = Path(f"/proc/{process}/io").read_text()
    return int(io.partition("syscw: ")[2].split()[0])
