# [Task]: T061 [From]: specs/requirements.md
"""`python -m serve`: one process or several, their log, their end, and starts that are refused."""

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service import PATIENCE, PLAIN, Service, running, until
from support import SECRET, sign

ENVIRONMENT = {"BETTER_AUTH_SECRET": SECRET}


def started(folder: Path, **environment: str) -> Service:
    return Service(folder, {**ENVIRONMENT, **environment})


def refused(folder: Path, **environment: str) -> str:
    """What a start says that fails."""
    service = started(folder, **environment)
    assert service.process.wait(PATIENCE) == 3
    return service.log()


def is_running(process: str) -> bool:
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
        # Its workers, and what Python starts for them.
        children = f"/proc/{service.process.pid}/task/{service.process.pid}/children"
        processes = Path(children).read_text().split()
        with socket.create_connection(("127.0.0.1", service.port)):
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < 10
        until(lambda: not any(map(is_running, processes)))

    def test_have_one_form_of_log_lines(self, service: Service) -> None:
        httpx.get(f"http://127.0.0.1:{service.port}/health", **PLAIN)
        until(lambda: "GET /health 200" in service.log())
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(PATIENCE)
        lines = [json.loads(line) for line in service.log().splitlines()]
        assert {"time", "level", "logger", "message", "request_id"} <= set.intersection(
            *map(set, lines)
        )


@pytest.mark.parametrize(("proxies", "believed"), [("127.0.0.1", True), ("10.0.0.0/8", False)])
def test_proxy_is_believed_if_it_is_named(tmp_path: Path, proxies: str, believed: bool) -> None:
    with running(started(tmp_path, FORWARDED_ALLOW_IPS=proxies)) as service:
        headers = {"X-Forwarded-For": "192.0.2.7", "X-Request-ID": "forwarded"}
        httpx.get(f"http://127.0.0.1:{service.port}/health", headers=headers, **PLAIN)
        [line] = service.logged("forwarded")
    assert ("client=192.0.2.7:" in line) == believed


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
            ("DATABASE_URL", "mysql://host/database"),
            ("PORT", "70000"),
            ("WORKERS", "none"),
            ("FORWARDED_ALLOW_IPS", "proxy.example.com"),
            ("HOST", "no.such.host.invalid"),
        ],
    )
    def test_says_which_setting_is_bad(
        self, tmp_path: Path, name: str, value: str, workers: str
    ) -> None:
        [line] = refused(tmp_path, **{"WORKERS": workers, name: value}).splitlines()
        assert re.search(rf"\b{name} ", line)
        assert "Traceback" not in line
