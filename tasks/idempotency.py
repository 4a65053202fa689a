# [Task]: T056 [From]: specs/decisions.md
"""POSTs that are safe to repeat: the key that a client gives one, and what is made of it.

A repetition is answered as the first request was, whatever became of its task: the rule of
Stripe's API (specs/decisions.md, D30).
"""

import secrets
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Annotated, Any

from fastapi import Header
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json

from db import rfc3339_text
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


# The members of a body that every release has had. Later ones are part of a mark unless they have
# their default: so the marks that earlier releases made still fit.
_FIRST_MEMBERS = 3
_DEFAULTS = [field.get_default() for field in TaskCreate.model_fields.values()]


def new_mark(body: TaskCreate) -> bytes:
    """What tells this request from every other, and its body from other bodies."""
    values = [getattr(body, name) for name in TaskCreate.model_fields]
    while len(values) > _FIRST_MEMBERS and values[-1] == _DEFAULTS[len(values) - 1]:
        values.pop()
    content = to_json(values)
    return blake2b(content, digest_size=_DIGEST_BYTES).digest() + secrets.token_bytes(_NONCE_BYTES)


def first_answer(row: dict[str, Any], body: TaskCreate) -> dict[str, Any]:
    """The task as the request that made it was told, though it has been changed since."""
    sent = {name: value for name, value in body if name in row}
    for name, value in sent.items():
        if isinstance(value, datetime):
            sent[name] = rfc3339_text(value)
    return row | {**sent, "created_at": row["created_at"], "updated_at": row["created_at"]}


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
