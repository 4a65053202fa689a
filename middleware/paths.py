# [Task]: T007 [From]: specs/decisions.md
"""A path as the routes see it: with its slashes still encoded (D4)."""

from urllib.parse import unquote

from starlette.types import Scope


def keep_whole_segments(scope: Scope) -> None:
    """Leave `%2F` and `%25` encoded in the path, so that a slash inside a user id never splits it;
    schemas.decode_user_id does the rest.
    """
    raw_path: bytes = scope.get("raw_path") or b""
    if b"%" in raw_path:
        path = raw_path.decode("latin-1").replace("%25", "%2525")
        scope["path"] = unquote(path.replace("%2F", "%252F").replace("%2f", "%252F"))
