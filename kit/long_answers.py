# [Task]: T090 [From]: specs/requirements.md
"""Long answers: limits the memory that they use, and sends them in chunks.

A server buffers what it gets until the client has read it. So a long answer is sent in chunks, with
backpressure, and the bytes that are not sent yet are counted.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Self

from fastapi import Response
from starlette.types import Receive, Scope, Send

from kit.errors import TooManyLongAnswers
from kit.logs import Outage

logger = logging.getLogger("tasks.answers")

# Bytes. An answer up to this size is sent in one piece and not counted.
SHORT = 64 * 1024
# The most bytes of long answers that are being made or not sent yet, per user and in all.
PER_USER = 16 * 2**20
IN_ALL = 64 * 2**20
# Bytes. Servers buffer some chunks: Granian four, besides its write buffer.
CHUNK = 32 * 1024
# Seconds that a client may take to accept one chunk.
STALL_TIMEOUT = 30.0


class LongAnswers:
    """Counts the bytes of long answers in one process, per user and in all."""

    def __init__(self, per_user: int = PER_USER, in_all: int = IN_ALL) -> None:
        self._per_user = per_user
        self._in_all = in_all
        self._users: Counter[str] = Counter()
        self._outage = Outage(logger, "long answers are refused")

    @property
    def bytes(self) -> int:
        """The bytes of all users."""
        return self._users.total()

    def share(self, user_id: str) -> "Share":
        """A new, empty share for an answer to this user."""
        return Share(self, user_id)

    def change(self, user_id: str, before: int, now: int) -> None:
        """Change the size of a user's answer. Raises TooManyLongAnswers if it is too large.

        The only answer of a user may exceed PER_USER, so that every list can be sent, but only one
        such answer at a time. Towards IN_ALL, it counts as PER_USER.
        """
        of_user = self._users[user_id] - before
        if now > before:
            if not self._fits(user_id, of_user, now):
                reason = f"{self.bytes} bytes are in flight, {of_user} of them the same user's"
                self._outage.begins(reason)
                raise TooManyLongAnswers(reason)
            self._outage.ends()
        self._users[user_id] = of_user + now
        if not self._users[user_id]:
            del self._users[user_id]

    def _fits(self, user_id: str, of_user: int, size: int) -> bool:
        others = [held for user, held in self._users.items() if user != user_id]
        if of_user + size > self._per_user and (of_user or max(others, default=0) > self._per_user):
            return False
        taken = [min(held, self._per_user) for held in (*others, of_user + size)]
        return not others or sum(taken) <= self._in_all


class Share:
    """The bytes that one answer uses. They are released when it fails, is sent or is dropped.

    Use it as a context manager while the answer is made.
    """

    def __init__(self, answers: LongAnswers, user_id: str) -> None:
        self._answers = answers
        self._user_id = user_id
        self.size = 0

    def resize(self, size: int) -> None:
        """Set the size. Raises TooManyLongAnswers if it exceeds the limits."""
        if size != self.size:
            self._answers.change(self._user_id, self.size, size)
            self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            self.resize(0)

    def __del__(self) -> None:
        self.resize(0)


class LongAnswer(Response):
    """A JSON response in parts. Each part is released when the server has taken it."""

    media_type = "application/json"

    def __init__(self, parts: Iterable[bytes], share: Share, headers: Mapping[str, str]) -> None:
        super().__init__(headers=dict(headers))
        self._parts = deque(parts)
        self._share = share
        share.resize(sum(map(len, self._parts)))
        self.headers["content-length"] = str(share.size)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        try:
            while self._parts:
                part = self._parts.popleft()
                for at in range(0, len(part), CHUNK):
                    body, more = part[at : at + CHUNK], bool(self._parts) or at + CHUNK < len(part)
                    async with asyncio.timeout(STALL_TIMEOUT):
                        await send({"type": "http.response.body", "body": body, "more_body": more})
                    self._share.resize(self._share.size - len(body))
        except TimeoutError:
            # The server closes the connection, since the answer is not complete.
            logger.info("a client did not read a long answer for %g s", STALL_TIMEOUT)
        finally:
            self._parts.clear()
            self._share.resize(0)
