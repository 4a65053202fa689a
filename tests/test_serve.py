# [Task]: T061 [From]: specs/requirements.md
"""`python -m serve`: one process or several, their log, their end, and starts that are refused."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from faults.certificates import Authority
from service import PATIENCE, PLAIN, ROOT, Service, running, until
from support import SECRET, sign

ENVIRONMENT = {"BETTER_AUTH_SECRET": SECRET}


def started(folder: Path, **environment: str) -> Service:
    return Service(folder, {**ENVIRONMENT, **environment})


def refused(folder: Path, **environment: str) -> str:
    """What a start says that fails."""
    service = started(folder, **environment)
    assert service.process.wait(PATIENCE) == 3
    return service.log()


def is_running(process: int) -> bool:
    """And not merely listed because nobody has asked for its status."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize("workers", [1, 2])
class TestProcesses:
    @pytest.fixture
    def service(self, tmp_path: Path, workers: int) -> Iterator[Service]:
        with running(started(tmp_path, WORKERS=f"{workers}", LOG_FORMAT="json")) as service:
            until(lambda: service.log().count("Started worker") == workers)
            yield service

    def test_serve(self, service: Service) -> None:
        tasks = f"http://127.0.0.1:{service.port}/api/alice/tasks"
        bearer = {"Authorization": f"Bearer {sign('alice')}"}
        with httpx.Client(headers=bearer, **PLAIN) as client:
            task = client.post(tasks, json={"title": "Buy milk"}).json()
            assert client.get(tasks).json() == [task]

    def test_end_in_order(self, service: Service) -> None:
        processes = service.workers()
        with socket.create_connection(("127.0.0.1", service.port)):
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < 10
        until(lambda: not any(map(is_running, processes)))

    def test_have_one_form_of_log_lines(self, service: Service) -> None:
        url = f"http://127.0.0.1:{service.port}/api/alice/tasks"
        httpx.get(url, headers={"Authorization": "Bearer a.b.c"}, **PLAIN)
        until(lambda: "tasks 401" in service.log())
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(PATIENCE)
        lines = [json.loads(line) for line in service.log().splitlines()]
        for line in lines:
            assert list(line)[:5] == ["time", "level", "logger", "message", "request_id"]
        assert lines[0]["message"].startswith("serving on")
        assert lines[-1]["message"].startswith("Granian shutdown completed")
        [access] = [line for line in lines if line["message"] == "GET /api/{user_id}/tasks 401"]
        assert access["logger"] == "tasks.access"
        [reason] = [line for line in lines if "Invalid token" in line["message"]]
        assert reason["request_id"] == access["request_id"] != "-"


@pytest.mark.parametrize(("proxies", "believed"), [("127.0.0.1", True), ("10.0.0.0/8", False)])
def test_proxy_is_believed_if_it_is_named(tmp_path: Path, proxies: str, believed: bool) -> None:
    with running(started(tmp_path, FORWARDED_ALLOW_IPS=proxies)) as service:
        headers = {"X-Forwarded-For": "192.0.2.7", "X-Request-ID": "forwarded"}
        httpx.get(f"http://127.0.0.1:{service.port}/", headers=headers, **PLAIN)
        [line] = service.logged("forwarded")
    assert ("client=192.0.2.7:" in line) == believed


@contextmanager
def piped(
    folder: Path, log: int | None = None, *, before: str = ""
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process that writes there, begun by a shell that does something before, and its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = ["sh", "-c", f'{before} exec "$0" -m serve', sys.executable]
    environment = {"PYTHONPATH": f"{ROOT}", "PORT": f"{port}", **ENVIRONMENT}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/health/ready"
    try:
        until(lambda: answers(url))
        yield process, url
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, **PLAIN).status_code == 200
    return False


def test_few_open_files_serve_several_connections(tmp_path: Path) -> None:
    with piped(tmp_path, before="ulimit -n 64;") as (process, url), ExitStack() as idle:
        for _ in range(8):
            client = idle.enter_context(httpx.Client(**PLAIN))
            assert client.get(url).status_code == 200
        idle.close()
        process.terminate()
        assert process.wait(PATIENCE) == 0


class TestRefusedStart:
    def test_says_that_the_port_is_taken(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            said = refused(tmp_path, PORT=f"{port}")
        assert said.splitlines() == [
            f"ERROR:    [-] PORT {port} is in use on 127.0.0.1: stop what listens there, or set "
            "another PORT"
        ]

    @pytest.mark.parametrize("workers", ["1", "2"])
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("BETTER_AUTH_SECRET", "short"),
            ("BETTER_AUTH_SECRET", ""),
            ("DATABASE_URL", "mysql://u:hunter2@host/database"),
            ("ALLOWED_ORIGINS", "https://app.example.com/hunter2"),
            ("PORT", "70000"),
            ("WORKERS", "none"),
            ("FORWARDED_ALLOW_IPS", "proxy.example.com"),
            ("HOST", "no.such.host.invalid"),
            ("HOST", "no..host"),
        ],
    )
    def test_says_which_setting_is_bad(
        self, tmp_path: Path, name: str, value: str, workers: str
    ) -> None:
        [line] = refused(tmp_path, **{"WORKERS": workers, name: value}).splitlines()
        assert re.search(rf"\b{name} ", line)
        for hidden in ("Traceback", "hunter2", SECRET):
            assert hidden not in line


def health(service: Service, path: str = "/health") -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{service.port}{path}", timeout=PATIENCE, **PLAIN)


class TestWorkers:
    def test_that_die_are_replaced(self, tmp_path: Path) -> None:
        with running(started(tmp_path, WORKERS="2")) as service:
            [first, _] = before = until(lambda: _two(service.workers()))
            os.kill(first, signal.SIGKILL)
            until(lambda: _two([one for one in service.workers() if one != first]))
            assert before != service.workers()
            until(lambda: service.log().count("Started worker") == 3)
            for _ in range(20):
                assert health(service).status_code == 200
            service.process.terminate()
            assert service.process.wait(PATIENCE) == 0

    def test_are_replaced_on_sighup_without_a_gap(self, tmp_path: Path) -> None:
        with running(started(tmp_path)) as service:
            [before] = service.workers()
            service.process.send_signal(signal.SIGHUP)
            while is_running(before):
                assert health(service).status_code == 200
            until(lambda: len(service.workers()) == 1)
            assert health(service).status_code == 200
            service.process.terminate()
            assert service.process.wait(PATIENCE) == 0

    def test_end_with_their_supervisor(self, tmp_path: Path) -> None:
        with running(started(tmp_path, WORKERS="2")) as service:
            workers = until(lambda: _two(service.workers()))
            service.process.kill()
            until(lambda: not any(map(is_running, workers)))
            with socket.create_server(("127.0.0.1", service.port)):
                pass


def _two(found: list[int]) -> list[int] | None:
    return found if len(found) == 2 else None


class TestEnd:
    @pytest.mark.parametrize("said", ["serving on", "Spawning worker-2", "Started worker"])
    @pytest.mark.parametrize("whole_group", [True, False])
    def test_at_any_time_of_the_start(self, said: str, whole_group: bool, tmp_path: Path) -> None:
        """A supervisor such as systemd sends the signal to all processes."""
        service = started(tmp_path, WORKERS="2")
        try:
            until(lambda: said in service.log())
            began = time.monotonic()
            (os.killpg if whole_group else os.kill)(service.process.pid, signal.SIGTERM)
            assert service.process.wait(PATIENCE) in (0, -signal.SIGTERM)
            assert time.monotonic() - began < 10
        finally:
            service.kill()


class TestConnections:
    HALF = b"GET /health HTTP/1.1\r\nHost: test\r\n"

    @pytest.mark.parametrize("sent", [b"", b"GET", HALF, HALF + b"\r\n" + HALF])
    def test_that_send_no_head_are_closed(self, sent: bytes, tmp_path: Path) -> None:
        with running(started(tmp_path, KEEP_ALIVE_TIMEOUT="1")) as service:
            with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as connection:
                connection.sendall(sent)
                began = time.monotonic()
                while connection.recv(4096):
                    pass
            assert 0.5 < time.monotonic() - began < 5

    def test_that_are_silent_stop_nobody(self, tmp_path: Path) -> None:
        with running(started(tmp_path)) as service, ExitStack() as stack:
            address = ("127.0.0.1", service.port)
            for _ in range(1500):
                stack.enter_context(socket.create_connection(address, PATIENCE))
            began = time.monotonic()
            for _ in range(10):
                assert health(service).status_code == 200
            assert time.monotonic() - began < 5

    def test_beyond_the_limit_wait(self, tmp_path: Path) -> None:
        with (
            running(started(tmp_path, MAX_CONNECTIONS="3", KEEP_ALIVE_TIMEOUT="2")) as service,
            ExitStack() as stack,
        ):
            for _ in range(5):
                address = ("127.0.0.1", service.port)
                stack.enter_context(socket.create_connection(address, PATIENCE))
            began = time.monotonic()
            assert health(service).status_code == 200
            assert 0.5 < time.monotonic() - began < 10


class TestTLS:
    def test_is_spoken_with_a_certificate(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        certificate, key = authority.issue("server")
        with_tls = {"TLS_CERT": f"{certificate}", "TLS_KEY": f"{key}"}
        service = started(tmp_path, **with_tls)
        try:
            until(lambda: "Started worker" in service.log())
            found = re.search(r"serving on https://127.0.0.1:(\d+)", service.log())
            assert found
            trusted = ssl.create_default_context(cafile=authority.root)
            url = f"https://localhost:{found[1]}/health"
            assert httpx.get(url, verify=trusted, trust_env=False).status_code == 200
        finally:
            service.kill()

    @pytest.mark.parametrize(
        ("key_file", "said"),
        [
            ("missing.key", "can't be used"),
            ("other.key", "can't be used"),
            ("", "belong together"),
            ("old.key", "openssl pkcs8"),
            ("locked.key", "can't be used"),
        ],
    )
    def test_is_refused_with_bad_files(self, key_file: str, said: str, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        certificate, key = authority.issue("server")
        authority.issue("other")
        loaded = load_pem_private_key(key.read_bytes(), None)
        old = loaded.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        (tmp_path / "old.key").write_bytes(old)
        locked = loaded.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
        (tmp_path / "locked.key").write_bytes(locked)
        [line] = refused(tmp_path, TLS_CERT=f"{certificate}", TLS_KEY=key_file).splitlines()
        assert "TLS_KEY" in line
        assert said in line


class TestLogReader:
    """Whoever reads the log, or does not, stops nothing."""

    REQUESTS = 15_000

    def ask(self, url: str, count: int) -> None:
        """So many requests, pipelined, each of which is answered."""
        port = httpx.URL(url).port
        request = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
            for _ in range(count // 100):
                connection.sendall(request * 100)
                answers = b""
                while answers.count(b'{"service":') < 100:
                    answers += connection.recv(1 << 20)

    def test_that_stalls_loses_lines_and_is_told_how_many(self, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        with piped(tmp_path, writer) as (process, url):
            os.close(writer)
            self.ask(url, self.REQUESTS)
            assert answers(url)
            log, told = b"", 0
            while told < self.REQUESTS:
                log += os.read(reader, 1 << 20)
                dropped = [int(count) for count in re.findall(rb'"(\d+) log lines', log)]
                told = log.count(b'"GET / 200"') + sum(dropped)
            process.terminate()
            assert process.wait(10) == 0
        os.close(reader)
        assert sum(dropped) > 1000
        for line in log.splitlines()[:-1]:
            json.loads(line)

    def test_that_never_reads_delays_no_end(self, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        with piped(tmp_path, writer) as (process, url):
            os.close(writer)
            self.ask(url, 2000)
            process.terminate()
            assert process.wait(10) == 0
        os.close(reader)

    @pytest.mark.parametrize("log", ["full disk", "closed pipe"])
    def test_that_is_away_stops_nothing(self, log: str, tmp_path: Path) -> None:
        if log == "full disk":
            writer = os.open("/dev/full", os.O_WRONLY)
        else:
            reader, writer = os.pipe()
            os.close(reader)
        with piped(tmp_path, writer) as (process, url):
            os.close(writer)
            self.ask(url, 500)
            process.terminate()
            assert process.wait(10) == 0


class TestSettings:
    def test_root_path_is_put_in_front_again(self, tmp_path: Path) -> None:
        with running(started(tmp_path, ROOT_PATH="/v1/")) as service:
            tasks = f"http://127.0.0.1:{service.port}/api/alice/tasks"
            headers = {"Authorization": f"Bearer {sign('alice')}"}
            with httpx.Client(headers=headers, **PLAIN) as client:
                for title in ("one", "two"):
                    assert client.post(tasks, json={"title": title}).status_code == 201
                page = client.get(f"{tasks}?limit=1")
            assert page.headers["Link"].startswith("</v1/api/alice/tasks?")
            assert 'href="/v1/' in health(service, "/docs").text

    @pytest.mark.parametrize(("host", "shown"), [("localhost", "127.0.0.1"), ("::1", "[::1]")])
    def test_host_may_be_a_name(self, host: str, shown: str, tmp_path: Path) -> None:
        service = started(tmp_path, HOST=host)
        try:
            until(lambda: "Started worker" in service.log())
            found = re.search(rf"serving on (http://{re.escape(shown)}:\d+) ", service.log())
            assert found
            assert httpx.get(f"{found[1]}/health", **PLAIN).status_code == 200
        finally:
            service.kill()

    def test_of_earlier_releases_are_warned_of(self, tmp_path: Path) -> None:
        with running(started(tmp_path, HEADERS_TIMEOUT="5", GRANIAN_WORKERS="3")) as service:
            assert len(service.workers()) == 1
            assert "HEADERS_TIMEOUT has no effect" in service.log()
