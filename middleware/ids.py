# [Task]: T007 [From]: specs/requirements.md
"""The id of a request: the client's own, or a fresh one."""

import itertools
import re
import secrets

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestIDs:
    """Gives each request its id."""

    def __init__(self) -> None:
        # Unlike any other process's; within one, a number is enough, and needs no random bytes.
        self._process = secrets.token_hex(6)
        self._numbers = itertools.count(1)

    def id_for(self, sent: bytes | None) -> str:
        """What was sent as `X-Request-ID`, if it is well-formed, and else one that is new."""
        if sent is not None and _REQUEST_ID.fullmatch(sent):
            return sent.decode()
        return f"{self._process}-{next(self._numbers):08x}"
