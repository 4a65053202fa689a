# [Task]: T090 [From]: specs/requirements.md
"""How many bytes of long answers a process holds, and how one is sent."""

import asyncio
from contextlib import nullcontext

import pytest
from starlette.types import Message

from kit.errors import TooManyLongAnswers
from kit.long_answers import CHUNK, LongAnswer, LongAnswers


async def receive() -> Message:
    raise AssertionError


class TestShare:
    def test_is_bounded_per_user_and_in_all(self) -> None:
        answers = LongAnswers(per_user=10, in_all=25)
        shares = {}
        for user, size, fits in (
            ("alice", 8, True),
            ("alice", 3, False),
            ("alice", 2, True),
            ("bob", 10, True),
            ("carol", 6, False),
            ("carol", 5, True),
            ("dave", 1, False),
        ):
            shares[user, size] = answers.share(user)
            with nullcontext() if fits else pytest.raises(TooManyLongAnswers):
                shares[user, size].resize(size)
        assert answers.bytes == 25
        shares["alice", 8].resize(1)
        shares.pop(("dave", 1)).resize(3)
        shares.clear()
        assert answers.bytes == 0

    def test_of_one_list_may_have_any_size(self) -> None:
        answers = LongAnswers(per_user=10, in_all=25)
        shares = [answers.share(user) for user in ("alice", "alice", "bob", "carol", "dave")]
        # For others, a list takes no more than a user may have.
        for index, size, fits in (
            (0, 100, True),
            (0, 200, True),
            (1, 1, False),
            (2, 11, False),
            (2, 10, True),
            (3, 5, True),
            (4, 1, False),
        ):
            with nullcontext() if fits else pytest.raises(TooManyLongAnswers):
                shares[index].resize(size)
        assert answers.bytes == 215


class TestLongAnswer:
    async def test_is_sent_in_chunks_and_given_back(self) -> None:
        answers = LongAnswers()
        parts = [b"[", b"1" * (3 * CHUNK + 1), b"]"]
        response = LongAnswer(parts, answers.share("alice"), {"ETag": '"1"'})
        assert answers.bytes == int(response.headers["content-length"]) == 3 * CHUNK + 3
        sent: list[bytes] = []
        held: list[int] = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                sent.append(message["body"])
                held.append(answers.bytes)
                assert message["more_body"] == (message["body"] != b"]")

        await response({}, receive, send)
        assert b"".join(sent) == b"".join(parts)
        assert max(map(len, sent)) == CHUNK
        assert held == sorted(held, reverse=True)
        assert answers.bytes == 0

    async def test_that_nobody_reads_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kit.long_answers.STALL_TIMEOUT", 0.01)
        answers = LongAnswers()
        response = LongAnswer([b"1", b"2"], answers.share("alice"), {})

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Future()

        await response({}, receive, send)
        del response
        assert answers.bytes == 0
