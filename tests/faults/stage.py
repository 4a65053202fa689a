# [Task]: T032 [From]: specs/requirements.md
"""What the fault tests share: servers, a ledger of who was promised what, patience and clocks."""

import asyncio
import atexit
import re
import secrets
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from inspect import isawaitable
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, NamedTuple

import asyncpg
import httpx
from postgresql import PostgreSQL
from service import PATIENCE, Service, serving
from support import Caller, assert_error

from faults.proxy import Proxy

# Seconds: the bound of RELIABILITY.md is 5, the rest is for a machine that is busy.
BOUND = 6.0
# Seconds: 2 in RELIABILITY.md, the rest likewise.
RECOVERY = 3.0
# Seconds: what a person would call at once, on a busy machine.
AT_ONCE = 1.0

# What a service is started with, so that its connections can be counted.
POOL = 10
# What one user may hold of it (kit/database/gate.py).
SHARE = 8


@cache
def _empty_cluster() -> str:
    """A folder to copy, which is quicker than to make a cluster anew."""
    folder = mkdtemp(prefix="task-api-")
    atexit.register(rmtree, folder)
    PostgreSQL(Path(folder))
    return folder


@contextmanager
def postgresql(**settings: object) -> Iterator[PostgreSQL]:
    """A server of a module's own, which its tests may stop, as long as they start it again."""
    # Not in pytest's own folder, which each run closes to other users, PostgreSQL's among them.
    with TemporaryDirectory(prefix="task-api-") as folder:
        subprocess.run(["cp", "-aT", _empty_cluster(), folder], check=True)
        server = PostgreSQL(Path(folder))
        # A role for tests of passwords.
        server.require_password("secured")
        server.start(**settings)
        try:
            yield server
        finally:
            server.stop("immediate")


@asynccontextmanager
async def stopped(server: PostgreSQL, mode: str = "fast") -> AsyncIterator[None]:
    """The server is away for as long as this lasts."""
    await asyncio.to_thread(server.stop, mode)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start, fsync="on")


class Scene(NamedTuple):
    """A service that has its database through a proxy, and one of its users."""

    server: PostgreSQL
    url: str
    proxy: Proxy
    service: Service
    http: httpx.AsyncClient
    alice: Caller

    async def fill_pool(self) -> None:
        """Have the service connect as often as it may."""

        async def full() -> bool:
            # Several users, since one holds no more than a part of the connections.
            await at_once(someone(self.http).get() for _ in range(4 * POOL))
            return await backends(self.url) == POOL

        await eventually(full, BOUND)

    async def assert_well(self) -> None:
        await recovered(self.alice)
        await have_backends(self.url, 0, "state <> 'idle'", BOUND)
        answers = await at_once(reads_and_writes(self.alice, 4 * POOL, "Afterwards"))
        assert statuses(answers) == {200: 2 * POOL, 201: 2 * POOL}
        await have_backends(self.url, 0, "state <> 'idle'", BOUND)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A connection of the test's own, past any proxy, that may write when others may not."""
    settings = {"default_transaction_read_only": "off"}
    connection = await asyncpg.connect(url, server_settings=settings)
    try:
        yield connection
    finally:
        # Not a polite close: the server may be gone.
        connection.terminate()


@asynccontextmanager
async def rows_locked(url: str, *task_ids: int) -> AsyncIterator[None]:
    """Someone else's transaction holds the rows of tasks for as long as this lasts."""
    async with connected(url) as connection, connection.transaction():
        await connection.execute("SELECT FROM task WHERE id = ANY ($1) FOR UPDATE", task_ids)
        yield


_FILL = """
    INSERT INTO task (user_id, title, description, completed, created_at, updated_at)
    SELECT $1, 'Buy milk ' || n, repeat($3, 1000), false, now() - n * interval '1 second', now()
    FROM generate_series(1, $2) n
"""


async def fill(url: str, user: str, count: int, letter: str) -> None:
    """Give a user so many tasks, each with a thousand letters."""
    async with connected(url) as connection:
        await connection.execute(_FILL, user, count, letter)


async def configure(url: str, name: str, value: str | None) -> None:
    """Change a setting of a running server; None resets it."""
    async with connected(url) as connection:
        change = f"RESET {name}" if value is None else f"SET {name} = {value}"
        await connection.execute(f"ALTER SYSTEM {change}")
        await connection.execute("SELECT pg_reload_conf()")


async def backends(url: str, condition: str = "true") -> int:
    """How many connections of the service to this database fulfil a condition."""
    async with connected(url) as connection:
        count: int = await connection.fetchval(f"""
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'task-api' AND {condition}
        """)  # noqa: S608  # a test's own words
        return count


async def have_backends(
    url: str, count: int, condition: str = "true", within: float = PATIENCE
) -> None:
    """Wait until so many of them fulfil it."""

    async def have() -> bool:
        return await backends(url, condition) == count

    await eventually(have, within)


async def kill_backends(url: str) -> int:
    """End every connection of the service, and say how many there were."""
    async with connected(url) as connection:
        killed: int = await connection.fetchval("""
            SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'task-api'
        """)
        return killed


async def eventually(probe: Callable[[], object], within: float = PATIENCE) -> float:
    """Ask until the answer, which may have to be awaited, is true; how many seconds it took."""
    start = time.monotonic()
    while not (await answer if isawaitable(answer := probe()) else answer):
        assert time.monotonic() < start + within, f"it did not happen within {within} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - start


class Answer(NamedTuple):
    """A response and the seconds it took."""

    response: httpx.Response
    seconds: float

    @property
    def status(self) -> int:
        return self.response.status_code


async def timed(request: Awaitable[httpx.Response]) -> Answer:
    start = time.monotonic()
    response = await request
    return Answer(response, time.monotonic() - start)


async def at_once(requests: Iterable[Awaitable[httpx.Response]]) -> list[Answer]:
    """All of them at the same time."""
    return await asyncio.gather(*map(timed, requests))


def reads_and_writes(caller: Caller, count: int, label: str) -> list[Awaitable[httpx.Response]]:
    """As many requests, half of them lists and half of them POSTs of a title of their own."""
    return [caller.get() if n % 2 else caller.post({"title": f"{label} {n}"}) for n in range(count)]


def statuses(answers: Iterable[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


def assert_in_time(answers: Sequence[Answer], counts: dict[int, int] | None = None) -> None:
    """Every one came within the bound, and a 503 has its one form and says when to come again.

    There are so many of each status, if `counts` says so.
    """
    assert counts in (None, statuses(answers))
    for answer in answers:
        assert answer.seconds < BOUND, answer
        if answer.status >= 500:
            assert_unavailable(answer.response)


def assert_alternate(toggles: Sequence[Answer]) -> str:
    """They alternate exactly, an odd number of them of a task that was open; the last's instant."""
    assert statuses(toggles) == {200: len(toggles)}
    tasks = [answer.response.json() for answer in toggles]
    states: dict[str, bool] = {task["updated_at"]: task["completed"] for task in tasks}
    alternation = [True, False] * (len(toggles) // 2) + [True]
    assert [states[instant] for instant in sorted(states)] == alternation
    return max(states)


def assert_unavailable(response: httpx.Response) -> None:
    assert_error(response, 503, "Service temporarily unavailable")
    assert int(response.headers["Retry-After"]) >= 1, response.headers


async def assert_healthy(http: httpx.AsyncClient) -> None:
    """The process itself is well, whatever its database is."""
    health = await timed(http.get("/health"))
    assert (health.status, health.response.json()) == (200, {"status": "ok"}), health
    assert health.seconds < AT_ONCE, health


async def is_ready(http: httpx.AsyncClient) -> bool:
    """What /health/ready says, in one of two forms and in time."""
    answer = await timed(http.get("/health/ready"))
    assert_in_time([answer])
    if answer.status == 200:
        assert answer.response.json() == {"status": "ready"}
    return answer.status == 200


async def assert_not_ready(http: httpx.AsyncClient) -> None:
    """A crowd of probes is told so and does not wait for long; the process itself is well."""
    assert not await is_ready(http)
    answers = await at_once(http.get("/health/ready") for _ in range(50))
    assert statuses(answers) == {503: 50}
    assert_in_time(answers)
    await assert_healthy(http)


async def served(caller: Caller, within: float = RECOVERY, path: str = "") -> float:
    """Until a read succeeds; how many seconds it took."""

    async def answered() -> bool:
        return (await caller.get(path)).status_code == 200

    return await eventually(answered, within)


async def recovered(caller: Caller, within: float = RECOVERY) -> float:
    """Until a write and a read both succeed; how many seconds it took."""

    async def both() -> bool:
        written = await caller.post({"title": "Back again"})
        return written.status_code == 201 and (await caller.get()).status_code == 200

    return await eventually(both, within)


class Ledger:
    """Who was promised what: POSTs of titles that occur once, and the ids that 201s named.

    Of the others nothing is known: a 503 or a broken connection may have written or not.
    """

    def __init__(self) -> None:
        self.promised: dict[str, int] = {}
        self.answers: Counter[int | str] = Counter()
        self._attempted: set[str] = set()

    async def post(self, caller: Caller) -> bool:
        """One more; False if the connection broke."""
        title = f"Entry {len(self._attempted)}"
        self._attempted.add(title)
        try:
            response = await caller.post({"title": title})
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
            return False
        self.answers[response.status_code] += 1
        if response.status_code == 201:
            self.promised[title] = response.json()["id"]
        return True

    async def post_until(self, caller: Caller, stop: asyncio.Event) -> None:
        """One after the other, until it is enough or the connection breaks."""
        while not stop.is_set() and await self.post(caller):
            if self.answers[503]:
                await asyncio.sleep(0.005)

    async def reach(self, count: int) -> None:
        """Until as many have been promised."""
        await eventually(lambda: len(self.promised) >= count)

    async def more(self, count: int) -> None:
        """Until as many further ones have been promised."""
        await self.reach(len(self.promised) + count)

    def assert_kept(self, tasks: list[dict[str, Any]]) -> None:
        """Every promise is kept, and nothing is there twice or out of nowhere."""
        kept = {task["title"]: task["id"] for task in tasks}
        assert len(kept) == len(tasks), "a write happened twice"
        lost = self.promised.items() - kept.items()
        assert not lost, lost
        assert kept.keys() <= self._attempted, kept.keys() - self._attempted


@asynccontextmanager
async def load(
    writers: int, work: Callable[[asyncio.Event], Awaitable[None]]
) -> AsyncIterator[None]:
    """So many at work until the end of this; what they raise is raised then."""
    stop = asyncio.Event()
    tasks = [asyncio.ensure_future(work(stop)) for _ in range(writers)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def listed(caller: Caller) -> list[dict[str, Any]]:
    response = await caller.get()
    assert response.status_code == 200, response.text
    tasks: list[dict[str, Any]] = response.json()
    return tasks


_LEVEL = re.compile(r"(WARNING|ERROR|CRITICAL)\b")
_TRACEBACK = re.compile(r"^ *Traceback.*\n(?: {5}.*\n| *\n)*(.*)", re.MULTILINE)


def complaints(service: Service, since: int = 0) -> list[str]:
    """The log lines at WARNING or above, beyond so many characters of the log.

    But for Granian's warning of more workers than this machine has cores.
    """
    lines = service.log()[since:].splitlines()
    return [line for line in lines if _LEVEL.match(line) and "CPU cores" not in line]


@contextmanager
def watched(service: Service) -> Iterator[None]:
    """Whatever happens here, the process lives on, and no bug comes to light in its log."""
    since = len(service.log())
    yield
    assert service.process.poll() is None, "the process has ended"
    assert_no_traceback(service, since)


@asynccontextmanager
async def used(
    folder: Path, **environment: str
) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A service of a test's own, watched, and a client of it."""
    with serving(folder, **environment) as service, watched(service):
        async with service.client() as http:
            yield service, http


def assert_no_traceback(service: Service, since: int = 0) -> None:
    """An outage is told in a sentence."""
    exceptions = _TRACEBACK.findall(service.log()[since:])
    assert not exceptions, exceptions


def someone(http: httpx.AsyncClient) -> Caller:
    """A user whom no other test knows."""
    return Caller(http, f"user-{secrets.token_hex(4)}")


@contextmanager
def unread(service: Service, caller: Caller, path: str = "") -> Iterator[socket.socket]:
    """A request whose answer nobody reads."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", service.port))
        client.sendall(
            f"GET {caller.tasks}{path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {caller.token}\r\n\r\n".encode()
        )
        yield client
