# [Task]: T051 [From]: specs/requirements.md
"""A primary and its standby, for the tests of failovers and of read replicas."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import httpx
from postgresql import PostgreSQL, Replica
from service import create_database
from support import Caller

from faults.proxy import Proxy, proxying
from faults.stage import configure, connected, eventually, postgresql, stopped


class Pair(NamedTuple):
    """A primary, a standby that streams from it, a database of theirs, and a proxy to each."""

    primary: PostgreSQL
    standby: Replica
    database: str
    to_primary: Proxy
    to_standby: Proxy

    def hosts(self, *ports: int) -> str:
        """The URL of the database with these hosts."""
        listed = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"postgresql://postgres@{listed}/{self.database}"

    @property
    def url(self) -> str:
        return self.primary.url(self.database)

    @property
    def standby_url(self) -> str:
        return self.standby.url(self.database)

    @property
    def direct(self) -> str:
        return self.hosts(self.primary.port, self.standby.port)

    @property
    def by_proxies(self) -> str:
        return self.hosts(self.to_primary.port, self.to_standby.port)

    @asynccontextmanager
    async def without_primary(self, how: str) -> AsyncIterator[None]:
        """It is killed, and afterwards back as if nothing had happened, without a standby."""
        if how == "swallowing":
            self.to_primary.stall()
        async with stopped(self.primary, "immediate"):
            yield
        self.to_primary.resume()

    async def promote(self) -> float:
        """When the standby has become the primary."""
        await asyncio.to_thread(self.standby.promote)
        return time.monotonic()

    async def asked(self, request: Awaitable[httpx.Response]) -> tuple[int, int]:
        """How often the primary and the standby were waited for meanwhile."""
        before = (self.to_primary.round_trips, self.to_standby.round_trips)
        assert (await request).is_success
        now = (self.to_primary.round_trips, self.to_standby.round_trips)
        return now[0] - before[0], now[1] - before[1]

    async def is_read_from(self, alice: Caller) -> bool:
        """Whether her list is the standby's, and the primary is not asked."""
        return await self.asked(alice.get()) == (0, 1)

    async def replayed(self) -> None:
        """Until the standby has all that the primary has."""
        async with connected(self.url) as primary, connected(self.standby_url) as standby:
            end = await primary.fetchval("SELECT pg_current_wal_insert_lsn()::text")
            caught_up = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
            await eventually(lambda: standby.fetchval(caught_up, end))

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Meanwhile the standby stays as it is."""
        await self.replayed()
        async with connected(self.standby_url) as standby:
            await standby.execute("SELECT pg_wal_replay_pause()")
            has_paused = "SELECT pg_get_wal_replay_pause_state() = 'paused'"
            await eventually(lambda: standby.fetchval(has_paused))
            try:
                yield
            finally:
                await standby.execute("SELECT pg_wal_replay_resume()")


async def _make_synchronous(primary: PostgreSQL) -> None:
    await configure(primary.url(), "synchronous_standby_names", "'*'")
    async with connected(primary.url()) as connection:
        is_so = "SELECT sync_state = 'sync' FROM pg_stat_replication"
        await eventually(lambda: connection.fetchval(is_so))


@contextmanager
def paired(*, synchronous: bool = False) -> Iterator[Pair]:
    """Synchronous ones have a primary that commits only what its standby has too."""
    with ExitStack() as stack:
        primary = stack.enter_context(postgresql())
        folder = stack.enter_context(TemporaryDirectory(prefix="task-api-"))
        standby = Replica(Path(folder), primary)
        standby.start()
        if synchronous:
            asyncio.run(_make_synchronous(primary))
        stack.callback(standby.stop, "immediate")
        database = create_database(primary).rpartition("/")[2]
        to_primary = stack.enter_context(proxying(primary.port))
        to_standby = stack.enter_context(proxying(standby.port))
        yield Pair(primary, standby, database, to_primary, to_standby)
