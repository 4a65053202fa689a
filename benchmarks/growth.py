# [Task]: T042 [From]: specs/requirements.md
"""How the service's answers grow with its table: 10 thousand, 1 million and 10 million rows.

`make bench-growth` prints a report in Markdown. It exits with 1 if a statement is planned as
anything but index scans, or if reads take 1.3 times as long in the largest table.
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from random import SystemRandom
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import NamedTuple

import asyncpg
from faults.stage import postgresql
from postgresql import PostgreSQL
from service import Service, create_database, serving
from support import sign

from benchmarks import ROOT

SIZES = [10_000, 1_000_000, 10_000_000]
TASKS_PER_USER = 50
# Requests of a kind to one table before it is the next one's turn, and how many turns each has.
BATCH = 10
TURNS = 200
# Rows that are made up at once while a table is loaded.
CHUNK = 10_000
# What a read from the last table may take, in terms of one from the first.
MOST_GROWTH = 1.3
# An id that no task has.
NO_TASK = 2**62

RESULTS = ROOT / "benchmarks" / "results"
INDEXES = ("task_pkey", "ix_task_user_id_created_at_id")
PLAN_MODES = ("force_custom_plan", "force_generic_plan")


def say(line: str) -> None:
    """Progress, beside the report."""
    print(line, file=sys.stderr, flush=True)


# --- A table ----------------------------------------------------------------------------------


class Place(NamedTuple):
    """Whose a task is, and its id."""

    user: str
    task_id: int


class Table:
    """A database with so many tasks, 50 for each user, those scattered over the whole table.

    All users add their first task, then all their second one, and so on.
    """

    def __init__(self, url: str, rows: int) -> None:
        self.url = url
        self.rows = rows
        self._users = rows // TASKS_PER_USER
        # Seconds that COPY took, with the indexes there.
        self.load_time = 0.0
        # Bytes of the table and of each index.
        self.sizes: dict[str, int] = {}

    def place(self, row: int) -> Place:
        return Place(_user(row % self._users), row + 1)

    def random_places(self, count: int) -> list[Place]:
        """Different ones, and none of the first two rows, which are for plans."""
        return [self.place(row) for row in SystemRandom().sample(range(2, self.rows), count)]

    async def load(self) -> None:
        """Fill the table, which the service has made, by COPY, and settle it."""
        connection = await asyncpg.connect(self.url)
        columns = ["user_id", "title", "description", "completed", "created_at", "updated_at"]
        start = time.monotonic()
        await connection.copy_to_table("task", source=self._lines(), columns=columns)
        self.load_time = time.monotonic() - start
        # What the server would do at some time, while something else is measured.
        # Through the whole cache, which has the table there as it would be after a while.
        await connection.execute("VACUUM (ANALYZE, BUFFER_USAGE_LIMIT 0) task")
        await connection.execute("CHECKPOINT")
        for name in ("task", *INDEXES):
            self.sizes[name] = await connection.fetchval(
                "SELECT pg_relation_size($1::text::regclass)", name
            )
        await connection.close()

    async def _lines(self) -> AsyncIterator[bytes]:
        """COPY's text format: ten tasks a second, until now."""
        users = [_user(number) for number in range(self._users)]
        start = datetime.now(UTC) - timedelta(seconds=self.rows / 10)
        for first in range(0, self.rows, CHUNK):
            lines = []
            for row in range(first, min(first + CHUNK, self.rows)):
                at = start + timedelta(seconds=row / 10)
                text = f"Buy milk {row}\tThe bottle with {row} on its label"
                lines.append(f"{users[row % self._users]}\t{text}\tf\t{at}\t{at}\n")
            yield "".join(lines).encode()


def _user(number: int) -> str:
    """An id of 32 characters in no order, like Better Auth's."""
    return hashlib.sha256(b"%d" % number).hexdigest()[:32]


def create_table(server: PostgreSQL, folder: Path, rows: int) -> Table:
    """A new database, in which a service has made its table."""
    table = Table(create_database(server), rows)
    with serving(folder, DATABASE_URL=table.url):
        pass
    asyncio.run(table.load())
    return table


# --- Requests ---------------------------------------------------------------------------------


class Request(NamedTuple):
    """`path` is relative to the user's tasks."""

    method: str
    path: str = ""
    body: dict[str, str] | None = None


# What each does with the task of this id. Those that leave rows behind or take some come last.
REQUESTS: dict[str, Callable[[int], Request]] = {
    f"GET list of {TASKS_PER_USER}": lambda _: Request("GET"),
    "GET one": lambda task_id: Request("GET", f"/{task_id}"),
    "PUT": lambda task_id: Request("PUT", f"/{task_id}", {"title": f"Buy oats {task_id}"}),
    "PATCH complete": lambda task_id: Request("PATCH", f"/{task_id}/complete"),
    "POST": lambda _: Request("POST", body={"title": "Buy bread", "description": "The dark one"}),
    "DELETE": lambda task_id: Request("DELETE", f"/{task_id}"),
}


class Client:
    """One connection that is kept alive, with as little as can be between the wire and the clock.

    A general HTTP client takes longer for a request than the service does.
    """

    def __init__(self, service: Service) -> None:
        self._socket = socket.create_connection(("127.0.0.1", service.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def send(self, user: str, request: Request) -> None:
        """Raises RuntimeError if it fails."""
        self._exchange(user, sign(user), request, succeeds=True)

    def time(self, user: str, request: Request) -> float:
        """Seconds until the whole answer was there. Raises RuntimeError if it fails.

        The user's token is made known first, by asking for a task that is not there: how many
        tokens the service remembers is not what is measured.
        """
        token = sign(user)
        self._exchange(user, token, Request("GET", f"/{NO_TASK}"), succeeds=False)
        return self._exchange(user, token, request, succeeds=True)

    def _exchange(self, user: str, token: str, request: Request, *, succeeds: bool) -> float:
        body = b"" if request.body is None else json.dumps(request.body).encode()
        head = (
            f"{request.method} /api/{user}/tasks{request.path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        start = time.perf_counter()
        self._socket.sendall(head.encode() + body)
        status = int(self._answers.readline().split()[1])
        length = 0
        while (line := self._answers.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split()[1])
        answer = self._answers.read(length)
        seconds = time.perf_counter() - start
        if (status < 300) is not succeeds:
            raise RuntimeError(f"{request} was answered with {status}: {answer.decode()}")
        return seconds


def measure(tables: Sequence[Table], folder: Path) -> dict[str, dict[int, list[float]]]:
    """Seconds of requests, one at a time, by what they do and by the table's rows.

    Each table has a service of its own, and they take turns, so that what else the machine does
    falls on all of them.
    """
    times: dict[str, dict[int, list[float]]] = {}
    with ExitStack() as stack:
        services = [stack.enter_context(serving(folder, DATABASE_URL=t.url)) for t in tables]
        clients = [stack.enter_context(closing(Client(service))) for service in services]
        for name, request in REQUESTS.items():
            say(f"measuring {name}")
            times[name] = {table.rows: [] for table in tables}
            places = [table.random_places(BATCH * TURNS) for table in tables]
            for _ in range(TURNS):
                for table, client, those in zip(tables, clients, places, strict=True):
                    for _ in range(BATCH):
                        user, task_id = those.pop()
                        seconds = client.time(user, request(task_id))
                        times[name][table.rows].append(seconds)
    return times


# --- Plans ------------------------------------------------------------------------------------

# Lines of the server's log, which begin with a time; those that go on begin with a tab.
_EXECUTION = re.compile(
    r" LOG:  execute [^:\s]+: ((?:.|\n\t)*)\n.* DETAIL:  Parameters: ((?:.|\n\t)*)"
)
_PARAMETER = re.compile(r"\$\d+ = (NULL|'(?:[^']|'')*')")
_ON_TASK = re.compile(r"(FROM|INTO|UPDATE)\s+(public\.)?task\b")
_LITERAL = re.compile(r"'(?:[^']|'')*'")

# What a plan may consist of: nothing that reads a table as a whole, or puts rows in order.
_GOOD_NODES = {"Index Scan", "Index Only Scan", "Limit", "Insert", "Update", "Delete", "Result"}
# A count of a user's own tasks, in whatever order: out of order, a list would have a sort as well.
_GOOD_NODES |= {"Aggregate", "Subquery Scan", "Bitmap Heap Scan", "Bitmap Index Scan"}


class Plan(NamedTuple):
    """How PostgreSQL runs what a request of this name needs, as EXPLAIN shows it."""

    request: str
    mode: str
    text: str

    def faults(self) -> list[str]:
        """What is neither a change nor an index scan to the rows in question."""
        nodes = [line for line in self.text.splitlines() if "(actual" in line or "(never" in line]
        names = [re.split(r" using | on | +\(", node.strip(" ->"))[0] for node in nodes]
        faults = [name for name in names if name not in _GOOD_NODES]
        if sum(name.startswith("Index") for name in names) > self.text.count("Index Cond: "):
            faults.append("a scan of a whole index")
        return faults


class Sent(NamedTuple):
    """A statement as the server was sent it for a request, and its parameters as SQL."""

    request: str
    sql: str
    parameters: list[str]


def plans(server: PostgreSQL, table: Table, folder: Path) -> list[Plan]:
    """Of each kind of request, with and without the parameters' values, as if prepared."""
    return explain(table, statements_sent(server, table, folder))


def statements_sent(server: PostgreSQL, table: Table, folder: Path) -> list[Sent]:
    """One for each kind of request, however they were made: the server's log tells."""
    used, explained = table.place(0), table.place(1)
    with serving(folder, DATABASE_URL=f"{table.url}?options=-c%20log_statement%3Dall") as service:
        since = len(server.log())
        with closing(Client(service)) as client:
            for request in REQUESTS.values():
                client.send(used.user, request(used.task_id))
        log = server.log()[since:]
    executions = [match for match in _EXECUTION.findall(log) if _ON_TASK.search(match[0])]
    if len(executions) != len(REQUESTS):
        raise RuntimeError(f"the log does not tell one statement for each request:\n{log}")
    # The task of those requests has been deleted.
    other = {f"'{used.user}'": f"'{explained.user}'", f"'{used.task_id}'": f"'{explained.task_id}'"}
    return [
        Sent(name, sql, [other.get(value, value) for value in _PARAMETER.findall(logged)])
        for name, (sql, logged) in zip(REQUESTS, executions, strict=True)
    ]


def explain(table: Table, statements: Sequence[Sent]) -> list[Plan]:
    """Each in both modes."""
    return [
        Plan(sent.request, mode, asyncio.run(_explain(table.url, mode, sent.sql, sent.parameters)))
        for sent in statements
        for mode in PLAN_MODES
    ]


async def _explain(url: str, mode: str, sql: str, parameters: Sequence[str]) -> str:
    connection = await asyncpg.connect(url, server_settings={"plan_cache_mode": mode})
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"PREPARE it AS {sql}")
    lines = await connection.fetch(
        "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF) "
        f"EXECUTE it({', '.join(parameters)})"
    )
    await transaction.rollback()
    await connection.close()
    return _LITERAL.sub("'...'", "\n".join(line[0] for line in lines))


# --- The report -------------------------------------------------------------------------------


class Run(NamedTuple):
    """All that was found out."""

    tables: list[Table]
    plans: dict[int, list[Plan]]
    times: dict[str, dict[int, list[float]]]
    facts: dict[str, str]


def milliseconds(times: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    return median(times) * 1000, quantiles(times, n=100)[98] * 1000


async def setting(url: str, name: str) -> str:
    """One of PostgreSQL's."""
    connection = await asyncpg.connect(url)
    value: str = await connection.fetchval("SELECT current_setting($1)", name)
    await connection.close()
    return value


def facts(url: str) -> dict[str, str]:
    """When, where and with what."""
    postgres = asyncio.run(setting(url, "server_version"))
    buffers = asyncio.run(setting(url, "shared_buffers"))
    models = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    packages = ("fastapi", "uvicorn", "sqlalchemy", "asyncpg")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{os.cpu_count()} cores, {models[0] if models else platform.processor()}",
        "PostgreSQL": f"{postgres}, shared_buffers {buffers}, else as it comes",
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
    }


def markdown(run: Run) -> Iterator[str]:
    sizes = [table.rows for table in run.tables]
    faults = [fault for plans in run.plans.values() for plan in plans for fault in plan.faults()]
    yield "# A growing table"
    yield ""
    yield "`make bench-growth`"
    yield ""
    yield from (f"- {name}: {value}" for name, value in run.facts.items())
    yield ""
    yield "## Latency"
    yield ""
    yield (
        f"Milliseconds, median and 99th percentile, of {BATCH * TURNS:,} requests of each kind to "
        "each table, one at a time over one connection that is kept alive. Three services on three "
        f"databases of one server take turns of {BATCH} requests. Each request is for another task "
        "drawn at random from the whole table, which is in PostgreSQL's cache as far as it fits, "
        "else in the operating system's. Its user's token has just been verified."
    )
    yield ""
    yield f"| | {' | '.join(f'{rows:,} rows | p99' for rows in sizes)} | last to first |"
    yield f"|---|{'---|' * (2 * len(sizes) + 1)}"
    for name, times in run.times.items():
        cells = [f"{time:.2f}" for rows in sizes for time in milliseconds(times[rows])]
        yield f"| {name} | {' | '.join(cells)} | {growth(times, sizes):.2f} |"
    yield ""
    yield f"The target for list and GET one is {MOST_GROWTH} at most."
    yield ""
    yield "## Tables"
    yield ""
    yield (
        f"{TASKS_PER_USER} tasks of each user, none next to each other. Loaded by COPY into the "
        "table as the service makes it, indexes in place; then VACUUM ANALYZE."
    )
    yield ""
    yield f"| rows | COPY, s | {' | '.join(f'{name}, MiB' for name in run.tables[0].sizes)} |"
    yield f"|---|---|{'---|' * len(run.tables[0].sizes)}"
    for table in run.tables:
        cells = [f"{size / 2**20:,.1f}" for size in table.sizes.values()]
        yield f"| {table.rows:,} | {table.load_time:.1f} | {' | '.join(cells)} |"
    yield ""
    yield "## Plans"
    yield ""
    if faults:
        yield f"**Not as they should be**: {', '.join(sorted(set(faults)))}."
    else:
        yield "Index scans only: no sort and no sequential scan, in any of them."
    yield ""
    yield (
        "Of the statements that the service sent, with the values of their parameters (custom) and "
        "without (generic), which a prepared statement may change to from its sixth run on."
    )
    alike: dict[Plan, list[int]] = {}
    for rows, plans in run.plans.items():
        for plan in plans:
            alike.setdefault(plan, []).append(rows)
    for plan, found_at in alike.items():
        mode = plan.mode.removeprefix("force_").removesuffix("_plan")
        yield ""
        yield f"{plan.request}, {mode}, at {' and '.join(f'{rows:,}' for rows in found_at)} rows:"
        yield ""
        yield f"```\n{plan.text}\n```"


def growth(times: dict[int, list[float]], sizes: Sequence[int]) -> float:
    """How many times as long a request takes in the last table as in the first."""
    return median(times[sizes[-1]]) / median(times[sizes[0]])


def as_json(run: Run) -> str:
    latency: dict[str, dict[int, dict[str, float]]] = {}
    for name, times in run.times.items():
        for rows, those in times.items():
            middle, high = milliseconds(those)
            figures = {"median": round(middle, 3), "p99": round(high, 3)}
            latency.setdefault(name, {})[rows] = figures
    document = {
        **run.facts,
        "tables": [
            {"rows": table.rows, "copy_seconds": round(table.load_time, 1), "bytes": table.sizes}
            for table in run.tables
        ],
        "latency_ms": latency,
        "plans": {
            rows: [{**plan._asdict(), "faults": plan.faults()} for plan in plans]
            for rows, plans in run.plans.items()
        },
    }
    return json.dumps(document, indent=2) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="How the service's answers grow with its table.")
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=SIZES,
        help="of each table, 2,000 at least; the results are kept only without this option",
    )
    # A quarter of the memory is what PostgreSQL's manual recommends for a server of its own.
    quarter = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 // 2**20
    parser.add_argument(
        "--shared-buffers",
        default=f"{quarter}MB",
        help="PostgreSQL's cache; 128MB is its default. The results are kept under its name",
    )
    options = parser.parse_args()
    sizes: list[int] = options.rows
    cache: str = options.shared_buffers
    stem = "growth" if cache == f"{quarter}MB" else f"growth-{cache}"
    settings = {"fsync": "on", "shared_buffers": cache}
    with postgresql(**settings) as server, TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        tables = []
        for rows in sizes:
            tables.append(create_table(server, folder, rows))
            say(f"{rows:,} rows loaded in {tables[-1].load_time:.1f} s")
        run = Run(
            tables,
            {table.rows: plans(server, table, folder) for table in tables},
            measure(tables, folder),
            facts(server.url()),
        )
    report = "\n".join(markdown(run))
    print(report)
    if sizes == SIZES:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{stem}.md").write_text(f"{report}\n")
        (RESULTS / f"{stem}.json").write_text(as_json(run))
    grown = any(
        growth(times, sizes) > MOST_GROWTH
        for name, times in run.times.items()
        if name.startswith("GET")
    )
    return int(grown or any(plan.faults() for plans in run.plans.values() for plan in plans))


if __name__ == "__main__":
    sys.exit(main())
