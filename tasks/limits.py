# [Task]: T055 [From]: specs/decisions.md
"""The limit of tasks per user, enforced without counting at every POST (D23)."""

import logging
import time
from contextlib import suppress

from fastapi import Request

from db import Database, Session
from errors import TaskLimitReached
from kit.errors import DatabaseUnavailable
from settings import get_settings
from tasks.queries import COUNT

# After so many POSTs that count in their own statement, a user is counted in the background.
COUNTED_ONE_BY_ONE = 8
# One process may use 1/64 of the remaining quota before it counts again, so 64 processes together
# stay within the limit.
SHARES = 64
# The most users to remember.
MAX_USERS = 4096
# Seconds between two log lines about users at the limit.
LOG_INTERVAL = 3600.0

logger = logging.getLogger("tasks.limits")


class TaskLimit:
    """Decides for each POST whether its statement must count the user's tasks."""

    def __init__(self, database: Database | None = None) -> None:
        settings = database.settings if database else get_settings()
        self.tasks = settings.tasks_per_user
        self._database = database
        # By user: POSTs that need no count. A negative number is POSTs that have counted.
        self._allowance: dict[str, int] = {}
        self._logged_at = float("-inf")

    def must_count(self, user_id: str) -> bool:
        """Whether this POST's statement must count the user's tasks. Call it once per POST."""
        if not self.tasks:
            return False
        allowance = self._allowance.get(user_id, 0) - 1
        if len(self._allowance) >= MAX_USERS:
            self._allowance.clear()
        self._allowance[user_id] = allowance
        if allowance == -COUNTED_ONE_BY_ONE and self._database is not None:
            self._database.in_background(self._count(self._database, user_id))
        return allowance < 0

    def reached(self) -> TaskLimitReached:
        """The error for a user at the limit. It is logged once per LOG_INTERVAL."""
        if time.monotonic() - self._logged_at >= LOG_INTERVAL:
            self._logged_at = time.monotonic()
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
        # With an allowance of 0, the next POSTs count again, and then the user is counted again.
        room = self.tasks - counted["tasks"] if counted else 0
        self._allowance[user_id] = room // SHARES


async def task_limit(request: Request) -> TaskLimit:
    """The app's TaskLimit. Without a lifespan, one that makes each POST count."""
    limit: TaskLimit | None = getattr(request.app.state, "task_limit", None)
    return limit or TaskLimit()
