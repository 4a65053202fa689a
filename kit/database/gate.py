# [Task]: T009 [From]: specs/design.md
"""Who may ask the database, and when: as many requests at a time as there are connections."""

import asyncio
import logging
from collections import OrderedDict

from kit.errors import DatabaseUnavailable
from kit.logs import Outage

logger = logging.getLogger("tasks.db")


class Gate:
    """Lets as many requests at the database as there are connections, in the order they came in.

    Whoever leaves hands the permit to the first in line, so that nobody overtakes: a pool by itself
    lets whoever gives a connection back and asks again be ahead of those who wait.
    """

    def __init__(self, permits: int, patience: float) -> None:
        self._permits = self._free = permits
        self._patience = patience
        # Who waits, and until when. All are as patient, so that the first is the first to give up,
        # and one timer does for all: one for each takes longer than the rest of this.
        self._line: OrderedDict[asyncio.Future[None], float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
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
        self._line[turn] = loop.time() + self._patience
        if self._timer is None:
            self._timer = loop.call_later(self._patience, self._turn_away)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._line.pop(turn, None)  # Whoever left in the same moment passed it over.
            elif turn.exception() is None:  # It came in the same moment.
                self._pass_on()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        while self._line:
            turn, _ = self._line.popitem(last=False)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _turn_away(self) -> None:
        """Whoever has waited long enough."""
        loop = asyncio.get_running_loop()
        reason = f"none within {self._patience} s"
        self._timer = None
        while self._line:
            turn, until = next(iter(self._line.items()))
            if until > loop.time():
                self._timer = loop.call_at(until, self._turn_away)
                return
            del self._line[turn]
            if not turn.done():
                self._overload.begins(reason)
                turn.set_exception(DatabaseUnavailable(f"no free connection: {reason}"))
