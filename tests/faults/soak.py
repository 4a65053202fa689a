# [Task]: T033 [From]: specs/requirements.md
"""A soak: fifty clients and some who do the worst, a fault every few seconds, every promise kept.
`.venv/bin/python tests/faults/soak.py --seconds 600`; exits with 1 if a promise was broken."""

import argparse
import asyncio
import random
import re
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import asyncpg
import httpx

sys.path.append(str(Path(__file__).parents[1]))

from postgresql import PostgreSQL
from service import Service, create_database
from support import SECRET, Caller

from faults.proxy import Proxy, proxying
from faults.stage import unread

CLIENTS = 50
POOL = 10
MAX_CONNECTIONS = 40
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
type Effect = Callable[[State], State]


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
        dice = self._random.random()
        if title is None or dice < 0.25:
            await self._add()
        elif dice < 0.30:
            await self._add_nonsense()
        elif dice < 0.45:
            await self._list()
        elif dice < 0.60:
            await self._change(title, "GET", lambda state: state)
        elif dice < 0.75:
            words = secrets.token_hex(4)
            await self._change(title, "PUT", _described(words), json={"description": words})
        elif dice < 0.90:
            await self._change(title, "PATCH", _toggled, "/complete")
        else:
            await self._change(title, "DELETE", lambda _: ABSENT)

    async def _add(self) -> None:
        title = f"Entry {len(self.entries)}"
        entry = self.entries[title] = Entry()
        made = Task(None, completed=False)
        response = await self._send("POST", json={"title": title})
        if response is None:
            return
        entry.possible = {ABSENT, made}
        if self._expect(response, 201, title):
            entry.possible = {made}
            entry.id = response.json()["id"]

    async def _add_nonsense(self) -> None:
        """What is refused must not be there: its title is nobody's entry."""
        response = await self._send("POST", json={"title": "Nonsense", "completed": "yes"})
        if response is not None:
            self._expect(response, 422, "nonsense")

    async def _change(
        self, title: str, method: str, effect: Effect, path: str = "", json: object = None
    ) -> None:
        entry = self.entries[title]
        [before] = entry.possible
        after = effect(before)
        response = await self._send(method, f"/{entry.id}{path}", json=json)
        if response is None:
            return
        entry.possible = {before, after}
        if self._expect(response, 204 if after is ABSENT else 200, f"{method} {title}"):
            entry.possible = {after}
            if after is not ABSENT and _task(response.json()) != after:
                self._violation(f"{method} {title}: {response.text}, not {after}")

    async def _list(self) -> None:
        response = await self._send("GET")
        if response is not None and self._expect(response, 200, "list"):
            self.check(response.json())

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

    def _expect(self, response: httpx.Response, status: int, what: str) -> bool:
        """Whether it is this; a 503 leaves open what has happened, anything else is wrong."""
        if response.status_code == 503 and "Retry-After" in response.headers:
            self._tally.classes["unknown"] += 1
            return False
        self._tally.classes["ok" if response.status_code < 400 else "failed"] += 1
        if response.status_code != status:
            self._violation(f"{what}: {response.status_code} {response.text}")
            return False
        return True

    def _violation(self, what: str) -> None:
        self._tally.violation(f"{self.caller.user}: {what}")


class Searcher(Client):
    """A user whose searches take as long as they can, in tasks that nobody changes."""

    WORDS = ("a" * 199 + "b", "b" + "a" * 199)

    async def fill(self, stage: "Stage") -> None:
        async with stage.connected() as connection:
            await connection.execute(_FULL_OF_A, self.caller.user)

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


def _described(words: str) -> Effect:
    return lambda state: state and state._replace(description=words)


def _toggled(state: State) -> State:
    return state and state._replace(completed=not state.completed)


class Worst:
    """Two users: one with long lists that nobody reads, one with keys without end."""

    def __init__(self, stage: "Stage", http: httpx.AsyncClient) -> None:
        self._stage = stage
        self._hoarder = Caller(http, "hoarder")
        self._repeater = Caller(http, "repeater")

    async def run(self, stop: asyncio.Event) -> None:
        async with self._stage.connected() as connection:
            await connection.execute(_LONG_LIST, self._hoarder.user)
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
        async with self._stage.connected() as connection:
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
        self._url = url
        self._random = random.Random(seed)  # noqa: S311  # no secret
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self.services: list[Service] = []
        self._restarts = [self._kill_service, self._terminate_service]
        self._turns: list[Callable[[float], Awaitable[str]]] = []

    @property
    def service(self) -> Service:
        return self.services[-1]

    def start_service(self) -> None:
        environment = {
            "BETTER_AUTH_SECRET": SECRET,
            "DATABASE_URL": self._proxy.url(self._url),
            "DATABASE_POOL_SIZE": str(POOL),
            "PORT": self._port,
            "TASKS_PER_USER": str(TASKS_PER_USER),
        }
        self.services.append(Service(self._folder, environment))
        self.service.wait_for_health()

    async def fault(self, *, restarts: bool) -> str:
        """Do something bad, see it through, and say what it was. Each has its turn."""
        if not self._turns:
            self._turns = [
                self._kill_backends,
                self._stop_server,
                self._stall,
                self._strand,
                self._cut,
                self._refuse,
                self._delay,
                self._make_read_only,
                self._alter_table,
                self._lock_table,
                self._use_up_connections,
                *self._restarts,
            ]
            self._random.shuffle(self._turns)
        if not restarts:
            self._turns = [turn for turn in self._turns if turn not in self._restarts]
        return await self._turns.pop()(self._random.uniform(0.5, 4))

    async def rest(self) -> None:
        await asyncio.sleep(self._random.uniform(1, 3))

    async def _kill_backends(self, _: float) -> str:
        async with self.connected() as connection:
            killed = await connection.fetchval(f"""
                SELECT count(pg_terminate_backend(pid)) {_OF_THE_SERVICE}
            """)
        return f"{killed} backends killed"

    async def _stop_server(self, seconds: float) -> str:
        mode = self._random.choice(["fast", "immediate"])
        await asyncio.to_thread(self._server.stop, mode)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(start, self._server)
        return f"server stopped ({mode}) for {seconds:.1f} s"

    async def _stall(self, seconds: float) -> str:
        self._proxy.stall()
        await asyncio.sleep(seconds)
        self._proxy.resume()
        return f"packets swallowed for {seconds:.1f} s"

    async def _strand(self, seconds: float) -> str:
        with self._proxy.stranded():
            await asyncio.sleep(seconds)
        return f"connections half open for {seconds:.1f} s"

    async def _cut(self, _: float) -> str:
        # While answers are under way, so that what was done is not known to be.
        with self._proxy.delayed(up=0, down=0.2):
            await asyncio.sleep(0.2)
            self._proxy.cut()
        return "connections cut"

    async def _refuse(self, seconds: float) -> str:
        self._proxy.refuse()
        self._proxy.cut()
        await asyncio.sleep(seconds)
        self._proxy.accept()
        return f"connections refused for {seconds:.1f} s"

    async def _delay(self, seconds: float) -> str:
        with self._proxy.delayed(up=0.1, down=0.1):
            await asyncio.sleep(seconds)
        return f"packets 100 ms late for {seconds:.1f} s"

    async def _make_read_only(self, seconds: float) -> str:
        async with self.connected() as connection:
            await connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            await connection.execute("SELECT pg_reload_conf()")
            await asyncio.sleep(seconds)
            await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await connection.execute("SELECT pg_reload_conf()")
        return f"read-only for {seconds:.1f} s"

    async def _alter_table(self, _: float) -> str:
        async with self.connected() as connection:
            for kind in ("varchar(1000)", "text"):
                await connection.execute(f"ALTER TABLE task ALTER description TYPE {kind}")
        return "table altered"

    async def _lock_table(self, seconds: float) -> str:
        async with self.connected() as connection, connection.transaction():
            await connection.execute("LOCK TABLE task")
            await asyncio.sleep(seconds)
        return f"table locked for {seconds:.1f} s"

    async def _use_up_connections(self, seconds: float) -> str:
        taken: list[Any] = []
        try:
            await self._kill_backends(0)
            while len(taken) < MAX_CONNECTIONS:
                taken.append(await asyncpg.connect(self._url))
        except asyncpg.TooManyConnectionsError:
            await asyncio.sleep(seconds)
        finally:
            for connection in taken:
                connection.terminate()
        return f"{len(taken)} connections taken for {seconds:.1f} s"

    async def _kill_service(self, _: float) -> str:
        await asyncio.to_thread(self.service.kill)
        await asyncio.to_thread(self.start_service)
        return "service killed"

    async def _terminate_service(self, _: float) -> str:
        self.service.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(self.service.process.wait, EXIT_WITHIN)
        assert status == 0, f"the service ended with {status}"
        await asyncio.to_thread(self.start_service)
        return "service terminated"

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        """A connection past the proxy, that may write when others may not."""
        settings = {"default_transaction_read_only": "off"}
        connection = await asyncpg.connect(self._url, server_settings=settings)
        try:
            yield connection
        finally:
            connection.terminate()

    async def check_connections(self, tally: Tally) -> None:
        async with self.connected() as connection:
            states = await connection.fetch(f"SELECT state, xact_start {_OF_THE_SERVICE}")
        if len(states) > POOL or any(tuple(row) != ("idle", None) for row in states):
            tally.violation(f"connections: {states}")
        if self._proxy.open_connections != len(states):
            tally.violation(f"{self._proxy.open_connections} connections, {len(states)} backends")

    def memory(self) -> float:
        """Of the service, in MiB."""
        return self.service.memory() / 2**20


_RAISED = re.compile(r"^[\w.]+Error\b.*", re.MULTILINE)
# Characters of six bytes in JSON.
_FULL_OF_A = """
    INSERT INTO task (user_id, title, description, created_at, updated_at)
    SELECT $1, 'Task', repeat('a', 1000), now(), now() FROM generate_series(1, 3000)
"""
_LONG_LIST = """
    INSERT INTO task (user_id, title, description, completed, created_at, updated_at)
    SELECT $1, 'task ' || n, repeat(chr(1), 1000), false, now(), now()
    FROM generate_series(1, 3000) n
"""
_OF_THE_SERVICE = """
    FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'task-api'
"""


def start(server: PostgreSQL) -> None:
    # What it has promised, it must keep when it is stopped at once.
    server.start(fsync="on", max_connections=MAX_CONNECTIONS)


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
        await searcher.fill(stage)
        runs = [worst.run(stop), *(client.run(stop) for client in (*clients, searcher))]
        running = [asyncio.create_task(run) for run in runs]
        await asyncio.sleep(CALM)
        memory = stage.memory()
        while (at := time.monotonic() - began) < seconds - CALM:
            # The process that is measured at the end has been through half of it.
            told = await stage.fault(restarts=at < seconds / 2)
            say(f"{at:6.1f} s  {told:42}{tally}  slowest {tally.slowest:.1f} s")
            await stage.rest()
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
        grown = stage.memory() - memory
        if grown > GROWTH:
            tally.violation(f"grown by {grown:.0f} MiB from {memory:.0f} MiB")
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
    with TemporaryDirectory(prefix="soak-") as name:
        (data := Path(name) / "data").mkdir()
        server = PostgreSQL(data)
        start(server)
        stage = None
        try:
            url = create_database(server)
            with proxying(server.port) as proxy:
                stage = Stage(Path(name), server, proxy, url, arguments.seed)
                tally = asyncio.run(soak(stage, arguments.seconds, arguments.seed))
        finally:
            if stage is not None and stage.services:
                stage.service.kill()
            server.stop("immediate")
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
