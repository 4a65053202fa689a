# [Task]: T041 [From]: specs/requirements.md
"""Bare uvicorn: a constant answer and uvicorn's own log line. No Python service costs less.

`uvicorn --app-dir benchmarks bare:app`
"""

from typing import Any

HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"private, no-cache"))
BODY = b'{"status":"ok"}'
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"15"), *HEADERS],
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application."""
    if scope["type"] == "lifespan":
        while True:
            stage = (await receive())["type"]
            await send({"type": f"{stage}.complete"})
            if stage == "lifespan.shutdown":
                return
    await send(START)
    await send({"type": "http.response.body", "body": BODY})
