# [Task]: T043 [From]: specs/requirements.md
"""Reading from a streaming replica: what is asked of whom, and what comes of it when one fails."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx
import pytest
from postgresql import PostgreSQL, Replica
from service import PATIENCE, Service, create_database, serving
from support import SECRET, Caller

from faults.proxy import Proxy, proxying
from faults.stage import (
    AT_ONCE,
    POOL,
    RECOVERY,
    assert_in_time,
    assert_unavailable,
    at_once,
    backends,
    complaints,
    connected,
    eventually,
    listed,
    load,
    postgresql,
    reads_and_writes,
    recovered,
    someone,
    statuses,
    stopped,
    watched,
)

# Without the cure, a replica is one more machine whose failure takes the service away, and one that
# tells old news where nobody expects it: in the answer to the very write.

TIMES = 5


class Site(NamedTuple):
    """A primary, a replica that streams from it, a database of theirs, and a proxy to each."""

    primary: PostgreSQL
    replica: Replica
    url: str
    replica_url: str
    to_primary: Proxy
    to_replica: Proxy

    def environment(self, **settings: str) -> dict[str, str]:
        """What a service is told."""
        return {
            "DATABASE_URL": self.to_primary.url(self.url),
            "DATABASE_READ_URL": self.to_replica.url(self.replica_url),
            "DATABASE_POOL_SIZE": str(POOL),
            **settings,
        }

    async def asked(self, request: Awaitable[httpx.Response]) -> tuple[int, int]:
        """How often the primary and the replica were waited for meanwhile."""
        before = (self.to_primary.round_trips, self.to_replica.round_trips)
        assert (await request).is_success
        return (
            self.to_primary.round_trips - before[0],
            self.to_replica.round_trips - before[1],
        )

    async def is_read_from(self, alice: Caller) -> bool:
        """Whether her list is the replica's, and the primary is not asked."""
        return await self.asked(alice.get()) == (0, 1)

    async def replayed(self) -> None:
        """Until the replica has all that the primary has."""
        async with connected(self.url) as primary, connected(self.replica_url) as replica:
            end = await primary.fetchval("SELECT pg_current_wal_insert_lsn()::text")

            async def reached() -> object:
                return await replica.fetchval(
                    "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", end
                )

            await eventually(reached)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Meanwhile the replica stays as it is."""
        await self.replayed()
        async with connected(self.replica_url) as replica:
            await replica.execute("SELECT pg_wal_replay_pause()")

            async def has_paused() -> bool:
                state = await replica.fetchval("SELECT pg_get_wal_replay_pause_state()")
                return bool(state == "paused")

            await eventually(has_paused)
            try:
                yield
            finally:
                await replica.execute("SELECT pg_wal_replay_resume()")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        primary = stack.enter_context(postgresql())
        folder = stack.enter_context(TemporaryDirectory(prefix="task-api-"))
        replica = Replica(Path(folder), primary)
        replica.start()
        stack.callback(replica.stop, "immediate")
        url = create_database(primary)
        yield Site(
            primary,
            replica,
            url,
            url.replace(f":{primary.port}/", f":{replica.port}/"),
            stack.enter_context(proxying(primary.port)),
            stack.enter_context(proxying(replica.port)),
        )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Iterator[Service]:
    """The service that the tests share, and leave well."""
    with serving(tmp_path_factory.mktemp("service"), **site.environment()) as service:
        yield service


@pytest.fixture
async def http(service: Service, site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with service.client() as http:
        await site.replayed()
        await eventually(lambda: site.is_read_from(someone(http)))
        with watched(service):
            try:
                yield http
            finally:
                site.to_replica.restore()


# What each does with the task of this id, and how often it waits for the primary and the replica.
OPERATIONS: dict[
    str, tuple[Callable[[Caller, int], Awaitable[httpx.Response]], tuple[int, int]]
] = {
    "list": (lambda alice, _: alice.get(), (0, 1)),
    "read": (lambda alice, task_id: alice.get(f"/{task_id}"), (0, 1)),
    "create": (lambda alice, _: alice.post({"title": "Buy milk"}), (1, 0)),
    "update": (lambda alice, task_id: alice.put(f"/{task_id}", {"title": "Buy oats"}), (1, 0)),
    "toggle": (lambda alice, task_id: alice.complete(task_id), (1, 0)),
    "delete": (lambda alice, task_id: alice.delete(f"/{task_id}"), (1, 0)),
}


class TestReplica:
    @pytest.mark.parametrize("operation", OPERATIONS)
    async def test_is_what_reads_ask_once_and_writes_do_not(
        self, site: Site, alice: Caller, operation: str
    ) -> None:
        request, expected = OPERATIONS[operation]
        counts = []
        for _ in range(TIMES + 1):
            task = await alice.add()
            await site.replayed()
            counts.append(await site.asked(request(alice, task["id"])))
        # The first prepares its statement. A look for Better Auth's table may fall into one other.
        asked = tuple(median(count) for count in zip(*counts[1:], strict=True))
        assert asked == expected, counts

    async def test_may_be_behind_but_no_write_answers_so(self, site: Site, alice: Caller) -> None:
        old, gone = await alice.add("old"), await alice.add("gone")
        async with site.paused():
            changed = await alice.put(f"/{old['id']}", {"title": "new"})
            assert changed.json()["title"] == "new"
            completed = await alice.complete(old["id"])
            assert (completed.json()["title"], completed.json()["completed"]) == ("new", True)
            assert (await alice.complete(old["id"])).json()["completed"] is False
            assert (await alice.delete(f"/{gone['id']}")).status_code == 204
            assert (await alice.delete(f"/{gone['id']}")).status_code == 404
            added = await alice.add("added")
            async with connected(site.url) as primary:
                titles = await primary.fetch(
                    "SELECT title FROM task WHERE user_id = $1", alice.user
                )
            assert {row["title"] for row in titles} == {"new", "added"}

            # What a reader is told meanwhile is what was so before.
            assert await listed(alice) == [gone, old]
            assert (await alice.get(f"/{old['id']}")).json() == old
            assert (await alice.get(f"/{added['id']}")).status_code == 404
        await site.replayed()
        assert [task["title"] for task in await listed(alice)] == ["added", "new"]
        assert await site.is_read_from(alice)

    async def test_that_lacks_a_column_is_no_failure_of_a_read(
        self, site: Site, alice: Caller
    ) -> None:
        # As behind a migration: what it was asked for, the primary has already.
        task = await alice.add()
        async with connected(site.url) as primary:
            await primary.execute("ALTER TABLE task RENAME COLUMN description TO details")
            async with site.paused():
                await primary.execute("ALTER TABLE task RENAME COLUMN details TO description")
                assert (await alice.get(f"/{task['id']}")).json() == task
                assert await listed(alice) == [task]
        await site.replayed()
        await eventually(lambda: site.is_read_from(alice), RECOVERY)

    async def test_that_ends_a_statement_to_keep_up_causes_no_500(
        self, site: Site, service: Service, alice: Caller
    ) -> None:
        since = len(service.log())
        task = await alice.add()
        async with connected(site.url) as primary, connected(site.replica_url) as replica:
            await replica.execute("ALTER SYSTEM SET max_standby_streaming_delay = 0")
            await replica.execute("SELECT pg_reload_conf()")
            # Reads that last a second.
            await primary.execute("""
                ALTER TABLE task RENAME TO task_rows;
                CREATE VIEW task AS SELECT task_rows.* FROM task_rows, pg_sleep(1);
            """)
            await site.replayed()

            async def reading() -> bool:
                return await backends(site.replica_url, "wait_event = 'PgSleep'") == TIMES

            try:
                async with asyncio.TaskGroup() as group:
                    reads = group.create_task(at_once(alice.get() for _ in range(TIMES)))
                    await eventually(reading)
                    await primary.execute("BEGIN; LOCK TABLE task_rows; COMMIT")
            finally:
                await primary.execute("DROP VIEW task; ALTER TABLE task_rows RENAME TO task")
                await replica.execute("ALTER SYSTEM RESET max_standby_streaming_delay")
                await replica.execute("SELECT pg_reload_conf()")
        answers = reads.result()
        assert_in_time(answers)
        # They are run again, which takes them another second: more than there is time for in turn.
        assert statuses(answers).keys() <= {200, 503}
        assert "the replica of DATABASE_READ_URL does not serve" not in service.log()[since:]
        assert await listed(alice) == [task]
        await eventually(lambda: site.is_read_from(alice), RECOVERY)


class TestReplicaAway:
    @pytest.mark.parametrize("how", ["refusing", "stopped"])
    async def test_is_read_past_until_it_is_back(
        self, site: Site, service: Service, alice: Caller, how: str
    ) -> None:
        since = len(service.log())
        await alice.add()
        await site.replayed()
        answers = Counter[int]()

        async def read(stop: asyncio.Event) -> None:
            while not stop.is_set():
                answers[(await alice.get()).status_code] += 1

        async def reads(count: int) -> None:
            enough = answers.total() + count

            async def reached() -> bool:
                return answers.total() >= enough

            await eventually(reached)

        async with load(TIMES, read):
            await reads(20)
            if how == "refusing":
                site.to_replica.refuse()
                site.to_replica.cut()
                await reads(100)
                site.to_replica.accept()
            else:
                async with stopped(site.replica):
                    await reads(100)
        seconds = await eventually(lambda: site.is_read_from(alice))
        assert seconds < RECOVERY
        # A read that a stopping server kept waiting is a 503, one that it refuses is none.
        assert answers.keys() <= {200, 503}
        assert answers[503] <= (0 if how == "refusing" else TIMES), answers

        begin, end = complaints(service, since)
        assert "the replica of DATABASE_READ_URL does not serve, and the primary is read" in begin
        assert "over after" in end
        assert "DATABASE_READ_URL" in end
        assert "postgres:" not in begin + end

    async def test_at_the_start_is_taken_up_when_it_is_there(
        self, tmp_path: Path, site: Site
    ) -> None:
        with proxying(site.replica.port) as to_replica:
            to_replica.refuse()
            replica_url = to_replica.url(site.replica_url)
            own = site._replace(to_replica=to_replica)
            environment = site.environment(DATABASE_READ_URL=replica_url)
            with serving(tmp_path, **environment) as service:
                async with service.client() as http:
                    alice = someone(http)
                    # Nobody may know yet that there is a replica: her own writes are there.
                    task = await alice.add()
                    assert await listed(alice) == [task]
                    assert (await http.get("/health/ready")).status_code == 200
                    to_replica.accept()
                    await eventually(lambda: own.is_read_from(alice), RECOVERY)
                    assert await listed(alice) == [task]

    async def test_without_a_word_holds_up_nobody_but_those_who_wait(
        self, site: Site, alice: Caller
    ) -> None:
        task = await alice.add()
        await site.replayed()
        site.to_replica.stall()
        answers = await at_once(alice.get() for _ in range(2 * POOL))
        assert_in_time(answers)
        assert statuses(answers).keys() <= {200, 503}
        for _ in range(TIMES):
            following = await at_once(alice.get() for _ in range(POOL))
            assert statuses(following) == {200: POOL}
            assert max(answer.seconds for answer in following) < AT_ONCE
        assert await listed(alice) == [task]
        site.to_replica.resume()
        await eventually(lambda: site.is_read_from(alice), RECOVERY)

    @pytest.mark.parametrize("wrong", ["password", "database"])
    async def test_for_a_wrong_url_is_told_in_the_log(
        self, tmp_path: Path, site: Site, wrong: str
    ) -> None:
        url = site.replica_url
        if wrong == "password":
            site.replica.require_password("reader")
            async with connected(site.url) as primary, connected(url) as replica:
                await primary.execute("CREATE ROLE reader LOGIN PASSWORD 'sesame'")
                await replica.execute("SELECT pg_reload_conf()")
            await site.replayed()
            url = url.replace("postgres@", "reader:hunter2@")
            reason = "the password in DATABASE_READ_URL is wrong"
        else:
            url += "_nowhere"
            reason = "DATABASE_READ_URL names a database that does not exist"
        with serving(tmp_path, **site.environment(DATABASE_READ_URL=url)) as service:
            async with service.client() as http:
                alice = someone(http)
                task = await alice.add()

                async def is_told() -> bool:
                    assert await listed(alice) == [task]
                    return bool(complaints(service))

                await eventually(is_told)
                assert (await http.get("/health/ready")).status_code == 200
            [line] = complaints(service)
            assert reason in line
            assert "hunter2" not in service.log()


class TestPrimaryAway:
    async def test_reads_go_on_and_writes_do_not(
        self, site: Site, http: httpx.AsyncClient, alice: Caller
    ) -> None:
        task = await alice.add()
        await site.replayed()
        async with stopped(site.primary):
            assert_unavailable(await alice.post({"title": "Lost"}))
            assert_unavailable(await alice.complete(task["id"]))
            assert_unavailable(await alice.delete(f"/{task['id']}"))
            answers = await at_once(alice.get() for _ in range(2 * POOL))
            assert statuses(answers) == {200: 2 * POOL}
            assert (await alice.get(f"/{task['id']}")).json() == task
            # A balancer is told so: what it is about is the primary.
            assert_unavailable(await http.get("/health/ready"))
        await recovered(alice)
        assert (await http.get("/health/ready")).status_code == 200

    async def test_both_away_is_a_503_and_healed_in_any_order(
        self, site: Site, alice: Caller
    ) -> None:
        await alice.add()
        async with stopped(site.primary):
            async with stopped(site.replica):
                answers = await at_once(reads_and_writes(alice, 2 * POOL, "Lost"))
                assert statuses(answers) == {503: 2 * POOL}
                assert_in_time(answers)

            async def is_served() -> bool:
                return (await alice.get()).status_code == 200

            await eventually(is_served, RECOVERY)
        await recovered(alice)


class TestConnections:
    @pytest.mark.parametrize("workers", [1, 2])
    async def test_are_no_more_to_each_server_than_the_pools(
        self, tmp_path: Path, site: Site, workers: int
    ) -> None:
        # A database of its own: those of the other service are not counted.
        url = await asyncio.to_thread(create_database, site.primary)
        replica_url = url.replace(f":{site.primary.port}/", f":{site.replica.port}/")
        pool = 3
        environment = site.environment(
            DATABASE_URL=url, DATABASE_READ_URL=replica_url, DATABASE_POOL_SIZE=str(pool)
        )
        peaks = Counter[str]()

        async def count(stop: asyncio.Event) -> None:
            while not stop.is_set():
                for server in (url, replica_url):
                    peaks[server] = max(peaks[server], await backends(server))

        with serving(tmp_path, WORKERS=str(workers), **environment) as service:
            async with service.client() as http:
                alice = someone(http)
                await alice.add()
                async with load(1, count):
                    for n in range(4):
                        answers = await at_once(reads_and_writes(alice, 64, f"Round {n}"))
                        assert_in_time(answers)
        assert peaks[url] <= workers * pool
        assert peaks[replica_url] <= workers * pool
        assert min(peaks.values()) > 1


class TestStart:
    @pytest.mark.parametrize(
        ("url", "read_url"),
        [
            ("postgresql://u:hunter2@h/db", "postgresql://u:hunter2@h:port/db"),
            ("sqlite:///tasks.db", "postgresql://u:hunter2@h/db"),
        ],
        ids=["malformed", "of SQLite"],
    )
    def test_is_refused_in_one_sentence(self, tmp_path: Path, url: str, read_url: str) -> None:
        environment = {
            "BETTER_AUTH_SECRET": SECRET,
            "DATABASE_URL": url,
            "DATABASE_READ_URL": read_url,
        }
        service = Service(tmp_path, environment)
        try:
            assert service.process.wait(PATIENCE) > 0
        finally:
            service.kill()
        assert service.log().count("DATABASE_READ_URL") == 1
        assert "Traceback" not in service.log()
        assert "hunter2" not in service.log()
