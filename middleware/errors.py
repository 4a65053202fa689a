# [Task]: T003 [From]: specs/requirements.md
"""A bug becomes a 500. Errors that are meant are in ../errors.py."""

import logging

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from logs import current_request_id

logger = logging.getLogger("tasks.errors")


class UnhandledErrors:
    """ASGI middleware that turns a bug into a 500 with the request's id, and logs it in full.

    It stands inside CORSMiddleware, so that a browser's script can read the answer; Starlette's
    own handler of last resort stands outside it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except ClientDisconnect:
            logger.info("client went away before its request was read")
        except Exception:
            logger.exception("unhandled error")
            if started:
                raise
            body = {"detail": "Internal Server Error", "request_id": current_request_id.get()}
            await JSONResponse(body, 500)(scope, receive, send)
