# [Task]: T051 [From]: specs/requirements.md
"""Several hosts in a URL: a primary and its synchronous standby, and what becomes of a failover."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from databases import new, settings_for, stored
from sqlalchemy import Integer, bindparam, func, select
from support import Caller

from db import open_database
from faults import stage
from faults.pair import Pair, paired
from kit.database.database import Database
from kit.database.execute import Statement
from kit.database.hosts import LATE
from kit.database.session import Session
from kit.database.tables import upgrade_tables
from kit.errors import DatabaseUnavailable
from tasks.queries import CREATE

logger = logging.getLogger("tasks.tests")

# Seconds: what no request may take, whatever happens to its hosts.
LIMIT = 5.0
WRITERS = 8
READERS = 4


@pytest.fixture
def pair() -> Iterator[Pair]:
    """For a test that promotes the standby."""
    with paired(synchronous=True) as pair:
        yield pair


@pytest.fixture(scope="module")
def shared_pair() -> Iterator[Pair]:
    with paired(synchronous=True) as pair:
        yield pair


@pytest.fixture
def lasting(shared_pair: Pair) -> Iterator[Pair]:
    """For tests that leave each server what it was."""
    yield shared_pair
    shared_pair.to_primary.restore()
    shared_pair.to_standby.restore()


class Answered(NamedTuple):
    at: float
    seconds: float
    status: int


class Traffic(Caller):
    """A user with writers and readers who never stop, and how each of them was answered."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        super().__init__(http, stage.someone(http).user)
        self.ledger = stage.Ledger()
        self.reads: list[Answered] = []
        self.writes: list[Answered] = []

    async def request(
        self, method: str, path: str = "", *, headers: dict[str, str] | None = None, **kwargs: Any
    ) -> httpx.Response:
        begun = time.monotonic()
        response = await super().request(method, path, headers=headers, **kwargs)
        now = time.monotonic()
        answers = self.reads if method == "GET" else self.writes
        answers.append(Answered(now, now - begun, response.status_code))
        return response

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        write = partial(self.ledger.post_until, self)
        async with stage.load(WRITERS, write), stage.load(READERS, self._read):
            await self.ledger.reach(100)
            yield

    async def _read(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.get()

    async def failed(self, count: int) -> None:
        """Until as many writes have failed."""
        await stage.eventually(lambda: self.ledger.answers[503] >= count)

    async def assert_over(self, promoted: float, *, reads: set[int]) -> None:
        """Writes succeeded soon after the promotion, and all that was promised was kept."""
        written = [at for at, _, status in self.writes if status == 201 and at > promoted]
        failed = [at for at, _, status in self.writes if status != 201]
        slowest = max(answer.seconds for answer in self.writes + self.reads)
        logger.info(
            "the first write %.2f s after the promotion, %d refused, the slowest answer %.1f s",
            *(min(written) - promoted, len(failed), slowest),
        )
        assert min(written) - promoted < stage.RECOVERY
        assert max(failed, default=promoted) - promoted < stage.RECOVERY
        assert slowest < LIMIT
        assert self.ledger.answers.keys() <= {201, 503}
        assert {answer.status for answer in self.reads} <= reads
        self.ledger.assert_kept(await stage.listed(self))


class TestFailover:
    # A machine that is gone answers nothing, and is replaced at once or when somebody has noticed.
    # Without the cure it uses up all the time there is for connecting, and each connection that was
    # left there keeps a request waiting.

    @pytest.mark.parametrize(
        ("how", "failures"), [("refusing", 0), ("swallowing", 0), ("swallowing", 3 * WRITERS)]
    )
    async def test_is_over_two_seconds_after_the_promotion(
        self, tmp_path: Path, pair: Pair, how: str, failures: int
    ) -> None:
        url = pair.direct if how == "refusing" else pair.by_proxies
        async with stage.used(tmp_path, DATABASE_URL=url) as (service, http):
            traffic = Traffic(http)
            async with traffic.flowing():
                async with pair.without_primary(how):
                    await traffic.failed(failures)
                    promoted = await pair.promote()
                    await traffic.ledger.more(100)
                # Nobody goes back to what calls itself primary too.
                await traffic.ledger.more(100)
            await traffic.assert_over(promoted, reads={200, 503})
            [moved] = [line for line in service.log().splitlines() if "go to" in line]
            assert moved.startswith("INFO")

    async def test_from_a_primary_that_was_made_read_only(self, tmp_path: Path, pair: Pair) -> None:
        # As a provider does it who moves to another machine: connections stay, writes are 25006.
        async with stage.used(tmp_path, DATABASE_URL=pair.direct) as (_, http):
            traffic = Traffic(http)
            async with traffic.flowing():
                await stage.configure(pair.url, "default_transaction_read_only", "on")
                await traffic.failed(WRITERS)
                promoted = await pair.promote()
                await traffic.ledger.more(100)
                # Reads would have gone on there, and told of what is past.
                await stage.have_backends(pair.url, 0)
            await traffic.assert_over(promoted, reads={200})


class TestReading:
    async def test_goes_on_from_the_standby_when_both_settings_name_both(
        self, tmp_path: Path, pair: Pair
    ) -> None:
        environment = dict.fromkeys(("DATABASE_URL", "DATABASE_READ_URL"), pair.by_proxies)
        async with stage.used(tmp_path, **environment) as (_, http):
            await stage.eventually(lambda: pair.is_read_from(stage.someone(http)))
            traffic = Traffic(http)
            async with traffic.flowing(), pair.without_primary("swallowing"):
                await traffic.failed(WRITERS)
                promoted = await pair.promote()
                await traffic.ledger.more(100)
            await traffic.assert_over(promoted, reads={200})

    async def test_goes_to_the_next_host_when_one_falls_mute(
        self, tmp_path: Path, lasting: Pair
    ) -> None:
        read_url = lasting.hosts(lasting.to_standby.port, lasting.to_primary.port)
        read_url += "?application_name=reader"
        environment = {"DATABASE_URL": lasting.url, "DATABASE_READ_URL": read_url}
        async with stage.used(tmp_path, **environment) as (_, http):
            traffic = Traffic(http)
            readers = "SELECT pid FROM pg_stat_activity WHERE application_name = 'reader'"
            async with traffic.flowing():
                await stage.eventually(lambda: stored(lasting.standby_url, readers))
                lasting.to_standby.stall()
                await stage.eventually(lambda: stored(lasting.url, readers), LIMIT)
                await traffic.ledger.more(100)
            assert {answer.status for answer in traffic.writes} == {201}
            assert {answer.status for answer in traffic.reads} <= {200, 503}
            assert max(answer.seconds for answer in traffic.reads) < LIMIT


@asynccontextmanager
async def opened(url: str, **values: object) -> AsyncIterator[Database]:
    async with open_database(settings_for(url, **values)) as database:
        yield database


_PORT = select(func.inet_server_port(type_=Integer).label("port"))
PORT = Statement(_PORT)
PID = Statement(select(func.pg_backend_pid(type_=Integer).label("pid")))
SLOW_PORT = Statement(_PORT.select_from(func.pg_sleep(bindparam("seconds"))))


async def port_of(database: Database) -> int:
    """Where a statement is run."""
    [row] = await PORT.rows(Session(database))
    port: int = row["port"]
    return port


class TestTarget:
    @pytest.fixture(autouse=True)
    def patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However slow a host is, the order of the hosts decides."""
        monkeypatch.setattr("kit.database.hosts.STAGGER", LIMIT)

    @pytest.mark.parametrize(
        ("target", "first", "expected"),
        [
            (None, "standby", "primary"),
            ("read-write", "standby", "primary"),
            ("primary", "standby", "primary"),
            ("any", "standby", "standby"),
            ("any", "primary", "primary"),
            ("standby", "primary", "standby"),
            ("read-only", "primary", "standby"),
            ("prefer-standby", "primary", "standby"),
        ],
    )
    async def test_is_the_host_that_is_asked_for(
        self, lasting: Pair, target: str | None, first: str, expected: str
    ) -> None:
        ports = {"primary": lasting.primary.port, "standby": lasting.standby.port}
        url = lasting.hosts(*sorted(ports.values(), key=lambda port: port != ports[first]))
        if target is not None:
            url += f"?target_session_attrs={target}"
        async with opened(url) as database:
            assert await port_of(database) == ports[expected]

    @pytest.mark.parametrize("target", ["read-write", "standby"])
    async def test_of_one_host_is_honoured_too(self, lasting: Pair, target: str) -> None:
        right = (lasting.standby if target == "standby" else lasting.primary).port
        for port in (lasting.primary.port, lasting.standby.port):
            async with opened(f"{lasting.hosts(port)}?target_session_attrs={target}") as database:
                if port == right:
                    assert await port_of(database) == right
                else:
                    with pytest.raises(DatabaseUnavailable, match="target_session_attrs"):
                        await port_of(database)

    async def test_that_no_host_is_can_be_told_from_a_host_that_is_away(
        self, lasting: Pair
    ) -> None:
        lasting.to_primary.refuse()
        ports = lasting.to_primary.port, lasting.standby.port
        async with opened(lasting.hosts(*ports)) as database:
            with pytest.raises(DatabaseUnavailable, match="it can't be reached"):
                await port_of(database)
        lasting.to_primary.accept()
        async with opened(lasting.hosts(lasting.standby.port, lasting.to_standby.port)) as database:
            with pytest.raises(DatabaseUnavailable, match="no host of DATABASE_URL is what"):
                await port_of(database)

    async def test_prefer_standby_takes_the_primary_until_there_is_a_standby(
        self, lasting: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kit.database.hosts.STANDBY_RETRY_INTERVAL", 0.1)
        lasting.to_standby.mute()
        ports = lasting.primary.port, lasting.to_standby.port
        url = f"{lasting.hosts(*ports)}?target_session_attrs=prefer-standby"
        async with opened(url) as database:
            assert await port_of(database) == lasting.primary.port
            lasting.to_standby.resume()

            async def is_found() -> bool:
                return await port_of(database) == lasting.standby.port

            await stage.eventually(is_found)


class TestConnections:
    async def test_do_not_wait_twice_for_a_host_that_is_silent(self, lasting: Pair) -> None:
        lasting.to_primary.mute()
        before = lasting.to_primary.connections
        ports = lasting.to_primary.port, lasting.standby.port
        url = f"{lasting.hosts(*ports)}?target_session_attrs=any"
        async with opened(url, database_connect_timeout=60) as database:
            tasks = len(asyncio.all_tasks())
            for _ in range(3):
                assert await port_of(database) == lasting.standby.port
                await database.engine.dispose()
            assert lasting.to_primary.connections == before + 1
            # What was begun with it is given up.
            await stage.eventually(lambda: len(asyncio.all_tasks()) == tasks)
            lasting.to_primary.resume()
            await stage.have_backends(lasting.url, 0)

    async def test_to_one_host_are_made_anew_when_a_write_is_refused(self, lasting: Pair) -> None:
        # What they lead to may have been the primary, and its name may be another server's by now.
        async with opened(lasting.direct) as database:
            await upgrade_tables(database)
        url = lasting.standby_url
        async with stage.connected(url) as connection:
            await stage.eventually(
                lambda: connection.fetchval("SELECT to_regclass('task') NOTNULL")
            )
        async with opened(url) as database:
            before = await PID.rows(Session(database))
            assert await PID.rows(Session(database)) == before
            with pytest.raises(DatabaseUnavailable, match="read-only"):
                await CREATE.rows(Session(database), **new("refused"))
            assert await PID.rows(Session(database)) != before

    async def test_being_made_notice_a_promotion(self, pair: Pair) -> None:
        pair.to_primary.mute()
        async with opened(pair.by_proxies, database_connect_timeout=60) as database:
            port = asyncio.create_task(port_of(database))
            await stage.eventually(lambda: pair.to_standby.connections > 0)
            assert not port.done()
            promoted = await pair.promote()
            assert await port == pair.standby.port
            assert time.monotonic() - promoted < stage.RECOVERY

    async def test_in_use_are_left_in_peace_and_closed_afterwards(
        self, lasting: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kit.database.hosts.STAGGER", LATE / 10)
        ports = lasting.to_primary.port, lasting.standby.port
        url = lasting.url
        async with opened(f"{lasting.hosts(*ports)}?target_session_attrs=any") as database:
            async with database.engine.connect() as session, asyncio.TaskGroup() as group:
                own_port = select(func.inet_server_port())
                assert await session.scalar(own_port) == lasting.primary.port
                statement = SLOW_PORT.rows(Session(database), seconds=0.8 * LATE)
                slow = group.create_task(statement)
                await stage.have_backends(url, 1, "wait_event = 'PgSleep'")
                lasting.to_primary.mute()
                assert await port_of(database) == lasting.standby.port
                assert not slow.done()
                assert await session.scalar(own_port) == lasting.primary.port
            assert slow.result() == [{"port": lasting.primary.port}]
            for _ in range(2):
                assert await port_of(database) == lasting.standby.port

    async def test_that_keep_waiting_are_cut_when_the_database_is_elsewhere(
        self, lasting: Pair
    ) -> None:
        ports = lasting.to_primary.port, lasting.standby.port
        url = f"{lasting.hosts(*ports)}?target_session_attrs=any"
        async with opened(url, database_statement_timeout=60) as database:
            assert await port_of(database) == lasting.primary.port
            lasting.to_primary.stall()
            with pytest.raises(DatabaseUnavailable, match="the connection is broken"):
                await port_of(database)
            assert await port_of(database) == lasting.standby.port

    async def test_of_a_slow_statement_are_not_cut(self, lasting: Pair) -> None:
        async with opened(lasting.direct) as database:
            rows = await SLOW_PORT.rows(Session(database), seconds=2 * LATE)
            assert rows == [{"port": lasting.primary.port}]
