# [Task]: T032 [From]: specs/requirements.md
"""A database that fails, is away, slow or changed: points 6 to 12 of the reliability rules."""

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from databases import execute, stored
from postgresql import PostgreSQL
from service import Service, serving
from support import SECRET, Caller, sign

from faults import stage
from faults.proxy import Proxy, proxying
from kit.database.database import TABLES_LOCK


class TestPoint6KilledConnections:
    # Without a check of each connection before its use: ten times 503 (or 500), once for each dead
    # connection of the pool. With a repetition of everything: titles that are there twice.

    @pytest.mark.parametrize("how", ["by_the_server", "by_a_reset"])
    async def test_are_replaced_for_the_next_reads_and_writes(
        self, scene: stage.Scene, how: str
    ) -> None:
        await scene.fill_pool()
        if how == "by_the_server":
            assert await stage.kill_backends(scene.url) == stage.POOL
        else:
            scene.proxy.cut()
        answers = await stage.at_once(stage.reads_and_writes(scene.alice, 20, "Next"))
        assert stage.statuses(answers) == {200: 10, 201: 10}
        titles = Counter(task["title"] for task in await stage.listed(scene.alice))
        assert titles == {f"Next {n}": 1 for n in range(0, 20, 2)}

    async def test_under_load_lose_and_repeat_no_write(self, scene: stage.Scene) -> None:
        ledger = stage.Ledger()
        async with stage.load(8, lambda stop: ledger.post_until(scene.alice, stop)):
            for n in range(1, 11):
                await ledger.reach(20 * n)
                if n % 2:
                    scene.proxy.cut()
                else:
                    await stage.kill_backends(scene.url)
        assert ledger.answers.keys() <= {201, 503}
        ledger.assert_kept(await stage.listed(scene.alice))
        await stage.recovered(scene.alice)


class TestPoint7DatabaseDown:
    @pytest.mark.parametrize("how", ["stopped", "killed", "unreachable"])
    async def test_is_503_within_the_bound_and_over_when_it_is_back(
        self, scene: stage.Scene, how: str
    ) -> None:
        await stage.at_once(stage.reads_and_writes(scene.alice, 2 * stage.POOL, "Before"))
        mark = len(scene.service.log())
        async with contextlib.AsyncExitStack() as outage:
            if how == "unreachable":
                scene.proxy.refuse()
                scene.proxy.cut()
                outage.callback(scene.proxy.accept)
            else:
                mode = {"stopped": "fast", "killed": "immediate"}[how]
                await outage.enter_async_context(stage.stopped(scene.server, mode))
            answers = []
            for n in range(3):
                answers += await stage.at_once(
                    stage.reads_and_writes(scene.alice, 20, f"During {n}")
                )
                await stage.assert_not_ready(scene.http)
            stage.assert_in_time(answers, {503: 60})
            assert statistics.median(answer.seconds for answer in answers) < stage.AT_ONCE
        if how == "stopped":
            # Ready by itself, without anybody's request.
            await stage.eventually(lambda: stage.is_ready(scene.http), stage.RECOVERY)
        await stage.recovered(scene.alice)
        # An operator reads that it began and that it ended, not a line for each request.
        complained = stage.complaints(scene.service, mark)
        assert len(complained) <= 2, complained


class TestPoint8DatabaseDownAtStart:
    @pytest.mark.parametrize("how", ["refuses", "stalls"])
    async def test_is_503_until_it_is_there(
        self, tmp_path: Path, server: PostgreSQL, empty_url: str, how: str
    ) -> None:
        with proxying(server.port) as proxy:
            if how == "refuses":
                proxy.refuse()
            else:
                proxy.stall()
            began = time.monotonic()
            async with stage.used(tmp_path, DATABASE_URL=proxy.url(empty_url)) as (service, http):
                assert time.monotonic() - began < 2 * stage.BOUND
                assert not await stage.is_ready(http)
                answers = await stage.at_once(
                    stage.reads_and_writes(stage.someone(http), 10, "Early")
                )
                stage.assert_in_time(answers, {503: 10})
                await stage.assert_healthy(http)
                proxy.restore()
                # By itself: nobody sends requests to a process that is not ready.
                await stage.eventually(lambda: stage.is_ready(http), stage.BOUND)
                await stage.recovered(stage.someone(http))
                assert 1 <= len(stage.complaints(service)) <= 2, stage.complaints(service)


class TestPoint8MistakesInTheUrl:
    @pytest.mark.parametrize(
        ("prepare", "user", "suffix", "refusal", "mend"),
        [
            (
                "CREATE ROLE secured LOGIN SUPERUSER PASSWORD 'battery-staple'",
                *("secured", "", "password authentication failed"),
                "ALTER ROLE secured PASSWORD 'correct-horse'",
            ),
            ("SELECT", "postgres", "_nowhere", "does not exist", "CREATE DATABASE {}_nowhere"),
        ],
    )
    async def test_are_said_plainly(
        self,
        tmp_path: Path,
        server: PostgreSQL,
        empty_url: str,
        prepare: str,
        user: str,
        suffix: str,
        refusal: str,
        mend: str,
    ) -> None:
        await execute(empty_url, prepare)
        refused = server.log().count(refusal)
        url = empty_url.replace("postgres@", f"{user}:correct-horse@") + suffix
        async with stage.used(tmp_path, DATABASE_URL=url) as (service, http):
            alice = Caller(http, "alice")

            async def tried_again() -> bool:
                stage.assert_unavailable(await alice.get())
                return server.log().count(refusal) >= refused + 3

            await stage.eventually(tried_again)
            await stage.assert_healthy(http)
            [line] = stage.complaints(service)
            assert ("the password in" if user == "secured" else refusal) in line
            await execute(empty_url, mend.format(empty_url.rpartition("/")[2]))
            await stage.recovered(alice, stage.BOUND)
            assert "correct-horse" not in service.log()


class TestPoint9Stuck:
    # asyncpg by itself has no limit for a statement, and 60 s to connect.

    @pytest.mark.parametrize("how", ["packets_swallowed", "connections_unanswered"])
    async def test_silence_ends_in_time(self, scene: stage.Scene, how: str) -> None:
        await scene.fill_pool()
        if how == "packets_swallowed":
            scene.proxy.stall()
        else:
            scene.proxy.mute()
            scene.proxy.cut()
        asked = asyncio.create_task(
            stage.at_once(stage.reads_and_writes(scene.alice, 40, "During"))
        )
        await stage.assert_healthy(scene.http)
        answers = await asked
        stage.assert_in_time(answers, {503: 40})
        await stage.assert_not_ready(scene.http)
        # Probes do not crowd a database that fails.
        before = scene.proxy.connections
        await stage.at_once(scene.http.get("/health/ready") for _ in range(200))
        assert scene.proxy.connections - before <= 3
        scene.proxy.resume()
        await stage.eventually(lambda: stage.is_ready(scene.http), stage.RECOVERY)
        await scene.assert_well()

    async def test_half_open_connections_are_replaced(self, scene: stage.Scene) -> None:
        await scene.fill_pool()
        with scene.proxy.stranded():
            requests = [
                request
                for user in (scene.alice, stage.someone(scene.http))
                for request in stage.reads_and_writes(user, stage.POOL // 2, "During")
            ]
            stage.assert_in_time(await stage.at_once(requests))
            # Each has cost at most one request its result.
            await scene.assert_well()

    @pytest.mark.parametrize(
        "count", [stage.POOL // 2, 4 * stage.POOL], ids=["some", "every_connection"]
    )
    async def test_locks_end_in_time_and_hold_up_nobody_else(
        self, scene: stage.Scene, count: int
    ) -> None:
        task = await scene.alice.add("Before")
        one = f"/{task['id']}"
        async with stage.rows_locked(scene.url, task["id"]):
            requests = [scene.alice.put(one, {"title": "During"}) for _ in range(count)]
            stuck = asyncio.create_task(stage.at_once(requests))
            await stage.assert_healthy(scene.http)
            others: list[stage.Answer] = []
            while count < stage.POOL and not stuck.done():
                others += await stage.at_once(
                    stage.reads_and_writes(scene.alice, 6, f"Other {len(others)}")
                )
                # With one user's stuck task, a balancer would take one process after the other out.
                assert await stage.is_ready(scene.http)
            if count < stage.POOL:
                assert stage.statuses(others).keys() == {200, 201}
                assert statistics.median(other.seconds for other in others) < stage.AT_ONCE
            answers = await stuck
            stage.assert_in_time(answers, {503: count})
            await stage.have_backends(scene.url, 0, "state <> 'idle'", stage.BOUND)
        assert (await scene.alice.get(one)).json() == task
        await scene.assert_well()


class TestPoint9Waiting:
    # SQLAlchemy's pool prefers who gives a connection back and asks again.

    CLIENTS = 64

    async def test_is_fair(self, tmp_path: Path, url: str, proxy: Proxy) -> None:
        seconds: list[float] = []
        statuses: set[bytes] = set()
        message = (
            f"GET /api/alice/tasks/1 HTTP/1.1\r\nHost: test\r\n"
            f"Authorization: Bearer {sign('alice')}\r\n\r\n"
        ).encode()

        async def ask(stop: asyncio.Event) -> None:
            # A socket for each client: httpx is unfair in sharing out connections of its own.
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            while not stop.is_set():
                began = time.monotonic()
                writer.write(message)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(len(b'{"detail":"Task not found"}'))
                seconds.append(time.monotonic() - began)
                statuses.add(head.split()[1])
            writer.close()
            await writer.wait_closed()

        # The database, not this machine, is what everyone waits for: 200 requests a second.
        settings = {"DATABASE_URL": proxy.url(url), "DATABASE_POOL_SIZE": "4"}
        with serving(tmp_path, **settings) as service, proxy.delayed(0.01, 0.01):
            async with stage.load(self.CLIENTS, ask):
                await stage.eventually(lambda: len(seconds) >= 6 * self.CLIENTS)
        assert statuses == {b"404"}
        assert max(seconds) < 3 * statistics.median(seconds)


class TestPoint10Overload:
    @pytest.fixture
    def service(self, tmp_path: Path, url: str, proxy: Proxy) -> Iterator[Service]:
        with serving(tmp_path, DATABASE_URL=proxy.url(url), DATABASE_POOL_SIZE="1") as service:
            yield service

    async def test_is_503_for_what_can_not_be_served_soon(self, scene: stage.Scene) -> None:
        mark = len(scene.service.log())
        await scene.alice.add()
        with scene.proxy.delayed(0.05, 0.05):  # Ten requests a second.
            asked = asyncio.create_task(
                stage.at_once(stage.reads_and_writes(scene.alice, 100, "Too many"))
            )
            await stage.assert_healthy(scene.http)
            answers = await asked
            assert stage.statuses(answers).keys() == {200, 201, 503}
            assert stage.statuses(answers)[503] < 100 - 5
            stage.assert_in_time(answers)
            # Nobody is still in line.
            after = await stage.timed(scene.alice.get())
            assert (after.status, after.seconds < stage.AT_ONCE) == (200, True), after
        complained = stage.complaints(scene.service, mark)
        assert len(complained) <= 2, complained


class TestPoint11ChangesOfTheTable:
    # A connection that prepared a statement before the change fails once.

    CHANGES = (
        "ALTER TABLE task ADD COLUMN priority integer NOT NULL DEFAULT 0",
        "ALTER TABLE task ALTER COLUMN title TYPE text",
        "ALTER TABLE task ALTER COLUMN title TYPE varchar(200)",
        "CREATE INDEX ix_task_title ON task (title)",
        "ALTER TABLE task ALTER COLUMN description TYPE varchar(2000)",
        "ALTER TABLE task ALTER COLUMN description TYPE varchar(1000)",
        "DROP INDEX ix_task_title",
        "ALTER TABLE task DROP COLUMN priority",
    )

    async def test_under_load_are_not_noticed(self, scene: stage.Scene) -> None:
        await scene.fill_pool()
        ledger = stage.Ledger()
        reads: Counter[int] = Counter()

        async def work(stop: asyncio.Event) -> None:
            while not stop.is_set():
                await ledger.post(scene.alice)
                reads[(await scene.alice.get("/1")).status_code] += 1

        async with stage.load(8, work), stage.connected(scene.url) as connection:
            for n, change in enumerate(self.CHANGES, 1):
                await connection.execute(change)
                await ledger.reach(25 * n)
        assert ledger.answers.keys() == {201}
        assert reads.keys() <= {200, 404}
        ledger.assert_kept(await stage.listed(scene.alice))


class TestPoint11ReadOnlyDatabase:
    async def test_serves_reads_and_says_503_to_writes(self, scene: stage.Scene) -> None:
        alice = scene.alice
        task = await alice.add("Before")
        one = f"/{task['id']}"
        await scene.fill_pool()
        await stage.configure(scene.url, "default_transaction_read_only", "on")

        async def read_only() -> bool:
            return (await alice.post({"title": "During"})).status_code != 201

        try:
            await stage.eventually(read_only)
            stage.assert_unavailable(await alice.post({"title": "During"}))
            stage.assert_unavailable(await alice.put(one, {"title": "During"}))
            stage.assert_unavailable(await alice.complete(task["id"]))
            stage.assert_unavailable(await alice.delete(one))
            assert (await alice.get(one)).json() == task
            assert (await alice.get()).status_code == 200
        finally:
            await stage.configure(scene.url, "default_transaction_read_only", None)
        await stage.recovered(alice)
        assert (await alice.put(one, {"title": "After"})).status_code == 200


class TestPoint11OutOfConnections:
    async def test_is_503_at_worst_and_over_when_there_are_some(self, scene: stage.Scene) -> None:
        await scene.fill_pool()
        taken: list[asyncpg.Connection] = []
        [limit] = await stored(scene.url, "SHOW max_connections")

        async def all_taken() -> bool:
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    taken.append(await asyncpg.connect(scene.server.url()))
            return len(taken) == int(limit)

        try:
            await all_taken()
            # With the pool still there, nothing is amiss.
            answers = await stage.at_once(stage.reads_and_writes(scene.alice, 20, "Enough"))
            assert stage.statuses(answers) == {200: 10, 201: 10}
            scene.proxy.refuse()
            scene.proxy.cut()
            await stage.eventually(all_taken)
            scene.proxy.accept()
            answers = await stage.at_once(stage.reads_and_writes(scene.alice, 40, "During"))
            stage.assert_in_time(answers, {503: 40})
            assert statistics.median(answer.seconds for answer in answers) < stage.AT_ONCE
            await stage.assert_healthy(scene.http)
        finally:
            for connection in taken:
                connection.terminate()
        await stage.recovered(scene.alice)


@contextlib.asynccontextmanager
async def four_processes(
    folder: Path, server: PostgreSQL, url: str
) -> AsyncIterator[httpx.AsyncClient]:
    """They come to make the table in the same moment, and complain of nothing."""
    before = len(server.log())
    environment = {"BETTER_AUTH_SECRET": SECRET, "DATABASE_URL": url, "WORKERS": "4"}
    service = Service(folder, environment)
    try:
        async with stage.connected(url) as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", TABLES_LOCK)
            await stage.have_backends(url, 4, "wait_event_type = 'Lock'")
        await asyncio.to_thread(service.wait_for_health)
        async with service.client() as http:
            yield http
        assert stage.complaints(service) == []
        assert "ERROR" not in server.log()[before:]
    finally:
        service.kill()


class TestPoint12FourProcesses:
    # CREATE TABLE IF NOT EXISTS, run twice at once, collides in PostgreSQL's catalogue.

    async def test_start_at_once_on_an_empty_database(
        self, tmp_path: Path, server: PostgreSQL, empty_url: str
    ) -> None:
        async with four_processes(tmp_path, server, empty_url) as http:
            await stage.recovered(Caller(http, "alice"))
            answers = await stage.at_once(Caller(http, "alice").get() for _ in range(20))
            assert stage.statuses(answers) == {200: 20}


OLDER_TABLE = """
    SET timezone = 'UTC';
    CREATE TABLE task (
        id serial PRIMARY KEY, user_id varchar NOT NULL, title varchar(200) NOT NULL,
        description varchar(1000), completed boolean NOT NULL,
        created_at timestamp NOT NULL, updated_at timestamp NOT NULL
    );
    CREATE INDEX ix_task_user_id ON task (user_id);
    CREATE INDEX ix_task_completed ON task (completed);
    INSERT INTO task (user_id, title, description, completed, created_at, updated_at)
    SELECT CASE WHEN n % 2 = 0 THEN 'alice' ELSE 'bob' END, 'Old ' || n, 'Description ' || n,
        n % 4 = 0, timestamp '2025-01-01 12:00:00.000001' + n * interval '1 hour',
        timestamp '2025-06-01 12:00:00.5' + n * interval '1 hour'
    FROM generate_series(1, 1000) n
"""
TWELFTH = {
    "id": 12,
    "user_id": "alice",
    "title": "Old 12",
    "description": "Description 12",
    "completed": True,
    "created_at": "2025-01-02T00:00:00.000001Z",
    "updated_at": "2025-06-02T00:00:00.500000Z",
}
COLUMNS = """
    SELECT format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = 'task'::regclass AND attname IN ('id', 'created_at', 'updated_at')
    ORDER BY attnum
"""


class TestPoint12OlderTable:
    # asyncpg refuses an aware instant for a timestamp without time zone.

    @pytest.fixture
    async def older(self, empty_url: str) -> str:
        """A database with the table of an earlier backend, in a time zone of its own."""
        await execute(empty_url, OLDER_TABLE)
        # What the server shows times in must not be what the old values are taken for.
        name = empty_url.rpartition("/")[2]
        await execute(empty_url, f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
        return empty_url

    async def test_is_upgraded_once_by_four_processes_that_serve_every_operation(
        self, tmp_path: Path, server: PostgreSQL, older: str
    ) -> None:
        async with four_processes(tmp_path, server, older) as http:
            alice, bob = Caller(http, "alice"), Caller(http, "bob")
            await stage.served(alice)
            tasks = await stage.listed(alice) + await stage.listed(bob)
            assert len(tasks) == 1000
            assert {task["id"]: task for task in tasks}[12] == TWELFTH
            instants = 2 * ["timestamp with time zone"]
            assert await stored(older, COLUMNS) == ["bigint", *instants]
            indexes = await stored(older, "SELECT indexname FROM pg_indexes")
            assert {"ix_task_user_id", "ix_task_completed"} <= {*indexes}
            task = await alice.add("New")
            assert (task["id"], task["completed"]) == (1001, False)
            assert (await alice.put("/12", {"title": "Newer"})).json()["title"] == "Newer"
            assert (await alice.complete(12)).json()["completed"] is False
            assert (await alice.get("/12")).json()["title"] == "Newer"
            assert (await alice.delete("/14")).status_code == 204
            first, *others = await stage.listed(alice)
            assert (first, len(others)) == (task, 499)

    async def test_is_503_while_its_upgrade_waits_for_others(
        self, tmp_path: Path, older: str
    ) -> None:
        async with stage.connected(older) as reader:
            transaction = reader.transaction()
            await transaction.start()
            await reader.execute("SELECT FROM task")
            async with stage.used(tmp_path, DATABASE_URL=older) as (_, http):
                await stage.assert_healthy(http)
                alice = Caller(http, "alice")
                answers = await stage.at_once(stage.reads_and_writes(alice, 10, "Early"))
                stage.assert_in_time(answers, {503: 10})
                await transaction.rollback()
                await stage.recovered(alice)
                assert len(await stage.listed(alice)) == 501
