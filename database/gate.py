# [Task]: T009 [From]: specs/design.md
"""Who may ask the database, and when: as many requests at a time as there are connections."""

import asyncio
import logging
from collections import deque
from contextlib import suppress

from errors import DatabaseUnavailable
from logs import Outage

logger = logging.getLogger("tasks.db")


class Gate:
    """Lets as many requests at the database as there are connections, in the order they came in.

    Whoever leaves hands the permit to the first in line, so that nobody overtakes: a pool by itself
    lets whoever gives a connection back and asks again be ahead of those who wait.
    """

    def __init__(self, permits: int, patience: float) -> None:
        self._permits = self._free = permits
        self._patience = patience
        self._line: deque[asyncio.Future[None]] = deque()
        self._overload = Outage(logger, "requests find no free connection in time")

    @property
    def in_use(self) -> int:
        return self._permits - self._free

    @property
    def waiting(self) -> int:
        return len(self._line)

    async def __aenter__(self) -> None:
        """Raises DatabaseUnavailable after `patience` seconds."""
        if self._free:
            self._free -= 1
            self._overload.ends()
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._line.append(turn)
        timer = loop.call_later(self._patience, self._turn_away, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # Whoever left in the same moment passed it over.
                    self._line.remove(turn)
            elif turn.exception() is None:  # It came in the same moment.
                self._pass_on()
            raise
        finally:
            timer.cancel()

    async def __aexit__(self, *_: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _turn_away(self, turn: asyncio.Future[None]) -> None:
        if turn.done():
            return
        self._line.remove(turn)
        reason = f"none within {self._patience} s"
        self._overload.begins(reason)
        turn.set_exception(DatabaseUnavailable(f"no free connection: {reason}"))
