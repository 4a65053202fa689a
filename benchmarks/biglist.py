# [Task]: T055 [From]: specs/requirements.md
"""What a user with very many tasks does to others, and how long a page deep in them takes:
`make bench-biglist`, two minutes; with ROWS=10000000 tasks of others beside them, five.

One client lists 100,000 tasks again and again, or does not, in turns; another asks for one task of
its own, one request after the other. The memory is the process's, before the first list and at its
peak.
"""

import argparse
import asyncio
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import asyncpg
import httpx
from faults.stage import postgresql
from service import Service, serving
from support import Caller

from benchmarks.growth import create_table
from schemas import PAGE_LENGTH

TASKS = 100_000
ROUNDS = 5
SECONDS = 4.0
PAGES = 1000

FILL = f"""
    INSERT INTO task (user_id, title, description, completed, created_at, updated_at)
    SELECT 'hoarder', 'Buy milk ' || n, 'The one with the blue cap, two litres if they have it',
        false, now() - n * interval '1 second', now() FROM generate_series(1, {TASKS}) n;
    ANALYZE task;
"""


def peak_kib(service: Service) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


async def list_again_and_again(hoarder: Caller) -> None:
    while True:
        (await hoarder.get()).raise_for_status()


async def times_of_get_one(caller: Caller, task_id: int) -> list[float]:
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        (await caller.get(f"/{task_id}")).raise_for_status()
        times.append(time.perf_counter() - began)
    return times


def p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98] * 1000


async def measure(service: Service) -> str:
    quiet, busy = [], []
    async with service.client() as http:
        other = Caller(http, "other")
        task = await other.add()
        await times_of_get_one(other, task["id"])
        before = peak_kib(service)
        hoarder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.biglist", "--hoard", f"{service.port}"),
            stdout=subprocess.PIPE,
        )
        size = int(await cast(asyncio.StreamReader, hoarder.stdout).readline())
        after = peak_kib(service)
        hoarder.send_signal(signal.SIGSTOP)
        for _ in range(ROUNDS):
            quiet.append(p99(await times_of_get_one(other, task["id"])))
            hoarder.send_signal(signal.SIGCONT)
            busy.append(p99(await times_of_get_one(other, task["id"])))
            hoarder.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.5)
        hoarder.kill()
        await hoarder.wait()
    alone, beside = statistics.median(quiet), statistics.median(busy)
    grown = (after - before) * 1024
    return (
        f"GET one, p99: {alone:.2f} ms alone, {beside:.2f} ms beside lists of {TASKS:,} tasks, "
        f"{beside / alone:.1f} times\n"
        f"the answer: {size / 2**20:.1f} MiB; the process grew by {grown / 2**20:.1f} MiB, "
        f"{grown / size:.2f} times"
    )


async def measure_pages(service: Service) -> str:
    """The first page and one behind all others but one, in turns."""
    first: list[float] = []
    deep: list[float] = []
    async with service.client() as http:
        hoarder = Caller(http, "hoarder")
        place, page = "", await hoarder.get(f"?limit={PAGE_LENGTH}")
        while "X-Next-Cursor" in page.headers:
            place = page.headers["X-Next-Cursor"]
            page = await hoarder.get(f"?limit={PAGE_LENGTH}&cursor={place}")
        for _ in range(PAGES):
            for query, times in (("", first), (f"&cursor={place}", deep)):
                began = time.perf_counter()
                (await hoarder.get(f"?limit=50{query}")).raise_for_status()
                times.append(time.perf_counter() - began)
    beginning, end = statistics.median(first) * 1000, statistics.median(deep) * 1000
    return (
        f"a page of 50, median: the first {beginning:.2f} ms, the last of {TASKS:,} tasks "
        f"{end:.2f} ms, {end / beginning:.2f} times"
    )


async def hoard(port: int) -> None:
    """In a process of its own: list all tasks, say how long the answer is, and go on."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        hoarder = Caller(http, "hoarder")
        print(len((await hoarder.get()).content), flush=True)
        await list_again_and_again(hoarder)


def main(rows: int) -> None:
    with (
        postgresql(shared_buffers="4GB", max_wal_size="8GB") as server,
        TemporaryDirectory() as name,
    ):
        table = create_table(server, Path(name), rows)
        with serving(Path(name), DATABASE_URL=table.url) as service:
            asyncio.run(fill(table.url))
            print(asyncio.run(measure(service)))
            print(asyncio.run(measure_pages(service)))


async def fill(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(FILL)
    await connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="tasks of others")
    parser.add_argument("--hoard", type=int, metavar="PORT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hoard:
        asyncio.run(hoard(given.hoard))
    else:
        main(given.rows)
