# [Task]: T009 [From]: specs/design.md
"""Who may ask the database, and when: as many requests at a time as there are connections."""

import asyncio
import logging

from errors import DatabaseUnavailable
from logs import Outage

logger = logging.getLogger("tasks.db")


class Gate:
    """Lets as many requests at the database as there are connections, in the order they came in.

    The pool by itself lets whoever gives a connection back and asks again overtake those who wait.
    """

    def __init__(self, permits: int, patience: float) -> None:
        self._permits = asyncio.Semaphore(permits)
        self._patience = patience
        self._overload = Outage(logger, "requests find no free connection in time")

    async def __aenter__(self) -> None:
        """Raises DatabaseUnavailable after `patience` seconds."""
        if not self._permits.locked():
            self._overload.ends()
            await self._permits.acquire()
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._permits.acquire()
        except TimeoutError:
            reason = f"none within {self._patience} s"
            self._overload.begins(reason)
            raise DatabaseUnavailable(f"no free connection: {reason}") from None

    async def __aexit__(self, *_: object) -> None:
        self._permits.release()
