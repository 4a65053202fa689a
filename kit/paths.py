# [Task]: T007 [From]: specs/decisions.md
"""User ids in paths: kept encoded while a route is found, then decoded (D4)."""

import re
from urllib.parse import unquote

from pydantic import (
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

# pydantic wants this TypedDict rather than typing's for total=False fields with metadata.
from starlette.types import Scope

USER_ID_LENGTH = 255


# Control characters and lone surrogates, which no user id may hold.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class OrAbsent:
    """For what is None when it is left out: its JSON schema without null, which can't be sent."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        present, _null = schema.pop("anyOf")
        return {**present, **schema}


def decode_user_id(segment: str) -> str:
    """A path segment as keep_whole_segments leaves it, as the user id that it stands for."""
    return unquote(segment) if "%" in segment else segment


def keep_whole_segments(scope: Scope) -> None:
    """Leave `%2F` and `%25` encoded in the path, so that a slash inside a user id never splits it;
    decode_user_id does the rest.
    """
    raw_path: bytes = scope.get("raw_path") or b""
    if b"%" in raw_path:
        path = raw_path.decode("latin-1").replace("%25", "%2525")
        scope["path"] = unquote(path.replace("%2F", "%252F").replace("%2f", "%252F"))
