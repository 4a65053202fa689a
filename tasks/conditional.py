# [Task]: T053 [From]: specs/requirements.md
"""Conditional requests (RFC 9110 §13): the ETag of a task and of a list, and what clients make
depend on them.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Annotated, Any, NamedTuple

from fastapi import Header, Response

from errors import TooManyTags
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
IfNoneMatchOfWrite = Annotated[
    str | None,
    OrAbsent(),
    Header(
        alias="If-None-Match",
        description="Do it only if the task has another `ETag`, and with `*` never; else 412.",
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

# Tags that a header of a write may name: the statement that writes compares them all.
MAX_TAGS = 32

# Proxies that compress mark a tag as weak, or add a suffix to it: -gzip, -br, ;gzip. What comes
# after the form of `etag` or ContentTag is no part of the tag.
_TAG = re.compile(r'"([1-9]\d*-[\d-]{10}T[\d:]{8}\.\d{6}Z|[0-9a-f]{32}|[^"]*)[^"]*"')


def etag(task: dict[str, Any]) -> str:
    """A strong tag: it changes exactly when the task does, as `updated_at` moves with it."""
    return f'"{task["id"]}-{task["updated_at"]}"'


def content_tag(parts: Iterable[bytes]) -> str:
    """The weak tag of an answer, of all that is in it: the same whatever it is sent in."""
    # Faster than the others: processors have it built in.
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f'W/"{digest.hexdigest()[:32]}"'


def names(header: str, tag: str) -> bool:
    """Whether a header of tags, or `*`, names this one."""
    return _names_all(header) or tag.removeprefix("W/")[1:-1] in _TAG.findall(header)


def _names_all(header: str) -> bool:
    return any(part.strip() == "*" for part in _TAG.sub("", header).split(","))


def unless_known(response: Response, if_none_match: str | None) -> Response:
    """The response, or a 304 in its place if the client has it."""
    if if_none_match is None or not names(if_none_match, response.headers["ETag"]):
        return response
    kept = {name: response.headers[name] for name in _KEPT if name in response.headers}
    return Response(status_code=304, headers=kept)


class Precondition(NamedTuple):
    """The versions of a task that a write may change: these, or all but these."""

    versions: frozenset[datetime]
    are_allowed: bool


def precondition(
    task_id: int, if_match: str | None, if_none_match: str | None
) -> Precondition | None:
    """What the headers of a write ask for; None if it may change any version.

    Raises TooManyTags.
    """
    refused = frozenset(_versions(if_none_match or "", task_id))
    allowed = frozenset(_versions(if_match or "", task_id))
    if if_none_match is not None and _names_all(if_none_match):
        return Precondition(frozenset(), are_allowed=True)
    if if_match is not None and not _names_all(if_match):
        return Precondition(allowed - refused, are_allowed=True)
    return Precondition(refused, are_allowed=False) if refused else None


def _versions(header: str, task_id: int) -> Iterator[datetime]:
    """The `updated_at` of each tag that can be this task's."""
    tags = _TAG.findall(header)
    if len(tags) > MAX_TAGS:
        raise TooManyTags(f"{len(tags)} tags")
    for tag in tags:
        number, _, instant = tag.partition("-")
        if number == str(task_id) and instant.endswith("Z"):
            try:
                yield datetime.fromisoformat(instant)
            except ValueError:
                continue  # Not a date of the calendar.
