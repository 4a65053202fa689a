# [Task]: T033 [From]: specs/requirements.md
"""A soak: fifty clients and some who do the worst, a fault every few seconds, every promise kept.
`.venv/bin/python tests/faults/soak.py --seconds 600`; exits with 1 if a promise was broken."""

import argparse
import asyncio
import random
import re
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from inspect import isasyncgenfunction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import asyncpg
import httpx

sys.path.append(str(Path(__file__).parents[1]))

from postgresql import PostgreSQL, free_port
from service import Service, create_database
from support import SECRET, Caller

from faults.proxy import Proxy, proxying
from faults.stage import configure, connected, fill, kill_backends, postgresql, unread

CLIENTS = 50
POOL = 10
MAX_CONNECTIONS = 40
# What the server has promised, it must keep when it is stopped at once.
SERVER = {"fsync": "on", "max_connections": MAX_CONNECTIONS}
# Seconds: no request may take longer; RELIABILITY.md says 5, the rest is for a busy machine.
BOUND = 6.0
# Seconds a client rests between two requests, at most.
REST = 0.4
# Seconds of load without faults, before the first and after the last one.
CALM = 5.0
# Seconds that a process may take to end after SIGTERM.
EXIT_WITHIN = 10.0
# What the processes may have grown by in the meantime, in MiB: long answers, and the rest.
GROWTH = 64.0 + 40.0
# Of each user, but for the one who does the worst.
TASKS_PER_USER = 1000


class Task(NamedTuple):
    """What of a task a client decides."""

    description: str | None
    completed: bool


ABSENT = None
type State = Task | None


class Entry:
    """A title that was asked for once, and the states that it may be in by what its client knows.

    A request without an answer may take effect at any time, even later: it leaves two states, and
    its task is then left alone.
    """

    def __init__(self) -> None:
        self.id = 0
        self.possible: set[State] = {ABSENT}

    @property
    def is_known_and_there(self) -> bool:
        return len(self.possible) == 1 and ABSENT not in self.possible


class Tally:
    """Of all clients: requests by Jepsen's classes, the slowest, and what must never happen."""

    def __init__(self) -> None:
        self.classes: Counter[str] = Counter()
        self.slowest = 0.0
        # Seconds that this process, rather than the service, has been late so far.
        self.late = 0.0
        self.violations: list[str] = []

    async def watch_lateness(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.05
            await asyncio.sleep(0.05)
            self.late += loop.time() - due

    def violation(self, what: str) -> None:
        if what not in self.violations:
            self.violations.append(what)
            say(f"VIOLATION  {what}")

    def __str__(self) -> str:
        return " ".join(f"{name} {self.classes[name]}" for name in ("ok", "failed", "unknown"))


class Client:
    """One user, who does one thing after the other and remembers what was answered."""

    def __init__(self, http: httpx.AsyncClient, number: int, seed: int, tally: Tally) -> None:
        self.caller = Caller(http, f"client {number}")
        self._random = random.Random(f"{seed} {number}")  # noqa: S311  # no secret
        self._tally = tally
        self.entries: dict[str, Entry] = {}

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            there = [title for title, e in self.entries.items() if e.is_known_and_there]
            await self._do_something(self._random.choice(there) if there else None)
            await asyncio.sleep(self._random.uniform(0, REST))

    async def _do_something(self, title: str | None) -> None:
        [what] = self._random.choices(
            ["add", "add nonsense", "list", "GET", "PUT", "PATCH", "DELETE"],
            [25, 5, 15, 15, 15, 15, 10],
        )
        if title is None or what == "add":
            await self._add()
        elif what == "add nonsense":
            # What is refused must not be there: its title is nobody's entry.
            nonsense = {"title": "Nonsense", "completed": "yes"}
            self._expect(await self._send("POST", json=nonsense), 422, what)
        elif what == "list":
            if response := self._expect(await self._send("GET"), 200, what):
                self.check(response.json())
        else:
            await self._change(title, what)

    async def _add(self) -> None:
        title = f"Entry {len(self.entries)}"
        entry = self.entries[title] = Entry()
        made = Task(None, completed=False)
        answer = await self._send("POST", json={"title": title})
        if answer is not None:
            entry.possible = {ABSENT, made}
        if response := self._expect(answer, 201, title):
            entry.possible = {made}
            entry.id = response.json()["id"]

    async def _change(self, title: str, method: str) -> None:
        entry = self.entries[title]
        [before] = entry.possible
        assert before is not ABSENT
        words = secrets.token_hex(4)
        changes: dict[str, tuple[State, str, object]] = {
            "GET": (before, "", None),
            "PUT": (before._replace(description=words), "", {"description": words}),
            "PATCH": (before._replace(completed=not before.completed), "/complete", None),
            "DELETE": (ABSENT, "", None),
        }
        after, path, json = changes[method]
        answer = await self._send(method, f"/{entry.id}{path}", json=json)
        if answer is not None:
            entry.possible = {before, after}
        if response := self._expect(answer, 204 if after is ABSENT else 200, f"{method} {title}"):
            entry.possible = {after}
            if after is not ABSENT and _task(response.json()) != after:
                self._violation(f"{method} {title}: {response.text}, not {after}")

    def check(self, tasks: list[dict[str, Any]]) -> None:
        """Every task that is there may be there, and is there once; none is missing."""
        found = {task["title"]: task for task in tasks}
        if len(found) != len(tasks):
            self._violation(f"twice: {Counter(task['title'] for task in tasks).most_common(3)}")
        for title in found.keys() - self.entries.keys():
            self._violation(f"nobody's: {found[title]}")
        for title, entry in self.entries.items():
            state = _task(found[title]) if title in found else ABSENT
            if state not in entry.possible:
                self._violation(f"{title} is {state}, not one of {entry.possible}")

    async def _send(
        self, method: str, path: str = "", json: object = None
    ) -> httpx.Response | None:
        """The answer, a 503 where there is none; None if nothing was sent."""
        began = time.monotonic() - self._tally.late
        try:
            response = await self.caller.request(method, path, json=json)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            self._tally.classes["failed"] += 1
            return None
        except httpx.TransportError:
            response = httpx.Response(503, headers={"Retry-After": "1"})
        seconds = time.monotonic() - self._tally.late - began
        self._tally.slowest = max(self._tally.slowest, seconds)
        if seconds > BOUND:
            self._violation(f"{method} {path} took {seconds:.1f} s")
        return response

    def _expect(
        self, response: httpx.Response | None, status: int, what: str
    ) -> httpx.Response | None:
        """It, if it has this status; a 503 leaves open what happened, anything else is wrong."""
        if response is None:
            return None
        if response.status_code == 503 and "Retry-After" in response.headers:
            self._tally.classes["unknown"] += 1
            return None
        self._tally.classes["ok" if response.status_code < 400 else "failed"] += 1
        if response.status_code != status:
            self._violation(f"{what}: {response.status_code} {response.text}")
            return None
        return response

    def _violation(self, what: str) -> None:
        self._tally.violation(f"{self.caller.user}: {what}")


class Searcher(Client):
    """A user whose searches take as long as they can, in tasks that nobody changes."""

    WORDS = ("a" * 199 + "b", "b" + "a" * 199)

    async def _do_something(self, title: str | None) -> None:
        assert title is None
        response = await self._send("GET", f"?search={self._random.choice(self.WORDS)}")
        if response is None:
            return
        if response.status_code == 503 and "The search takes too long" in response.text:
            self._tally.classes["failed"] += 1
        elif self._expect(response, 200, "search") and response.json():
            self._violation(f"found {response.text[:100]}")


def _task(json: dict[str, Any]) -> Task:
    return Task(json["description"], json["completed"])


class Worst:
    """Two users: one with long lists that nobody reads, one with keys without end."""

    def __init__(self, stage: "Stage", http: httpx.AsyncClient) -> None:
        self._stage = stage
        self._hoarder = Caller(http, "hoarder")
        self._repeater = Caller(http, "repeater")

    async def run(self, stop: asyncio.Event) -> None:
        # Characters of six bytes in JSON.
        await fill(self._stage.url, self._hoarder.user, 3000, "\x01")
        while not stop.is_set():
            with suppress(OSError, httpx.TransportError), ExitStack() as stack:
                for path in ("?sort=title", "?limit=200", "?search=x"):
                    for _ in range(5):
                        stack.enter_context(unread(self._stage.service, self._hoarder, path))
                for _ in range(20):
                    key = {"Idempotency-Key": secrets.token_hex(8)}
                    made = await self._repeater.post({"title": "For its key"}, headers=key)
                    if made.status_code == 201:
                        await self._repeater.delete(f"/{made.json()['id']}")

    async def check(self, tally: Tally) -> None:
        async with connected(self._stage.url) as connection:
            keys = await connection.fetchval("SELECT count(*) FROM task WHERE deleted_at NOTNULL")
        # Each process may leave a 64th more before it clears.
        if keys > TASKS_PER_USER * (1 + len(self._stage.services) / 64):
            tally.violation(f"{keys} keys of deleted tasks")


class Stage:
    """The service, the proxy, the server, and what can be done to them."""

    def __init__(self, folder: Path, server: PostgreSQL, proxy: Proxy, url: str, seed: int) -> None:
        self._folder = folder
        self._server = server
        self._proxy = proxy
        self.url = url
        self._random = random.Random(seed)  # noqa: S311  # no secret
        self._port = f"{free_port()}"
        self.services: list[Service] = []
        self._turns: list[Fault] = []

    @property
    def service(self) -> Service:
        return self.services[-1]

    def start_service(self) -> None:
        environment = {
            "BETTER_AUTH_SECRET": SECRET,
            "DATABASE_URL": self._proxy.url(self.url),
            "DATABASE_POOL_SIZE": str(POOL),
            "PORT": self._port,
            "TASKS_PER_USER": str(TASKS_PER_USER),
        }
        self.services.append(Service(self._folder, environment))
        self.service.wait_for_health()

    async def fault(self, *, restarts: bool) -> str:
        """Do something bad, see it through, and say what it was. Each has its turn."""
        if not self._turns:
            self._turns = [*FAULTS]
            self._random.shuffle(self._turns)
        if not restarts:
            self._turns = [turn for turn in self._turns if turn not in RESTARTS]
        fault, seconds = self._turns.pop(), self._random.uniform(0.5, 4)
        async with asynccontextmanager(fault)(self):
            await asyncio.sleep(0.2 if fault in BRIEF else seconds)
        # Everybody may recover.
        await asyncio.sleep(self._random.uniform(1, 3))
        return f"{fault.__name__.replace('_', ' ')} {'' if fault in BRIEF else f'{seconds:.1f} s'}"

    async def backends_killed(self) -> AsyncIterator[None]:
        await kill_backends(self.url)
        yield

    async def server_stopped(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self._server.stop, self._random.choice(["fast", "immediate"]))
        yield
        await asyncio.to_thread(lambda: self._server.start(**SERVER))

    async def packets_swallowed(self) -> AsyncIterator[None]:
        self._proxy.stall()
        yield
        self._proxy.resume()

    async def connections_half_open(self) -> AsyncIterator[None]:
        with self._proxy.stranded():
            yield

    async def connections_cut(self) -> AsyncIterator[None]:
        # While answers are under way, so that what was done is not known to be.
        with self._proxy.delayed(up=0, down=0.2):
            yield
            self._proxy.cut()

    async def connections_refused(self) -> AsyncIterator[None]:
        self._proxy.refuse()
        self._proxy.cut()
        yield
        self._proxy.accept()

    async def packets_100_ms_late(self) -> AsyncIterator[None]:
        with self._proxy.delayed(up=0.1, down=0.1):
            yield

    async def read_only(self) -> AsyncIterator[None]:
        await configure(self.url, "default_transaction_read_only", "on")
        yield
        await configure(self.url, "default_transaction_read_only", None)

    async def table_altered(self) -> AsyncIterator[None]:
        async with connected(self.url) as connection:
            for kind in ("varchar(1000)", "text"):
                await connection.execute(f"ALTER TABLE task ALTER description TYPE {kind}")
        yield

    async def table_locked(self) -> AsyncIterator[None]:
        async with connected(self.url) as connection, connection.transaction():
            await connection.execute("LOCK TABLE task")
            yield

    async def connections_used_up(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as taken:
            await kill_backends(self.url)
            with suppress(asyncpg.TooManyConnectionsError):
                for _ in range(MAX_CONNECTIONS):
                    await taken.enter_async_context(connected(self.url))
            yield

    async def service_killed(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.service.kill)
        await asyncio.to_thread(self.start_service)
        yield

    async def service_terminated(self) -> AsyncIterator[None]:
        self.service.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(self.service.process.wait, EXIT_WITHIN)
        assert status == 0, f"the service ended with {status}"
        await asyncio.to_thread(self.start_service)
        yield

    async def check_connections(self, tally: Tally) -> None:
        async with connected(self.url) as connection:
            states = await connection.fetch(_STATES)
        if len(states) > POOL or any(tuple(row) != ("idle", None) for row in states):
            tally.violation(f"connections: {states}")
        if self._proxy.open_connections != len(states):
            tally.violation(f"{self._proxy.open_connections} connections, {len(states)} backends")


type Fault = Callable[[Stage], AsyncIterator[None]]
FAULTS: list[Fault] = [fault for fault in vars(Stage).values() if isasyncgenfunction(fault)]
RESTARTS: tuple[Fault, ...] = (Stage.service_killed, Stage.service_terminated)
# Over when they have been done.
BRIEF: tuple[Fault, ...] = (
    *RESTARTS,
    Stage.backends_killed,
    Stage.connections_cut,
    Stage.table_altered,
)
_RAISED = re.compile(r"^[\w.]+Error\b.*", re.MULTILINE)
_STATES = """
    SELECT state, xact_start FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'task-api'
"""


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


async def soak(stage: Stage, seconds: float, seed: int) -> Tally:
    tally = Tally()
    stop = asyncio.Event()
    began = time.monotonic()
    watch = asyncio.create_task(tally.watch_lateness())
    await asyncio.to_thread(stage.start_service)
    async with stage.service.client() as http:
        clients = [Client(http, n, seed, tally) for n in range(CLIENTS)]
        worst = Worst(stage, http)
        searcher = Searcher(http, CLIENTS, seed, tally)
        await fill(stage.url, searcher.caller.user, 3000, "a")
        runs = [worst.run(stop), *(client.run(stop) for client in (*clients, searcher))]
        running = [asyncio.create_task(run) for run in runs]
        await asyncio.sleep(CALM)
        memory = stage.service.memory()
        while (at := time.monotonic() - began) < seconds - CALM:
            # The process that is measured at the end has been through half of it.
            told = await stage.fault(restarts=at < seconds / 2)
            say(f"{at:6.1f} s  {told:42}{tally}  slowest {tally.slowest:.1f} s")
        await asyncio.sleep(CALM)
        stop.set()
        await asyncio.gather(*running)
        watch.cancel()
        for client in clients:
            response = await client.caller.get()
            if response.status_code == 200:
                client.check(response.json())
            else:
                tally.violation(f"no list at the end: {response.status_code}")
        await worst.check(tally)
        await stage.check_connections(tally)
        grown = (stage.service.memory() - memory) / 2**20
        if grown > GROWTH:
            tally.violation(f"grown by {grown:.0f} MiB from {memory / 2**20:.0f} MiB")
    logs = "".join(service.log() for service in stage.services)
    for line, count in Counter(_RAISED.findall(logs)).most_common():
        say(f"{count} tracebacks end with {line}")
    say(
        f"seed {seed}, {seconds:.0f} s: {tally}, slowest {tally.slowest:.1f} s, "
        f"grown by {grown:.0f} MiB, {len(tally.violations)} violations"
    )
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Break things under load, and count.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    arguments = parser.parse_args()
    say(f"seed {arguments.seed}")
    with (
        postgresql(**SERVER) as server,
        proxying(server.port) as proxy,
        TemporaryDirectory(prefix="soak-") as name,
    ):
        stage = Stage(Path(name), server, proxy, create_database(server), arguments.seed)
        try:
            tally = asyncio.run(soak(stage, arguments.seconds, arguments.seed))
        finally:
            for service in stage.services:
                service.kill()
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
