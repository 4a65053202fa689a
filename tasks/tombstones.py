# [Task]: T091 [From]: specs/requirements.md
"""Tombstones: the emptied rows of deleted tasks, kept so that their Idempotency-Keys stay known.

A user may have as many tombstones as tasks. Expired and surplus ones are deleted in the background.
"""

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from fastapi import Request
from sqlalchemy import String, bindparam, func, select

from db import Database, Record, Session, Statement, UTCDateTime, utc_now
from kit.errors import DatabaseUnavailable
from models import IS_DELETED, TASK_TABLE
from tasks.idempotency import KEY_LIFETIME
from tasks.limits import MAX_USERS, SHARES
from tasks.queries import ALL, CLEAR, CLEARED_AT_A_TIME

# Seconds between two sweeps of one process, plus or minus half, so that processes take turns.
SWEEP_INTERVAL = 3600.0
# Seconds between two steps of a sweep.
STEP_INTERVAL = 1.0
# Users per step.
STEP = 100

_user = TASK_TABLE.c.user_id
# The only statement that names no user. It continues in the tombstones' index after the last user.
NEXT_USERS = Statement(
    select(
        _user,
        (func.min(TASK_TABLE.c.created_at) < bindparam("expired", type_=UTCDateTime())).label(
            "has_expired"
        ),
    )
    .where(IS_DELETED, _user > bindparam("after", type_=String()))
    .group_by(_user)
    .order_by(_user)
    .limit(STEP)
)


class Tombstones:
    """Counts new tombstones and deletes old ones."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._bound = database.settings.tasks_per_user or ALL
        # One process may add so many for a user before it deletes surplus ones.
        self._unchecked = max(1, self._bound // SHARES)
        self._made: Counter[str] = Counter()
        self._clearing: set[str] = set()
        self._after = ""
        first = SWEEP_INTERVAL * random.random()  # noqa: S311  # no secret
        database.when_awake(first, self._step)

    def add(self, user_id: str) -> None:
        """Count one more tombstone of the user."""
        if len(self._made) >= MAX_USERS:
            self._made.clear()
        self._made[user_id] += 1
        if self._made[user_id] >= self._unchecked and user_id not in self._clearing:
            del self._made[user_id]
            self._database.in_background(self._clear(user_id))

    async def _step(self) -> None:
        wait = SWEEP_INTERVAL * random.uniform(0.5, 1.5)  # noqa: S311
        try:
            if await self.sweep():
                wait = STEP_INTERVAL
        finally:
            self._database.when_awake(wait, self._step)

    async def sweep(self) -> bool:
        """Delete expired tombstones of the next users. Returns whether there are more users."""
        expired = utc_now() - KEY_LIFETIME
        users = await self._run(NEXT_USERS, after=self._after, expired=expired)
        self._after = users[-1][0] if len(users) == STEP else ""
        for user_id, has_expired in users:
            if has_expired:
                await self._clear(user_id)
        return bool(self._after)

    async def _clear(self, user_id: str) -> None:
        values = {"owner": user_id, "expired": utc_now() - KEY_LIFETIME, "bound": self._bound}
        self._clearing.add(user_id)
        try:
            while len(await self._run(CLEAR, **values)) == CLEARED_AT_A_TIME:
                pass
        finally:
            self._clearing.discard(user_id)

    async def _run(self, statement: Statement, **values: object) -> Sequence[Record]:
        """Run a statement with the same admission as a request. Empty if the database is down."""
        with suppress(DatabaseUnavailable):
            async with self._database.admission(None, reads=False):
                return await statement.records(Session(self._database), **values)
        return []


async def tombstones(request: Request) -> Tombstones | None:
    """The app's Tombstones; None without a lifespan."""
    kept: Tombstones | None = getattr(request.app.state, "tombstones", None)
    return kept
