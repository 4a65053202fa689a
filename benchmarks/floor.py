# [Task]: T041 [From]: specs/requirements.md
"""The floor: what uvicorn and asyncpg alone do for the same requests. No framework, no validation.

`uvicorn --app-dir benchmarks floor:app`
"""

import json
import os
from functools import partial
from typing import Any

import asyncpg
import jwt
from pydantic_core import to_json

POOL_SIZE = 10

COLUMNS = "id, user_id, title, description, completed, created_at, updated_at"
LIST = f"SELECT {COLUMNS} FROM task WHERE user_id = $1 ORDER BY created_at DESC, id DESC"
GET = f"SELECT {COLUMNS} FROM task WHERE user_id = $1 AND id = $2"
CREATE = f"""
    INSERT INTO task (user_id, title, description, completed, created_at, updated_at)
    VALUES ($1, $2, $3, $4, now(), now()) RETURNING {COLUMNS}
"""
UPDATE = f"""
    UPDATE task SET title = coalesce($3, title), description = coalesce($4, description),
        completed = coalesce($5, completed), updated_at = now()
    WHERE user_id = $1 AND id = $2 RETURNING {COLUMNS}
"""
COMPLETE = f"""
    UPDATE task SET completed = NOT completed, updated_at = now()
    WHERE user_id = $1 AND id = $2 RETURNING {COLUMNS}
"""
DELETE = "DELETE FROM task WHERE user_id = $1 AND id = $2 RETURNING id"

HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"private, no-cache"))

pool: Any = None
subjects: dict[bytes, str] = {}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    headers = dict(scope["headers"])
    request_id = headers.get(b"x-request-id") or os.urandom(8).hex().encode()
    reply = partial(answer, send, request_id)
    if scope["path"] == "/health":
        await reply(200, b'{"status":"ok"}')
        return
    _, _, user, _, *rest = scope["path"].split("/")
    if (token := headers.get(b"authorization")) is None:
        await reply(401, b'{"detail":"Missing authorization token"}')
        return
    if subject(token) != user:
        await reply(403, b'{"detail":"Access denied"}')
        return
    match scope["method"], *rest:
        case ["GET"]:
            rows = await pool.fetch(LIST, user)
            await reply(200, to_json([dict(row) for row in rows]))
            return
        case ["POST"]:
            status, row = 201, await pool.fetchrow(CREATE, user, *await fields(receive))
        case ["GET", task_id]:
            status, row = 200, await pool.fetchrow(GET, user, int(task_id))
        case ["PUT", task_id]:
            changes = await fields(receive, completed=None)
            status, row = 200, await pool.fetchrow(UPDATE, user, int(task_id), *changes)
        case ["PATCH", task_id, "complete"]:
            status, row = 200, await pool.fetchrow(COMPLETE, user, int(task_id))
        case ["DELETE", task_id]:
            status, row = 204, await pool.fetchrow(DELETE, user, int(task_id))
    if row is None:
        await reply(404, b'{"detail":"Task not found"}')
    else:
        await reply(status, b"" if status == 204 else to_json(dict(row)))


async def lifespan(receive: Any, send: Any) -> None:
    global pool
    await receive()
    pool = await asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=POOL_SIZE, max_size=POOL_SIZE, reset=leave_as_it_is
    )
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await pool.close()
    await send({"type": "lifespan.shutdown.complete"})


async def leave_as_it_is(_connection: Any) -> None:
    """asyncpg's own reset is a second round trip for each request."""


def subject(authorization: bytes) -> str:
    """The `sub` of a token, verified when it is seen first."""
    if authorization not in subjects:
        token = authorization.removeprefix(b"Bearer ")
        claims = jwt.decode(token, os.environ["BETTER_AUTH_SECRET"], ["HS256"])
        subjects[authorization] = claims["sub"]
    return subjects[authorization]


async def fields(receive: Any, *, completed: bool | None = False) -> list[Any]:
    """Title, description and completed of the body."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    sent = json.loads(body)
    return [sent.get("title"), sent.get("description"), sent.get("completed", completed)]


async def answer(send: Any, request_id: bytes, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))] if status != 204 else []
    headers += [(b"content-type", b"application/json"), (b"x-request-id", request_id), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
