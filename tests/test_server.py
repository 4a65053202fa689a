# [Task]: T054 [From]: specs/requirements.md
"""What is asked of uvicorn: that a response goes out in one piece."""

import asyncio
import struct
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
