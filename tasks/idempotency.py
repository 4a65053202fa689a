# [Task]: T056 [From]: specs/decisions.md
"""Idempotency keys, which make a POST safe to repeat.

A repeated request gets the first one's answer, even if the task has been changed or deleted since.
Stripe's API has the same rule (specs/decisions.md, D30).
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

# A key is remembered at least this long, and as long as its task exists.
KEY_LIFETIME = timedelta(days=1)

_DIGEST_BYTES = 16
_NONCE_BYTES = 8

# The members that TaskCreate had in the first release. Later members are left out of a mark if they
# have their default, so that marks of earlier releases still match.
_FIRST_MEMBERS = 3
_DEFAULTS = [field.get_default() for field in TaskCreate.model_fields.values()]


def new_mark(body: TaskCreate) -> bytes:
    """A digest of the body followed by random bytes: it identifies the body and the request."""
    values = [getattr(body, name) for name in TaskCreate.model_fields]
    while len(values) > _FIRST_MEMBERS and values[-1] == _DEFAULTS[len(values) - 1]:
        values.pop()
    content = to_json(values)
    return blake2b(content, digest_size=_DIGEST_BYTES).digest() + secrets.token_bytes(_NONCE_BYTES)


def first_answer(row: dict[str, Any], body: TaskCreate) -> dict[str, Any]:
    """The task as the first answer had it, even if it has changed since."""
    sent = {name: value for name, value in body if name in row}
    for name, value in sent.items():
        if isinstance(value, datetime):
            sent[name] = rfc3339_text(value)
    return row | {**sent, "created_at": row["created_at"], "updated_at": row["created_at"]}


def is_replay(found: bytes, mark: bytes) -> bool:
    """Whether an earlier request made the task. `found` is the task's mark, `mark` this request's.

    Raises RequestValidationError if the earlier request had another body.
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
