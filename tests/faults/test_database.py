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
import pytest
from postgresql import PostgreSQL
from service import Service, serving
from support import SECRET, Caller, sign

from faults.proxy import Proxy, proxying
from faults.stage import (
    AT_ONCE,
    BOUND,
    POOL,
    RECOVERY,
    Answer,
    Ledger,
    Scene,
    assert_healthy,
    assert_in_time,
    assert_no_traceback,
    assert_not_ready,
    assert_unavailable,
    at_once,
    complaints,
    configure,
    connected,
    eventually,
    have_backends,
    is_ready,
    kill_backends,
    listed,
    load,
    reads_and_writes,
    recovered,
    rows_locked,
    served,
    someone,
    statuses,
    stopped,
    timed,
    watched,
)
from kit.database.database import TABLES_LOCK

MAX_CONNECTIONS = 60


@pytest.fixture(scope="module")
def server_settings() -> dict[str, object]:
    return {"max_connections": MAX_CONNECTIONS}


class TestPoint6KilledConnections:
    # Without a check of each connection before its use: ten times 503 (or 500), once for each dead
    # connection of the pool. With a repetition of everything: titles that are there twice.

    @pytest.mark.parametrize("how", ["by_the_server", "by_a_reset"])
    async def test_are_replaced_for_the_next_reads_and_writes(self, scene: Scene, how: str) -> None:
        await scene.fill_pool()
        if how == "by_the_server":
            assert await kill_backends(scene.url) == POOL
        else:
            scene.proxy.cut()
        answers = await at_once(reads_and_writes(scene.alice, 20, "Next"))
        assert statuses(answers) == {200: 10, 201: 10}
        titles = Counter(task["title"] for task in await listed(scene.alice))
        assert titles == {f"Next {n}": 1 for n in range(0, 20, 2)}

    async def test_are_no_bug_between_their_last_word_and_their_end(self, scene: Scene) -> None:
        await scene.fill_pool()
        with scene.proxy.ends_lost():
            await kill_backends(scene.url)
            assert_in_time(await at_once(reads_and_writes(scene.alice, 20, "Next")))
            await recovered(scene.alice)
        titles = Counter(task["title"] for task in await listed(scene.alice))
        del titles["Back again"]
        assert set(titles.values()) <= {1}

    async def test_under_load_lose_and_repeat_no_write(self, scene: Scene) -> None:
        ledger = Ledger()
        async with load(8, lambda stop: ledger.post_until(scene.alice, stop)):
            for n in range(1, 11):
                await ledger.reach(20 * n)
                if n % 2:
                    scene.proxy.cut()
                else:
                    await kill_backends(scene.url)
        assert ledger.answers.keys() <= {201, 503}
        ledger.assert_kept(await listed(scene.alice))
        await recovered(scene.alice)

    async def test_whose_answers_are_lost_repeat_no_write(self, scene: Scene) -> None:
        alice, count = scene.alice, "SELECT count(*) = $2 FROM task WHERE user_id = $1"
        await scene.fill_pool()
        # Every connection has prepared the statement, so that one answer is all it waits for.
        await at_once(reads_and_writes(someone(scene.http), 8 * POOL, "Before"))
        async with connected(scene.url) as connection:
            with scene.proxy.delayed(0.0, 0.5):
                writes = [alice.post({"title": f"Written {n}"}) for n in range(POOL)]
                asked = asyncio.create_task(at_once(writes))
                await eventually(lambda: connection.fetchval(count, alice.user, POOL))
                scene.proxy.cut()
        answers = await asked
        # The service can't know, and so promises nothing but what it had heard before.
        assert 503 in statuses(answers)
        assert statuses(answers).keys() <= {201, 503}
        assert_in_time(answers)
        titles = [task["title"] for task in await listed(alice)]
        assert sorted(titles) == [f"Written {n}" for n in range(POOL)]


class TestPoint7DatabaseDown:
    # Without a translation of ConnectionRefusedError, which is no SQLAlchemy error: a 500 and a
    # traceback for each request. Without limits: requests wait until their clients give up.

    @pytest.mark.parametrize("how", ["stopped", "killed", "unreachable"])
    async def test_is_503_within_the_bound_and_over_when_it_is_back(
        self, scene: Scene, how: str
    ) -> None:
        await at_once(reads_and_writes(scene.alice, 2 * POOL, "Before"))
        mark = len(scene.service.log())
        async with contextlib.AsyncExitStack() as outage:
            if how == "unreachable":
                scene.proxy.refuse()
                scene.proxy.cut()
                outage.callback(scene.proxy.accept)
            else:
                mode = {"stopped": "fast", "killed": "immediate"}[how]
                await outage.enter_async_context(stopped(scene.server, mode))
            answers = []
            for n in range(3):
                answers += await at_once(reads_and_writes(scene.alice, 20, f"During {n}"))
                await assert_not_ready(scene.http)
            assert statuses(answers) == {503: 60}
            assert_in_time(answers)
            assert statistics.median(answer.seconds for answer in answers) < AT_ONCE
        if how == "stopped":
            # Ready by itself, without anybody's request.
            await eventually(lambda: is_ready(scene.http), RECOVERY)
        await recovered(scene.alice)
        # An operator reads that it began and that it ended, not a line for each request.
        complained = complaints(scene.service, mark)
        assert len(complained) <= 2, complained


class TestPoint8DatabaseDownAtStart:
    # With a start that needs its database: the process ends with a traceback, and a supervisor that
    # restarts it in ever longer intervals keeps it away long after the database has come back.

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
            with serving(tmp_path, DATABASE_URL=proxy.url(empty_url)) as service, watched(service):
                assert time.monotonic() - began < 2 * BOUND
                async with service.client() as http:
                    assert not await is_ready(http)
                    answers = await at_once(reads_and_writes(someone(http), 10, "Early"))
                    assert statuses(answers) == {503: 10}
                    assert_in_time(answers)
                    await assert_healthy(http)
                    proxy.restore()
                    # By itself: nobody sends requests to a process that is not ready.
                    await eventually(lambda: is_ready(http), BOUND)
                    await recovered(someone(http))
                assert 1 <= len(complaints(service)) <= 2, complaints(service)


class TestPoint8MistakesInTheUrl:
    # Without sentences of its own: the same 503 as for a database that is away, a traceback of five
    # screens for each attempt, and somewhere in it the URL with its password.

    PASSWORD = "correct-horse"

    @pytest.fixture
    async def secured(self, server: PostgreSQL, empty_url: str) -> AsyncIterator[str]:
        """The URL of a database whose server asks a role of this name for its password."""
        server.require_password("secured")
        async with connected(empty_url) as connection:
            await connection.execute(f"""
                CREATE ROLE secured LOGIN PASSWORD '{self.PASSWORD}';
                GRANT CREATE ON SCHEMA public TO secured;
                SELECT pg_reload_conf()
            """)

            async def asks() -> bool:
                try:
                    await (await asyncpg.connect(with_password(empty_url, "wrong"))).close()
                except asyncpg.InvalidPasswordError:
                    return True
                return False

            await eventually(asks)
            yield empty_url
            await connection.execute("DROP OWNED BY secured; DROP ROLE secured")

    @pytest.mark.parametrize("wrong", ["password", "database"])
    async def test_are_said_plainly(
        self, tmp_path: Path, server: PostgreSQL, secured: str, wrong: str
    ) -> None:
        password, refusal, words = "battery-staple", "password authentication failed", "password"
        if wrong == "database":
            password, refusal, words = self.PASSWORD, "does not exist", "does not exist"
            secured = secured.rpartition("/")[0] + "/nowhere"
        refused = server.log().count(refusal)
        with serving(tmp_path, DATABASE_URL=with_password(secured, password)) as service:
            async with service.client() as http:

                async def tried_again() -> bool:
                    assert_unavailable(await Caller(http, "alice").get())
                    return server.log().count(refusal) >= refused + 3

                await eventually(tried_again)
                await assert_healthy(http)
            [line] = complaints(service)
            assert words in line
            assert_no_traceback(service)
            assert password not in service.log()

    async def test_right_password_is_no_complaint(self, tmp_path: Path, secured: str) -> None:
        url = with_password(secured, self.PASSWORD)
        with serving(tmp_path, DATABASE_URL=url) as service:
            async with service.client() as http:
                await Caller(http, "alice").add()
            assert complaints(service) == []
            assert self.PASSWORD not in service.log()


def with_password(url: str, password: str) -> str:
    return url.replace("postgres@", f"secured:{password}@")


class TestPoint9Stuck:
    # With asyncpg's defaults, no limit for a statement and 60 s to connect: a request on a
    # half-open connection never ends, and the pool is gone after ten of them.

    @pytest.mark.parametrize("how", ["packets_swallowed", "connections_unanswered"])
    async def test_silence_ends_in_time(self, scene: Scene, how: str) -> None:
        await scene.fill_pool()
        if how == "packets_swallowed":
            scene.proxy.stall()
        else:
            scene.proxy.mute()
            scene.proxy.cut()
        asked = asyncio.create_task(at_once(reads_and_writes(scene.alice, 40, "During")))
        await assert_healthy(scene.http)
        answers = await asked
        assert statuses(answers) == {503: 40}
        assert_in_time(answers)
        await assert_not_ready(scene.http)
        # Probes do not crowd a database that fails.
        before = scene.proxy.connections
        await at_once(scene.http.get("/health/ready") for _ in range(200))
        assert scene.proxy.connections - before <= 3
        scene.proxy.resume()
        await eventually(lambda: is_ready(scene.http), RECOVERY)
        await scene.assert_well()

    async def test_half_open_connections_are_replaced(self, scene: Scene) -> None:
        await scene.fill_pool()
        with scene.proxy.stranded():
            requests = [
                request
                for user in (scene.alice, someone(scene.http))
                for request in reads_and_writes(user, POOL // 2, "During")
            ]
            assert_in_time(await at_once(requests))
            # Each has cost at most one request its result.
            await scene.assert_well()

    @pytest.mark.parametrize("count", [POOL // 2, 4 * POOL], ids=["some", "every_connection"])
    async def test_locks_end_in_time_and_hold_up_nobody_else(
        self, scene: Scene, count: int
    ) -> None:
        task = await scene.alice.add("Before")
        one = f"/{task['id']}"
        async with rows_locked(scene.url, task["id"]):
            requests = [scene.alice.put(one, {"title": "During"}) for _ in range(count)]
            stuck = asyncio.create_task(at_once(requests))
            await assert_healthy(scene.http)
            others: list[Answer] = []
            while count < POOL and not stuck.done():
                others += await at_once(reads_and_writes(scene.alice, 6, f"Other {len(others)}"))
                # With one user's stuck task, a balancer would take one process after the other out.
                assert await is_ready(scene.http)
            if count < POOL:
                assert statuses(others).keys() == {200, 201}
                assert statistics.median(other.seconds for other in others) < AT_ONCE
            answers = await stuck
            assert statuses(answers) == {503: count}
            assert_in_time(answers)
            await have_backends(scene.url, 0, "state <> 'idle'", BOUND)
        assert (await scene.alice.get(one)).json() == task
        await scene.assert_well()


class TestPoint9Waiting:
    # With SQLAlchemy's pool alone: who gives a connection back and asks again is ahead of those who
    # wait, some of whom wait for a second while the median is 35 ms.

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
        with (
            serving(tmp_path, DATABASE_URL=proxy.url(url), DATABASE_POOL_SIZE="4") as service,
            proxy.delayed(0.01, 0.01),
        ):
            async with load(self.CLIENTS, ask):
                await eventually(lambda: len(seconds) >= 6 * self.CLIENTS)
        assert statuses == {b"404"}
        assert max(seconds) < 3 * statistics.median(seconds)


class TestPoint10Overload:
    # With SQLAlchemy's 30 s of waiting for a connection: a queue that only grows, in which everyone
    # waits for longer than any client does, and nobody is told.

    @pytest.fixture
    def service(self, tmp_path: Path, url: str, proxy: Proxy) -> Iterator[Service]:
        with serving(tmp_path, DATABASE_URL=proxy.url(url), DATABASE_POOL_SIZE="1") as service:
            yield service

    async def test_is_503_for_what_can_not_be_served_soon(self, scene: Scene) -> None:
        mark = len(scene.service.log())
        await scene.alice.add()
        with scene.proxy.delayed(0.05, 0.05):  # Ten requests a second.
            asked = asyncio.create_task(at_once(reads_and_writes(scene.alice, 100, "Too many")))
            await assert_healthy(scene.http)
            answers = await asked
            assert statuses(answers).keys() == {200, 201, 503}
            assert statuses(answers)[503] < 100 - 5
            assert_in_time(answers)
            # Nobody is still in line.
            after = await timed(scene.alice.get())
            assert (after.status, after.seconds < AT_ONCE) == (200, True), after
        complained = complaints(scene.service, mark)
        assert len(complained) <= 2, complained


class TestPoint11ChangesOfTheTable:
    # Without a repetition: every connection that has prepared a statement before the change fails
    # once with InvalidCachedStatementError, an SQLAlchemy NotSupportedError, and so a 500.

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

    async def test_under_load_are_not_noticed(self, scene: Scene) -> None:
        await scene.fill_pool()
        ledger = Ledger()
        reads: Counter[int] = Counter()

        async def work(stop: asyncio.Event) -> None:
            while not stop.is_set():
                await ledger.post(scene.alice)
                reads[(await scene.alice.get("/1")).status_code] += 1

        async with load(8, work), connected(scene.url) as connection:
            for n, change in enumerate(self.CHANGES, 1):
                await connection.execute(change)
                await ledger.reach(25 * n)
        assert ledger.answers.keys() == {201}
        assert reads.keys() <= {200, 404}
        ledger.assert_kept(await listed(scene.alice))


class TestPoint11ReadOnlyDatabase:
    # Without a translation of SQLSTATE 25006, which SQLAlchemy knows as DBAPIError only: a 500.

    async def test_serves_reads_and_says_503_to_writes(self, scene: Scene) -> None:
        alice = scene.alice
        task = await alice.add("Before")
        one = f"/{task['id']}"
        await scene.fill_pool()
        await configure(scene.url, "default_transaction_read_only", "on")

        async def read_only() -> bool:
            return (await alice.post({"title": "During"})).status_code != 201

        try:
            await eventually(read_only)
            for request in (
                alice.post({"title": "During"}),
                alice.put(one, {"title": "During"}),
                alice.complete(task["id"]),
                alice.delete(one),
            ):
                assert_unavailable(await request)
            assert (await alice.get(one)).json() == task
            assert (await alice.get()).status_code == 200
        finally:
            await configure(scene.url, "default_transaction_read_only", None)
        await recovered(alice)
        assert (await alice.put(one, {"title": "After"})).status_code == 200


class TestPoint11OutOfConnections:
    # Without a translation of SQLSTATE 53300, which comes as asyncpg's TooManyConnectionsError: a
    # 500 with a traceback; and whoever waited for that connection is not woken.

    async def test_is_503_at_worst_and_over_when_there_are_some(self, scene: Scene) -> None:
        await scene.fill_pool()
        taken: list[asyncpg.Connection] = []

        async def all_taken() -> bool:
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    taken.append(await asyncpg.connect(scene.server.url()))
            return len(taken) >= MAX_CONNECTIONS

        try:
            await all_taken()
            # With the pool still there, nothing is amiss.
            answers = await at_once(reads_and_writes(scene.alice, 20, "Enough"))
            assert statuses(answers) == {200: 10, 201: 10}
            scene.proxy.refuse()
            scene.proxy.cut()
            await eventually(all_taken)
            scene.proxy.accept()
            answers = await at_once(reads_and_writes(scene.alice, 40, "During"))
            assert statuses(answers) == {503: 40}
            assert_in_time(answers)
            assert statistics.median(answer.seconds for answer in answers) < AT_ONCE
            await assert_healthy(scene.http)
        finally:
            for connection in taken:
                connection.terminate()
        await recovered(scene.alice)


@contextlib.asynccontextmanager
async def started_together(count: int, folder: Path, url: str) -> AsyncIterator[list[Service]]:
    """Processes that all come to make the table in the same moment."""
    environment = {"BETTER_AUTH_SECRET": SECRET, "DATABASE_URL": url}
    services = [Service(folder, environment) for _ in range(count)]
    try:
        async with connected(url) as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", TABLES_LOCK)
            await have_backends(url, count, "wait_event_type = 'Lock'")
        for service in services:
            await asyncio.to_thread(service.wait_for_health)
        yield services
    finally:
        for service in services:
            service.kill()


class TestPoint12FourProcesses:
    # Without the cure, CREATE TABLE IF NOT EXISTS alone: two that run at once collide in the
    # catalogue of PostgreSQL, and the second dies of a duplicate key in pg_type.

    async def test_start_at_once_on_an_empty_database(
        self, tmp_path: Path, server: PostgreSQL, empty_url: str
    ) -> None:
        before = len(server.log())
        async with started_together(4, tmp_path, empty_url) as services:
            for n, service in enumerate(services):
                async with service.client() as http:
                    await recovered(Caller(http, "alice"))
                    await Caller(http, "alice").add(f"From {n}")
                assert complaints(service) == []
        assert "ERROR" not in server.log()[before:]

    async def test_of_one_service_start_at_once_on_an_empty_database(
        self, tmp_path: Path, server: PostgreSQL, empty_url: str
    ) -> None:
        before = len(server.log())
        with serving(tmp_path, WORKERS="4", DATABASE_URL=empty_url) as service:
            await eventually(lambda: service.log().count(" runtime-1") == 4)
            async with service.client() as http:
                await at_once(Caller(http, "alice").get() for _ in range(20))
            assert complaints(service) == []
        assert "ERROR" not in server.log()[before:]


OLDER_TABLE = """
    SET timezone = 'UTC';
    CREATE TABLE task (
        id serial PRIMARY KEY,
        user_id varchar NOT NULL,
        title varchar(200) NOT NULL,
        description varchar(1000),
        completed boolean NOT NULL,
        created_at timestamp NOT NULL,
        updated_at timestamp NOT NULL
    );
    CREATE INDEX ix_task_user_id ON task (user_id);
    CREATE INDEX ix_task_completed ON task (completed);
    INSERT INTO task (user_id, title, description, completed, created_at, updated_at)
    SELECT
        CASE WHEN n % 2 = 0 THEN 'alice' ELSE 'bob' END,
        'Old ' || n,
        CASE WHEN n % 3 = 0 THEN 'Description ' || n END,
        n % 4 = 0,
        timestamp '2025-01-01 12:00:00.000001' + n * interval '1 hour',
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
    SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = 'task'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


class TestPoint12OlderTable:
    # Without the cure: asyncpg refuses an aware instant for a timestamp without time zone, so every
    # POST is a 500; and the table is full when its serial reaches 2^31.

    @pytest.fixture
    async def older(self, empty_url: str) -> str:
        """A database with the table of an earlier backend, in a time zone of its own."""
        async with connected(empty_url) as connection:
            await connection.execute(OLDER_TABLE)
            # What the server shows times in must not be what the old values are taken for.
            name = empty_url.rpartition("/")[2]
            await connection.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
        return empty_url

    async def test_is_upgraded_once_by_four_processes_that_serve_every_operation(
        self, tmp_path: Path, server: PostgreSQL, older: str
    ) -> None:
        before = len(server.log())
        async with started_together(4, tmp_path, older) as services, connected(older) as connection:
            for service in services:
                async with service.client() as http:
                    alice = Caller(http, "alice")
                    await served(alice)
                    tasks = await listed(alice) + await listed(Caller(http, "bob"))
                assert len(tasks) == 1000
                assert {task["id"]: task for task in tasks}[12] == TWELFTH
                assert complaints(service) == []
            assert "ERROR" not in server.log()[before:]
            columns = {row[0]: row[1] for row in await connection.fetch(COLUMNS)}
            assert columns["id"] == "bigint"
            assert columns["created_at"] == columns["updated_at"] == "timestamp with time zone"
            indexes = await connection.fetch("SELECT indexname FROM pg_indexes")
            assert {"ix_task_user_id", "ix_task_completed"} <= {row[0] for row in indexes}
            async with services[0].client() as http:
                alice = Caller(http, "alice")
                task = await alice.add("New")
                assert (task["id"], task["completed"]) == (1001, False)
                assert (await alice.put("/12", {"title": "Newer"})).json()["title"] == "Newer"
                assert (await alice.complete(12)).json()["completed"] is False
                assert (await alice.get("/12")).json()["title"] == "Newer"
                assert (await alice.delete("/14")).status_code == 204
                first, *others = await listed(alice)
                assert (first, len(others)) == (task, 499)
                # Beyond what a serial can count.
                await connection.execute("SELECT setval('task_id_seq', 2147483647)")
                assert (await alice.add())["id"] == 2**31
        for service in services:
            assert_no_traceback(service)

    async def test_is_503_while_its_upgrade_waits_for_others(
        self, tmp_path: Path, older: str
    ) -> None:
        async with connected(older) as reader:
            transaction = reader.transaction()
            await transaction.start()
            await reader.execute("SELECT FROM task")
            with serving(tmp_path, DATABASE_URL=older) as service, watched(service):
                async with service.client() as http:
                    await assert_healthy(http)
                    alice = Caller(http, "alice")
                    answers = await at_once(reads_and_writes(alice, 10, "Early"))
                    assert statuses(answers) == {503: 10}
                    assert_in_time(answers)
                    await transaction.rollback()
                    await recovered(alice)
                    assert len(await listed(alice)) == 501
