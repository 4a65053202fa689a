# [Task]: T055 [From]: specs/decisions.md
"""How many tasks a user may have, and who need not be counted for that with each POST (D23)."""

import logging
import time
from contextlib import suppress

from fastapi import Request

from db import Database, Session
from errors import TaskLimitReached
from kit.errors import DatabaseUnavailable
from settings import get_settings
from tasks.queries import COUNT

# POSTs that are counted by their own statement before the user is counted once for many more.
COUNTED_ONE_BY_ONE = 8
# The part of the room that is left which one process may fill without counting again: as many
# processes may do so at once.
SHARES = 64
# Users that are remembered.
MAX_USERS = 4096
# Seconds between two log lines about users at the limit.
LOG_INTERVAL = 3600.0

logger = logging.getLogger("tasks.limits")


class TaskLimit:
    """The limit, and how many POSTs of a user may go without being counted."""

    def __init__(self, database: Database | None = None) -> None:
        settings = database.settings if database else get_settings()
        self.tasks = settings.tasks_per_user
        self._database = database
        # Below zero: how many have been counted one by one.
        self._spared: dict[str, int] = {}
        self._told_at = float("-inf")

    def must_count(self, user_id: str) -> bool:
        """Whether this POST's own statement must count the user's tasks; called once for each."""
        if not self.tasks:
            return False
        spared = self._spared.get(user_id, 0) - 1
        if len(self._spared) >= MAX_USERS:
            self._spared.clear()
        self._spared[user_id] = spared
        if spared == -COUNTED_ONE_BY_ONE and self._database is not None:
            self._database.in_background(self._count(self._database, user_id))
        return spared < 0

    def reached(self) -> TaskLimitReached:
        """The error for a user at the limit, which the log tells of from time to time."""
        if time.monotonic() - self._told_at >= LOG_INTERVAL:
            self._told_at = time.monotonic()
            logger.warning(
                "a user has as many tasks as TASKS_PER_USER allows (%d), and can add no more: "
                "not told again for %g s, whoever it is",
                self.tasks,
                LOG_INTERVAL,
            )
        return TaskLimitReached()

    async def _count(self, database: Database, user_id: str) -> None:
        counted = None
        with suppress(DatabaseUnavailable):
            async with database.gate:
                values = {"owner": user_id, "task_limit": self.tasks}
                counted = await COUNT.row(Session(database), **values)
        # Without an answer, or without room, they are counted one by one, and then asked for again.
        room = self.tasks - counted["tasks"] if counted else 0
        self._spared[user_id] = room // SHARES


async def task_limit(request: Request) -> TaskLimit:
    """That of the app's state; where no lifespan was run, one that has each POST counted."""
    limit: TaskLimit | None = getattr(request.app.state, "task_limit", None)
    return limit or TaskLimit()
