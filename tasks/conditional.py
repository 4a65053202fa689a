# [Task]: T053 [From]: specs/requirements.md
"""Conditional requests (RFC 9110 §13): the ETags of tasks and lists, and their preconditions."""

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
    """The OpenAPI `responses` for a 304. `tag` is "ETag" or "ETag.list" of openapi.HEADERS."""
    return {
        304: {
            "description": "It has the `ETag` that If-None-Match names",
            "headers": headers(tag),
        }
    }


# Headers that a 304 repeats: they may have changed though the content has not.
_KEPT = ("ETag", "Link", "X-Next-Cursor")

# The most tags in one header of a write. The statement compares the task with all of them.
MAX_TAGS = 32

# Proxies that compress mark a tag as weak or append a suffix: -gzip, -br, ;gzip. So text after the
# form of `etag` or `content_tag` is not part of the tag.
_TAG = re.compile(r'"([1-9]\d*-[\d-]{10}T[\d:]{8}\.\d{6}Z|[0-9a-f]{32}|[^"]*)[^"]*"')


def etag(task: dict[str, Any]) -> str:
    """The strong tag of a task. `updated_at` moves with every change, so the tag changes too."""
    return f'"{task["id"]}-{task["updated_at"]}"'


def content_tag(parts: Iterable[bytes]) -> str:
    """The weak tag of an answer's content. The same content always has the same tag."""
    # SHA-256 is the fastest here: processors have instructions for it.
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f'W/"{digest.hexdigest()[:32]}"'


def names(header: str, tag: str) -> bool:
    """Whether a header's tags, or its `*`, match this tag."""
    return _names_all(header) or tag.removeprefix("W/")[1:-1] in _TAG.findall(header)


def _names_all(header: str) -> bool:
    return any(part.strip() == "*" for part in _TAG.sub("", header).split(","))


def unless_known(response: Response, if_none_match: str | None) -> Response:
    """The response, or a 304 if the client already has this version."""
    if if_none_match is None or not names(if_none_match, response.headers["ETag"]):
        return response
    kept = {name: response.headers[name] for name in _KEPT if name in response.headers}
    return Response(status_code=304, headers=kept)


class Precondition(NamedTuple):
    """The versions that a write may change: only these, or all but these."""

    versions: frozenset[datetime]
    are_allowed: bool


def precondition(
    task_id: int, if_match: str | None, if_none_match: str | None
) -> Precondition | None:
    """The precondition that a write's headers set; None if they set none. Raises TooManyTags."""
    refused = frozenset(_versions(if_none_match or "", task_id))
    allowed = frozenset(_versions(if_match or "", task_id))
    if if_none_match is not None and _names_all(if_none_match):
        return Precondition(frozenset(), are_allowed=True)
    if if_match is not None and not _names_all(if_match):
        return Precondition(allowed - refused, are_allowed=True)
    return Precondition(refused, are_allowed=False) if refused else None


def _versions(header: str, task_id: int) -> Iterator[datetime]:
    """The `updated_at` of each tag that can belong to this task."""
    tags = _TAG.findall(header)
    if len(tags) > MAX_TAGS:
        raise TooManyTags(f"{len(tags)} tags")
    for tag in tags:
        number, _, instant = tag.partition("-")
        if number == str(task_id) and instant.endswith("Z"):
            try:
                yield datetime.fromisoformat(instant)
            except ValueError:
                continue  # A date that does not exist.
