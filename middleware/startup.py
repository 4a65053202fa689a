# [Task]: T002 [From]: specs/requirements.md
"""A start that is refused because of a setting is told in one sentence."""

import sys

from starlette.types import Message, Send

from settings import SettingsError


def plain_startup_errors(send: Send) -> Send:
    """The `send` of a lifespan that hands the server SettingsError's words, not a traceback."""

    async def send_plainly(message: Message) -> None:
        # Starlette sends this one while it handles the exception.
        error = sys.exception()
        if message["type"] == "lifespan.startup.failed" and isinstance(error, SettingsError):
            message = {**message, "message": str(error)}
        await send(message)

    return send_plainly
