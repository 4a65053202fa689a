# [Task]: T009 [From]: specs/design.md
"""Admission to the database: as many requests at a time as there are connections."""

import asyncio
import logging
from collections import deque

from kit.errors import DatabaseUnavailable
from kit.logs import Outage

logger = logging.getLogger("tasks.db")

# A waiting request: its result is set when it gets a permit.
type Waiting = asyncio.Future[None]


class Gate:
    """A fair semaphore with a timeout: requests enter in the order in which they came.

    A connection pool is not fair: a request that returns a connection and takes one again overtakes
    those that wait. One user gets at most three quarters of the permits, so that the slow
    statements of one user leave connections for others. Further requests of that user wait aside;
    each time one of the user's requests leaves, the next joins the line. Entered as a context, the
    gate is for no user.
    """

    def __init__(self, permits: int, patience: float) -> None:
        self._permits = self._free = permits
        self._patience = patience
        self._share = max(1, permits - max(1, permits // 4))
        # Requests that have given up stay in these until their turn comes.
        self._line: deque[tuple[Waiting, str | None]] = deque()
        self._aside: dict[str, deque[Waiting]] = {}
        self._held: dict[str, int] = {}
        self._overload = Outage(logger, "requests find no free connection in time")
        self.waiting = 0

    @property
    def in_use(self) -> int:
        return self._permits - self._free

    async def __aenter__(self) -> None:
        """Raises DatabaseUnavailable after `patience` seconds."""
        await self.enter(None)

    async def __aexit__(self, *_: object) -> None:
        self.leave(None)

    async def enter(self, user: str | None) -> None:
        """Take a permit. Raises DatabaseUnavailable after `patience` seconds."""
        if self._free and self._admits(user):
            self._overload.ends()
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._line_up(turn, user)
        timer = loop.call_later(self._patience, self._turn_away, turn)
        self.waiting += 1
        try:
            await turn
        except BaseException:
            # Cancelled, perhaps in the moment in which it was admitted.
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(user)
            elif user is not None and self._held.get(user, 0) < self._share:
                self._call_next_of(user)
            raise
        finally:
            self.waiting -= 1
            timer.cancel()

    def leave(self, user: str | None) -> None:
        """Return a permit, and let in whoever is first in the line and may enter."""
        self._free += 1
        if user is not None:
            self._held[user] -= 1
            if not self._held[user]:
                del self._held[user]
            self._call_next_of(user)
        while self._free and self._line:
            turn, waiting = self._line.popleft()
            if turn.done():
                continue
            if self._admits(waiting):
                turn.set_result(None)
            else:
                self._line_up(turn, waiting)

    def _admits(self, user: str | None) -> bool:
        """Take one of the free permits, unless the user holds a full share."""
        if user is not None:
            held = self._held.get(user, 0)
            if held >= self._share:
                return False
            self._held[user] = held + 1
        self._free -= 1
        return True

    def _line_up(self, turn: Waiting, user: str | None) -> None:
        if user is not None and self._held.get(user, 0) >= self._share:
            self._aside.setdefault(user, deque()).append(turn)
        else:
            self._line.append((turn, user))

    def _call_next_of(self, user: str) -> None:
        """Move the next request of a user that waits aside to the line."""
        aside = self._aside.get(user, ())
        while aside:
            turn = aside.popleft()
            if not turn.done():
                self._line.append((turn, user))
                break
        else:
            self._aside.pop(user, None)

    def _turn_away(self, turn: Waiting) -> None:
        if not turn.done():
            reason = f"none within {self._patience} s"
            self._overload.begins(reason)
            turn.set_exception(DatabaseUnavailable(f"no free connection: {reason}"))


class Turn:
    """The gate for a request of one user."""

    __slots__ = ("_gate", "_user")

    def __init__(self, gate: Gate, user: str | None) -> None:
        self._gate = gate
        self._user = user

    async def __aenter__(self) -> None:
        """Raises DatabaseUnavailable after `patience` seconds."""
        await self._gate.enter(self._user)

    async def __aexit__(self, *_: object) -> None:
        self._gate.leave(self._user)
