# [Task]: T041 [From]: specs/requirements.md
"""What is measured besides throughput: two workers, a slow link to the database, starts."""

import os
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

from faults.proxy import Proxy, proxying
from support import SECRET

from benchmarks import ROOT, proc
from benchmarks.contestants import OURS, USUAL, Contestant, Running, running
from benchmarks.database import Database
from benchmarks.load import Load, Run
from benchmarks.operations import GET, MIX, POST, SINGLE_OPERATIONS, Operation

WORKERS = 2
WORKER_OPERATIONS = (GET, POST, MIX)
# Of a few connections that are opened at once, one worker may take all.
WORKER_CONNECTIONS = 128
# Seconds that bytes are under way to the database, and as many back.
LINK = 0.010
# Requests of each operation over that link, after those that warm up each connection of a pool.
LINK_REQUESTS, LINK_WARM_UP = 7, 30


class Workers(NamedTuple):
    """By number of processes: runs, MiB with what is shared counted once, open connections."""

    runs: dict[int, list[Run]]
    memory: dict[int, float]
    connections: dict[int, int]


async def measure_workers(load: Load, database: Database, folder: Path, rounds: int) -> Workers:
    results = Workers({1: [], WORKERS: []}, {}, {})
    # So that the connections of each can be told apart.
    urls = {count: f"{database.url}?application_name=workers-{count}" for count in results.runs}
    with (
        running([OURS], folder, urls[1]) as [one],
        running([OURS], folder, urls[WORKERS], WORKERS=str(WORKERS)) as [several],
    ):
        servers = {1: one, WORKERS: several}
        for server in servers.values():
            await load.run(server, MIX, WORKER_CONNECTIONS)
        for _ in range(rounds):
            await database.tidy()
            for operation in WORKER_OPERATIONS:
                for count, server in servers.items():
                    run = await load.run(server, operation, WORKER_CONNECTIONS)
                    results.runs[count].append(run)
        for count, server in servers.items():
            results.memory[count] = proc.memory(server.pid)
            results.connections[count] = await database.value(f"""
                SELECT count(*) FROM pg_stat_activity WHERE application_name = 'workers-{count}'
            """)
    return results


class Link(NamedTuple):
    """Of one request: milliseconds, and how often it waited for the database, by operation."""

    latency: dict[str, float]
    round_trips: dict[str, float]


async def measure_link(database: Database, folder: Path) -> dict[str, Link]:
    """One request at a time, this service and the usual way, medians."""
    with proxying(database.port) as proxy:
        url = proxy.url(database.url)
        with running((OURS, USUAL), folder, url) as servers:
            results = {server.name: Link({}, {}) for server in servers}
            for operation in SINGLE_OPERATIONS:
                for server in servers:
                    await database.stage(operation)
                    latency, round_trips = _over_link(proxy, server, database, operation)
                    results[server.name].latency[operation.name] = latency
                    results[server.name].round_trips[operation.name] = round_trips
    return results


def _over_link(
    proxy: Proxy, server: Running, database: Database, operation: Operation
) -> tuple[float, float]:
    requests = cycle(database.requests(operation))
    times, round_trips = [], []
    with server.client() as client:
        for request in islice(requests, LINK_WARM_UP):
            client.ask(request)
        with proxy.delayed(up=LINK, down=LINK):
            for request in islice(requests, LINK_REQUESTS):
                before = proxy.round_trips
                began = time.perf_counter()
                answer = client.ask(request)
                times.append((time.perf_counter() - began) * 1e3)
                if answer.status >= 300:
                    raise RuntimeError(f"{operation.name} over the link: {answer}")
                # What comes after the answer, such as the end of a transaction, is waited for too.
                time.sleep(4 * LINK)
                round_trips.append(proxy.round_trips - before)
    return median(times), median(round_trips)


class Start(NamedTuple):
    """Milliseconds of importing it, and from its start to its first answer; one per start."""

    imports: list[float]
    starts: list[float]


_MODULES = {OURS: "main", USUAL: "benchmarks.usual"}
_IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def measure_starts(database: Database, folder: Path, times: int) -> dict[str, Start]:
    """This service and the usual way, by turns."""
    results = {contestant.name: Start([], []) for contestant in _MODULES}
    for _ in range(times):
        for contestant, module in _MODULES.items():
            result = results[contestant.name]
            result.imports.append(_import_time(module, database.url) * 1e3)
            result.starts.append(_start_time(contestant, database.url, folder) * 1e3)
    return results


def _import_time(module: str, url: str) -> float:
    environment = {"PATH": os.environ["PATH"], "BETTER_AUTH_SECRET": SECRET, "DATABASE_URL": url}
    command = [sys.executable, "-c", _IMPORT.format(module)]
    return float(subprocess.check_output(command, cwd=ROOT, env=environment, text=True))


def _start_time(contestant: Contestant, url: str, folder: Path) -> float:
    began = time.perf_counter()
    with running([contestant], folder, url):
        return time.perf_counter() - began
