# [Task]: T051 [From]: specs/decisions.md
"""Several hosts of one database: which to connect to, and how it comes out that it is another now.

asyncpg asks one host after the other, within one timeout: a host that swallows packets uses it up.
What a URL says of its hosts is read in urls.py.
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

logger = logging.getLogger("tasks.db")

# Seconds a host may be silent before the next one is asked as well.
STAGGER = 0.25
# Seconds a statement may take before it is asked where the database is now.
LATE = 0.5
# Seconds a connection is used that would rather be to a standby.
MAKESHIFT = 300.0

type Host = tuple[str, int]


class Linked(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection to one of several hosts, which has the others asked when a statement is late."""

    hosts: "Hosts"
    host: Host
    ends_at = float("inf")
    # Whether a statement is under way that is not late.
    is_in_time = False

    @property
    def is_to_be_moved(self) -> bool:
        """Whether a new connection would be, or might be, to a host that fits better."""
        return self.host != self.hosts.current or time.monotonic() > self.ends_at

    async def fetch(self, query: str, *arguments: Any) -> Any:
        timer = asyncio.get_running_loop().call_later(LATE, self._is_late)
        self.is_in_time = True
        try:
            return await super().fetch(query, *arguments)
        finally:
            self.is_in_time = False
            timer.cancel()

    def was_read_only(self) -> None:
        """A write has been refused. Where to go is asked; until there is a place, reads go on."""
        self.hosts.wonder(self)

    def _is_late(self) -> None:
        self.is_in_time = False
        self.hosts.wonder(self)


class Hosts:
    """Connects to whichever host fits, and leads what is connected to another one there."""

    def __init__(self) -> None:
        self.current: Host | None = None
        self._connections = WeakSet[Linked]()
        self._options: dict[str, Any] = {}
        self._search: asyncio.Task[None] | None = None

    async def connect(self, **options: Any) -> Linked:
        """As asyncpg.connect, with lists of hosts and ports. Raises what that raises.

        The host that fitted last is asked first. `timeout` is for all of them together.
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

    def wonder(self, connection: Linked) -> None:
        """It is of no use just now: is the database elsewhere?"""
        if connection.host != self.current:
            connection.terminate()
        elif self._search is None or self._search.done():
            self._search = asyncio.create_task(self._look_around())

    async def _look_around(self) -> None:
        with suppress(*DRIVER_ERRORS):
            (await self.connect(**self._options)).terminate()
        await asyncio.sleep(STAGGER)  # Not again at once, whatever was found.

    def _move_to(self, host: Host) -> None:
        if host == self.current:
            return
        if self.current is not None:
            logger.info("connections to the database go to %s:%s from now on", *host)
        self.current = host
        for connection in list(self._connections):
            if connection.is_closed() or connection.host == host:
                continue
            # What is under way may still end well. Its connection is not used again.
            if not (connection.is_in_time or connection.is_in_transaction()):
                connection.terminate()


async def _preferred(hosts: Iterable[Host], options: Mapping[str, Any]) -> Linked:
    if options["target_session_attrs"] != "prefer-standby":
        return await _first_that_fits(hosts, options)
    with suppress(*DRIVER_ERRORS):
        async with asyncio.timeout(options["timeout"] / 2):
            return await _first_that_fits(hosts, {**options, "target_session_attrs": "standby"})
    connection = await _first_that_fits(hosts, {**options, "target_session_attrs": "any"})
    connection.ends_at = time.monotonic() + MAKESHIFT
    return connection


async def _first_that_fits(hosts: Iterable[Host], options: Mapping[str, Any]) -> Linked:
    """The first connection that is what target_session_attrs asks for.

    The next host is asked when the last has said no, or has been silent for a while. As long as one
    is silent, the others are asked again, since one of them may be promoted meanwhile.
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
                # That a standby is one says less than why there is no primary.
                raise min(refusals.values(), key=_is_misfit)
    finally:
        for task in asked:
            task.add_done_callback(_let_go)
            task.cancel()


async def _connect_to(host: Host, options: Mapping[str, Any]) -> Linked:
    name, port = host
    connection: Linked = await asyncpg.connect(**{**options, "host": name, "port": port})
    connection.host = host
    return connection


def _is_misfit(refusal: BaseException) -> bool:
    return isinstance(refusal, asyncpg.TargetServerAttributeNotMatched)


def _let_go(task: asyncio.Task[Linked]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()
