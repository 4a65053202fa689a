# [Task]: T009 [From]: specs/design.md
"""Admission to the database: as many requests at a time as there are connections."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack

from kit.errors import DatabaseUnavailable
from kit.logs import Outage

logger = logging.getLogger("tasks.db")


class Gate:
    """A fair semaphore with a timeout: requests enter in the order in which they came.

    A connection pool is not fair: a request that returns a connection and takes one again overtakes
    those that wait. One user gets at most three quarters of the permits, so that the slow
    statements of one user leave connections for others.
    """

    def __init__(self, permits: int, patience: float) -> None:
        self.permits = asyncio.Semaphore(permits)
        self._patience = patience
        self._share = max(1, permits - max(1, permits // 4))
        self._users: dict[str, _Turn] = {}
        self._overload = Outage(logger, "requests find no free connection in time")
        self.in_use = 0
        self.waiting = 0

    def turn_of(self, user: str) -> "_Turn":
        """The context to enter instead of the gate for a request of this user."""
        turn = self._users.get(user)
        if turn is None:
            turn = self._users[user] = _Turn(self, user, self._share)
        return turn

    def forget(self, user: str) -> None:
        """Remove a user who has no requests left."""
        del self._users[user]

    async def __aenter__(self) -> None:
        """Raises DatabaseUnavailable after `patience` seconds."""
        await self.acquire(self.permits)

    async def acquire(self, *semaphores: asyncio.Semaphore) -> None:
        """Acquire all of these. Raises DatabaseUnavailable after `patience` seconds."""
        if any(semaphore.locked() for semaphore in semaphores):
            await self._wait_for(semaphores)
        else:
            for semaphore in semaphores:
                await semaphore.acquire()
            self._overload.ends()
        self.in_use += 1

    async def _wait_for(self, semaphores: Iterable[asyncio.Semaphore]) -> None:
        self.waiting += 1
        try:
            async with AsyncExitStack() as acquired, asyncio.timeout(self._patience):
                for semaphore in semaphores:
                    await semaphore.acquire()
                    acquired.callback(semaphore.release)
                acquired.pop_all()
        except TimeoutError:
            reason = f"none within {self._patience} s"
            self._overload.begins(reason)
            raise DatabaseUnavailable(f"no free connection: {reason}") from None
        finally:
            self.waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let the next request in."""
        self.in_use -= 1
        self.permits.release()


class _Turn:
    """The gate for the requests of one user."""

    def __init__(self, gate: Gate, user: str, permits: int) -> None:
        self._gate = gate
        self._user = user
        self._permits = asyncio.Semaphore(permits)
        self._requests = 0

    async def __aenter__(self) -> None:
        """Raises DatabaseUnavailable after `patience` seconds."""
        self._requests += 1
        try:
            await self._gate.acquire(self._permits, self._gate.permits)
        except BaseException:
            self._end()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._permits.release()
        self._gate.release()
        self._end()

    def _end(self) -> None:
        self._requests -= 1
        if not self._requests:
            self._gate.forget(self._user)
