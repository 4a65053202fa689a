# [Task]: T002 [From]: specs/requirements.md
"""A start that is refused because of a setting is told in one sentence."""

import sys

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from settings import SettingsError


class PlainStartupErrors:
    """ASGI middleware that hands the server SettingsError's words, not Starlette's traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_plainly(message: Message) -> None:
            # Starlette sends this one while it handles the exception.
            error = sys.exception()
            if message["type"] == "lifespan.startup.failed" and isinstance(error, SettingsError):
                message = {**message, "message": str(error)}
            await send(message)

        await self.app(scope, receive, send_plainly)
