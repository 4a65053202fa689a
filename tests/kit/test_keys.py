# [Task]: T024 [From]: specs/requirements.md
"""The published keys: which tokens they open, when they are fetched, and what an outage costs."""

import asyncio
import gzip
import hmac
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import certifi
import httpx
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI
from jwt.algorithms import OKPAlgorithm, get_default_algorithms
from jwt.utils import base64url_decode, base64url_encode
from made_tokens import ABSENT, EXPIRED, GOOD, INVALID, assert_verdict
from support import SECRET, assert_error, sign

from kit.keys import FETCH
from main import app
from middleware.auth import PathUser
from settings import SettingsError

MINUTES: Final = 60.0

type PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


# --- Keys -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SigningKey:
    """A key pair as Better Auth keeps it: for one algorithm, under an id of 32 characters."""

    algorithm: str
    kid: str
    private: PrivateKey

    def sign(self, text: bytes, algorithm: str) -> bytes:
        return get_default_algorithms()[algorithm].sign(text, self.private)

    @property
    def jwk(self) -> dict[str, object]:
        """As it is published."""
        return self._jwk(self.private.public_key())

    @property
    def private_jwk(self) -> dict[str, object]:
        """As it must never be published."""
        return self._jwk(self.private)

    def public_bytes(self, encoding: Encoding, form: PublicFormat) -> bytes:
        return self.private.public_key().public_bytes(encoding, form)

    def _jwk(self, key: object) -> dict[str, object]:
        members = get_default_algorithms()[self.algorithm].to_jwk(key, as_dict=True)
        members.pop("key_ops", None)
        return {"alg": self.algorithm, **members, "kid": self.kid}


def key(algorithm: str, number: int = 1, *, kind: str | None = None) -> SigningKey:
    """The same one each time; of the kind that the algorithm wants unless another is given."""
    kind = kind or algorithm
    kid = f"{algorithm}-{kind}-{number}-".ljust(32, "k")
    return SigningKey(algorithm, kid, private_key(kind, number, algorithm))


@cache
def private_key(kind: str, _number: int, _algorithm: str) -> PrivateKey:
    match kind:
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case "Ed448":
            return ed448.Ed448PrivateKey.generate()
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ES384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ES512":
            return ec.generate_private_key(ec.SECP521R1())
        case "ES256K":
            return ec.generate_private_key(ec.SECP256K1())
        case "RSA-1024":
            return rsa.generate_private_key(65537, 1024)  # noqa: S505  # weak on purpose
        case _:
            return rsa.generate_private_key(65537, 2048)


FIVE: Final = ("EdDSA", "ES256", "ES512", "RS256", "PS256")
# For each another one to be mistaken for, the most alike where there is such.
LIKENESS: Final = {
    "EdDSA": "ES256",
    "ES256": "EdDSA",
    "ES512": "ES256",
    "RS256": "PS256",
    "PS256": "RS256",
}


def key_pairs() -> list[object]:
    """What is published unless a test says otherwise: two keys for each algorithm."""
    return [key(algorithm, number).jwk for algorithm in FIVE for number in (1, 2)]


def attacker_key() -> SigningKey:
    return key("EdDSA", 7)


# --- Tokens -----------------------------------------------------------------------------------


def compact(header: object, payload: object, signature: Callable[[bytes], bytes]) -> str:
    """A JWS by hand, since PyJWT would not make most of what is sent here."""
    text = b".".join(base64url_encode(json.dumps(part).encode()) for part in (header, payload))
    return (text + b"." + base64url_encode(signature(text))).decode()


def present(members: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not ABSENT}


@dataclass(frozen=True)
class Issuer:
    """A Better Auth server, by its origin, and the origin of someone who would like to be it."""

    origin: str
    attacker: str = ""

    def token(
        self,
        by: SigningKey | None = None,
        *,
        signer: SigningKey | None = None,
        secret: bytes | None = None,
        header: Mapping[str, object] | None = None,
        claims: Mapping[str, object] | None = None,
    ) -> str:
        """Alice's, as the jwt() plugin makes it, but for what is given; ABSENT leaves it out.

        `signer` signs in place of the key that the header names, `secret` with HMAC-SHA256.
        """
        by = by or key("EdDSA")
        members: dict[str, object] = {"alg": by.algorithm, "kid": by.kid, **(header or {})}

        def signature(text: bytes) -> bytes:
            if secret is not None:
                return hmac.digest(secret, text, "sha256")
            return (signer or by).sign(text, str(members["alg"]))

        return compact(present(members), self.claims(**(claims or {})), signature)

    def claims(self, **members: object) -> dict[str, object]:
        now = int(time.time())
        return present(
            {
                "name": "Alice",
                "email": "alice@example.com",
                "emailVerified": True,
                "image": None,
                "createdAt": "2026-01-02T03:04:05.678Z",
                "updatedAt": "2026-01-02T03:04:05.678Z",
                "id": "alice",
                "sub": "alice",
                "iat": now,
                "exp": now + 900,
                "iss": self.origin,
                "aud": self.origin,
                **members,
            }
        )

    def stray(self) -> str:
        """A token with a `kid` that nobody has seen."""
        return self.token(attacker_key(), header={"kid": uuid4().hex})


# --- The server that publishes the keys -------------------------------------------------------

type Answer = Callable[["KeyServer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Fetch:
    """A request that the server has got."""

    text: str
    at: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        return self.text.split(" ")[1]

    @property
    def headers(self) -> httpx.Headers:
        lines = self.text.strip().split("\r\n")[1:]
        return httpx.Headers(dict(line.split(": ", 1) for line in lines))


class KeyServer:
    """An HTTP server in Better Auth's place: publishes `keys`, or answers as a test has it."""

    def __init__(self, keys: list[object], elsewhere: str = "") -> None:
        self.keys = keys
        self.elsewhere = elsewhere
        self.answer: Answer = publish
        self.fetches: list[Fetch] = []
        self._port = 0
        self._server: asyncio.Server | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def key_set(self) -> bytes:
        return json.dumps({"keys": self.keys}).encode()

    async def start(self) -> None:
        """On a free port at first, on the same one later."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server.abort_clients()
            await self._server.wait_closed()
            self._server = None

    async def fail(self, outage: Answer | None) -> None:
        """From now on this is the answer; None is none at all, not even a connection."""
        if outage is None:
            await self.stop()
        else:
            self.answer = outage

    async def recover(self) -> None:
        self.answer = publish
        if self._server is None:
            await self.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.fetches.append(Fetch(head.decode("latin-1")))
            await self.answer(self, reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client has gone, as it should from some of these answers.
        finally:
            writer.close()


def http(body: bytes, status: int = 200, *headers: str, length: int | None = None) -> bytes:
    lines = [
        f"HTTP/1.1 {status} So",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if length is None else length}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def in_chunks(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


def saying(make: Callable[[KeyServer], bytes]) -> Answer:
    """These bytes, all at once."""

    async def answer(
        server: KeyServer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(make(server))

    return answer


publish: Answer = saying(lambda server: http(server.key_set))


async def hang(
    _server: KeyServer, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter
) -> None:
    await reader.read()  # Until the client has had enough.


async def drip(
    server: KeyServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """The good answer, byte by byte, which takes a minute."""
    gone = asyncio.create_task(reader.read())
    for byte in http(server.key_set):
        writer.write(bytes([byte]))
        if (await asyncio.wait([gone], timeout=0.02))[0]:
            break
    gone.cancel()
    await asyncio.wait([gone])


def redirect(status: int) -> Answer:
    """To another server, which has the very keys."""
    return saying(
        lambda server: http(server.key_set, status, f"Location: {server.elsewhere}/api/auth/jwks")
    )


error: Answer = saying(lambda server: http(server.key_set, 500))


class Gate:
    """The good answer, once the gate is open."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def answer(
        self, server: KeyServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reached.set()
        await self.open.wait()
        await publish(server, reader, writer)


# What an operator must know besides the status.
MORE_IN_THE_LOG: Final = {404: ": set BETTER_AUTH_JWKS_URL if", 302: ", Location: http://"}
TEN_MEGABYTES: Final = b" " * 10 * 1024 * 1024

# Wherever it can be, the good key set is in it, so that nothing but the flaw speaks against it.
OUTAGES: Final[dict[str, Answer | None]] = {
    "down": None,
    "hanging": hang,
    "dripping": drip,
    "status 500": error,
    "status 503": saying(lambda server: http(server.key_set, 503)),
    "status 404": saying(lambda server: http(server.key_set, 404)),
    "status 401": saying(lambda server: http(server.key_set, 401)),
    "redirecting for now": redirect(302),
    "redirecting for good": redirect(308),
    "10 MB": saying(lambda server: http(server.key_set + TEN_MEGABYTES)),
    "10 MB in chunks": saying(lambda server: in_chunks(server.key_set + TEN_MEGABYTES)),
    "compressed unasked": saying(
        lambda server: http(gzip.compress(server.key_set), 200, "Content-Encoding: gzip")
    ),
    "broken off": saying(lambda server: http(server.key_set, length=50_000)),
    "broken off in the middle": saying(lambda server: http(server.key_set)[:400]),
    "closing at once": saying(lambda _: b""),
    "not HTTP": saying(lambda server: b"\x16\x03\x01\x00" + server.key_set),
    "empty": saying(lambda _: http(b"")),
    "HTML": saying(lambda _: http(b"<!doctype html><title>Sign in</title>")),
    "not UTF-8": saying(lambda _: http(b'{"keys": "\xff"}')),
    "nested too deep": saying(lambda _: http(b'{"keys":' + b"[" * 30_000 + b"]" * 30_000 + b"}")),
    "a list": saying(lambda server: http(json.dumps(server.keys).encode())),
    "null": saying(lambda _: http(b"null")),
    "an object without keys": saying(lambda _: http(b"{}")),
    "no keys": saying(lambda _: http(b'{"keys": []}')),
    "keys a number": saying(lambda _: http(b'{"keys": 5}')),
    "keys an object": saying(lambda _: http(b'{"keys": {"kty": "OKP"}}')),
    "no usable key": saying(lambda _: http(b'{"keys": [{"kty": "OKP", "kid": "a"}, 5]}')),
}
each_outage = pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)


# --- The service ------------------------------------------------------------------------------


def fetches_under_way() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == FETCH]


async def looked() -> None:
    """Until nothing is being fetched any more."""
    await asyncio.gather(*fetches_under_way())


class Clock:
    """The clock by which keys grow old; it can be put forward."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    # The name in this one module: asyncio's timers go by time.monotonic, too.
    monkeypatch.setattr("kit.keys.time", clock)
    return clock


type Service = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="module")
def empty_database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all, since nothing is stored in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('keys')}/tasks.db"


@pytest.fixture(scope="module")
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of one that is trusted, since each client of httpx takes 0.1 s to read them all."""
    file = tmp_path_factory.mktemp("authorities") / "one.pem"
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    file.write_text(first + end)
    return str(file)


@pytest.fixture
def service(
    monkeypatch: pytest.MonkeyPatch, empty_database_url: str, one_authority: str
) -> Service:
    """Runs the app with these variables in its environment, or out of it where None."""
    monkeypatch.setenv("SSL_CERT_FILE", one_authority)
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    @asynccontextmanager
    async def run(**environment: str | None) -> AsyncIterator[httpx.AsyncClient]:
        for name, value in environment.items():
            if value is None:
                monkeypatch.delenv(name)
            else:
                monkeypatch.setenv(name, value)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield client

    return run


@pytest.fixture
async def elsewhere() -> AsyncIterator[KeyServer]:
    """A server that the service has no business with."""
    server = KeyServer([*key_pairs(), attacker_key().jwk])
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def server(elsewhere: KeyServer) -> AsyncIterator[KeyServer]:
    """The server of BETTER_AUTH_URL."""
    server = KeyServer(key_pairs(), elsewhere.origin)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def issuer(server: KeyServer) -> Issuer:
    return Issuer(server.origin, server.elsewhere)


@pytest.fixture
async def client(server: KeyServer, service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service that has both the secret and the server's URL."""
    async with service(BETTER_AUTH_URL=server.origin) as client:
        yield client


def set_cooldown(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr("kit.keys.COOLDOWN", seconds)


async def ask(client: httpx.AsyncClient, token: str, user: str = "alice") -> httpx.Response:
    return await client.get(f"/api/{user}/tasks", headers={"Authorization": f"Bearer {token}"})


async def refusals(client: httpx.AsyncClient, token: str) -> list[httpx.Response]:
    """The answers until the token is accepted at last, for which there are 10 s."""
    refused = []
    async with asyncio.timeout(10):
        while (response := await ask(client, token)).status_code != 200:
            refused.append(response)
            await asyncio.sleep(0.02)
    return refused


def assert_unavailable(response: httpx.Response) -> None:
    assert_error(response, 503, "Service temporarily unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert "www-authenticate" not in response.headers


@dataclass(frozen=True)
class Scene:
    """The service, its callers, and the key server that it is told of."""

    client: httpx.AsyncClient
    server: KeyServer
    elsewhere: KeyServer
    issuer: Issuer
    clock: Clock
    patch: pytest.MonkeyPatch

    @property
    def token(self) -> Callable[..., str]:
        return self.issuer.token

    def set_cooldown(self, seconds: float) -> None:
        set_cooldown(self.patch, seconds)

    async def ask(self, token: str, user: str = "alice") -> httpx.Response:
        return await ask(self.client, token, user)

    async def refusals(self, token: str) -> list[httpx.Response]:
        return await refusals(self.client, token)

    async def good(self, token: str) -> None:
        assert_verdict(await self.ask(token), GOOD)

    async def invalid(self, token: str) -> None:
        assert_verdict(await self.ask(token), INVALID)

    async def unavailable(self, token: str) -> None:
        assert_unavailable(await self.ask(token))


@pytest.fixture
def scene(
    client: httpx.AsyncClient,
    server: KeyServer,
    elsewhere: KeyServer,
    issuer: Issuer,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    return Scene(client, server, elsewhere, issuer, clock, monkeypatch)


# --- Which tokens -----------------------------------------------------------------------------

type Make = Callable[[Issuer], str]


def of_own_key(algorithm: str) -> Make:
    return lambda issuer: issuer.token(key(algorithm))


def of_its_twin(algorithm: str) -> Make:
    """Signed with the other key of the same algorithm than the header names."""
    return lambda issuer: issuer.token(key(algorithm), signer=key(algorithm, 2))


def of_another_algorithm(algorithm: str) -> Make:
    """Signed well, by a key of the set, but the header names one of another algorithm."""
    return lambda issuer: issuer.token(
        key(LIKENESS[algorithm]), signer=key(algorithm), header={"alg": algorithm}
    )


def of_an_algorithm_claimed(algorithm: str) -> Make:
    """Signed with the key that the header names, under another algorithm's name."""

    def make(issuer: Issuer) -> str:
        by = key(algorithm)
        header = {"alg": LIKENESS[algorithm], "kid": by.kid}
        return compact(header, issuer.claims(), lambda text: by.sign(text, algorithm))

    return make


def rsa_both_ways(named: str, used: str) -> Make:
    """One RSA key serves both algorithms mathematically; it is published for one of them."""
    return lambda issuer: issuer.token(key(named), header={"alg": used})


def by_public_key(algorithm: str, form: str) -> Make:
    """HS256, its secret being what everyone knows of the key."""

    def make(issuer: Issuer) -> str:
        known = key(algorithm)
        match form:
            case "PEM":
                secret = known.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            case "DER":
                secret = known.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            case "raw":
                secret = known.public_bytes(Encoding.Raw, PublicFormat.Raw)
            case "x":
                secret = str(known.jwk["x"]).encode()
            case _:
                secret = json.dumps(known.jwk).encode()
        return issuer.token(known, secret=secret, header={"alg": "HS256"})

    return make


def shared(**header: object) -> Make:
    """HS256 with the secret shared with the frontend."""
    return lambda issuer: issuer.token(
        secret=SECRET.encode(), header={"alg": "HS256", "kid": ABSENT, **header}
    )


def tampered(issuer: Issuer) -> str:
    header, _, signature = issuer.token().split(".")
    payload = base64url_encode(json.dumps(issuer.claims(name="Mallory")).encode()).decode()
    return f"{header}.{payload}.{signature}"


def with_signature(change: Callable[[bytes], bytes], algorithm: str = "EdDSA") -> Make:
    def make(issuer: Issuer) -> str:
        text, _, signature = issuer.token(key(algorithm)).rpartition(".")
        return f"{text}.{base64url_encode(change(base64url_decode(signature))).decode()}"

    return make


def header(by: SigningKey | None = None, **members: object) -> Make:
    return lambda issuer: issuer.token(by, header=members)


def claim(**members: object) -> Make:
    return lambda issuer: issuer.token(claims=members)


def iss(make: Callable[[str], object]) -> Make:
    return lambda issuer: issuer.token(claims={"iss": make(issuer.origin)})


def aud(make: Callable[[str], object]) -> Make:
    return lambda issuer: issuer.token(claims={"aud": make(issuer.origin)})


def of_attacker(**members: Callable[[Issuer], object]) -> Make:
    """Signed with a key of the attacker's that these header members offer."""
    return lambda issuer: issuer.token(
        attacker_key(), header={name: value(issuer) for name, value in members.items()}
    )


def unsigned(issuer: Issuer) -> str:
    return compact({"alg": "none", "kid": key("EdDSA").kid}, issuer.claims(), lambda _: b"\0")


def session_cache(**claims: object) -> Make:
    """Better Auth's sessionCookieCache: signed with the same keys, for itself."""
    return lambda issuer: issuer.token(
        header={"typ": "better-auth.session-cache+jwt"}, claims=claims
    )


def timed(name: str, seconds: int, **claims: object) -> Make:
    """The claim is so far from now."""
    return lambda issuer: issuer.token(claims={name: int(time.time()) + seconds, **claims})


def jwks_at(origin: str) -> str:
    return f"{origin}/api/auth/jwks"


# The token, its verdict, and how often at most the server is asked for the sake of it.
TOKENS: Final[dict[str, tuple[Make, str, int]]] = {
    **{f"{name} of its own key": (of_own_key(name), GOOD, 1) for name in FIVE},
    **{f"{name} of its key's twin": (of_its_twin(name), INVALID, 1) for name in FIVE},
    **{
        f"{name} under the kid of an {other} key": (of_another_algorithm(name), INVALID, 1)
        for name, other in LIKENESS.items()
    },
    **{
        f"{name} called {other}": (of_an_algorithm_claimed(name), INVALID, 1)
        for name, other in LIKENESS.items()
    },
    "RS256 of a PS256 key": (rsa_both_ways("PS256", "RS256"), INVALID, 1),
    "PS256 of an RS256 key": (rsa_both_ways("RS256", "PS256"), INVALID, 1),
    "RS384 of an RS256 key": (rsa_both_ways("RS256", "RS384"), INVALID, 0),
    "PS512 of a PS256 key": (rsa_both_ways("PS256", "PS512"), INVALID, 0),
    # The signature.
    "claims changed": (tampered, INVALID, 1),
    "signature cut short": (with_signature(lambda s: s[:-1]), INVALID, 1),
    "signature of one byte": (with_signature(lambda _: b"\0"), INVALID, 1),
    "signature with a bit changed": (
        with_signature(lambda s: bytes([s[0] ^ 1]) + s[1:]),
        INVALID,
        1,
    ),
    "ES256 signature of zeros": (with_signature(lambda _: b"\0" * 64, "ES256"), INVALID, 1),
    "ES512 signature too short": (with_signature(lambda s: s[:64], "ES512"), INVALID, 1),
    "RS256 signature of zeros": (with_signature(lambda s: b"\0" * len(s), "RS256"), INVALID, 1),
    # The kid.
    "kid missing": (header(kid=ABSENT), INVALID, 0),
    "kid a number": (header(kid=1), INVALID, 0),
    "kid an object": (header(kid={"kid": key("EdDSA").kid}), INVALID, 0),
    "kid empty": (header(kid=""), INVALID, 1),
    "kid unknown": (header(kid="nobody's"), INVALID, 1),
    "kid in capitals": (header(kid=key("EdDSA").kid.upper()), INVALID, 1),
    "kid of a path": (header(kid="../../x"), INVALID, 1),
    "kid of a URL": (lambda i: i.token(header={"kid": jwks_at(i.attacker)}), INVALID, 1),
    "kid with a lone surrogate": (header(kid="\ud800"), INVALID, 1),
    "kid with NUL and a newline": (header(kid="\0\r\n"), INVALID, 1),
    "kid of 5,000 characters": (header(kid="k" * 5_000), INVALID, 1),
    # The algorithm.
    "HS256 with the PEM of an RSA key": (by_public_key("RS256", "PEM"), INVALID, 0),
    "HS256 with the DER of an RSA key": (by_public_key("RS256", "DER"), INVALID, 0),
    "HS256 with the JWK of an RSA key": (by_public_key("RS256", "JWK"), INVALID, 0),
    "HS256 with the PEM of an Ed25519 key": (by_public_key("EdDSA", "PEM"), INVALID, 0),
    "HS256 with the bytes of an Ed25519 key": (by_public_key("EdDSA", "raw"), INVALID, 0),
    "HS256 with the x of an Ed25519 key": (by_public_key("EdDSA", "x"), INVALID, 0),
    "HS256 with the JWK of an Ed25519 key": (by_public_key("EdDSA", "JWK"), INVALID, 0),
    "HS256 with the PEM of a P-256 key": (by_public_key("ES256", "PEM"), INVALID, 0),
    "HS256 with the JWK of a P-256 key": (by_public_key("ES256", "JWK"), INVALID, 0),
    "EdDSA with the secret": (lambda i: i.token(secret=SECRET.encode()), INVALID, 1),
    "alg none": (unsigned, INVALID, 0),
    "alg eddsa": (
        lambda i: compact(
            {"alg": "eddsa", "kid": key("EdDSA").kid},
            i.claims(),
            lambda text: key("EdDSA").sign(text, "EdDSA"),
        ),
        INVALID,
        0,
    ),
    "ES384": (
        lambda i: i.token(key("ES256"), signer=key("ES384"), header={"alg": "ES384"}),
        INVALID,
        0,
    ),
    # Keys brought along.
    "jwk": (of_attacker(jwk=lambda _: attacker_key().jwk), INVALID, 1),
    "jwk under a known kid": (
        of_attacker(jwk=lambda _: attacker_key().jwk, kid=lambda _: key("EdDSA").kid),
        INVALID,
        1,
    ),
    "jwk without kid": (
        of_attacker(jwk=lambda _: attacker_key().jwk, kid=lambda _: ABSENT),
        INVALID,
        0,
    ),
    "jku": (of_attacker(jku=lambda i: jwks_at(i.attacker)), INVALID, 1),
    "jku under a known kid": (
        of_attacker(jku=lambda i: jwks_at(i.attacker), kid=lambda _: key("EdDSA").kid),
        INVALID,
        1,
    ),
    "x5u": (of_attacker(x5u=lambda i: f"{i.attacker}/key.pem"), INVALID, 1),
    "x5u without kid": (
        of_attacker(x5u=lambda i: f"{i.attacker}/key.pem", kid=lambda _: ABSENT),
        INVALID,
        0,
    ),
    "jku in a good token": (lambda i: i.token(header={"jku": jwks_at(i.attacker)}), GOOD, 1),
    "the attacker's own": (lambda i: Issuer(i.attacker).token(attacker_key()), INVALID, 1),
    "the attacker's as iss": (lambda i: i.token(claims={"iss": i.attacker}), INVALID, 1),
    # What it is for.
    "typ JWT": (header(typ="JWT"), GOOD, 1),
    "typ at+jwt": (header(typ="at+jwt"), GOOD, 1),
    "typ of a logout token": (header(typ="logout+jwt"), INVALID, 0),
    "Better Auth's session cache": (
        session_cache(aud="better-auth:session-cache"),
        INVALID,
        0,
    ),
    "Better Auth's session cache for us": (session_cache(), INVALID, 0),
    "aud of Better Auth's session cache": (claim(aud="better-auth:session-cache"), INVALID, 1),
    "iss missing": (claim(iss=ABSENT), INVALID, 1),
    "iss another": (claim(iss="https://app.example.com"), INVALID, 1),
    "iss with a path": (iss(lambda origin: f"{origin}/api/auth"), INVALID, 1),
    "iss with a slash": (iss(lambda origin: f"{origin}/"), INVALID, 1),
    "iss with another scheme": (iss(lambda o: o.replace("http:", "https:")), INVALID, 1),
    "iss without its port": (iss(lambda o: o.rpartition(":")[0]), INVALID, 1),
    "iss a list": (iss(lambda origin: [origin]), INVALID, 1),
    "aud missing": (claim(aud=ABSENT), INVALID, 1),
    "aud another": (claim(aud="https://app.example.com"), INVALID, 1),
    "aud with a slash": (aud(lambda origin: f"{origin}/"), INVALID, 1),
    "aud a part of it": (aud(lambda origin: origin[:-1]), INVALID, 1),
    "aud more than it": (aud(lambda origin: f"{origin} {origin}"), INVALID, 1),
    "aud a list of it": (aud(lambda origin: [origin]), GOOD, 1),
    "aud a list with it": (aud(lambda origin: ["https://a.example", origin, 5]), GOOD, 1),
    "aud a list without it": (claim(aud=["https://a.example", None]), INVALID, 1),
    "aud an empty list": (claim(aud=[]), INVALID, 1),
    "aud a list of a list": (aud(lambda origin: [[origin]]), INVALID, 1),
    # Whose and when: the claims of all tokens are judged alike, test_tokens.py.
    "sub missing": (claim(sub=ABSENT), INVALID, 1),
    "exp an hour past": (timed("exp", -3600), EXPIRED, 1),
    "exp past, and of the attacker's": (
        lambda i: i.token(signer=attacker_key(), claims={"exp": 1}),
        INVALID,
        1,
    ),
    "exp past, and iss another": (claim(exp=1, iss="https://a.example"), INVALID, 1),
    "crit": (header(crit=["exp"]), INVALID, 0),
    # The shared secret beside it.
    "HS256": (lambda _: sign("alice"), GOOD, 0),
    "HS256 as the plugin signs it remotely": (shared(), GOOD, 0),
    "HS256 under a kid of the set": (shared(kid=key("EdDSA").kid), GOOD, 0),
    "HS256 with another secret": (lambda _: sign("alice", secret="s" * 32), INVALID, 0),
    "HS256 expired": (lambda _: sign("alice", exp=1), EXPIRED, 0),
    "HS256 of the session cookie cache": (shared(typ="better-auth.session-cache+jwt"), INVALID, 0),
}


class TestTokens:
    @pytest.mark.parametrize(("make", "verdict", "fetches"), TOKENS.values(), ids=TOKENS)
    async def test_are_judged_by_the_published_keys(
        self, scene: Scene, make: Make, verdict: str, fetches: int
    ) -> None:
        assert_verdict(await scene.ask(make(scene.issuer)), verdict)
        assert len(scene.server.fetches) <= fetches
        assert scene.elsewhere.fetches == []

    async def test_open_no_other_user_s_path(self, scene: Scene) -> None:
        token = scene.token()
        for _ in range(2):
            assert_error(await scene.ask(token, user="bob"), 403, "Access denied")
            await scene.good(token)

    async def test_need_a_kid_though_there_is_but_one_key(self, scene: Scene) -> None:
        scene.server.keys = [key("EdDSA").jwk]
        await scene.good(scene.token())
        await scene.invalid(scene.token(header={"kid": ABSENT}))


class TestBetterAuthUrl:
    async def test_is_enough_without_a_secret(
        self, service: Service, server: KeyServer, issuer: Issuer
    ) -> None:
        async with service(BETTER_AUTH_URL=server.origin, BETTER_AUTH_SECRET=None) as client:
            assert_verdict(await ask(client, issuer.token()), GOOD)
            assert_verdict(await ask(client, sign("alice")), INVALID)
            for algorithm, form in (("RS256", "PEM"), ("EdDSA", "raw"), ("EdDSA", "JWK")):
                forged = by_public_key(algorithm, form)(issuer)
                assert_verdict(await ask(client, forged), INVALID)
            empty = issuer.token(secret=b"", header={"alg": "HS256"})
            assert_verdict(await ask(client, empty), INVALID)

    async def test_holds_in_an_app_without_the_lifespan(
        self, monkeypatch: pytest.MonkeyPatch, server: KeyServer, issuer: Issuer
    ) -> None:
        monkeypatch.setenv("BETTER_AUTH_URL", server.origin)
        bare = FastAPI()

        @bare.get("/api/{user_id}/tasks")
        async def endpoint(user: PathUser) -> str:
            return f"{user['name']}"

        transport = httpx.ASGITransport(bare)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await ask(client, issuer.token())).json() == "Alice"
            assert_verdict(await ask(client, issuer.stray()), INVALID)

    async def test_is_what_lets_published_keys_count(
        self, service: Service, server: KeyServer, issuer: Issuer
    ) -> None:
        async with service() as client:
            for algorithm in FIVE:
                assert_verdict(await ask(client, issuer.token(key(algorithm))), INVALID)
            assert_verdict(await ask(client, sign("alice")), GOOD)
        assert server.fetches == []

    @pytest.mark.parametrize("path", ["/", "/app", "/app/", "/app/v1/"])
    async def test_may_have_a_path_that_the_issuer_has_not(
        self, service: Service, server: KeyServer, issuer: Issuer, path: str
    ) -> None:
        url = server.origin + path
        async with service(BETTER_AUTH_URL=url) as client:
            assert_verdict(await ask(client, issuer.token()), GOOD)
            for name in ("iss", "aud"):
                with_path = issuer.token(claims={name: url})
                assert_verdict(await ask(client, with_path), INVALID)
        [fetch] = server.fetches
        assert fetch.path == f"{path.rstrip('/')}/api/auth/jwks"

    async def test_may_be_in_capitals(
        self, service: Service, server: KeyServer, issuer: Issuer
    ) -> None:
        async with service(BETTER_AUTH_URL=server.origin.replace("http", "HTTP")) as client:
            assert_verdict(await ask(client, issuer.token()), GOOD)

    @pytest.mark.parametrize("name", ["BETTER_AUTH_URL", "BETTER_AUTH_JWKS_URL"])
    async def test_that_nobody_can_connect_to_stops_the_start(
        self, service: Service, server: KeyServer, name: str
    ) -> None:
        environment = {"BETTER_AUTH_URL": server.origin, name: "http://[1:2]"}
        with pytest.raises(SettingsError, match=name):
            async with service(**environment):
                pass

    async def test_yields_to_a_url_of_the_keys(
        self, service: Service, server: KeyServer, elsewhere: KeyServer, issuer: Issuer
    ) -> None:
        keys = f"{elsewhere.origin}/keys.json"
        async with service(BETTER_AUTH_URL=server.origin, BETTER_AUTH_JWKS_URL=keys) as client:
            assert_verdict(await ask(client, issuer.token()), GOOD)
            assert_verdict(await ask(client, issuer.token(attacker_key())), GOOD)
        assert server.fetches == []
        assert [fetch.path for fetch in elsewhere.fetches] == ["/keys.json"]

    async def test_yields_to_an_issuer(
        self, service: Service, server: KeyServer, issuer: Issuer
    ) -> None:
        other = "https://login.example.com/realm/"
        async with service(BETTER_AUTH_URL=server.origin, BETTER_AUTH_ISSUER=other) as client:
            assert_verdict(await ask(client, issuer.token(claims={"iss": other})), GOOD)
            assert_verdict(await ask(client, issuer.token()), INVALID)
            both = issuer.token(claims={"iss": other, "aud": other})
            assert_verdict(await ask(client, both), INVALID)

    async def test_yields_to_an_audience(
        self, service: Service, server: KeyServer, issuer: Issuer
    ) -> None:
        async with service(BETTER_AUTH_URL=server.origin, BETTER_AUTH_AUDIENCE="tasks") as client:
            for good in ("tasks", ["tasks"], [server.origin, "tasks"]):
                assert_verdict(await ask(client, issuer.token(claims={"aud": good})), GOOD)
            for bad in (server.origin, [server.origin], "task", "tasks ", ABSENT):
                assert_verdict(await ask(client, issuer.token(claims={"aud": bad})), INVALID)


# --- When they are fetched --------------------------------------------------------------------


class TestFetch:
    async def test_waits_for_a_token_that_needs_it(self, scene: Scene) -> None:
        await scene.good(sign("alice"))
        await scene.invalid(sign("alice", secret="s" * 32))
        assert (await scene.client.get("/api/alice/tasks")).status_code == 401
        assert (await scene.client.get("/health")).status_code == 200
        assert scene.server.fetches == []
        await scene.good(scene.token())
        assert len(scene.server.fetches) == 1

    async def test_that_can_not_be_set_up_is_tried_again(self, scene: Scene) -> None:
        scene.set_cooldown(0.0)
        scene.patch.setenv("SSL_CERT_FILE", "/nonexistent")
        await scene.unavailable(scene.token())
        scene.patch.delenv("SSL_CERT_FILE")
        await scene.good(scene.token())

    async def test_is_one_for_all_who_wait(self, scene: Scene) -> None:
        tokens = [scene.token(key(FIVE[n % 5]), claims={"jti": n}) for n in range(50)]
        for answer in await asyncio.gather(*(scene.ask(token) for token in tokens)):
            assert_verdict(answer, GOOD)
        assert len(scene.server.fetches) == 1

    async def test_is_repeated_when_the_keys_are_four_minutes_old(self, scene: Scene) -> None:
        remembered = scene.token()
        for passing, fetches in ((0, 1), (200, 1), (30, 1), (20, 2), (230, 2), (20, 3)):
            scene.clock.advance(passing)
            for token in (remembered, scene.token(), scene.token(key("ES256"))):
                await scene.good(token)
            await looked()
            assert len(scene.server.fetches) == fetches

    async def test_after_five_minutes_is_one_for_all(self, scene: Scene) -> None:
        token = scene.token()
        await scene.good(token)
        scene.clock.advance(5 * MINUTES + 1)
        tokens = [token] * 25 + [scene.token(claims={"jti": n}) for n in range(25)]
        for answer in await asyncio.gather(*(scene.ask(token) for token in tokens)):
            assert_verdict(answer, GOOD)
        await looked()
        assert len(scene.server.fetches) == 2

    async def test_after_a_night_is_like_the_first(self, scene: Scene) -> None:
        token = scene.token()
        await scene.good(token)
        scene.clock.advance(600 * MINUTES)
        await scene.good(token)
        assert len(scene.server.fetches) == 2

    async def test_tells_the_server_nothing(self, scene: Scene) -> None:
        token = scene.token()
        await scene.good(token)
        [fetch] = scene.server.fetches
        assert fetch.text.startswith("GET /api/auth/jwks HTTP/1.1\r\n")
        assert "authorization" not in fetch.headers
        assert not [part for part in token.split(".") if part in fetch.text]
        assert key("EdDSA").kid not in fetch.text

    async def test_asks_for_plain_json(self, scene: Scene) -> None:
        await scene.good(scene.token())
        [fetch] = scene.server.fetches
        assert fetch.headers["accept"] == "application/json"
        assert fetch.headers["accept-encoding"] == "identity"

    async def test_goes_on_when_the_one_who_needed_it_goes_away(self, scene: Scene) -> None:
        gate = Gate()
        scene.server.answer = gate.answer
        first = asyncio.create_task(scene.ask(scene.token()))
        await gate.reached.wait()
        second = asyncio.create_task(scene.ask(scene.token(key("ES256"))))
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        gate.open.set()
        assert_verdict(await second, GOOD)
        assert len(scene.server.fetches) == 1

    async def test_does_not_hold_up_the_end(
        self, service: Service, server: KeyServer, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kit.keys.FETCH_TIMEOUT", 60.0)
        gate = Gate()
        server.answer = gate.answer
        async with asyncio.timeout(10):
            async with service(BETTER_AUTH_URL=server.origin) as client:
                waiting = asyncio.create_task(ask(client, issuer.token()))
                await gate.reached.wait()
                waiting.cancel()
                await asyncio.wait([waiting])
            gate.open.set()
        assert len(server.fetches) == 1


class TestRotation:
    async def test_has_its_first_token_accepted_at_once(self, scene: Scene) -> None:
        scene.set_cooldown(60.0)
        await scene.good(scene.token())
        async with asyncio.timeout(10):
            for number in (3, 4, 5):
                fresh = key("EdDSA", number)
                scene.server.keys.append(fresh.jwk)
                await scene.good(scene.token(fresh))
        assert len(scene.server.fetches) == 4

    async def test_has_its_first_tokens_accepted_after_one_look(self, scene: Scene) -> None:
        await scene.good(scene.token())
        scene.server.keys += [key("EdDSA", number).jwk for number in (3, 4, 5)]
        tokens = [scene.token(key("EdDSA", 3 + n % 3), claims={"jti": n}) for n in range(30)]
        for answer in await asyncio.gather(*(scene.ask(token) for token in tokens)):
            assert_verdict(answer, GOOD)
        await looked()
        assert len(scene.server.fetches) == 2

    async def test_just_after_a_look_in_vain_is_waited_for(self, scene: Scene) -> None:
        scene.set_cooldown(0.5)
        await scene.good(scene.token())
        for number in (3, 4):
            await scene.invalid(scene.issuer.stray())
            fresh = key("EdDSA", number)
            scene.server.keys.append(fresh.jwk)
            async with asyncio.timeout(10):
                await scene.good(scene.token(fresh))
        assert len(scene.server.fetches) == 5

    async def test_with_other_callers_is_waited_for_together(self, scene: Scene) -> None:
        scene.set_cooldown(0.5)
        await scene.invalid(scene.issuer.stray())
        fresh = key("EdDSA", 3)
        scene.server.keys.append(fresh.jwk)
        tokens = [scene.token(fresh, claims={"jti": n}) for n in range(30)]
        answers = await asyncio.gather(
            *(scene.ask(token) for token in tokens), scene.ask(scene.issuer.stray())
        )
        for answer in answers[:-1]:
            assert_verdict(answer, GOOD)
        assert_verdict(answers[-1], INVALID)
        assert len(scene.server.fetches) == 2

    @pytest.mark.usefixtures("haste")
    async def test_takes_a_withdrawn_key_s_tokens_along_with_the_next_fetch(
        self, scene: Scene
    ) -> None:
        withdrawn, kept = scene.token(), scene.token(key("ES256"))
        for _ in range(2):
            await scene.good(withdrawn)
            await scene.good(kept)
        scene.server.keys.remove(key("EdDSA").jwk)
        scene.clock.advance(4 * MINUTES + 1)
        await scene.good(kept)
        await looked()
        for _ in range(2):
            await scene.invalid(withdrawn)
            await scene.good(kept)

    async def test_takes_a_replaced_key_s_tokens_along_with_the_next_fetch(
        self, scene: Scene
    ) -> None:
        old = scene.token()
        await scene.good(old)
        scene.server.keys = [{**key("EdDSA", 3).jwk, "kid": key("EdDSA").kid}]
        scene.clock.advance(4 * MINUTES + 1)
        # A known key never waits, so that who asks first still passes.
        await scene.good(old)
        await looked()
        new = scene.token(signer=key("EdDSA", 3))
        for _ in range(2):
            await scene.invalid(old)
            await scene.good(new)

    async def test_to_another_algorithm_under_the_same_kid_is_no_mix(self, scene: Scene) -> None:
        old = scene.token(key("RS256"))
        await scene.good(old)
        scene.server.keys = [{**key("RS256").jwk, "alg": "PS256"}]
        scene.clock.advance(4 * MINUTES + 1)
        await scene.good(old)
        await looked()
        await scene.invalid(old)
        await scene.good(scene.token(key("RS256"), header={"alg": "PS256"}))


class TestFlood:
    COOLDOWN = 0.3

    def assert_few(self, fetches: list[Fetch], started: float) -> None:
        """No more than one per cooldown."""
        times = [fetch.at for fetch in fetches]
        assert len(times) <= 1 + (time.monotonic() - started) / self.COOLDOWN
        assert all(later - earlier >= self.COOLDOWN for earlier, later in pairwise(times))

    async def test_is_refused_at_once_after_two_fetches_in_vain(self, scene: Scene) -> None:
        scene.set_cooldown(60.0)
        await scene.good(scene.token())
        async with asyncio.timeout(20):
            for kid, fetches in (("first", 2), ("second", 3), ("third", 3)):
                token = scene.token(header={"kid": kid})
                await scene.invalid(token)
                assert len(scene.server.fetches) == fetches
                if kid == "first":
                    scene.clock.advance(61)

    async def test_of_a_thousand_unknown_kids_at_once_is_few_fetches(self, scene: Scene) -> None:
        scene.set_cooldown(self.COOLDOWN)
        started = time.monotonic()
        strays = [scene.issuer.stray() for _ in range(1000)]
        for answer in await asyncio.gather(*(scene.ask(stray) for stray in strays)):
            assert_verdict(answer, INVALID)
        assert scene.server.fetches
        self.assert_few(scene.server.fetches, started)

    async def test_of_unknown_kids_one_after_another_is_few_fetches(self, scene: Scene) -> None:
        scene.set_cooldown(self.COOLDOWN)
        started = time.monotonic()
        async with asyncio.timeout(20):  # They do not wait for a cooldown each.
            for _ in range(200):
                await scene.invalid(scene.issuer.stray())
        assert scene.server.fetches
        self.assert_few(scene.server.fetches, started)

    async def test_does_not_delay_a_known_key(self, scene: Scene) -> None:
        scene.set_cooldown(60.0)
        await scene.good(scene.token())
        await scene.invalid(scene.issuer.stray())
        flood = [asyncio.create_task(scene.ask(scene.issuer.stray())) for _ in range(300)]
        async with asyncio.timeout(20):
            for algorithm in FIVE * 3:
                await scene.good(scene.token(key(algorithm)))
        assert len(scene.server.fetches) == 2
        for stray in flood:
            stray.cancel()
        await asyncio.wait(flood)

    async def test_gives_way_to_a_fresh_key(self, scene: Scene) -> None:
        scene.set_cooldown(self.COOLDOWN)
        for _ in range(20):
            await scene.invalid(scene.issuer.stray())
        scene.server.keys.append(key("EdDSA", 3).jwk)
        for refused in await scene.refusals(scene.token(key("EdDSA", 3))):
            assert_verdict(refused, INVALID)
        fetches = len(scene.server.fetches)
        scene.server.keys.append(key("EdDSA", 4).jwk)
        await scene.good(scene.token(key("EdDSA", 4)))
        assert len(scene.server.fetches) == fetches + 1


# --- When they can't be -----------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of the key set itself."""
    return [record.getMessage() for record in caplog.records if record.name == "tasks.keys"]


@pytest.fixture
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, for tests that go through many of them."""
    monkeypatch.setattr("kit.keys.FETCH_TIMEOUT", 1.0)
    monkeypatch.setattr("kit.logs.OUTAGE_QUIET", 0.0)
    set_cooldown(monkeypatch, 0.05)


class TestOutage:
    @pytest.mark.usefixtures("haste")
    @each_outage
    async def test_leaves_known_keys_good_for_an_hour_and_is_a_503_then(
        self, scene: Scene, outage: Answer | None
    ) -> None:
        remembered = scene.token()
        await scene.good(remembered)
        await scene.server.fail(outage)
        for minutes in (6, 30, 23.5):
            scene.clock.advance(minutes * MINUTES)
            for token in (remembered, scene.token(), scene.token(key("PS256"))):
                await scene.good(token)
            await scene.invalid(scene.token(signer=attacker_key()))
            await scene.good(sign("alice"))
        scene.clock.advance(1 * MINUTES)
        for token in (remembered, scene.token(), scene.issuer.stray()):
            await scene.unavailable(token)
        await scene.good(sign("alice"))
        assert scene.elsewhere.fetches == []

    @each_outage
    async def test_with_no_key_known_is_a_503_within_5_s(
        self, scene: Scene, outage: Answer | None
    ) -> None:
        await scene.server.fail(outage)
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*(scene.ask(scene.token()) for _ in range(10)))
        for answer in answers:
            assert_unavailable(answer)
        assert scene.elsewhere.fetches == []

    @pytest.mark.usefixtures("haste")
    @each_outage
    async def test_ends_by_itself_and_says_so(
        self, scene: Scene, caplog: pytest.LogCaptureFixture, outage: Answer | None
    ) -> None:
        caplog.set_level(logging.DEBUG)
        token = scene.token()
        await scene.server.fail(outage)
        for _ in range(3):
            await scene.unavailable(token)
        [beginning] = said(caplog)
        await scene.server.recover()
        for refused in await scene.refusals(token):
            assert_unavailable(refused)
        await scene.good(token)
        [_, end] = said(caplog)
        assert end.startswith("over after")
        assert "over" not in beginning
        assert f" {scene.server.origin}/api/auth/jwks: " in beginning
        for status, more in MORE_IN_THE_LOG.items():
            assert (f"status {status}" in beginning) <= (more in beginning)
        assert not [part for part in token.split(".") if part in caplog.text]

    @pytest.mark.usefixtures("haste")
    async def test_of_over_an_hour_ends_by_itself(self, scene: Scene) -> None:
        remembered = scene.token()
        await scene.good(remembered)
        await scene.server.stop()
        scene.clock.advance(61 * MINUTES)
        await scene.unavailable(remembered)
        await scene.server.start()
        for refused in await scene.refusals(remembered):
            assert_unavailable(refused)
        await scene.good(scene.token(key("ES512")))

    @pytest.mark.usefixtures("haste")
    async def test_that_spares_the_known_keys_is_logged_once_as_well(
        self, scene: Scene, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        scene.set_cooldown(0.0)
        token = scene.token()
        await scene.good(token)
        assert said(caplog) == []
        scene.server.answer = error
        scene.clock.advance(6 * MINUTES)
        async with asyncio.timeout(10):
            while len(scene.server.fetches) < 5:
                await scene.good(token)
        assert len(said(caplog)) == 1
        await scene.server.recover()
        async with asyncio.timeout(10):
            while len(said(caplog)) < 2:
                await scene.good(token)
        await scene.good(token)
        assert said(caplog)[1].startswith("over after")
        assert len(said(caplog)) == 2
        assert not [part for part in token.split(".") if part in caplog.text]

    async def test_of_a_hanging_server_delays_nobody(self, scene: Scene) -> None:
        scene.set_cooldown(0.0)
        await scene.good(scene.token())
        scene.server.answer = hang
        scene.clock.advance(6 * MINUTES)
        # Each of them would wait 60 s, were it to wait at all.
        scene.patch.setattr("kit.keys.FETCH_TIMEOUT", 60.0)
        async with asyncio.timeout(20):
            for _ in range(20):
                await scene.good(scene.token())
        assert len(scene.server.fetches) == 2

    async def test_of_a_hanging_server_holds_up_no_end(
        self,
        service: Service,
        server: KeyServer,
        issuer: Issuer,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("kit.keys.FETCH_TIMEOUT", 60.0)
        async with asyncio.timeout(20):
            async with service(BETTER_AUTH_URL=server.origin) as client:
                assert_verdict(await ask(client, issuer.token()), GOOD)
                server.answer = hang
                clock.advance(6 * MINUTES)
                assert_verdict(await ask(client, issuer.token()), GOOD)
                [fetch] = fetches_under_way()
        assert fetch.cancelled()

    async def test_is_looked_into_once_per_cooldown(self, scene: Scene) -> None:
        scene.set_cooldown(60.0)
        await scene.good(scene.token())
        scene.server.answer = error
        for minutes, fetches in ((6, 2), (2, 3), (2, 4)):
            scene.clock.advance(minutes * MINUTES)
            for _ in range(5):
                await scene.good(scene.token())
                await scene.unavailable(scene.issuer.stray())
            assert len(scene.server.fetches) == fetches

    async def test_leaves_the_shared_secret_alone(self, scene: Scene) -> None:
        scene.patch.setattr("kit.keys.FETCH_TIMEOUT", 60.0)
        gate = Gate()
        scene.server.answer = gate.answer
        waiting = asyncio.create_task(scene.ask(scene.token()))
        await gate.reached.wait()
        async with asyncio.timeout(10):
            for _ in range(20):
                await scene.good(sign("alice"))
        assert not waiting.done()
        assert len(scene.server.fetches) == 1
        gate.open.set()
        assert_verdict(await waiting, GOOD)

    @pytest.mark.usefixtures("haste")
    async def test_leaves_it_open_whether_an_unknown_kid_is_fresh(self, scene: Scene) -> None:
        await scene.good(scene.token())
        fresh = key("EdDSA", 3)
        scene.server.keys.append(fresh.jwk)
        await scene.server.stop()
        for _ in range(3):
            await scene.unavailable(scene.token(fresh))
            await scene.good(scene.token())
        await scene.server.start()
        for refused in await scene.refusals(scene.token(fresh)):
            assert_unavailable(refused)

    async def test_is_no_attack_that_a_fresh_key_would_have_to_suffer_for(
        self, scene: Scene, caplog: pytest.LogCaptureFixture
    ) -> None:
        scene.patch.setattr("kit.logs.OUTAGE_QUIET", 0.0)
        scene.set_cooldown(0.0)
        await scene.good(scene.token())
        scene.server.answer = error
        scene.clock.advance(6 * MINUTES)
        async with asyncio.timeout(10):
            while len(scene.server.fetches) < 6:
                await scene.good(scene.token())
        await scene.server.recover()
        scene.set_cooldown(0.5)
        async with asyncio.timeout(10):
            while len(said(caplog)) < 2:
                await scene.good(scene.token())
        scene.server.keys.append(key("EdDSA", 3).jwk)
        await scene.good(scene.token(key("EdDSA", 3)))


# --- What else may be in a set ----------------------------------------------------------------


type MakeKey = Callable[[], object]


def rubbish(algorithm: str, **members: object) -> MakeKey:
    """A sound key but for these members, which make it none."""
    return lambda: present({**key(algorithm).jwk, "kid": "rubbish", **members})


def nested(depth: int) -> object:
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


def symmetric(**members: object) -> dict[str, object]:
    return {"kty": "oct", "kid": "symmetric", "k": base64url_encode(b"k" * 32).decode(), **members}


def with_symmetric_key(algorithm: str) -> Make:
    return lambda issuer: issuer.token(
        secret=b"k" * 32, header={"alg": algorithm, "kid": "symmetric"}
    )


def weak(kind: str, claimed: str) -> tuple[MakeKey, Make]:
    """A key of a kind that does not count, and a token that it signs."""
    algorithm = {"Ed448": "EdDSA", "RSA-1024": "RS256"}.get(kind, kind)
    return (
        lambda: {**key(algorithm, 9, kind=kind).jwk, "alg": claimed},
        lambda issuer: issuer.token(key(algorithm, 9, kind=kind), header={"alg": claimed}),
    )


def odd(algorithm: str, **members: object) -> tuple[MakeKey, Make]:
    """A key with these members, and a token that it signs, with its kid as a string if need be."""
    header = {"kid": str(members["kid"])} if "kid" in members else {}
    return (
        lambda: present({**key(algorithm, 9).jwk, **members}),
        lambda issuer: issuer.token(key(algorithm, 9), header=header),
    )


def leaked(algorithm: str) -> tuple[MakeKey, Make]:
    """A key with its private half, and a token that it signs."""
    return (
        lambda: key(algorithm, 9).private_jwk,
        lambda issuer: issuer.token(key(algorithm, 9)),
    )


# Every encoding of Ed25519's points of small order: five values of y, two of them beyond p, too.
_P = 2**255 - 19
_Y = 0x5FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
SMALL_ORDER: Final = [
    (y | sign << 255).to_bytes(32, "little")
    for y in (0, 1, _Y, _P - _Y, _P - 1, _P, _P + 1)
    for sign in (0, 1)
]


def signed_by_nobody(point: bytes) -> tuple[MakeKey, Make]:
    """A key of small order, and a token with one signature for all texts: R is 1 and S is 0.

    It is good for one text in two, four or eight, and for each if the key is 1.
    """
    signature = (1).to_bytes(32, "little") + bytes(32)
    public = ed25519.Ed25519PublicKey.from_public_bytes(point)

    def make(issuer: Issuer) -> str:
        for number in range(1000):
            header, claims = {"alg": "EdDSA", "kid": "small"}, issuer.claims(jti=number)
            token = compact(header, claims, lambda _: signature)
            with suppress(InvalidSignature):
                public.verify(signature, token.rpartition(".")[0].encode())
                return token
        raise AssertionError

    jwk = {"kty": "OKP", "crv": "Ed25519", "kid": "small", "x": base64url_encode(point).decode()}
    return lambda: jwk, make


# An entry that does not count, and a token that it would let in if it did.
FORGERIES: Final[dict[str, tuple[MakeKey, Make]]] = {
    "symmetric": (lambda: symmetric(alg="HS256"), with_symmetric_key("HS256")),
    "symmetric without alg": (symmetric, with_symmetric_key("HS256")),
    "symmetric for EdDSA": (lambda: symmetric(alg="EdDSA"), with_symmetric_key("EdDSA")),
    "symmetric for RS256": (lambda: symmetric(alg="RS256"), with_symmetric_key("RS256")),
    "private OKP": leaked("EdDSA"),
    "private EC": leaked("ES256"),
    "private RSA": leaked("RS256"),
    "P-384": weak("ES384", "ES384"),
    "P-384 for ES256": weak("ES384", "ES256"),
    "P-384 for ES512": weak("ES384", "ES512"),
    "secp256k1": weak("ES256K", "ES256K"),
    "secp256k1 for ES256": weak("ES256K", "ES256"),
    "Ed448": weak("Ed448", "EdDSA"),
    **{f"of small order, {point.hex()}": signed_by_nobody(point) for point in SMALL_ORDER},
    "RSA of 1,024 bits": weak("RSA-1024", "RS256"),
    "RSA of 1,024 bits for PS256": weak("RSA-1024", "PS256"),
    "P-521 for ES256": weak("ES512", "ES256"),
    "P-256 for ES512": weak("ES256", "ES512"),
    "P-256 for ES384": weak("ES256", "ES384"),
    "RSA for RS512": weak("RS256", "RS512"),
    "RSA for PS384": weak("PS256", "PS384"),
    "for encryption": odd("EdDSA", use="enc"),
    "use a number": odd("EdDSA", use=5),
    "use a list": odd("EdDSA", use=["sig"]),
    "RSA for ES256": odd("RS256", alg="ES256"),
    "RSA for EdDSA": odd("RS256", alg="EdDSA"),
    "RSA for HS256": odd("RS256", alg="HS256"),
    "RSA for none": odd("RS256", alg="none"),
    "RSA for RSA-OAEP": odd("RS256", alg="RSA-OAEP"),
    "Ed25519 for ES256": odd("EdDSA", alg="ES256"),
    "Ed25519 for none": odd("EdDSA", alg="none"),
    "alg a list": odd("EdDSA", alg=["EdDSA"]),
    "alg a number": odd("EdDSA", alg=5),
    "alg in capitals": odd("EdDSA", alg="EDDSA"),
    "kty missing": odd("EdDSA", kty=ABSENT),
    "kty null": odd("EdDSA", kty=None),
    "kty of another kind": odd("EdDSA", kty="EC"),
    "kty unknown": odd("EdDSA", kty="AKP"),
    "kty a list": odd("EdDSA", kty=["OKP"]),
    "kty in lower case": odd("EdDSA", kty="okp"),
    "crv missing": odd("EdDSA", crv=ABSENT),
    "crv unknown": odd("EdDSA", crv="Ed25520"),
    "crv X25519": odd("EdDSA", crv="X25519"),
    "crv a list": odd("EdDSA", crv=["Ed25519"]),
    "kid missing": odd("EdDSA", kid=ABSENT),
    "kid null": odd("EdDSA", kid=None),
    "kid a number": odd("EdDSA", kid=9),
    "kid a list": odd("EdDSA", kid=["9"]),
    "kid an object": odd("EdDSA", kid={}),
}

# What nobody could sign for.
RUBBISH: Final[dict[str, MakeKey]] = {
    "null": lambda: None,
    "true": lambda: True,
    "a number": lambda: 5,
    "a float": lambda: float("nan"),
    "a string": lambda: "EdDSA",
    "an empty string": lambda: "",
    "an empty list": list,
    "a list of a key": lambda: [key("EdDSA", 9).jwk],
    "an empty object": dict,
    "a kid alone": lambda: {"kid": "rubbish"},
    "a kid and a kty alone": lambda: {"kid": "rubbish", "kty": "RSA"},
    "symmetric without its bytes": lambda: {"kid": "rubbish", "kty": "oct"},
    "symmetric of a number": lambda: symmetric(k=5),
    "x missing": rubbish("EdDSA", x=ABSENT),
    "x null": rubbish("EdDSA", x=None),
    "x a number": rubbish("EdDSA", x=5),
    "x a list": rubbish("EdDSA", x=["A"]),
    "x empty": rubbish("EdDSA", x=""),
    "x too short": rubbish("EdDSA", x="AQAB"),
    "x too long": rubbish("EdDSA", x="A" * 44),
    "x not base64": rubbish("EdDSA", x="!" * 43),
    "x of impossible length": rubbish("EdDSA", x="A"),
    "x not ASCII": rubbish("EdDSA", x="é" * 43),
    "x a lone surrogate": rubbish("EdDSA", x="\ud800" * 43),
    "a point that is not on its curve": rubbish("ES256", y="A" * 43),
    "y missing": rubbish("ES256", y=ABSENT),
    "n missing": rubbish("RS256", n=ABSENT),
    "n empty": rubbish("RS256", n=""),
    "n a number": rubbish("RS256", n=3233),
    "e missing": rubbish("RS256", e=ABSENT),
    "e one": rubbish("RS256", e="AQ"),
    "e even": rubbish("RS256", e="Ag"),
    "nested deep": lambda: {"kid": "rubbish", "kty": "OKP", "crv": nested(5_000)},
    "an object in every member": lambda: {
        name: {} for name in ("kty", "crv", "alg", "kid", "use", "x", "y", "n", "e", "d", "k")
    },
    "the good key's kid on a weak one": lambda: {
        **key("RS256", 9, kind="RSA-1024").jwk,
        "kid": key("EdDSA").kid,
    },
    "the good key's kid on a symmetric one": lambda: symmetric(alg="HS256", kid=key("EdDSA").kid),
    "the good key again": lambda: key("EdDSA").jwk,
    "another good key": lambda: key("ES256").jwk,
}

# As another issuer, or a later Better Auth, may write a good key.
VARIANTS: Final[dict[str, tuple[str, dict[str, object]]]] = {
    "use sig": ("EdDSA", {"use": "sig"}),
    "alg absent of Ed25519": ("EdDSA", {"alg": ABSENT}),
    "alg absent of P-256": ("ES256", {"alg": ABSENT}),
    "alg absent of P-521": ("ES512", {"alg": ABSENT}),
    "alg absent of RSA": ("RS256", {"alg": ABSENT}),
    "key_ops": ("RS256", {"key_ops": ["verify"]}),
    "a certificate's address": ("RS256", {"x5u": "http://127.0.0.1:9/", "x5t": "AAAA"}),
    "members of Better Auth's": ("EdDSA", {"createdAt": "2026-01-02", "expiresAt": None}),
}


class TestKeySet:
    async def test_makes_its_client_while_others_go_on(self, scene: Scene) -> None:
        threads: list[threading.Thread] = []

        class Client(httpx.AsyncClient):
            def __init__(self, **options: Any) -> None:
                threads.append(threading.current_thread())
                super().__init__(**options)

        scene.patch.setattr("httpx.AsyncClient", Client)
        for _ in range(2):
            await scene.good(scene.token())
        [thread] = threads
        assert thread is not threading.main_thread()
        assert len(scene.server.fetches) == 1

    @pytest.mark.parametrize(("entry", "make"), FORGERIES.values(), ids=FORGERIES)
    async def test_never_lets_a_key_count_that_is_none_of_ours(
        self, scene: Scene, entry: MakeKey, make: Make
    ) -> None:
        scene.set_cooldown(0.0)
        scene.server.keys = [entry(), key("EdDSA").jwk, entry()]
        await scene.invalid(make(scene.issuer))
        await scene.good(scene.token())
        await scene.invalid(make(scene.issuer))

    @pytest.mark.parametrize("entry", RUBBISH.values(), ids=RUBBISH)
    async def test_is_good_for_its_good_key_whatever_stands_beside(
        self, scene: Scene, entry: MakeKey
    ) -> None:
        scene.server.keys = [entry(), key("EdDSA").jwk, entry()]
        await scene.good(scene.token())
        await scene.invalid(scene.token(header={"kid": "rubbish"}))

    @pytest.mark.parametrize(("algorithm", "members"), VARIANTS.values(), ids=VARIANTS)
    async def test_may_spell_a_good_key_otherwise(
        self, scene: Scene, algorithm: str, members: dict[str, object]
    ) -> None:
        scene.server.keys = [present({**key(algorithm).jwk, **members})]
        await scene.good(scene.token(key(algorithm)))
        await scene.invalid(scene.token(key(algorithm, 2)))

    async def test_of_two_keys_under_one_kid_trusts_one_at_most(self, scene: Scene) -> None:
        kid = key("EdDSA").kid
        scene.server.keys = [key("EdDSA").jwk, {**key("ES256").jwk, "kid": kid}]
        answers = [
            await scene.ask(scene.token()),
            await scene.ask(scene.token(key("ES256"), header={"kid": kid})),
        ]
        assert sorted(answer.status_code for answer in answers) == [200, 401]

    async def test_may_be_up_to_64_kib_large(self, scene: Scene) -> None:
        size = 64 * 1024
        scene.server.answer = saying(lambda server: http(server.key_set.ljust(size)))
        await scene.good(scene.token())

    async def test_may_not_be_larger(self, scene: Scene) -> None:
        size = 64 * 1024 + 1
        scene.server.answer = saying(lambda server: http(server.key_set.ljust(size)))
        await scene.unavailable(scene.token())

    async def test_may_come_in_pieces(self, scene: Scene) -> None:
        async def dribble(
            server: KeyServer, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            whole = in_chunks(server.key_set)
            for start in range(0, len(whole), 100):
                writer.write(whole[start : start + 100])
                await writer.drain()
                await asyncio.sleep(0)

        scene.server.answer = dribble
        await scene.good(scene.token())


# --- What is remembered -----------------------------------------------------------------------


@pytest.fixture
def signature_checks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the library has been asked to check since, which it still does."""
    checked: list[object] = []
    verify = OKPAlgorithm.verify

    def note(algorithm: OKPAlgorithm, text: bytes, key: Any, signature: bytes) -> bool:
        checked.append(text)
        return verify(algorithm, text, key, signature)

    monkeypatch.setattr(OKPAlgorithm, "verify", note)
    return checked


class TestRememberedVerdict:
    async def test_survives_an_outage(self, scene: Scene, signature_checks: list[object]) -> None:
        token = scene.token()
        await scene.good(token)
        await scene.server.stop()
        scene.clock.advance(50 * MINUTES)
        await scene.good(token)
        assert len(signature_checks) == 1
