# [Task]: T041 [From]: specs/requirements.md
"""One run: wrk for a second on one contestant, and what that took."""

import json
import subprocess
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import NamedTuple

from benchmarks import ROOT, proc
from benchmarks.contestants import Running
from benchmarks.database import Database
from benchmarks.operations import Operation, Request, authorization

# Seconds, wrk's least; and those after which a request counts as failed.
DURATION = 1
TIMEOUT = 10


class Run(NamedTuple):
    """What was measured: requests per second, milliseconds, microseconds of CPU per request.

    `others` is how many cores were busy with what has nothing to do with it.
    """

    operation: str
    connections: int
    contestant: str
    throughput: float
    p50: float
    p99: float
    cpu: float
    database_cpu: float
    others: float


class Load:
    """Runs operations on contestants, all on one database; `folder` keeps the requests for wrk."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder

    async def run(self, server: Running, operation: Operation, connections: int) -> Run:
        """Raises RuntimeError unless every request was answered with success."""
        requests = self._requests(operation)
        await self._database.stage(operation)
        before = self._cpu(server)
        said = _wrk(server.url, connections, requests)
        cpu, database_cpu, wrk_cpu, everything = (
            after - before for after, before in zip(self._cpu(server), before, strict=True)
        )
        if said["refused"] or said["broken"] or not said["requests"]:
            raise RuntimeError(
                f"{operation.name} on {connections} connections of {server.name}: of "
                f"{said['requests']} requests {said['refused']} were refused, {said['broken']} got "
                f"no answer. Its log ends with\n{server.log()[-2000:]}"
            )
        return Run(
            operation.name,
            connections,
            server.name,
            said["requests"] / said["microseconds"] * 1e6,
            said["p50"] / 1e3,
            said["p99"] / 1e3,
            cpu / said["requests"] * 1e6,
            database_cpu / said["requests"] * 1e6,
            (everything - cpu - database_cpu - wrk_cpu) / said["microseconds"] * 1e6,
        )

    def _cpu(self, server: Running) -> tuple[float, float, float, float]:
        """Seconds that the server, the database, wrk and everything have used so far."""
        children = getrusage(RUSAGE_CHILDREN)
        wrk = children.ru_utime + children.ru_stime
        return server.cpu(), proc.cpu(self._database.pid), wrk, proc.busy()

    def _requests(self, operation: Operation) -> Path:
        file = self._folder / f"{operation.name}.requests"
        if not file.exists():
            file.write_text("".join(map(_line, self._database.requests(operation))))
        return file


def _line(request: Request) -> str:
    fields = (request.method, request.url, authorization(request.user), request.text)
    return "\t".join(fields) + "\n"


def _wrk(url: str, connections: int, requests: Path) -> dict[str, int]:
    options = ["-t1", f"-c{connections}", f"-d{DURATION}s", "--timeout", f"{TIMEOUT}s"]
    script = str(ROOT / "benchmarks/load.lua")
    ended = subprocess.run(
        ["wrk", *options, "-s", script, url, "--", str(requests)], capture_output=True, text=True
    )
    if ended.returncode:
        raise RuntimeError(f"wrk failed: {ended.stderr or ended.stdout}")
    said: dict[str, int] = json.loads(ended.stdout.splitlines()[-1])
    return said
