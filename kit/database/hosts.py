# [Task]: T051 [From]: specs/decisions.md
"""Several hosts of one database: connects to the right one and follows a failover (D22).

asyncpg tries the hosts in turn within one timeout, so a host that drops packets uses it up. urls.py
parses the hosts of a URL.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import asyncpg

from kit.database.failures import DRIVER_ERRORS
from kit.database.tls import connect

logger = logging.getLogger("tasks.db")

# Seconds without an answer from a host before the next one is tried, too.
STAGGER = 0.25
# Seconds after which a statement is late, and the primary is looked for.
LATE = 0.5
# Seconds to read from the primary before a standby is looked for again.
STANDBY_RETRY_INTERVAL = 300.0

type Host = tuple[str, int]


class Linked(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection to one of several hosts. A late statement starts a search for the primary."""

    hosts: "Hosts"
    host: Host
    ends_at = float("inf")
    # True while a statement runs that is not late yet.
    is_in_time = False

    @property
    def is_to_be_moved(self) -> bool:
        """Whether a new connection may reach a better host."""
        return self.host != self.hosts.current or time.monotonic() > self.ends_at

    async def run_prepared(self, sql: str, *arguments: Any) -> Any:
        """As pool.Connection's, and looks for the primary when the statement is late."""
        timer = asyncio.get_running_loop().call_later(LATE, self._is_late)
        self.is_in_time = True
        try:
            return await super().run_prepared(sql, *arguments)
        finally:
            self.is_in_time = False
            timer.cancel()

    def was_read_only(self) -> None:
        """A write was refused: look for the primary. Reads go on until it is found."""
        self.hosts.look_for_primary(self)

    def _is_late(self) -> None:
        self.is_in_time = False
        self.hosts.look_for_primary(self)


class Hosts:
    """Connects to the host that fits, and closes connections to other hosts after a failover."""

    def __init__(self) -> None:
        self.current: Host | None = None
        self._connections = WeakSet[Linked]()
        self._options: dict[str, Any] = {}
        self._search: asyncio.Task[None] | None = None

    async def connect(self, **options: Any) -> Linked:
        """Like asyncpg.connect, but with lists of hosts and ports.

        The last good host is tried first. `timeout` covers all hosts together.
        """
        self._options = options
        hosts = list(zip(options["host"], options["port"], strict=True))
        hosts.sort(key=lambda host: host != self.current)
        async with asyncio.timeout(options["timeout"]):
            connection = await _preferred(hosts, options)
        connection.hosts = self
        self._connections.add(connection)
        self._move_to(connection.host)
        return connection

    def look_for_primary(self, connection: Linked) -> None:
        """Find out whether another host is the primary now, since this connection failed."""
        if connection.host != self.current:
            connection.terminate()
        elif self._search is None or self._search.done():
            self._search = asyncio.create_task(self._connect_once())

    async def _connect_once(self) -> None:
        with suppress(*DRIVER_ERRORS):
            (await self.connect(**self._options)).terminate()
        await asyncio.sleep(STAGGER)  # A pause between two searches.

    def _move_to(self, host: Host) -> None:
        if host == self.current:
            return
        if self.current is not None:
            logger.info("connections to the database go to %s:%s from now on", *host)
        self.current = host
        for connection in list(self._connections):
            if connection.is_closed() or connection.host == host:
                continue
            # A running statement that is not late may still succeed. Its connection is not reused.
            if not (connection.is_in_time or connection.is_in_transaction()):
                connection.terminate()


async def _preferred(hosts: Iterable[Host], options: Mapping[str, Any]) -> Linked:
    if options["target_session_attrs"] != "prefer-standby":
        return await _first_that_fits(hosts, options)
    with suppress(*DRIVER_ERRORS):
        async with asyncio.timeout(options["timeout"] / 2):
            return await _first_that_fits(hosts, {**options, "target_session_attrs": "standby"})
    connection = await _first_that_fits(hosts, {**options, "target_session_attrs": "any"})
    connection.ends_at = time.monotonic() + STANDBY_RETRY_INTERVAL
    return connection


async def _first_that_fits(hosts: Iterable[Host], options: Mapping[str, Any]) -> Linked:
    """The first connection that satisfies target_session_attrs.

    The next host is tried when the last one has refused, or is silent for STAGGER seconds. While
    one is silent, the others are tried again, because one of them may be promoted meanwhile.
    """
    refusals: dict[Host, BaseException] = {}
    asked: dict[asyncio.Task[Linked], Host] = {}
    try:
        while True:
            for host in hosts:
                if host not in asked.values():
                    asked[asyncio.create_task(_connect_to(host, options))] = host
                answered, _ = await asyncio.wait(
                    asked, timeout=STAGGER, return_when=asyncio.FIRST_COMPLETED
                )
                for task in answered:
                    refusal = task.exception()
                    if refusal is None:
                        del asked[task]
                        return task.result()
                    refusals[asked.pop(task)] = refusal
            if not asked:
                # Prefer an error of the missing primary to a standby's "not a primary".
                raise min(refusals.values(), key=_is_misfit)
    finally:
        for task in asked:
            task.add_done_callback(_let_go)
            task.cancel()


async def _connect_to(host: Host, options: Mapping[str, Any]) -> Linked:
    name, port = host
    connection: Linked = await connect(**{**options, "host": name, "port": port})
    connection.host = host
    return connection


def _is_misfit(refusal: BaseException) -> bool:
    return isinstance(refusal, asyncpg.TargetServerAttributeNotMatched)


def _let_go(task: asyncio.Task[Linked]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()
