# [Task]: T017 [From]: specs/requirements.md
"""Whom a token lets in, what the others are told, and that nothing else is looked at before.

What a good token is, is told in tests/kit/test_tokens.py.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from itertools import product
from typing import Any
from urllib.parse import unquote

import httpx
import jwt
import pytest
from databases import on_one_database
from fastapi import FastAPI
from made_tokens import (
    CHALLENGES,
    EXPIRED,
    GOOD,
    INVALID,
    MISSING,
    ask,
    assert_verdict,
    tasks_of,
    token,
)
from starlette.types import Message, Receive
from support import SECRET, Caller, assert_error, sign

from kit.errors import InvalidToken
from kit.tokens import Claims, open_verifier
from main import app
from middleware.auth import CurrentUser, PathUser
from settings import get_settings

# What is sent in these headers, where `{}` stands for a good token, and what is said of it.
AUTHORIZATIONS: list[tuple[str, list[list[str]]]] = [
    (MISSING, [[], [""], [" "], ["Bearer"], ["Bearer "], ["Bearer    "]]),
    # Another scheme, or none.
    (MISSING, [["Basic YWxpY2U6c2VjcmV0"], ["Basic {}"], ["JWT {}"], ["Bearers {}"]]),
    (MISSING, [["Bearer:{}"], ["Bearer\t{}"], ["Bearer{}"], ["{}"], ["{} Bearer"]]),
    # Several headers.
    (MISSING, [["Bearer {}", "Bearer {}"], ["Bearer {}", "Bearer x"], ["Bearer x", "Bearer {}"]]),
    (MISSING, [["", "Bearer {}"], ["Bearer {}", "Basic YWxpY2U6c2VjcmV0"]]),
    (GOOD, [["Bearer {}"], ["bearer {}"], ["BEARER {}"], ["bEaReR {}"], ["Bearer  {}"]]),
    (INVALID, [["Bearer x"], ["Bearer Bearer {}"]]),
]


@on_one_database
class TestAuthorizationHeader:
    @pytest.mark.parametrize(
        ("values", "verdict"), [(one, verdict) for verdict, many in AUTHORIZATIONS for one in many]
    )
    async def test_is_one_bearer_token(
        self, client: httpx.AsyncClient, values: list[str], verdict: str
    ) -> None:
        good = sign("alice")
        assert_verdict(await ask(client, *(value.format(good) for value in values)), verdict)

    async def test_has_no_substitute(self, client: httpx.AsyncClient) -> None:
        good = sign("alice")
        names = ("token", "access_token", "authorization", "Authorization", "jwt")
        headers = ("Proxy-Authorization", "X-Authorization", "X-Access-Token")
        cookies = (*names, "better-auth.session_token")
        substitutes: list[dict[str, Any]] = [
            *({"params": {name: good}} for name in names),
            *({"params": {name: f"Bearer {good}"}} for name in names),
            *({"headers": {"Cookie": f"{name}={good}"}} for name in cookies),
            *({"headers": {name: f"Bearer {good}"}} for name in headers),
        ]
        for sent in substitutes:
            assert_verdict(await client.get("/api/alice/tasks", **sent), MISSING)
        body = {"access_token": good, "title": "Buy milk"}
        assert_verdict(await client.post("/api/alice/tasks", data=body), MISSING)


OPERATIONS = {
    "list": ("GET", ""),
    "create": ("POST", ""),
    "get": ("GET", "/{}"),
    "update": ("PUT", "/{}"),
    "delete": ("DELETE", "/{}"),
    "complete": ("PATCH", "/{}/complete"),
}


@on_one_database
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.usefixtures("client")
class TestEveryOperation:
    @pytest.mark.parametrize("verdict", [MISSING, INVALID, EXPIRED, "Access denied"])
    async def test_refuses_all_others_before_it_looks_at_the_input(
        self, operation: str, verdict: str
    ) -> None:
        async def receive() -> Message:
            return await asyncio.Future()  # A body that never comes.

        bearer = {
            MISSING: None,
            INVALID: token(secret="another secret, quite as long as ours is"),
            EXPIRED: sign("bob", exp=1),  # Whose it was is not said.
            "Access denied": sign("bob"),
        }[verdict]
        inputs = product(("1", "0x1", "1%00", f"{2**63}"), ("application/json", "text/plain"))
        # At once, since each waits a moment for the rest of the body.
        for response in await asyncio.gather(
            *(drive(operation, bearer, receive, *some) for some in inputs)
        ):
            assert_error(response, 403 if verdict == "Access denied" else 401, verdict)
            assert response.headers.get("www-authenticate") == CHALLENGES.get(verdict)

    async def test_reads_an_owner_s_body(self, operation: str) -> None:
        chunks: list[Message] = [
            {"type": "http.request", "body": b'{"title":', "more_body": True},
            {"type": "http.request", "body": b"", "more_body": False},
        ]

        async def receive() -> Message:
            return chunks.pop(0)

        response = await drive(operation, sign("alice"), receive)
        status = {"list": 200, "get": 404, "delete": 404}.get(operation, 422)
        assert (response.status_code, chunks) == (status, [])


async def drive(
    operation: str,
    bearer: str | None,
    receive: Receive,
    task_id: str = "1",
    media_type: str = "application/json",
) -> httpx.Response:
    """What the app answers to a chunked request of this operation on Alice's tasks."""
    method, path = OPERATIONS[operation]
    raw_path = "/api/alice/tasks" + path.format(task_id)
    headers = {"host": "test", "content-type": media_type, "transfer-encoding": "chunked"}
    if bearer is not None:
        headers["authorization"] = f"Bearer {bearer}"
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, object] = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}}
    scope |= {"http_version": "1.1", "method": method, "scheme": "http", "root_path": ""}
    scope |= {"path": unquote(raw_path), "raw_path": raw_path.encode(), "query_string": b""}
    scope |= {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    scope |= {"client": ("127.0.0.1", 1234), "server": ("test", 80)}
    await app(scope, receive, send)
    start, body = sent
    return httpx.Response(start["status"], headers=start["headers"], content=body["body"])


@on_one_database
class TestAccessDenied:
    async def test_says_the_same_whatever_exists(
        self, client: httpx.AsyncClient, alice: Caller
    ) -> None:
        task = await alice.add()
        paths = [
            *(alice.tasks, f"{alice.tasks}/{task['id']}", f"{alice.tasks}/{task['id'] + 1}"),
            *map(tasks_of, ("nobody", "x" * 256, "\0")),
            *(f"{tasks_of('nobody')}/{task_id}" for task_id in (task["id"], 0)),
        ]
        answers = []
        for path in paths:
            response = await client.get(path, headers={"Authorization": f"Bearer {sign('bob')}"})
            assert_error(response, 403, "Access denied")
            del response.headers["x-request-id"]
            answers.append((response.content, response.headers.raw))
        assert answers[0][0] == b'{"detail":"Access denied"}'
        assert answers == answers[:1] * len(paths)

    @pytest.mark.parametrize(
        ("sub", "path"),
        [
            *(("alice", "Alice"), ("Alice", "alice"), ("alice", "alice%20"), ("alice", "%20alice")),
            *(("alice", "alic%65%00"), ("alice", "al%69ce%2F"), ("alice", "%2561lice")),
            *(("%61lice", "%61lice"), ("caf\u00e9", "cafe%CC%81"), ("a/b", "a%252Fb")),
            *(("1", "01"), ("1", "%EF%BC%91")),
        ],
        ids=ascii,
    )
    async def test_meets_an_id_that_only_looks_alike(
        self, client: httpx.AsyncClient, sub: str, path: str
    ) -> None:
        headers = {"Authorization": f"Bearer {sign(sub)}"}
        own = await client.get(tasks_of(sub), headers=headers)
        assert_verdict(own, GOOD)
        response = await client.get(f"/api/{path}/tasks", headers=headers)
        assert_error(response, 403, "Access denied")


class TestAnotherApp:
    """Any FastAPI app may guard its own endpoints with verify_user_access."""

    @pytest.mark.parametrize("path", ["/of/alice", "/me"])
    async def test_sees_the_claims(self, path: str) -> None:
        claims: dict[str, Any] = {"email": "a@b.co", "roles": ["admin", {"of": ["x"]}]}
        alice, bob = [
            {"Authorization": f"Bearer {sign(user, **claims)}"} for user in ("alice", "bob")
        ]
        async with mounted_elsewhere() as http:
            seen = (await http.get(path, headers=alice)).json()
            refused = await http.get(path)
            assert_error(refused, 401, MISSING)
            assert refused.headers["www-authenticate"] == CHALLENGES[MISSING]
            if path == "/of/alice":
                assert_error(await http.get(path, headers=bob), 403, "Access denied")
        assert seen.items() >= {"sub": "alice", **claims}.items()

    async def test_can_change_no_claim(self) -> None:
        async with open_verifier(get_settings()) as verifier:
            token = sign("alice", roles=["admin", {"of": ["x"]}])
            claims: Any = await verifier.claims(token)
            assert claims["roles"] == ("admin", {"of": ("x",)})
            for part in (claims, claims["roles"][1]):
                for name in sorted({*dir(dict)} - {*dir(Mapping), *dir(object)} - {"copy"}):
                    if name not in ("__or__", "__ror__", "fromkeys"):
                        with pytest.raises(TypeError, match="read-only"):
                            getattr(part, name)({"sub": "bob"})
            assert await verifier.claims(token) is claims  # Remembered: requests share it.
            own: Any = deepcopy(claims)
            own["sub"] = own["roles"][1]["of"] = "bob"
            assert claims["sub"] == "alice"

    async def test_refuses_claims_that_are_nested_too_deeply(self) -> None:
        payload = (
            f'{{"sub": "alice", "exp": {time.time() + 900}, "deep": {"[" * 2500 + "]" * 2500}}}'
        )
        deep = jwt.PyJWS().encode(payload.encode(), SECRET, "HS256")
        async with open_verifier(get_settings()) as verifier:
            with pytest.raises(InvalidToken):
                await verifier.claims(deep)


@asynccontextmanager
async def mounted_elsewhere() -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()

    @app.get("/of/{user_id}")
    async def of(user: PathUser) -> Claims:
        return user

    @app.get("/me")
    async def me(user: CurrentUser) -> Claims:
        return user

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http
