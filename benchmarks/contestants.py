# [Task]: T041 [From]: specs/requirements.md
"""Who is compared, how each is started, and what its processes use."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

from support import SECRET

from benchmarks import ROOT, proc
from benchmarks.operations import Request, authorization

# Seconds a start may take.
PATIENCE = 60.0
# The baselines have an environment of their own (install.sh), with httptools, and so have releases
# before this service did without.
BASELINES = str(ROOT / "benchmarks/.venv/bin/python")
_UVICORN = (BASELINES, "-m", "uvicorn", "--port", "{port}")


class Contestant(NamedTuple):
    """`command` may name the `{port}`, which is in the environment as well; `sources` is where
    Python finds its modules.
    """

    name: str
    command: tuple[str, ...]
    sources: Path = ROOT


OURS = Contestant("this service", (sys.executable, "-m", "serve"))
USUAL = Contestant("the usual way", (*_UVICORN, "usual:app", "--app-dir", str(ROOT / "benchmarks")))
FASTIFY = Contestant("Fastify + pg", ("node", str(ROOT / "benchmarks/fastify/server.js")))
FLOOR = Contestant("the floor", (*_UVICORN, "floor:app", "--app-dir", str(ROOT / "benchmarks")))
# Of which only the CPU is of interest: what can't be avoided.
BARE = Contestant("bare uvicorn", (*_UVICORN, "bare:app", "--app-dir", str(ROOT / "benchmarks")))

# What every answer has to carry, beside what its status calls for.
CONTRACT_HEADERS = ("X-Request-ID", "X-Content-Type-Options", "Cache-Control")

CONTESTANTS = (OURS, USUAL, FASTIFY, FLOOR)


class Answer(NamedTuple):
    status: int
    body: bytes
    # Of the contract's headers.
    headers: dict[str, str | None]


class Client:
    """Asks one thing after the other, with as little of its own time as Python can."""

    def __init__(self, connection: HTTPConnection) -> None:
        self.connection = connection

    def ask(self, request: Request, *, authorized: bool = True) -> Answer:
        headers = {"X-Request-ID": "the-id-of-a-check"}
        if authorized:
            headers["Authorization"] = authorization(request.user)
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        self.connection.request(request.method, request.url, request.text or None, headers)
        response = self.connection.getresponse()
        contracted = {name: response.getheader(name) for name in CONTRACT_HEADERS}
        return Answer(response.status, response.read(), contracted)


class Running:
    """A started contestant: its first process, its port, and a log with a line for each request."""

    def __init__(self, contestant: Contestant, folder: Path, url: str, **environment: str) -> None:
        self.name = contestant.name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._log = folder / f"{self.port}.log"
        command = [part.format(port=self.port) for part in contestant.command]
        environment = {
            "PYTHONPATH": str(contestant.sources),
            "PATH": os.environ["PATH"],
            "BETTER_AUTH_SECRET": SECRET,
            "DATABASE_URL": url,
            "NODE_ENV": "production",
            "PORT": str(self.port),
            **environment,
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own, so that `kill` reaches workers too.
                process_group=0,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        return self._log.read_text()

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError with its log if it does not."""
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), self.client() as client:
                client.connection.request("GET", "/health")
                if client.connection.getresponse().status == 200:
                    return
            time.sleep(0.005)
        raise RuntimeError(f"{self.name} does not start:\n{self.log()}")

    @contextmanager
    def client(self) -> Iterator["Client"]:
        """One connection to it."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            yield Client(connection)
        finally:
            connection.close()

    def cpu(self) -> float:
        """Seconds that its processes have used so far."""
        return proc.cpu(self.pid)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def running(
    contestants: Sequence[Contestant], folder: Path, url: str, **environment: str
) -> Iterator[list[Running]]:
    """All of them, from their first answers to their ends by force."""
    started: list[Running] = []
    try:
        for contestant in contestants:
            started.append(Running(contestant, folder, url, **environment))
        for server in started:
            server.wait()
        yield started
    finally:
        for server in started:
            server.kill()
