# [Task]: T009 [From]: specs/design.md
"""Admission to the database: as many requests at a time as there are connections."""

import asyncio
import logging

from kit.errors import DatabaseUnavailable
from kit.logs import Outage

logger = logging.getLogger("tasks.db")


class Gate:
    """A fair semaphore with a timeout: requests enter in the order in which they came.

    A connection pool is not fair: a request that returns a connection and takes one again overtakes
    those that wait. One user gets at most three quarters of the permits, so that the slow
    statements of one user leave connections for others. Entered as a context, it is for no user.
    """

    def __init__(self, permits: int, patience: float) -> None:
        self._permits = self._free = permits
        self._patience = patience
        self._share = max(1, permits - max(1, permits // 4))
        # While a permit is free, everybody in this line has a full share.
        self._line: dict[asyncio.Future[None], str | None] = {}
        self._held: dict[str, int] = {}
        self._overload = Outage(logger, "requests find no free connection in time")

    @property
    def in_use(self) -> int:
        return self._permits - self._free

    @property
    def waiting(self) -> int:
        return len(self._line)

    def turn_of(self, user: str) -> "Turn":
        """The context to enter instead of the gate for a request of this user."""
        return Turn(self, user)

    async def __aenter__(self) -> None:
        """Raises DatabaseUnavailable after `patience` seconds."""
        await self.enter(None)

    async def __aexit__(self, *_: object) -> None:
        self.leave(None)

    async def enter(self, user: str | None) -> None:
        """Take a permit. Raises DatabaseUnavailable after `patience` seconds."""
        if self._has_room_for(user):
            self._admit(user)
            self._overload.ends()
            return
        turn = asyncio.get_running_loop().create_future()
        self._line[turn] = user
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except BaseException as error:
            if turn in self._line:
                del self._line[turn]
            else:  # Admitted in the same moment.
                self.leave(user)
            if not isinstance(error, TimeoutError):
                raise
            reason = f"none within {self._patience} s"
            self._overload.begins(reason)
            raise DatabaseUnavailable(f"no free connection: {reason}") from None

    def leave(self, user: str | None) -> None:
        """Return a permit, and let in whoever has waited longest and may enter."""
        self._free += 1
        if user is not None:
            self._held[user] -= 1
            if not self._held[user]:
                del self._held[user]
        for turn, waiting in list(self._line.items()) if self._line else ():
            if not self._free:
                break
            if not turn.done() and self._has_room_for(waiting):
                del self._line[turn]
                self._admit(waiting)
                turn.set_result(None)

    def _has_room_for(self, user: str | None) -> bool:
        return self._free > 0 and (user is None or self._held.get(user, 0) < self._share)

    def _admit(self, user: str | None) -> None:
        self._free -= 1
        if user is not None:
            self._held[user] = self._held.get(user, 0) + 1


class Turn:
    """The gate for a request of one user."""

    __slots__ = ("_gate", "_user")

    def __init__(self, gate: Gate, user: str) -> None:
        self._gate = gate
        self._user = user

    async def __aenter__(self) -> None:
        """Raises DatabaseUnavailable after `patience` seconds."""
        await self._gate.enter(self._user)

    async def __aexit__(self, *_: object) -> None:
        self._gate.leave(self._user)
