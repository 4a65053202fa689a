# [Task]: T007 [From]: specs/decisions.md
"""User ids in paths: they stay encoded until the route is found, then are decoded (D4)."""

import re
from urllib.parse import unquote

from pydantic import (
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from starlette.types import Scope

USER_ID_LENGTH = 255


# Control characters and lone surrogates. No user id may contain them.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class OrAbsent:
    """Removes null from the JSON schema of an optional parameter, since null can't be sent."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        present, _null = schema.pop("anyOf")
        return {**present, **schema}


def decode_user_id(segment: str) -> str:
    """The user id of a path segment that keep_whole_segments has prepared."""
    return unquote(segment) if "%" in segment else segment


# What a request's target in absolute form (RFC 9112 §3.2.2) has before its path.
_ABSOLUTE = re.compile(rb"https?://[^/]*", re.IGNORECASE)


def keep_whole_segments(scope: Scope) -> None:
    """Keep `%2F` and `%25` encoded in the path, so that a slash in a user id does not split it.

    decode_user_id decodes them.
    """
    raw_path: bytes = scope.get("raw_path") or b""
    if (found := _ABSOLUTE.match(raw_path)) is not None:  # h11 leaves that to the app.
        scope["raw_path"] = raw_path = raw_path[found.end() :] or b"/"
        scope["path"] = unquote(raw_path.decode("latin-1"))
    if b"%" in raw_path:
        path = raw_path.decode("latin-1").replace("%25", "%2525")
        scope["path"] = unquote(path.replace("%2F", "%252F").replace("%2f", "%252F"))
