# [Task]: T043 [From]: specs/requirements.md
"""Reading from a streaming replica: what is asked of whom, and what comes of it when one fails."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import median

import httpx
import pytest
from service import Service, create_database, serving
from support import Caller

from faults import stage
from faults.pair import Pair, paired
from faults.test_round_trips import OPERATIONS

TIMES = 5


def environment(site: Pair, **settings: str) -> dict[str, str]:
    """What a service is told."""
    return {
        "DATABASE_URL": site.to_primary.url(site.url),
        "DATABASE_READ_URL": site.to_standby.url(site.standby_url),
        "DATABASE_POOL_SIZE": str(stage.POOL),
        **settings,
    }


@pytest.fixture(scope="module")
def site() -> Iterator[Pair]:
    with paired() as site:
        yield site


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, site: Pair) -> Iterator[Service]:
    """The service that the tests share, and leave well."""
    with serving(tmp_path_factory.mktemp("service"), **environment(site)) as service:
        yield service


@pytest.fixture
async def http(service: Service, site: Pair) -> AsyncIterator[httpx.AsyncClient]:
    async with service.client() as http:
        await site.replayed()
        await stage.eventually(lambda: site.is_read_from(stage.someone(http)))
        with stage.watched(service):
            try:
                yield http
            finally:
                site.to_standby.restore()


class TestReplica:
    @pytest.mark.parametrize("operation", OPERATIONS)
    async def test_is_what_reads_ask_once_and_writes_do_not(
        self, site: Pair, alice: Caller, operation: str
    ) -> None:
        counts = []
        for _ in range(TIMES + 1):
            task = await alice.add()
            await site.replayed()
            counts.append(await site.asked(OPERATIONS[operation](alice, task["id"])))
        # The first prepares its statement. A look for Better Auth's table may fall into one other.
        asked = tuple(median(count) for count in zip(*counts[1:], strict=True))
        assert asked == ((0, 1) if operation in ("list", "read") else (1, 0)), counts

    async def test_may_be_behind_but_no_write_answers_so(self, site: Pair, alice: Caller) -> None:
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
            hers = "SELECT title FROM task WHERE user_id = $1"
            async with stage.connected(site.url) as primary:
                titles = {row["title"] for row in await primary.fetch(hers, alice.user)}
            assert titles == {"new", "added"}

            # What a reader is told meanwhile is what was so before.
            assert await stage.listed(alice) == [gone, old]
            assert (await alice.get(f"/{old['id']}")).json() == old
            assert (await alice.get(f"/{added['id']}")).status_code == 404
        await site.replayed()
        assert [task["title"] for task in await stage.listed(alice)] == ["added", "new"]
        assert await site.is_read_from(alice)

    async def test_that_lacks_a_column_is_no_failure_of_a_read(
        self, site: Pair, alice: Caller
    ) -> None:
        # As behind a migration: what it was asked for, the primary has already.
        task = await alice.add()
        async with stage.connected(site.url) as primary:
            await primary.execute("ALTER TABLE task RENAME COLUMN description TO details")
            async with site.paused():
                await primary.execute("ALTER TABLE task RENAME COLUMN details TO description")
                assert (await alice.get(f"/{task['id']}")).json() == task
                assert await stage.listed(alice) == [task]
        await site.replayed()
        await stage.eventually(lambda: site.is_read_from(alice), stage.RECOVERY)

    async def test_that_ends_a_statement_to_keep_up_causes_no_500(
        self, site: Pair, service: Service, alice: Caller
    ) -> None:
        since = len(service.log())
        task = await alice.add()
        await stage.configure(site.standby_url, "max_standby_streaming_delay", "0")
        async with stage.connected(site.url) as primary:
            # Reads that last a second.
            await primary.execute("""
                ALTER TABLE task RENAME TO task_rows;
                CREATE VIEW task AS SELECT task_rows.* FROM task_rows, pg_sleep(1);
            """)
            await site.replayed()
            try:
                async with asyncio.TaskGroup() as group:
                    reads = group.create_task(stage.at_once(alice.get() for _ in range(TIMES)))
                    await stage.have_backends(site.standby_url, TIMES, "wait_event = 'PgSleep'")
                    await primary.execute("BEGIN; LOCK TABLE task_rows; COMMIT")
            finally:
                await primary.execute("DROP VIEW task; ALTER TABLE task_rows RENAME TO task")
                await stage.configure(site.standby_url, "max_standby_streaming_delay", None)
        answers = reads.result()
        stage.assert_in_time(answers)
        # They are run again, which takes them another second: more than there is time for in turn.
        assert stage.statuses(answers).keys() <= {200, 503}
        assert "the replica of DATABASE_READ_URL does not serve" not in service.log()[since:]
        assert await stage.listed(alice) == [task]
        await stage.eventually(lambda: site.is_read_from(alice), stage.RECOVERY)


class TestReplicaAway:
    @pytest.mark.parametrize("how", ["refusing", "stopped"])
    async def test_is_read_past_until_it_is_back(
        self, site: Pair, service: Service, alice: Caller, how: str
    ) -> None:
        since = len(service.log())
        await alice.add()
        await site.replayed()
        answers = Counter[int]()

        async def read(stop: asyncio.Event) -> None:
            while not stop.is_set():
                answers[(await alice.get()).status_code] += 1

        async with stage.load(TIMES, read):
            await stage.eventually(lambda: answers.total() >= 20)
            if how == "refusing":
                site.to_standby.refuse()
                site.to_standby.cut()
                await stage.eventually(lambda: answers.total() >= 120)
                site.to_standby.accept()
            else:
                async with stage.stopped(site.standby):
                    await stage.eventually(lambda: answers.total() >= 120)
        await stage.eventually(lambda: site.is_read_from(alice), stage.RECOVERY)
        # A read that a stopping server kept waiting is a 503, one that it refuses is none.
        assert answers.keys() <= {200, 503}
        assert answers[503] <= (0 if how == "refusing" else TIMES), answers

        begin, end = stage.complaints(service, since)
        assert "the replica of DATABASE_READ_URL does not serve, and the primary is read" in begin
        assert "over after" in end
        assert "DATABASE_READ_URL" in end
        assert "postgres:" not in begin + end

    async def test_without_a_word_holds_up_nobody_but_those_who_wait(
        self, site: Pair, alice: Caller
    ) -> None:
        task = await alice.add()
        await site.replayed()
        site.to_standby.stall()
        answers = await stage.at_once(alice.get() for _ in range(2 * stage.POOL))
        stage.assert_in_time(answers)
        assert stage.statuses(answers).keys() <= {200, 503}
        for _ in range(TIMES):
            following = await stage.at_once(alice.get() for _ in range(stage.POOL))
            assert stage.statuses(following) == {200: stage.POOL}
            assert max(answer.seconds for answer in following) < stage.AT_ONCE
        assert await stage.listed(alice) == [task]
        site.to_standby.resume()
        await stage.eventually(lambda: site.is_read_from(alice), stage.RECOVERY)

    async def test_for_a_wrong_url_is_told_in_the_log(self, tmp_path: Path, site: Pair) -> None:
        url = site.standby_url.replace("postgres@", "postgres:hunter2@") + "_nowhere"
        settings = environment(site, DATABASE_READ_URL=url)
        async with stage.used(tmp_path, **settings) as (service, http):
            alice = stage.someone(http)
            task = await alice.add()

            async def is_told() -> bool:
                assert await stage.listed(alice) == [task]
                return bool(stage.complaints(service))

            await stage.eventually(is_told)
            assert (await http.get("/health/ready")).status_code == 200
            [line] = stage.complaints(service)
            assert "DATABASE_READ_URL names a database that does not exist" in line
            assert "hunter2" not in service.log()


class TestPrimaryAway:
    async def test_reads_go_on_and_writes_do_not(
        self, site: Pair, http: httpx.AsyncClient, alice: Caller
    ) -> None:
        task = await alice.add()
        await site.replayed()
        async with stage.stopped(site.primary):
            stage.assert_unavailable(await alice.post({"title": "Lost"}))
            stage.assert_unavailable(await alice.complete(task["id"]))
            stage.assert_unavailable(await alice.delete(f"/{task['id']}"))
            answers = await stage.at_once(alice.get() for _ in range(2 * stage.POOL))
            assert stage.statuses(answers) == {200: 2 * stage.POOL}
            assert (await alice.get(f"/{task['id']}")).json() == task
            # A balancer is told so: what it is about is the primary.
            stage.assert_unavailable(await http.get("/health/ready"))
        await stage.recovered(alice)
        assert (await http.get("/health/ready")).status_code == 200

    async def test_both_away_is_a_503_and_healed_in_any_order(
        self, site: Pair, alice: Caller
    ) -> None:
        await alice.add()
        async with stage.stopped(site.primary):
            async with stage.stopped(site.standby):
                answers = await stage.at_once(stage.reads_and_writes(alice, 2 * stage.POOL, "Lost"))
                stage.assert_in_time(answers, {503: 2 * stage.POOL})
            await stage.served(alice)
        await stage.recovered(alice)


class TestConnections:
    async def test_are_no_more_to_each_server_than_the_pools(
        self, tmp_path: Path, site: Pair
    ) -> None:
        # A database of its own: those of the other service are not counted.
        url = await asyncio.to_thread(create_database, site.primary)
        standby_url = url.replace(f":{site.primary.port}/", f":{site.standby.port}/")
        workers, pool = 2, 3
        sizes = {"WORKERS": f"{workers}", "DATABASE_POOL_SIZE": f"{pool}"}
        urls = {"DATABASE_URL": url, "DATABASE_READ_URL": standby_url}
        peaks = Counter[str]()

        async def count(stop: asyncio.Event) -> None:
            while not stop.is_set():
                for server in (url, standby_url):
                    peaks[server] = max(peaks[server], await stage.backends(server))

        async with stage.used(tmp_path, **sizes, **urls) as (_, http):
            alice = stage.someone(http)
            await alice.add()
            async with stage.load(1, count):
                for n in range(4):
                    requests = stage.reads_and_writes(alice, 64, f"Round {n}")
                    stage.assert_in_time(await stage.at_once(requests))
        assert peaks[url] <= workers * pool
        assert peaks[standby_url] <= workers * pool
        assert min(peaks.values()) > 1
