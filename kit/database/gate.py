# [Task]: T009 [From]: specs/design.md
"""Who may ask the database, and when: as many requests at a time as there are connections."""

import asyncio
import logging

from kit.errors import DatabaseUnavailable
from kit.logs import Outage

logger = logging.getLogger("tasks.db")


class Gate:
    """A semaphore with a timeout, in the order in which requests came.

    A connection pool by itself is not fair: a request that gives a connection back and asks again
    gets ahead of those that wait.
    """

    def __init__(self, permits: int, patience: float) -> None:
        self._permits = asyncio.Semaphore(permits)
        self._patience = patience
        self._overload = Outage(logger, "requests find no free connection in time")
        self.in_use = 0
        self.waiting = 0

    async def __aenter__(self) -> None:
        """Raises DatabaseUnavailable after `patience` seconds."""
        if self._permits.locked():
            await self._wait()
        else:
            await self._permits.acquire()
            self._overload.ends()
        self.in_use += 1

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await self._permits.acquire()
        except TimeoutError:
            reason = f"none within {self._patience} s"
            self._overload.begins(reason)
            raise DatabaseUnavailable(f"no free connection: {reason}") from None
        finally:
            self.waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self.in_use -= 1
        self._permits.release()
