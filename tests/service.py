# [Task]: T015 [From]: specs/requirements.md
"""The service as users run it: a server process of its own, its log, and its databases."""

import asyncio
import contextlib
import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import httpx
from databases import execute
from forkserver import start
from postgresql import PostgreSQL
from support import SECRET

ROOT = Path(__file__).parents[1]
# Seconds: generous, since a busy machine is no bug.
PATIENCE = 30.0


class _Plain(TypedDict):
    trust_env: bool
    verify: bool


# For httpx: no proxy, and no authorities, whose certificates it takes a tenth of a second to read.
PLAIN: _Plain = {"trust_env": False, "verify": False}


def until[T](probe: Callable[[], T | None]) -> T:
    """The first thing that `probe` finds."""
    deadline = time.monotonic() + PATIENCE
    while not (found := probe()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


class Service:
    """A `python -m serve` on a free port, its working directory and log in `folder`.

    With `uvicorn` it is a `uvicorn main:app` with these arguments. `sources` is where the app is.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        uvicorn: Sequence[str] | None = None,
        sources: Path = ROOT,
    ) -> None:
        self._log = folder / f"service-{secrets.token_hex(4)}.log"
        path = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(sources))))
        common = {"PATH": os.environ["PATH"], "LOG_FORMAT": "text", "PORT": "0"}
        command = ["serve"]
        if uvicorn is not None:
            command = ["uvicorn", "main:app", "--port", "0", *uvicorn]
        # A process group of its own, so that `kill` reaches workers too.
        whole = {**common, **environment, "PYTHONPATH": path}
        self.process = start(command, folder, whole, self._log)
        self.port = 0

    def log(self) -> str:
        return self._log.read_text()

    def logged(self, request_id: str) -> list[str]:
        """The log lines of a request, of which the access log's is the last."""

        def lines() -> list[str] | None:
            found = [line for line in self.log().splitlines() if request_id in line]
            # It is written to stdout, and the others to stderr, each by a thread.
            found.sort(key=lambda line: " ms client=" in line)
            return found if found and " ms client=" in found[-1] else None

        return until(lines)

    def wait_for_health(self) -> None:
        self.port = int(until(self._find_port))
        until(self._is_healthy)

    def _is_healthy(self) -> bool:
        url = f"http://127.0.0.1:{self.port}/health"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(url, **PLAIN, timeout=PATIENCE).status_code == 200
        return False

    def _find_port(self) -> str | None:
        assert self.process.poll() is None, self.log()
        found = re.search(r"(?:running|serving) on https?://127\.0\.0\.1:(\d+)", self.log())
        return found and found[1]

    def workers(self) -> list[int]:
        """The processes that serve, of `python -m serve`."""
        pid = self.process.pid
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            limits=httpx.Limits(max_connections=None),
            timeout=PATIENCE,
            **PLAIN,
        )

    def memory(self, kind: str = "VmRSS") -> int:
        """Bytes in memory of all its processes; with `VmHWM`, at most so far."""
        kib = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):  # It has ended.
                if os.getpgid(int(status.parent.name)) == self.process.pid:
                    found = re.search(rf"{kind}:\s+(\d+)", status.read_text())
                    kib += int(found[1]) if found else 0
        return kib * 1024

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def serving(
    folder: Path, *, uvicorn: Sequence[str] | None = None, **environment: str
) -> contextlib.AbstractContextManager[Service]:
    """A service with the suite's secret, from its first answer to its end by force."""
    return running(Service(folder, {"BETTER_AUTH_SECRET": SECRET, **environment}, uvicorn=uvicorn))


@contextlib.contextmanager
def running(service: Service) -> Iterator[Service]:
    try:
        service.wait_for_health()
        yield service
    finally:
        service.kill()


def create_database(server: PostgreSQL) -> str:
    """The URL of a new database."""
    name = f"service_{secrets.token_hex(4)}"
    asyncio.run(execute(server.url(), f"CREATE DATABASE {name}"))
    return server.url(name)
