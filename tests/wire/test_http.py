# [Task]: T078 [From]: specs/requirements.md
"""HTTP itself: `python -m serve` and `uvicorn main:app` given the same bytes.

tests/faults/test_nginx.py has the same with nginx in front.
"""

import io
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPResponse
from typing import Any, Self, cast

import httpx
import pytest
from service import PATIENCE, PLAIN, Service, serving
from support import assert_error, sign

ORIGIN = "http://localhost:3000"
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
TITLE = b'{"title": "Buy milk"}'
DONE = b'{"completed": true}'


def chunked(body: bytes, *trailers: str) -> bytes:
    """In chunks of ten bytes."""
    parts = [body[at : at + 10] for at in range(0, len(body), 10)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return chunks + "\r\n".join(["0", *trailers, "", ""]).encode()


class _Stream(io.BufferedReader):
    """What HTTPResponse may not close, since the next answer is read of it."""

    def close(self) -> None:
        pass


class Wire:
    """A connection of one user to a server, and the requests that the user writes on it."""

    def __init__(self, port: int, user: str = "") -> None:
        self.user = user or f"wire-{secrets.token_hex(4)}"
        self.tasks = f"/api/{self.user}/tasks"
        self.token = f"Authorization: Bearer {sign(self.user)}"
        self._address = ("127.0.0.1", port)
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(self._address, timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._raw = self.socket.makefile("rb", buffering=0)
        self._stream = _Stream(self._raw)

    def close(self) -> None:
        self._raw.close()
        self.socket.close()

    def reconnect(self) -> None:
        self.close()
        self.connect()

    # For HTTPResponse, which takes this for a socket.
    def makefile(self, _mode: str) -> io.BufferedReader:
        return self._stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def request(
        self,
        method: str,
        path: str = "",
        *lines: str,
        body: bytes = b"",
        host: str = "Host: test",
        token: str | None = None,
        version: str = "1.1",
    ) -> bytes:
        """A request for one's tasks; if `lines` say nothing of it, the body has its length."""
        head = [f"{method} {self.tasks}{path} HTTP/{version}", host, f"Origin: {ORIGIN}"]
        head += [self.token if token is None else token, *lines]
        if body and not any(re.match("Content-Length|Transfer-Encoding", line) for line in lines):
            head.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*filter(None, head), "", ""]).encode() + body

    def send(self, *segments: bytes) -> None:
        for segment in segments:
            self.socket.sendall(segment)
            if len(segments) > 1:
                time.sleep(0.005)  # Each is read on its own.

    def answer(self, method: str = "GET") -> httpx.Response:
        """The next answer, which to HEAD has no body."""
        with HTTPResponse(cast(socket.socket, self), method=method) as response:
            response.begin()
            headers = response.getheaders()
            return httpx.Response(response.status, headers=headers, content=response.read())

    def ask(self, method: str, path: str = "", *lines: str, **parts: Any) -> httpx.Response:
        self.send(self.request(method, path, *lines, **parts))
        return self.answer(method)

    def add(self) -> str:
        """The path of a new task."""
        answer = self.ask("POST", "", JSON, body=TITLE)
        assert answer.status_code == 201, answer.text
        return f"/{answer.json()['id']}"

    def titles(self) -> list[str]:
        """Those of one's tasks, asked for on a connection of its own."""
        with Wire(self._address[1], self.user) as other:
            return [task["title"] for task in other.ask("GET").json()]

    def is_closed(self) -> bool:
        """Whether the server closes without another answer."""
        with suppress(ConnectionResetError):
            return self._stream.read(1) == b""
        return True


@pytest.fixture(scope="module", params=["serve", "uvicorn"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    uvicorn: list[str] | None = [] if request.param == "uvicorn" else None
    with serving(tmp_path_factory.mktemp("wire"), uvicorn=uvicorn) as service:
        yield service
        assert "Traceback" not in service.log()
        assert service.process.poll() is None


@pytest.fixture(scope="module")
def port(service: Service) -> int:
    """Where the requests are sent to."""
    return service.port


@pytest.fixture
def wire(port: int) -> Iterator[Wire]:
    with Wire(port) as wire:
        yield wire


def assert_refused(answer: httpx.Response, status: int = 400) -> None:
    """By the service in its form, or by a server that has not shown it the request."""
    if answer.headers.get("content-type") != "application/json":
        assert answer.status_code == 400
    else:
        assert answer.status_code == status, answer.text
        assert isinstance(answer.json()["detail"], str)
        assert answer.headers["x-request-id"]
        assert answer.headers["access-control-allow-origin"] == ORIGIN


GOOD_HOSTS = ["a", "a_b.example.:8000", "127.0.0.1:", "[::1]:8000", "%C3%A9"]
BAD_HOSTS = ["", "a b", "a/b", "u@a", "a:b", "[::1", "[::x]", "http://a", "a%zz", "é"]
BAD_HOSTS += ["a\r\nHost: a"]


class TestHead:
    def test_has_one_host(self, wire: Wire) -> None:
        for host in GOOD_HOSTS:
            assert wire.ask("GET", host=f"Host: {host}").status_code == 200
        assert wire.ask("GET", host="", version="1.0").status_code == 200
        for line in ("", *(f"Host: {host}" for host in BAD_HOSTS)):
            wire.reconnect()
            assert_refused(wire.ask("GET", host=line))

    def test_of_a_preflight_has_one_host(self, wire: Wire) -> None:
        preflight = ("Access-Control-Request-Method: GET",)
        assert_refused(wire.ask("OPTIONS", "", *preflight, host="Host: a b", token=""))

    @pytest.mark.parametrize(
        ("line", "status"), [(JSON, 400), ("Idempotency-Key: a", 400), ("token", 401)]
    )
    def test_has_one_line_of_what_is_no_list(self, wire: Wire, line: str, status: int) -> None:
        lines = {JSON: [JSON, JSON], "token": [JSON, wire.token]}.get(line, [JSON, line, line])
        assert_refused(wire.ask("POST", "", *lines, body=TITLE), status)
        assert wire.titles() == []

    def test_has_an_encoded_target(self, wire: Wire) -> None:
        for target in ("?search=é", "/é"):
            wire.reconnect()
            assert_refused(wire.ask("GET", target))

    def test_may_have_an_absolute_target(self, wire: Wire) -> None:
        wire.add()
        wire.send(wire.request("GET", "?limit=1").replace(b"GET /", b"GET http://test/", 1))
        assert len(wire.answer().json()) == 1

    def test_of_head_is_that_of_get(self, wire: Wire) -> None:
        task = wire.add() and wire.add()
        for path in ("", "?limit=1", task, "/999", f"{task}/complete"):
            head, get = wire.ask("HEAD", path), wire.ask("GET", path)
            assert (head.status_code, head.content) == (get.status_code, b"")
            for changing in ("date", "x-request-id"):
                del head.headers[changing], get.headers[changing]
            assert head.headers == get.headers
            assert head.headers["content-length"] == str(len(get.content))


class TestLists:
    def test_may_have_several_lines(self, wire: Wire) -> None:
        task = wire.add()
        tag = wire.ask("GET", task).headers["etag"]
        lines = ('If-None-Match: "a"', f"If-None-Match: {tag}")
        assert wire.ask("GET", task, *lines).status_code == 304
        more = ('If-Match: "a"', f'If-Match: {tag}, "b"', "Accept: a/b", "Accept: */*", JSON)
        assert wire.ask("PUT", task, *more, body=TITLE).status_code == 200


UPGRADES = {
    "none": [],
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"],
    "websocket": ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
}


class TestBody:
    @pytest.mark.parametrize("upgrade", UPGRADES)
    @pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
    def test_arrives_whatever_the_segments(
        self, wire: Wire, upgrade: str, is_chunked: bool
    ) -> None:
        task = wire.add()
        lines = [JSON, *UPGRADES[upgrade], *[CHUNKED] * is_chunked]
        body = chunked(DONE) if is_chunked else DONE
        request = wire.request("PATCH", f"{task}/complete", *lines, body=body)
        head = len(request) - len(body)
        cuts = ([0], [0, head], [0, head + 4], [0, 5, head - 1, head + 1])
        for cut in (*cuts, range(0, len(request), 9)):
            ends = [*cut[1:], len(request)]
            wire.send(*(request[a:b] for a, b in zip(cut, ends, strict=True)))
            answer = wire.answer()
            assert (answer.status_code, answer.json()["completed"]) == (200, True)
        # Neither was any part of a body taken for a request.
        assert wire.ask("GET", task).json()["completed"] is True

    def test_that_is_none_toggles(self, wire: Wire) -> None:
        path = f"{wire.add()}/complete"
        nothing = {"lines": [], "length": ["Content-Length: 0"], "upgrade": UPGRADES["h2c"]}
        states = [wire.ask("PATCH", path, *lines).json()["completed"] for lines in nothing.values()]
        assert states == [True, False, True]
        assert wire.ask("PATCH", path, CHUNKED, body=chunked(b"")).json()["completed"] is False

    @pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
    def test_may_be_followed_by_requests(self, wire: Wire, is_chunked: bool) -> None:
        lines = [JSON, *[CHUNKED] * is_chunked]
        post = wire.request("POST", "", *lines, body=chunked(TITLE) if is_chunked else TITLE)
        get = wire.request("GET", "", "Content-Length: 3", body=b"abc")
        stream = post + get + post + get
        for size in (len(stream), 100, 7):
            wire.reconnect()
            before = len(wire.titles())
            wire.send(*(stream[at : at + size] for at in range(0, len(stream), size)))
            answers = [wire.answer() for _ in range(4)]
            assert [answer.status_code for answer in answers] == [201, 200, 201, 200]
            assert [len(answer.json()) - before for answer in answers[1::2]] == [1, 2]

    @pytest.mark.parametrize(
        "length", ["Content-Length: 4", "Content-Length: 0", "Content-Length: -1"]
    )
    def test_of_two_lengths_hides_no_request(self, wire: Wire, length: str) -> None:
        """It is refused, or ends where the chunks do; the connection ends in either case."""
        hidden = wire.request("POST", "", JSON, body=TITLE)
        wire.send(wire.request("POST", "", JSON, CHUNKED, length, body=chunked(TITLE) + hidden))
        assert wire.answer().status_code in (201, 400)
        assert wire.is_closed()
        assert len(wire.titles()) <= 1

    def test_has_no_headers_in_its_trailers(self, wire: Wire) -> None:
        body = chunked(TITLE, wire.token)
        wire.send(
            wire.request("POST", "", JSON, CHUNKED, body=body, token="Trailer: Authorization")
        )
        assert_error(wire.answer(), 401, "Missing authorization token")
        wire.reconnect()
        task = wire.add()
        body = chunked(TITLE, 'If-Match: "a"', "Content-Length: 1", "Content-Type: text/plain")
        assert wire.ask("PUT", task, JSON, CHUNKED, body=body).status_code == 200
        assert wire.ask("GET", task).status_code == 200


class TestTransferCoding:
    @pytest.mark.parametrize(
        "coding", ["gzip, chunked", "chunked, chunked", "chunked\r\nTransfer-Encoding: chunked"]
    )
    def test_is_chunked_once_and_no_more(self, wire: Wire, coding: str) -> None:
        lines = (JSON, f"Transfer-Encoding: {coding}")
        assert_refused(wire.ask("POST", "", *lines, body=chunked(TITLE)))
        assert wire.is_closed()


class TestLostBody:
    """What does not arrive is no body that is none."""

    def test_never_toggles(self, wire: Wire) -> None:
        path = f"{wire.add()}/complete"
        lines = [CHUNKED, *UPGRADES["h2c"]]
        assert_refused(wire.ask("PATCH", path, *lines, body=chunked(b"")))
        wire.reconnect()
        for length in (["Content-Length: 100"], [CHUNKED]):
            wire.send(wire.request("PATCH", path, JSON, *length, body=b"13\r\n{"))
            wire.reconnect()
        assert wire.ask("GET", path.removesuffix("/complete")).json()["completed"] is False

    def test_that_is_malformed_is_400(self, wire: Wire) -> None:
        answer = wire.ask("POST", "", JSON, CHUNKED, body=b"zz\r\n{}")
        assert_refused(answer)
        if answer.headers.get("content-type") == "application/json":  # Not h11's.
            assert_error(answer, 400, "Request body did not arrive in full")
        assert wire.is_closed()
        assert wire.titles() == []

    def test_that_stalls_is_408(self, wire: Wire) -> None:
        path = f"{wire.add()}/complete"
        wire.send(wire.request("PATCH", path, JSON, "Content-Length: 19", body=b"{"))
        assert_error(wire.answer(), 408, "Request body did not arrive in time")
        assert wire.is_closed()


class TestHugeHead:
    @pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\nX: ", None])
    def test_is_refused_for_next_to_nothing(
        self, service: Service, port: int, start: bytes | None
    ) -> None:
        before = service.memory()
        slowest, most = 0.0, before
        with ThreadPoolExecutor(4) as threads:
            refusals = [threads.submit(send_head, port, start) for _ in range(4)]
            while not all(refusal.done() for refusal in refusals):
                asked = time.monotonic()
                assert httpx.get(f"http://127.0.0.1:{port}/health", **PLAIN).status_code == 200
                slowest = max(slowest, time.monotonic() - asked)
                most = max(most, service.memory())
        for refusal in refusals:
            answer = refusal.result()
            assert not answer or re.match(rb"HTTP/1\.1 (400|414|431) ", answer), answer
        assert slowest < 1
        assert most - before < 16 << 20


def send_head(port: int, start: bytes | None) -> bytes:
    """Send 30 MB of a head, in one line or in many, and return what there is to read then."""
    line = b"a" * 65536 if start else b"X-Line: a\r\n" * 6554
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(start or b"GET / HTTP/1.1\r\nHost: a\r\n")
            for _ in range(30_000_000 // len(line)):
                connection.sendall(line)
        with suppress(ConnectionResetError):
            return connection.recv(1024)
    return b""


class TestCurl:
    """The real one, which offers HTTP/2 by an Upgrade."""

    def test_has_its_bodies_read(self, wire: Wire, port: int) -> None:
        path = f"{wire.add()}/complete"
        command = ["curl", "--http2", "-sSf", "-X", "PATCH", "-H", wire.token, "-H", JSON]
        command.append(f"http://127.0.0.1:{port}{wire.tasks}{path}")
        sent = ["-d", DONE.decode()]
        for more in (sent, sent, [*sent, "-H", CHUNKED], [*sent, "-H", CHUNKED]):
            assert b'"completed":true' in subprocess.check_output([*command, *more])
        assert b'"completed":false' in subprocess.check_output(command)
