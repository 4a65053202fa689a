# [Task]: T065 [From]: specs/requirements.md
"""Two secrets, while one is changed. What else a good token is, is told in
tests/middleware/test_auth.py.
"""

import logging

import pytest
from support import SECRET, sign

from errors import InvalidToken
from settings import get_settings
from tokens.verify import open_verifier

NEW = "the secret of today, which is of 32 bytes at least"
OTHER = "a secret of nobody's, which is of 32 bytes at least"


class TestTwoSecrets:
    @pytest.fixture(autouse=True)
    def changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_SECRET", NEW)
        monkeypatch.setenv("BETTER_AUTH_SECRET_PREVIOUS", SECRET)

    async def test_are_both_accepted_and_no_third(self) -> None:
        async with open_verifier(get_settings()) as verifier:
            for secret in (NEW, SECRET):
                assert await verifier.subject(sign("alice", secret=secret)) == "alice"
            with pytest.raises(InvalidToken, match="signature does not match"):
                await verifier.subject(sign("alice", secret=OTHER))

    async def test_are_one_when_the_change_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET_PREVIOUS")
        async with open_verifier(get_settings()) as verifier:
            assert await verifier.subject(sign("alice", secret=NEW)) == "alice"
            with pytest.raises(InvalidToken):
                await verifier.subject(sign("alice", secret=SECRET))

    @pytest.mark.parametrize("changing", [True, False])
    async def test_are_told_of_at_the_start(
        self, changing: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "tasks")
        if not changing:
            monkeypatch.delenv("BETTER_AUTH_SECRET_PREVIOUS")
        async with open_verifier(get_settings()):
            assert ("BETTER_AUTH_SECRET_PREVIOUS" in caplog.text) == changing
        assert SECRET not in caplog.text
