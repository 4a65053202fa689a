# [Task]: T031 [From]: specs/requirements.md
"""What a real Better Auth issues, sent to the API without a browser: what opens it, what not."""

import asyncio
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import asyncpg
import httpx
import pytest
from support import assert_error

from .person import TOKEN_ROUTES, algorithm, with_each_kind
from .servers import Stack, down, foreign_tokens


class Account:
    """A user of the real Better Auth, who holds the cookie of a session."""

    def __init__(self, stack: Stack) -> None:
        self.email = f"{secrets.token_hex(8)}@example.com"
        self.password = secrets.token_urlsafe(12)
        self._api = httpx.Client(base_url=stack.api.url, trust_env=False)
        self._site = httpx.Client(
            base_url=stack.site.url, headers={"Origin": stack.site.url}, trust_env=False
        )
        signed_up = self.post(
            "sign-up/email", name="Ada", email=self.email, password=self.password
        ).json()
        self.id: str = signed_up["user"]["id"]
        # What the sign-up's answer calls a token; it names the session, and is no JWT.
        self.session_token: str = signed_up["token"]

    def close(self) -> None:
        self._api.close()
        self._site.close()

    def post(self, path: str, **members: str) -> httpx.Response:
        """Ask Better Auth for something that succeeds."""
        return self._site.post(f"/api/auth/{path}", json=members).raise_for_status()

    def token(self, kind: str) -> str:
        token: str = self._site.get(TOKEN_ROUTES[kind]).raise_for_status().json()["token"]
        return token

    def call(
        self, token: str, method: str = "GET", path: str = "", json: object = None
    ) -> httpx.Response:
        """Ask the API about the account's tasks."""
        headers = {"Authorization": f"Bearer {token}"}
        target = f"/api/{self.id}/tasks{path}"
        return self._api.request(method, target, headers=headers, json=json)


@pytest.fixture
def account(stack: Stack) -> Iterator[Account]:
    with closing(Account(stack)) as account:
        yield account


@pytest.fixture
def other(stack: Stack) -> Iterator[Account]:
    with closing(Account(stack)) as other:
        yield other


@pytest.fixture
def tokens(account: Account, stack: Stack) -> dict[str, str]:
    return foreign_tokens(stack, account.email, account.password)


@with_each_kind
def test_a_token_opens_its_users_tasks_and_no_others(
    account: Account, other: Account, kind: str
) -> None:
    token = account.token(kind)
    assert algorithm(token) == kind
    created = account.call(token, "POST", json={"title": "Read"})
    assert created.status_code == 201
    assert created.json()["user_id"] == account.id
    assert account.call(token).json() == [created.json()]
    assert_error(account.call(other.token(kind)), 403, "Access denied")


@with_each_kind
def test_without_a_session_there_is_no_token(stack: Stack, kind: str) -> None:
    answer = httpx.get(stack.site.url + TOKEN_ROUTES[kind], trust_env=False)
    assert answer.status_code == 401
    assert "token" not in answer.json()


def test_no_other_token_of_better_auths_opens_anything(
    account: Account, tokens: dict[str, str]
) -> None:
    assert account.call(tokens.pop("good")).status_code == 200
    assert_error(account.call(tokens.pop("expired")), 401, "Token has expired")
    assert {name: algorithm(token) for name, token in tokens.items()} == {
        "another server's": "EdDSA",
        "cached session, EdDSA": "EdDSA",
        "cached session, HS256": "HS256",
        "email verification": "HS256",
    }
    for token in (*tokens.values(), account.session_token):
        assert_error(account.call(token), 401, "Invalid token")


def test_a_new_key_is_found_and_the_old_one_stays_good(account: Account, stack: Stack) -> None:
    old = account.token("EdDSA")
    assert account.call(old).status_code == 200
    query(stack, """UPDATE jwks SET "expiresAt" = now() - interval '1 second'""")
    new = account.token("EdDSA")
    assert new.partition(".")[0] != old.partition(".")[0]
    assert account.call(new).status_code == 200
    assert account.call(old).status_code == 200


@with_each_kind
def test_a_token_outlives_an_outage_of_better_auth(
    account: Account, stack: Stack, kind: str
) -> None:
    token = account.token(kind)
    assert account.call(token).status_code == 200
    with down(stack.site):
        assert account.call(token).status_code == 200


@with_each_kind
def test_deleting_a_user_deletes_the_tasks_and_ends_the_tokens(
    account: Account, other: Account, stack: Stack, kind: str
) -> None:
    token = account.token(kind)
    task = account.call(token, "POST", json={"title": "Read"}).json()
    kept = other.call(other.token(kind), "POST", json={"title": "Write"}).json()
    assert owned_rows(stack, account.id) == 1

    account.post("delete-user")
    assert owned_rows(stack, account.id) == 0
    new = account.call(token, "POST", json={"title": "Too late"})
    assert_error(new, 401, "Invalid token")
    assert owned_rows(stack, account.id) == 0
    one = f"/{task['id']}"
    for method, path, body in (
        ("GET", "", None),
        ("GET", one, None),
        ("PUT", one, {"title": "Too late"}),
        ("PATCH", f"{one}/complete", None),
        ("DELETE", one, None),
    ):
        answer = account.call(token, method, path, body)
        assert answer.status_code in (401, 404) or answer.json() == []
    assert other.call(other.token(kind)).json() == [kept]


def owned_rows(stack: Stack, user: str) -> int:
    rows: int = query(stack, "SELECT count(*) FROM task WHERE user_id = $1", user)
    return rows


def query(stack: Stack, statement: str, *arguments: object) -> Any:
    """The one value that the statement gives."""

    async def run() -> Any:
        connection = await asyncpg.connect(stack.database.url())
        try:
            return await connection.fetchval(statement, *arguments)
        finally:
            await connection.close()

    # In a thread, since Playwright keeps this one's event loop running.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()
