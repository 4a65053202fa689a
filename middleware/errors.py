# [Task]: T003 [From]: specs/requirements.md
"""A bug becomes a 500. Errors that are meant are in ../errors.py."""

import logging

from fastapi.responses import JSONResponse
from starlette.responses import Response

logger = logging.getLogger("tasks.errors")


def internal_error(request_id: str) -> Response:
    """The answer to a request whose exception is being handled, which is logged in full."""
    logger.exception("unhandled error")
    return JSONResponse({"detail": "Internal Server Error", "request_id": request_id}, 500)
