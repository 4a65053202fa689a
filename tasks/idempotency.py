# [Task]: T056 [From]: specs/decisions.md
"""POSTs that are safe to repeat: the key that a client gives one, and what is made of it.

A repetition is answered as the first request was, whatever became of its task: the rule of
Stripe's API (specs/decisions.md, D30).
"""

import secrets
from datetime import timedelta
from hashlib import blake2b
from typing import Annotated, Any

from fastapi import Header
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json

from kit.paths import OrAbsent
from models import IDEMPOTENCY_KEY_LENGTH
from schemas import TaskCreate

IdempotencyKey = Annotated[
    str | None,
    OrAbsent(),
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=IDEMPOTENCY_KEY_LENGTH,
        pattern="^[!-~]+$",
        description=(
            "Any text of your own for this one task, such as a UUID. A request that is repeated "
            "with it gets the first one's answer, and adds nothing"
        ),
        examples=["8f14e45f-ceea-467f-a8d2-0242ac120002"],
    ),
]

# For how long a key is known at least; while its task is there, it is known in any case.
KEY_LIFETIME = timedelta(days=1)

_DIGEST_BYTES = 16
_NONCE_BYTES = 8


def new_mark(body: TaskCreate) -> bytes:
    """What tells this request from every other, and its body from other bodies."""
    content = to_json([body.title, body.description, body.completed])
    return blake2b(content, digest_size=_DIGEST_BYTES).digest() + secrets.token_bytes(_NONCE_BYTES)


def first_answer(row: dict[str, Any], body: TaskCreate) -> dict[str, Any]:
    """The task as the request that made it was told, though it has been changed since."""
    made = row["created_at"]
    return row | {**body.model_dump(), "created_at": made, "updated_at": made}


def is_replay(found: bytes, mark: bytes) -> bool:
    """Whether the task was made by another request than the one with this mark.

    Raises RequestValidationError if that was another body.
    """
    if found[:_DIGEST_BYTES] != mark[:_DIGEST_BYTES]:
        raise RequestValidationError(
            [
                {
                    "type": "idempotency_key_reused",
                    "loc": ("header", "Idempotency-Key"),
                    "msg": "Idempotency-Key has been used with another body",
                }
            ]
        )
    return found != mark
