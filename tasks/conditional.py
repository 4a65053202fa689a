# [Task]: T053 [From]: specs/requirements.md
"""Conditional requests (RFC 9110 §13): the ETag of a task and of a list, and what clients make
depend on them.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

from fastapi import Header, Response

from kit.openapi import Responses, headers
from kit.paths import OrAbsent

IfMatch = Annotated[
    str | None,
    OrAbsent(),
    Header(
        alias="If-Match",
        description="Do it only if the task still has this `ETag`, or one of several; else 412.",
        examples=['"7-2026-01-31T09:00:00.000000Z"'],
    ),
]
IfNoneMatch = Annotated[
    str | None,
    OrAbsent(),
    Header(
        alias="If-None-Match",
        description="Send it only if it has another `ETag` by now; else 304.",
        examples=['"7-2026-01-31T09:00:00.000000Z"'],
    ),
]


def not_modified(tag: str) -> Responses:
    """The OpenAPI `responses` of an endpoint whose answer has this of openapi.HEADERS."""
    return {
        304: {
            "description": "It has the `ETag` that If-None-Match names",
            "headers": headers(tag),
        }
    }


# Headers of a 304: what may have changed though the content has not.
_KEPT = ("ETag", "Link", "X-Next-Cursor")

# Proxies that compress mark a tag as weak, or add a suffix to it.
_TAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*?)(?:-gzip)?"')


def etag(task: dict[str, Any]) -> str:
    """A strong tag: it changes exactly when the task does, as `updated_at` moves with it."""
    return f'"{task["id"]}-{task["updated_at"]}"'


class ContentTag:
    """Makes the weak tag of an answer, of all that is in it: the same whatever it is sent in."""

    def __init__(self, content: bytes = b"") -> None:
        # Faster than the others: processors have it built in.
        self._digest = hashlib.sha256(content)
        self.add = self._digest.update

    def __str__(self) -> str:
        return f'W/"{self._digest.hexdigest()[:32]}"'


def names(header: str, tag: str) -> bool:
    """Whether a header of tags, or `*`, names this one."""
    return header.strip() == "*" or tag.removeprefix("W/")[1:-1] in _TAG.findall(header)


def unless_known(response: Response, if_none_match: str | None) -> Response:
    """The response, or a 304 in its place if the client has it."""
    if if_none_match is None or not names(if_none_match, response.headers["ETag"]):
        return response
    kept = {name: response.headers[name] for name in _KEPT if name in response.headers}
    return Response(status_code=304, headers=kept)


def versions(if_match: str, task_id: int) -> Iterator[datetime]:
    """The `updated_at` of each tag that can be this task's."""
    for tag in _TAG.findall(if_match):
        number, _, instant = tag.partition("-")
        if number == str(task_id) and re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{6}Z", instant):
            try:
                yield datetime.fromisoformat(instant)
            except ValueError:
                continue  # Not a date of the calendar.
