# [Task]: T017 [From]: specs/requirements.md
"""Tokens made by hand, good and otherwise, and what the service is to say of them."""

import base64
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import httpx
from support import SECRET, assert_error

from kit.errors import ServiceError
from kit.tokens import TokenVerifier

GOOD: Final = "good"
MISSING: Final = "Missing authorization token"
INVALID: Final = "Invalid token"
EXPIRED: Final = "Token has expired"
CHALLENGES = {
    MISSING: "Bearer",
    INVALID: 'Bearer error="invalid_token", error_description="Invalid token"',
    EXPIRED: 'Bearer error="invalid_token", error_description="Token has expired"',
}
UNAVAILABLE: Final = "Service temporarily unavailable"
ABSENT: Final = object()


# --- Tokens -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FromNow:
    """A time relative to the test's run, since tables are made long before that."""

    seconds: int


def present(members: Mapping[str, object]) -> dict[str, object]:
    """Without those that are ABSENT, and with times in place of those FromNow."""
    now = int(time.time())
    return {
        name: now + value.seconds if isinstance(value, FromNow) else value
        for name, value in members.items()
        if value is not ABSENT
    }


def header(**members: object) -> dict[str, object]:
    """The header of a good token, with these members in it, or out of it where ABSENT."""
    return present({"alg": "HS256", "typ": "JWT", **members})


def claims(**members: object) -> dict[str, object]:
    """The claims of a good token of Alice's, with these in it, or out of it where ABSENT."""
    return present({"sub": "alice", "iat": FromNow(0), "exp": FromNow(900), **members})


def part(content: object) -> str:
    """Bytes as they are, or anything else as JSON, in base64url."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(
    head: object = None,
    payload: object = None,
    *,
    secret: str | bytes = SECRET,
    digest: str = "sha256",
) -> str:
    """Signed by hand, since PyJWT would not sign most of what is sent here."""
    head = header() if head is None else head
    payload = claims() if payload is None else payload
    return signed(f"{part(head)}.{part(payload)}", secret, digest)


def signed(text: str, secret: str | bytes = SECRET, digest: str = "sha256") -> str:
    key = secret.encode() if isinstance(secret, str) else secret
    return f"{text}.{part(hmac.digest(key, text.encode(), digest))}"


# --- Requests and verdicts --------------------------------------------------------------------


def tasks_of(user: str) -> str:
    return f"/api/{quote(user, safe='', errors='replace')}/tasks"


async def ask(
    client: httpx.AsyncClient, *authorization: str | bytes, user: str = "alice"
) -> httpx.Response:
    """List the user's tasks with these Authorization headers, sent byte by byte."""
    headers = [
        (b"Authorization", value.encode() if isinstance(value, str) else value)
        for value in authorization
    ]
    return await client.get(tasks_of(user), headers=headers)


def assert_verdict(response: httpx.Response, verdict: str) -> None:
    if verdict == GOOD:
        assert response.status_code == 200, response.text
        assert response.json() == []
        assert "www-authenticate" not in response.headers
    else:
        assert_error(response, 401, verdict)
        assert response.headers.get_list("www-authenticate") == [CHALLENGES[verdict]]


async def verdict(verifier: TokenVerifier, token: str) -> str:
    """GOOD, EXPIRED, UNAVAILABLE, or for the log why the token is invalid."""
    try:
        await verifier.claims(token)
    except ServiceError as error:
        return f"{error}" if error.detail == INVALID else error.detail
    return GOOD
