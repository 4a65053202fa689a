# [Task]: T052 [From]: specs/decisions.md
"""Pages of a list: the cursor of the next page and the headers that carry it.

queries.py selects the tasks of a page. specs/decisions.md, D26, explains the form of a cursor.
"""

from base64 import b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Request
from pydantic import Field, StringConstraints, TypeAdapter
from pydantic_core import to_json

from errors import InvalidCursor
from schemas import MAX_TASK_ID, ListQuery, Sort
from settings import get_settings

_SIGNATURE_BYTES = 12
# A position in a list: the sort key and the id of the last task.
_PLACE: TypeAdapter[tuple[str, int]] = TypeAdapter(
    tuple[
        Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")],
        Annotated[int, Field(strict=True, ge=1, le=MAX_TASK_ID)],
    ]
)


def values_after(key: str, task_id: int, sort: Sort) -> dict[str, Any]:
    """Values for a statement that continues after this task. Raises ValueError or OverflowError."""
    value = key if sort == "title" else datetime.fromisoformat(key).astimezone(UTC)
    return {sort: value, "task_id": task_id}


def values_of(query: ListQuery, user_id: str) -> dict[str, Any]:
    """The same for the query's cursor; empty without one. Raises InvalidCursor."""
    cursor = query.cursor
    if cursor is None:
        return {}
    try:
        decoded = b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        key, task_id = _PLACE.validate_json(decoded[_SIGNATURE_BYTES:])
        # The whole cursor is compared, so that another encoding of the same bytes is refused.
        expected = (_cursor(key, task_id, query, user_id, secret) for secret in _signing_keys())
        if any(compare_digest(cursor, one) for one in expected):
            return values_after(key, task_id, query.sort)
    except (ValueError, OverflowError):
        pass  # Malformed, which is refused like a wrong signature.
    raise InvalidCursor("not one of this user's list with these filters in this order")


def tasks_path(request: Request, user_id: str) -> str:
    """The path of a user's tasks as a client sees it, with the root path if there is one."""
    root = quote(request.scope.get("root_path", "").rstrip("/"))
    return f"{root}/api/{quote(user_id, safe='')}/tasks"


def next_page(
    request: Request, query: ListQuery, user_id: str, last: dict[str, Any]
) -> dict[str, str]:
    """The headers of a page that has a next one. `last` is its last task."""
    cursor = _cursor(last[query.sort], last["id"], query, user_id, _signing_keys()[0])
    parameters = urlencode({**request.query_params, "cursor": cursor}, quote_via=quote)
    path = tasks_path(request, user_id)
    return {"Link": f'<{path}?{parameters}>; rel="next"', "X-Next-Cursor": cursor}


def _cursor(key: str, task_id: int, query: ListQuery, user_id: str, signing_key: bytes) -> str:
    place = to_json([key, task_id])
    bound_to = [user_id, query.completed, query.search, query.sort, query.order]
    signature = blake2b(
        to_json(bound_to) + place,
        key=signing_key,
        digest_size=_SIGNATURE_BYTES,
        person=b"tasks.cursor",
    )
    return urlsafe_b64encode(signature.digest() + place).decode().rstrip("=")


def _signing_keys() -> list[bytes]:
    """Keys that all processes share and no client knows: of each secret, else of DATABASE_URL."""
    settings = get_settings()
    shared = settings.secrets or [settings.database_url.get_secret_value().encode()]
    return [blake2b(secret).digest() for secret in shared]
