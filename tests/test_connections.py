# [Task]: T061 [From]: specs/requirements.md
"""Connections that make a service wait, and too many of them; under `python -m serve` and under a
plain uvicorn.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from service import PATIENCE, Service, running
from support import SECRET, sign

SOON = 0.4
HALF = b"GET /health HTTP/1.1\r\nHost: test\r\n"
HEALTH = HALF + b"\r\n"
# Its body is still to come.
POST = (
    f"POST /api/alice/tasks HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {sign('alice')}\r\n"
    "Content-Type: application/json\r\nContent-Length: 21\r\nOrigin: http://localhost:3000\r\n\r\n"
).encode()
BODY = b'{"title": "Buy milk"}'

type Start = Callable[..., Service]


@pytest.fixture(params=["serve", "uvicorn"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(**environment: str) -> Service:
            environment = {"BETTER_AUTH_SECRET": SECRET, **environment}
            service = Service(tmp_path, environment, serve=request.param == "serve")
            return stack.enter_context(running(service))

        yield start


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), PATIENCE)


def seconds_until_closed(connection: socket.socket) -> float:
    began = time.monotonic()
    assert connection.recv(4096) == b""
    return time.monotonic() - began


def answer(connection: socket.socket, sent: bytes) -> bytes:
    """The whole of it, to a request that has one with a body."""
    connection.sendall(sent)
    received = b""
    while b"\r\n\r\n" not in received or not received.endswith((b"}", b"]")):
        part = connection.recv(4096)
        assert part, received
        received += part
    return received


class TestHeadersTimeout:
    @pytest.mark.parametrize("sent", [b"", b"GET", HALF], ids=["nothing", "a word", "half"])
    def test_gives_up_what_does_not_arrive(self, start: Start, sent: bytes) -> None:
        service = start(HEADERS_TIMEOUT=f"{SOON}")
        with connect(service) as connection:
            connection.sendall(sent)
            assert SOON / 2 <= seconds_until_closed(connection) < 5
        assert "whose request's headers did not arrive in 0.4 s" in service.log()

    def test_gives_up_a_second_request_that_does_not_arrive(self, start: Start) -> None:
        service = start(HEADERS_TIMEOUT=f"{SOON}")
        with connect(service) as connection:
            assert answer(connection, HEALTH).startswith(b"HTTP/1.1 200")
            connection.sendall(HALF)
            assert seconds_until_closed(connection) < 5

    def test_leaves_alone_a_body_that_takes_its_time(self, start: Start) -> None:
        service = start(HEADERS_TIMEOUT=f"{SOON}")
        with connect(service) as connection:
            connection.sendall(POST)
            time.sleep(3 * SOON)
            assert answer(connection, BODY).startswith(b"HTTP/1.1 201")

    def test_leaves_alone_who_is_between_two_requests(self, start: Start) -> None:
        service = start(HEADERS_TIMEOUT=f"{SOON}")
        with connect(service) as connection:
            for _ in range(2):
                assert answer(connection, HEALTH).startswith(b"HTTP/1.1 200")
                time.sleep(3 * SOON)


def test_idle_connection_is_closed_in_time(tmp_path: Path) -> None:
    environment = {"BETTER_AUTH_SECRET": SECRET, "KEEP_ALIVE_TIMEOUT": "1"}
    with (
        running(Service(tmp_path, environment, serve=True)) as service,
        connect(service) as connection,
    ):
        answer(connection, HEALTH)
        assert 0.5 < seconds_until_closed(connection) < 5


class TestMaxConnections:
    def test_beyond_it_a_request_is_503_until_there_is_room(self, start: Start) -> None:
        service = start(MAX_CONNECTIONS="3")
        with ExitStack() as stack:
            busy = [stack.enter_context(connect(service)) for _ in range(3)]
            for connection in busy:
                connection.sendall(POST)
            time.sleep(SOON)
            with connect(service) as beyond:
                refused = answer(beyond, POST + BODY)
            assert refused.startswith(b"HTTP/1.1 503")
            head = refused.lower()
            assert b"retry-after: 1" in head
            assert b"access-control-allow-origin: http://localhost:3000" in head
            assert refused.endswith(b'{"detail":"Service temporarily unavailable"}')
            # Those that were there are answered as ever.
            for connection in busy:
                assert answer(connection, BODY).startswith(b"HTTP/1.1 201")
        with connect(service) as later:
            assert answer(later, HEALTH).startswith(b"HTTP/1.1 200")
        assert service.log().count("there are more connections than MAX_CONNECTIONS") >= 1

    def test_idle_ones_make_room(self, start: Start) -> None:
        service = start(MAX_CONNECTIONS="2")
        with ExitStack() as stack:
            idle = [stack.enter_context(connect(service)) for _ in range(2)]
            for connection in idle:
                answer(connection, HEALTH)
                # Each is looked at every half second, and may be idle for a second.
                time.sleep(1.6)
            with connect(service) as another:
                assert answer(another, HEALTH).startswith(b"HTTP/1.1 200")
            # The one that had been idle for longest has gone, and the other has not.
            assert answer(idle[1], HEALTH).startswith(b"HTTP/1.1 200")
