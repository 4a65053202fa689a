# [Task]: T003 [From]: specs/requirements.md
"""This API's own errors, with the status, sentence and headers of each.

ServiceError              in kit/errors.py, with the errors that any endpoint can raise
├── InvalidCursor         400
├── TooManyTags           400
├── TaskNotFound          404
├── TaskLimitReached      409
├── PreconditionFailed    412
└── SearchTooSlow         503
"""

import logging

from kit.errors import ServiceError


class InvalidCursor(ServiceError):
    """The cursor was not issued for this user's list with these filters and this order."""

    status_code = 400
    detail = "Invalid cursor"


class TooManyTags(ServiceError):
    """If-Match or If-None-Match of a write names more than tasks.conditional.MAX_TAGS."""

    status_code = 400
    detail = "If-Match and If-None-Match may name 32 tags each"


class TaskNotFound(ServiceError):
    """The user has no such task."""

    status_code = 404
    detail = "Task not found"


class TaskLimitReached(ServiceError):
    """The user has as many tasks as TASKS_PER_USER allows."""

    status_code = 409
    detail = "Task limit reached"


class PreconditionFailed(ServiceError):
    """If-Match or If-None-Match forbids the change. `etag` is the task's current ETag."""

    status_code = 412
    detail = "Task has changed"
    header_names = ("ETag",)

    def __init__(self, reason: str = "", etag: str | None = None) -> None:
        super().__init__(reason)
        if etag is not None:
            self.headers = {"ETag": etag}


class SearchTooSlow(ServiceError):
    """The search did not end within DATABASE_STATEMENT_TIMEOUT. A retry would not help."""

    status_code = 503
    detail = "The search takes too long"
    log_level = logging.WARNING
