# [Task]: T017 [From]: specs/requirements.md
"""Whom a token lets in, what the others are told, and that nothing else is looked at before.

What a good token is, is told in tests/kit/test_tokens.py.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

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

# --- The header -------------------------------------------------------------------------------

# What is sent in these headers, where `{}` stands for a good token, and what is said of it.
AUTHORIZATIONS: list[tuple[str, list[list[str]]]] = [
    (MISSING, [[], [""], [" "], ["Bearer"], ["Bearer "], ["Bearer    "]]),
    # Another scheme, or none.
    (
        MISSING,
        [["Basic YWxpY2U6c2VjcmV0"], ["Basic {}"], ["JWT {}"], ["Bearers {}"], ["Bearer:{}"]],
    ),
    (MISSING, [["Bearer\t{}"], ["Bearer{}"], ["{}"], ["{} Bearer"]]),
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


# --- The six operations -----------------------------------------------------------------------

OPERATIONS = {
    "list": ("GET", ""),
    "create": ("POST", ""),
    "get": ("GET", "/{}"),
    "update": ("PUT", "/{}"),
    "delete": ("DELETE", "/{}"),
    "complete": ("PATCH", "/{}/complete"),
}
BODIES = {"create": {"title": "Mine"}, "update": {"title": "Mine"}, "complete": {"completed": True}}


@dataclass(frozen=True)
class Mistake:
    """An input that a caller who may pass would be told is wrong."""

    statuses: set[int]
    content: bytes = b'{"title":"Buy milk","completed":true}'
    media_type: str = "application/json"
    task_id: str = "1"


MISTAKES = {
    "malformed JSON": Mistake({422}, content=b'{"title":'),
    "not an object": Mistake({422}, content=b"[1]"),
    "not JSON's content type": Mistake({415, 422}, media_type="text/plain"),
    "an oversized body": Mistake({413}, content=b'{"title":"' + b"x" * 65536 + b'"}'),
    "a malformed task id": Mistake({404, 422}, task_id="0x1"),
    "a task id with a NUL": Mistake({404, 422}, task_id="1%00"),
    "a task id beyond 64 bits": Mistake({404, 422}, task_id=str(2**63)),
}


async def send(
    client: httpx.AsyncClient, operation: str, mistake: Mistake, bearer: str | None
) -> httpx.Response:
    method, path = OPERATIONS[operation]
    headers = {"Content-Type": mistake.media_type}
    if bearer is not None:
        headers["Authorization"] = f"Bearer {bearer}"
    return await client.request(
        method,
        tasks_of("alice") + path.format(mistake.task_id),
        content=mistake.content,
        headers=headers,
    )


def matters(operation: str, mistake: Mistake) -> bool:
    """Whether the operation looks at what is wrong."""
    return operation in BODIES if mistake.task_id == "1" else "{}" in OPERATIONS[operation][1]


@pytest.mark.parametrize("operation", OPERATIONS)
class TestEveryOperation:
    @on_one_database
    @pytest.mark.parametrize("verdict", [MISSING, INVALID, EXPIRED, "Access denied"])
    async def test_refuses_all_others_before_it_looks_at_the_input(
        self, client: httpx.AsyncClient, operation: str, verdict: str
    ) -> None:
        bearer = {
            MISSING: None,
            INVALID: token(secret="another secret, quite as long as ours is"),
            EXPIRED: sign("bob", exp=1),  # Whose it was is not said.
            "Access denied": sign("bob"),
        }[verdict]
        for mistake in MISTAKES.values():
            response = await send(client, operation, mistake, bearer)
            if verdict == "Access denied":
                assert_error(response, 403, verdict)
                assert "www-authenticate" not in response.headers
            else:
                assert_verdict(response, verdict)

    async def test_tells_the_owner_what_is_wrong_with_the_input(
        self, client: httpx.AsyncClient, operation: str
    ) -> None:
        for mistake in MISTAKES.values():
            response = await send(client, operation, mistake, sign("alice"))
            expected = mistake.statuses if matters(operation, mistake) else {200, 201, 404}
            assert response.status_code in expected, response.text

    async def test_leaves_a_foreign_task_alone(
        self, client: httpx.AsyncClient, alice: Caller, operation: str
    ) -> None:
        task = await alice.add()
        method, path = OPERATIONS[operation]
        response = await client.request(
            method,
            alice.tasks + path.format(task["id"]),
            json=BODIES.get(operation),
            headers={"Authorization": f"Bearer {sign('bob')}"},
        )
        assert_error(response, 403, "Access denied")
        assert (await alice.get()).json() == [task]

    @on_one_database
    @pytest.mark.parametrize("bearer", ["none", "forged", "another user's"])
    @pytest.mark.usefixtures("client")
    async def test_waits_for_no_body_before_its_verdict(self, operation: str, bearer: str) -> None:
        async def receive() -> Message:
            return await asyncio.Future()  # It never comes.

        authorization = {
            "none": [],
            "forged": [f"Bearer {token(secret='wrong')}"],
            "another user's": [f"Bearer {sign('bob')}"],
        }[bearer]
        start, _ = await drive(operation, authorization, receive)
        assert start["status"] == (403 if bearer == "another user's" else 401)

    @pytest.mark.usefixtures("client")
    async def test_reads_an_owner_s_body(self, operation: str) -> None:
        chunks: list[Message] = [
            {"type": "http.request", "body": b'{"title":', "more_body": True},
            {"type": "http.request", "body": b"", "more_body": False},
        ]

        async def receive() -> Message:
            return chunks.pop(0)

        start, _ = await drive(operation, [f"Bearer {sign('alice')}"], receive)
        status = {"list": 200, "get": 404, "delete": 404}.get(operation, 422)
        assert (start["status"], chunks) == (status, [])


async def drive(operation: str, authorization: list[str], receive: Receive) -> list[Message]:
    """What the app sends for a chunked request of this operation on Alice's tasks."""
    method, path = OPERATIONS[operation]
    path = "/api/alice/tasks" + path.format(1)
    headers = [
        (b"host", b"test"),
        (b"content-type", b"application/json"),
        (b"transfer-encoding", b"chunked"),
        *((b"authorization", value.encode()) for value in authorization),
    ]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, object] = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}}
    scope |= {"http_version": "1.1", "method": method, "scheme": "http", "headers": headers}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
    scope |= {"client": ("127.0.0.1", 1234), "server": ("test", 80)}
    await app(scope, receive, send)
    return sent


class TestAccessDenied:
    async def test_says_the_same_whatever_exists(
        self, client: httpx.AsyncClient, alice: Caller
    ) -> None:
        task = await alice.add()
        paths = [
            alice.tasks,
            tasks_of("nobody"),
            f"{alice.tasks}/{task['id']}",
            f"{alice.tasks}/{task['id'] + 1}",
            f"{tasks_of('nobody')}/{task['id']}",
            f"{tasks_of('nobody')}/0",
            tasks_of("x" * 256),
            tasks_of("\0"),
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
            ("alice", "Alice"),
            ("Alice", "alice"),
            ("alice", "alice%20"),
            ("alice", "%20alice"),
            ("alice", "alic%65%00"),
            ("alice", "al%69ce%2F"),
            ("alice", "%2561lice"),
            ("%61lice", "%61lice"),
            ("caf\u00e9", "cafe%CC%81"),
            ("a/b", "a%252Fb"),
            ("1", "01"),
            ("1", "%EF%BC%91"),
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


@pytest.mark.parametrize("verdict", CHALLENGES)
async def test_refusal_is_this_to_the_byte(client: httpx.AsyncClient, verdict: str) -> None:
    sent = {MISSING: [], INVALID: ["Bearer x"], EXPIRED: [f"Bearer {sign('alice', exp=1)}"]}
    response = await ask(client, *sent[verdict])
    assert_verdict(response, verdict)
    assert response.content == f'{{"detail":"{verdict}"}}'.encode()


class TestAnotherApp:
    """Any FastAPI app may guard its own endpoints with verify_user_access."""

    @pytest.mark.parametrize(
        ("authorization", "status", "detail"),
        [
            (None, 401, MISSING),
            ("Bearer a.b.c", 401, INVALID),
            (f"Bearer {sign('alice', exp=1)}", 401, EXPIRED),
            (f"Bearer {sign('bob')}", 403, "Access denied"),
        ],
        ids=["none", "invalid", "expired", "another's"],
    )
    async def test_answers_what_the_service_answers(
        self, authorization: str | None, status: int, detail: str
    ) -> None:
        async with mounted_elsewhere() as http:
            headers = {"Authorization": authorization} if authorization else {}
            response = await http.get("/of/alice", headers=headers)
        assert_error(response, status, detail)
        assert response.headers.get("www-authenticate") == CHALLENGES.get(detail)

    @pytest.mark.parametrize("path", ["/of/alice", "/me"])
    async def test_sees_the_claims(self, path: str) -> None:
        claims: dict[str, Any] = {"email": "a@b.co", "roles": ["admin", {"of": ["x"]}]}
        headers = {"Authorization": f"Bearer {sign('alice', **claims)}"}
        async with mounted_elsewhere() as http:
            seen = (await http.get(path, headers=headers)).json()
            assert_error(await http.get(path), 401, MISSING)
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
