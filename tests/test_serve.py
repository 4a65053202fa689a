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

import forkserver
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
from postgresql import free_port
from service import PATIENCE, PLAIN, ROOT, Service, running, until
from support import SECRET, sign

from db import check_database_settings
from kit.server import serve
from main import app
from settings import SettingsError, get_settings

ENVIRONMENT = {"BETTER_AUTH_SECRET": SECRET}
BEARER = {"Authorization": f"Bearer {sign('alice')}"}


def started(folder: Path, **environment: str) -> Service:
    return Service(folder, {**ENVIRONMENT, **environment})


@contextmanager
def with_workers(folder: Path, workers: int, **environment: str) -> Iterator[Service]:
    """A service all of whose workers have started."""
    with running(started(folder, WORKERS=f"{workers}", **environment)) as service:
        until(lambda: service.log().count(" runtime-1") == workers)
        yield service


def is_running(process: int) -> bool:
    """And not merely listed because nobody has asked for its status."""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def end(service: Service) -> None:
    service.process.terminate()
    assert service.process.wait(10) == 0


def health(service: Service, path: str = "/health") -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{service.port}{path}", timeout=PATIENCE, **PLAIN)


def answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, **PLAIN).status_code == 200
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_serves_with_one_form_of_log_lines_and_ends_in_order(tmp_path: Path, workers: int) -> None:
    environment = {"LOG_FORMAT": "json", "FORWARDED_ALLOW_IPS": "10.0.0.0/8"}
    with with_workers(tmp_path, workers, **environment) as service:
        tasks = f"http://127.0.0.1:{service.port}/api/alice/tasks"
        with httpx.Client(headers=BEARER, **PLAIN) as client:
            task = client.post(tasks, json={"title": "Buy milk"}).json()
            assert client.get(tasks).json() == [task]
            forged = {"Authorization": "Bearer a.b.c", "X-Forwarded-For": "192.0.2.7"}
            client.get(tasks, headers=forged)
        until(lambda: "tasks 401" in service.log())
        processes = service.workers()
        with socket.create_connection(("127.0.0.1", service.port)):
            end(service)
        until(lambda: not any(map(is_running, processes)))
    lines = [json.loads(line) for line in service.log().splitlines()]
    for line in lines:
        assert list(line)[:5] == ["time", "level", "logger", "message", "request_id"]
    assert lines[0]["message"].startswith("serving on")
    assert lines[-1]["message"].startswith("Granian shutdown completed")
    [access] = [line for line in lines if line["message"] == "GET /api/{user_id}/tasks 401"]
    assert access["logger"] == "tasks.access"
    # The proxy that is believed is another.
    assert access["client"].startswith("127.0.0.1:")
    [reason] = [line for line in lines if "Invalid token" in line["message"]]
    assert reason["request_id"] == access["request_id"] != "-"


class TestRefusedStart:
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_says_why_in_one_line(self, tmp_path: Path, workers: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            service = started(tmp_path, PORT=f"{port}", WORKERS=workers)
            assert service.process.wait(PATIENCE) == 3
        assert service.log().splitlines() == [
            f"ERROR:    [-] PORT {port} is in use on 127.0.0.1: stop what listens there, or set "
            "another PORT"
        ]

    @pytest.fixture(scope="class")
    @classmethod
    def keys(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder with a certificate, a key of another, and its own in forms that are refused."""
        folder = tmp_path_factory.mktemp("keys")
        authority = Authority(folder)
        authority.issue("other")
        key = load_pem_private_key(authority.issue("server").key.read_bytes(), None)
        locked = BestAvailableEncryption(b"secret")
        for name, form, encryption in (
            ("old", PrivateFormat.TraditionalOpenSSL, NoEncryption()),
            ("locked", PrivateFormat.PKCS8, locked),
        ):
            (folder / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, form, encryption))
        return folder

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            ("DATABASE_URL=mysql://u:hunter2@host/database", "DATABASE_URL "),
            ("HOST=no.such.host.invalid", "HOST no.such.host.invalid "),
            ("HOST=no..host", "HOST is not a name"),
            ("TLS_KEY=", "TLS_CERT and TLS_KEY belong together"),
            ("TLS_KEY=missing.key", "TLS_CERT and TLS_KEY can't be used"),
            ("TLS_KEY=other.key", "TLS_CERT and TLS_KEY can't be used"),
            ("TLS_KEY=locked.key", "TLS_CERT and TLS_KEY can't be used"),
            ("TLS_KEY=old.key", "TLS_KEY must .* openssl pkcs8"),
        ],
    )
    def test_names_the_setting(
        self, keys: Path, setting: str, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those that only a start can judge; the others are in test_settings.py."""
        monkeypatch.chdir(keys)
        monkeypatch.delattr("kit.server.Granian")
        name, _, value = setting.partition("=")
        monkeypatch.setenv(name, value)
        if name == "TLS_KEY":
            monkeypatch.setenv("TLS_CERT", "server.crt")

        def start() -> None:
            check_database_settings(get_settings())
            serve(app, get_settings())

        with pytest.raises(SettingsError, match=said) as refused:
            start()
        assert "\n" not in f"{refused.value}"
        assert "hunter2" not in f"{refused.value}"


class TestWorkers:
    def test_that_die_are_replaced(self, tmp_path: Path) -> None:
        # A worker that is killed before it has started would leave one line fewer.
        with with_workers(tmp_path, 2) as service:
            first, second = service.workers()
            os.kill(first, signal.SIGKILL)
            until(lambda: service.log().count(" runtime-1") == 3)
            assert second in service.workers()
            assert len({*service.workers()} - {first}) == 2
            for _ in range(20):
                assert health(service).status_code == 200
            end(service)

    def test_are_replaced_on_sighup_without_a_gap(self, tmp_path: Path) -> None:
        with running(started(tmp_path)) as service:
            [before] = service.workers()
            service.process.send_signal(signal.SIGHUP)
            while is_running(before):
                assert health(service).status_code == 200
            until(lambda: len(service.workers()) == 1)
            assert health(service).status_code == 200
            end(service)

    def test_end_with_their_supervisor(self, tmp_path: Path) -> None:
        with with_workers(tmp_path, 2) as service:
            workers = service.workers()
            service.process.kill()
            until(lambda: not any(map(is_running, workers)))
            with socket.create_server(("127.0.0.1", service.port)):
                pass


@pytest.mark.parametrize(
    ("said", "whole_group"),
    [
        ("serving on", False),
        ("Spawning worker-2", False),
        ("Spawning worker-2", True),
        ("Started worker", False),
        ("Started worker", True),
    ],
)
def test_end_at_any_time_of_the_start(said: str, whole_group: bool, tmp_path: Path) -> None:
    """A supervisor such as systemd sends the signal to all processes."""
    service = started(tmp_path, WORKERS="2")
    try:
        until(lambda: said in service.log())
        (os.killpg if whole_group else os.kill)(service.process.pid, signal.SIGTERM)
        assert service.process.wait(10) in (0, -signal.SIGTERM)
    finally:
        service.kill()


class TestSettings:
    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
        environment = {
            "HOST": "localhost",
            "ROOT_PATH": "/v1/",
            "FORWARDED_ALLOW_IPS": "127.0.0.1",
            # Of an earlier release.
            "GRANIAN_WORKERS": "3",
        }
        with running(started(tmp_path_factory.mktemp("serve"), **environment)) as service:
            assert len(service.workers()) == 1
            yield service

    def test_root_path_is_put_in_front_again(self, service: Service) -> None:
        tasks = f"http://127.0.0.1:{service.port}/api/alice/tasks"
        with httpx.Client(headers=BEARER, **PLAIN) as client:
            for title in ("one", "two"):
                assert client.post(tasks, json={"title": title}).status_code == 201
            page = client.get(f"{tasks}?limit=1")
        assert page.headers["Link"].startswith("</v1/api/alice/tasks?")
        assert 'href="/v1/' in health(service, "/docs").text

    def test_proxy_that_is_named_is_believed(self, service: Service) -> None:
        headers = {"X-Forwarded-For": "192.0.2.7", "X-Request-ID": "forwarded"}
        httpx.get(f"http://127.0.0.1:{service.port}/", headers=headers, **PLAIN)
        [line] = service.logged("forwarded")
        assert "client=192.0.2.7:" in line

    def test_connections_that_are_silent_stop_nobody(self, service: Service) -> None:
        with ExitStack() as stack:
            for _ in range(1500):
                stack.enter_context(connected(service))
            began = time.monotonic()
            for _ in range(10):
                assert health(service).status_code == 200
            assert time.monotonic() - began < 5

    def test_tls_is_spoken_with_a_certificate_on_ipv6(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        certificate, key = authority.issue("server")
        service = started(tmp_path, HOST="::1", TLS_CERT=f"{certificate}", TLS_KEY=f"{key}")
        try:
            until(lambda: "Started worker" in service.log())
            found = re.search(r"serving on (https://\[::1\]:\d+) ", service.log())
            assert found
            trusted = ssl.create_default_context(cafile=authority.root)
            named = {"sni_hostname": "localhost"}
            with httpx.Client(verify=trusted, trust_env=False) as client:
                assert client.get(f"{found[1]}/health", extensions=named).status_code == 200
        finally:
            service.kill()


def connected(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), PATIENCE)


class TestConnections:
    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
        limits = {"MAX_CONNECTIONS": "3", "KEEP_ALIVE_TIMEOUT": "1"}
        with running(started(tmp_path_factory.mktemp("serve"), **limits)) as service:
            yield service

    HALF = b"GET /health HTTP/1.1\r\nHost: test\r\n"

    @pytest.mark.parametrize("sent", [b"", b"GET", HALF, HALF + b"\r\n" + HALF])
    def test_that_send_no_head_are_closed(self, sent: bytes, service: Service) -> None:
        with connected(service) as connection:
            connection.sendall(sent)
            began = time.monotonic()
            while connection.recv(4096):
                pass
        assert 0.5 < time.monotonic() - began < 5

    def test_beyond_the_limit_wait(self, service: Service) -> None:
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(connected(service))
            began = time.monotonic()
            assert health(service).status_code == 200
            assert 0.5 < time.monotonic() - began < 10

    def test_are_served_with_few_open_files(self, tmp_path: Path) -> None:
        port = free_port()
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}", "PORT": f"{port}"}
        command = ["prlimit", "--nofile=64", sys.executable, "-m", "serve"]
        process = subprocess.Popen(command, cwd=tmp_path, env={**environment, **ENVIRONMENT})
        url = f"http://127.0.0.1:{port}/health"
        try:
            until(lambda: answers(url))
            with ExitStack() as idle:
                for _ in range(8):
                    client = idle.enter_context(httpx.Client(**PLAIN))
                    assert client.get(url).status_code == 200
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()


class TestLogReader:
    """Whoever reads the log, or does not, stops nothing."""

    REQUESTS = 15_000

    @contextmanager
    def serving(self, folder: Path, log: Path) -> Iterator[tuple[forkserver.Process, int]]:
        """A process that writes its log there, and its port."""
        port = free_port()
        environment = {"PYTHONPATH": f"{ROOT}", "PORT": f"{port}", **ENVIRONMENT}
        process = forkserver.start(["serve"], folder, environment, log)
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/health"))
            yield process, port
        finally:
            process.kill()
            process.wait()

    @pytest.fixture
    def pipe(self, tmp_path: Path) -> tuple[Path, int]:
        """One with a name, and where it is read from."""
        os.mkfifo(tmp_path / "log")
        reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        return tmp_path / "log", reader

    def ask(self, port: int, count: int) -> None:
        """So many requests, pipelined, each of which is answered."""
        request = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
            for _ in range(count // 100):
                connection.sendall(request * 100)
                answers = b""
                while answers.count(b'{"service":') < 100:
                    answers += connection.recv(1 << 20)

    def test_that_stalls_loses_lines_and_is_told_how_many(
        self, tmp_path: Path, pipe: tuple[Path, int]
    ) -> None:
        with self.serving(tmp_path, pipe[0]) as (process, port):
            self.ask(port, self.REQUESTS)
            log, told = b"", 0
            while told < self.REQUESTS:
                log += os.read(pipe[1], 1 << 20)
                dropped = [int(count) for count in re.findall(rb'"(\d+) log lines', log)]
                told = log.count(b'"GET / 200"') + sum(dropped)
            # Nor does it delay the end.
            self.ask(port, 2000)
            process.terminate()
            assert process.wait(10) == 0
        os.close(pipe[1])
        assert sum(dropped) > 1000
        for line in log.splitlines()[:-1]:
            json.loads(line)

    @pytest.mark.parametrize("log", ["full disk", "closed pipe"])
    def test_that_is_away_stops_nothing(
        self, log: str, tmp_path: Path, pipe: tuple[Path, int]
    ) -> None:
        written = Path("/dev/full") if log == "full disk" else pipe[0]
        with self.serving(tmp_path, written) as (process, port):
            os.close(pipe[1])
            self.ask(port, 500)
            process.terminate()
            assert process.wait(10) == 0
