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
from contextlib import asynccontextmanager, suppress
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
    kind: str
    number: int

    @property
    def kid(self) -> str:
        return f"{self.algorithm}-{self.kind}-{self.number}-".ljust(32, "k")

    @property
    def private(self) -> PrivateKey:
        return private_key(self.kind, self.number, self.algorithm)

    @property
    def jwk(self) -> dict[str, object]:
        """As it is published."""
        return self._jwk(self.private.public_key())

    @property
    def private_jwk(self) -> dict[str, object]:
        """As it must never be published."""
        return self._jwk(self.private)

    def _jwk(self, key: object) -> dict[str, object]:
        members = get_default_algorithms()[self.algorithm].to_jwk(key, as_dict=True)
        members.pop("key_ops", None)
        return {"alg": self.algorithm, **members, "kid": self.kid}


def key(algorithm: str, number: int = 1, *, kind: str | None = None) -> SigningKey:
    """The same one each time; of the kind that the algorithm wants unless another is given."""
    return SigningKey(algorithm, kind or algorithm, number)


GENERATE: Final[dict[str, Callable[[], PrivateKey]]] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ES256K": lambda: ec.generate_private_key(ec.SECP256K1()),
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "PS256": lambda: rsa.generate_private_key(65537, 2048),
    "RSA-1024": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505  # weak on purpose
}


@cache
def private_key(kind: str, _number: int, _algorithm: str) -> PrivateKey:
    return GENERATE[kind]()


FIVE: Final = ("EdDSA", "ES256", "ES512", "RS256", "PS256")
# For each another one to be mistaken for, the most alike where there is such.
LIKENESS: Final = dict(zip(FIVE, ("ES256", "EdDSA", "ES256", "PS256", "RS256"), strict=True))


def key_pairs() -> list[object]:
    """What is published unless a test says otherwise: two keys for each algorithm."""
    return [key(algorithm, number).jwk for algorithm in FIVE for number in (1, 2)]


ATTACKER: Final = key("EdDSA", 7)


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
        using: str | None = None,
        secret: bytes | None = None,
        header: Mapping[str, object] | None = None,
        claims: Mapping[str, object] | None = None,
    ) -> str:
        """Alice's, as the jwt() plugin makes it, but for what is given; ABSENT leaves it out.

        `signer` signs in place of the key that the header names, `using` another algorithm than the
        header's, `secret` with HMAC-SHA256.
        """
        by = by or key("EdDSA")
        members: dict[str, object] = {"alg": by.algorithm, "kid": by.kid, **(header or {})}

        def signature(text: bytes) -> bytes:
            if secret is not None:
                return hmac.digest(secret, text, "sha256")
            algorithm = get_default_algorithms()[using or str(members["alg"])]
            return algorithm.sign(text, (signer or by).private)

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
        return self.token(ATTACKER, header={"kid": uuid4().hex})


# --- The server that publishes the keys -------------------------------------------------------

type Reader = asyncio.StreamReader
type Writer = asyncio.StreamWriter
type Answer = Callable[["KeyServer", Reader, Writer], Awaitable[None]]


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
        self.answer = outage or publish

    async def recover(self) -> None:
        self.answer = publish
        if self._server is None:
            await self.start()

    async def _serve(self, reader: Reader, writer: Writer) -> None:
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
    size = len(body) if length is None else length
    more = "".join(f"{header}\r\n" for header in (*headers, f"Content-Length: {size}"))
    head = f"HTTP/1.1 {status} So\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}{more}\r\n".encode() + body


def in_chunks(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


def saying(make: Callable[[KeyServer], bytes]) -> Answer:
    """These bytes, all at once."""

    async def answer(server: KeyServer, _reader: Reader, writer: Writer) -> None:
        writer.write(make(server))

    return answer


publish: Answer = saying(lambda server: http(server.key_set))


async def hang(_server: KeyServer, reader: Reader, _writer: Writer) -> None:
    await reader.read()  # Until the client has had enough.


async def drip(server: KeyServer, reader: Reader, writer: Writer) -> None:
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
    location = "Location: {}/api/auth/jwks".format
    return saying(lambda server: http(server.key_set, status, location(server.elsewhere)))


def status(number: int) -> Answer:
    return saying(lambda server: http(server.key_set, number))


def with_body(body: bytes) -> Answer:
    return saying(lambda _: http(body))


error: Answer = status(500)


class Gate:
    """The good answer, once the gate is open."""

    def __init__(self, server: KeyServer) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        server.answer = self.answer

    async def answer(self, server: KeyServer, reader: Reader, writer: Writer) -> None:
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
    **{f"status {number}": status(number) for number in (503, 404, 401)},
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
    **{
        f"{body!r:.24}": with_body(body)
        for body in (
            b"",
            b"<!doctype html><title>Sign in</title>",
            b'{"keys": "\xff"}',
            b"null",
            b"{}",
            b'{"keys": []}',
            b'{"keys": 5}',
            b'{"keys": {"kty": "OKP"}}',
            b'{"keys": [{"kty": "OKP", "kid": "a"}, 5]}',
        )
    },
    "nested too deep": saying(lambda _: http(b'{"keys":' + b"[" * 30_000 + b"]" * 30_000 + b"}")),
    "a list": saying(lambda server: http(json.dumps(server.keys).encode())),
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

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One database for all, since nothing is stored in it, and one authority that is trusted,
    since each client of httpx takes 0.1 s to read them all."""
    folder = tmp_path_factory.mktemp("keys")
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    (folder / "one.pem").write_text(first + end)
    return {
        "SSL_CERT_FILE": str(folder / "one.pem"),
        "DATABASE_URL": f"sqlite:///{folder}/tasks.db",
        "NO_PROXY": "127.0.0.1",
    }


@dataclass
class Scene:
    """The service, its callers, and the key server that it is told of."""

    patch: pytest.MonkeyPatch
    server: KeyServer
    # A server that the service has no business with.
    elsewhere: KeyServer
    clock: Clock
    client: httpx.AsyncClient = field(init=False)

    @property
    def issuer(self) -> Issuer:
        return Issuer(self.server.origin, self.elsewhere.origin)

    @property
    def token(self) -> Callable[..., str]:
        return self.issuer.token

    def tokens(self, number: int, by: Callable[[int], SigningKey]) -> list[str]:
        return [self.token(by(n), claims={"jti": n}) for n in range(number)]

    @asynccontextmanager
    async def run(self, service: FastAPI = app, **environment: str | None) -> AsyncIterator[None]:
        """Run the app with these variables in its environment, or out of it where None."""
        for name, value in {"BETTER_AUTH_URL": self.server.origin, **environment}.items():
            if value is None:
                self.patch.delenv(name, raising=False)
            else:
                self.patch.setenv(name, value)
        transport = httpx.ASGITransport(service)
        async with (
            service.router.lifespan_context(service),
            httpx.AsyncClient(transport=transport, base_url="http://test") as self.client,
        ):
            yield

    def set_cooldown(self, seconds: float) -> None:
        self.patch.setattr("kit.keys.COOLDOWN", seconds)

    def hurry(self) -> None:
        """Short waits, for tests that go through many of them."""
        self.patch.setattr("kit.keys.FETCH_TIMEOUT", 1.0)
        self.patch.setattr("kit.logs.OUTAGE_QUIET", 0.0)
        self.set_cooldown(0.05)

    def advance(self, minutes: float) -> None:
        self.clock.ahead += minutes * MINUTES

    async def ask(self, token: str, user: str = "alice") -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return await self.client.get(f"/api/{user}/tasks", headers=headers)

    async def refusals(self, token: str) -> list[httpx.Response]:
        """The answers until the token is accepted at last, for which there are 10 s."""
        refused = []
        async with asyncio.timeout(10):
            while (response := await self.ask(token)).status_code != 200:
                refused.append(response)
                await asyncio.sleep(0.02)
        return refused

    async def good(self, *tokens: str) -> None:
        """All of them, asked with at once."""
        for answer in await asyncio.gather(*map(self.ask, tokens)):
            assert_verdict(answer, GOOD)

    async def invalid(self, *tokens: str) -> None:
        for answer in await asyncio.gather(*map(self.ask, tokens)):
            assert_verdict(answer, INVALID)

    async def unavailable(self, *tokens: str) -> None:
        for answer in await asyncio.gather(*map(self.ask, tokens)):
            assert_unavailable(answer)


def assert_unavailable(response: httpx.Response) -> None:
    assert_error(response, 503, "Service temporarily unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert "www-authenticate" not in response.headers


@pytest.fixture
async def stage(
    monkeypatch: pytest.MonkeyPatch, surroundings: dict[str, str]
) -> AsyncIterator[Scene]:
    """A scene before the service runs."""
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    elsewhere = KeyServer([*key_pairs(), ATTACKER.jwk])
    await elsewhere.start()
    server = KeyServer(key_pairs(), elsewhere.origin)
    await server.start()
    clock = Clock()
    # The name in this one module: asyncio's timers go by time.monotonic, too.
    monkeypatch.setattr("kit.keys.time", clock)
    yield Scene(monkeypatch, server, elsewhere, clock)
    await server.stop()
    await elsewhere.stop()


@pytest.fixture
async def scene(stage: Scene) -> AsyncIterator[Scene]:
    """The service has both the secret and the server's URL."""
    async with stage.run():
        yield stage


# --- Which tokens -----------------------------------------------------------------------------

type Make = Callable[[Issuer], str]


def made(by: SigningKey | None = None, **options: Any) -> Make:
    return lambda issuer: issuer.token(by, **options)


def by_public_key(algorithm: str, form: str) -> Make:
    """HS256, its secret being what everyone knows of the key."""

    def make(issuer: Issuer) -> str:
        known = key(algorithm)
        if form in ("JWK", "x"):
            secret = (json.dumps(known.jwk) if form == "JWK" else str(known.jwk["x"])).encode()
        else:
            kind = PublicFormat.Raw if form == "Raw" else PublicFormat.SubjectPublicKeyInfo
            secret = known.private.public_key().public_bytes(getattr(Encoding, form), kind)
        return issuer.token(known, secret=secret, header={"alg": "HS256"})

    return make


def shared(**header: object) -> Make:
    """HS256 with the secret shared with the frontend."""
    return made(secret=SECRET.encode(), header={"alg": "HS256", "kid": ABSENT, **header})


def tampered(issuer: Issuer) -> str:
    header, _, signature = issuer.token().split(".")
    payload = base64url_encode(json.dumps(issuer.claims(name="Mallory")).encode()).decode()
    return f"{header}.{payload}.{signature}"


def with_signature(change: Callable[[bytes], bytes], algorithm: str = "EdDSA") -> Make:
    def make(issuer: Issuer) -> str:
        text, _, signature = issuer.token(key(algorithm)).rpartition(".")
        return f"{text}.{base64url_encode(change(base64url_decode(signature))).decode()}"

    return make


def header(**members: object) -> Make:
    return made(header=members)


def claim(**members: object) -> Make:
    return made(claims=members)


def of_origin(name: str, make: Callable[[str], object]) -> Make:
    return lambda issuer: issuer.token(claims={name: make(issuer.origin)})


def of_attacker(member: str, value: Callable[[Issuer], object], **members: object) -> Make:
    """Signed with a key of the attacker's that this header member offers."""
    return lambda issuer: issuer.token(ATTACKER, header={member: value(issuer), **members})


def jwks_at(origin: str) -> str:
    return f"{origin}/api/auth/jwks"


KNOWN_KID: Final = key("EdDSA").kid
SESSION_CACHE: Final = "better-auth.session-cache+jwt"  # What Better Auth signs for itself.

# The token, its verdict, and how often at most the server is asked for the sake of it.
TOKENS: Final[dict[str, tuple[Make, str, int]]] = {
    **{f"{name} of its own key": (made(key(name)), GOOD, 1) for name in FIVE},
    **{
        f"{name} of its key's twin": (made(key(name), signer=key(name, 2)), INVALID, 1)
        for name in FIVE
    },
    # Signed well, by a key of the set, but the header names one of another algorithm.
    **{
        f"{name} under the kid of an {other} key": (
            made(key(other), signer=key(name), header={"alg": name}),
            INVALID,
            1,
        )
        for name, other in LIKENESS.items()
    },
    # Signed with the key that the header names, under another algorithm's name.
    **{
        f"{name} called {other}": (made(key(name), header={"alg": other}, using=name), INVALID, 1)
        for name, other in LIKENESS.items()
    },
    # One RSA key serves both algorithms mathematically; it is published for one of them.
    **{
        f"{used} of a {named} key": (made(key(named), header={"alg": used}), INVALID, fetches)
        for named, used, fetches in (
            ("PS256", "RS256", 1),
            ("RS256", "PS256", 1),
            ("RS256", "RS384", 0),
            ("PS256", "PS512", 0),
        )
    },
    # The signature.
    "claims changed": (tampered, INVALID, 1),
    **{
        f"{name} signature {how}": (with_signature(change, name), INVALID, 1)
        for name, how, change in (
            ("EdDSA", "cut short", lambda s: s[:-1]),
            ("EdDSA", "of one byte", lambda _: b"\0"),
            ("EdDSA", "with a bit changed", lambda s: bytes([s[0] ^ 1]) + s[1:]),
            ("ES256", "of zeros", lambda _: b"\0" * 64),
            ("ES512", "too short", lambda s: s[:64]),
            ("RS256", "of zeros", lambda s: b"\0" * len(s)),
        )
    },
    # The kid.
    **{
        f"kid {how}": (header(kid=kid), INVALID, 0)
        for how, kid in {"missing": ABSENT, "a number": 1, "an object": {"kid": KNOWN_KID}}.items()
    },
    **{
        f"kid {kid!a:.12}": (header(kid=kid), INVALID, 1)
        for kid in ("", "nobody's", KNOWN_KID.upper(), "../x", "\ud800", "\0\r\n", "k" * 5_000)
    },
    "kid of a URL": (lambda i: i.token(header={"kid": jwks_at(i.attacker)}), INVALID, 1),
    # The algorithm.
    **{
        f"HS256 with the {form} of the {name} key": (by_public_key(name, form), INVALID, 0)
        for name, forms in {
            "RS256": ("PEM", "DER", "JWK"),
            "EdDSA": ("PEM", "Raw", "x", "JWK"),
            "ES256": ("PEM", "JWK"),
        }.items()
        for form in forms
    },
    "EdDSA with the secret": (made(secret=SECRET.encode()), INVALID, 1),
    "alg none": (made(secret=b"", header={"alg": "none"}), INVALID, 0),
    "alg eddsa": (made(header={"alg": "eddsa"}, using="EdDSA"), INVALID, 0),
    "ES384": (made(key("ES256"), signer=key("ES384"), header={"alg": "ES384"}), INVALID, 0),
    # Keys brought along.
    **{
        f"{name} {how}": (of_attacker(name, value, **members), INVALID, fetches)
        for name, value in {
            "jwk": lambda _: ATTACKER.jwk,
            "jku": lambda i: jwks_at(i.attacker),
            "x5u": lambda i: f"{i.attacker}/key.pem",
        }.items()
        for how, members, fetches in (
            ("under its own kid", {}, 1),
            ("under a known kid", {"kid": KNOWN_KID}, 1),
            ("without kid", {"kid": ABSENT}, 0),
        )
    },
    "jku in a good token": (lambda i: i.token(header={"jku": jwks_at(i.attacker)}), GOOD, 1),
    "the attacker's own": (lambda i: Issuer(i.attacker).token(ATTACKER), INVALID, 1),
    "the attacker's as iss": (lambda i: i.token(claims={"iss": i.attacker}), INVALID, 1),
    # What it is for.
    "typ JWT": (header(typ="JWT"), GOOD, 1),
    "typ at+jwt": (header(typ="at+jwt"), GOOD, 1),
    "typ of a logout token": (header(typ="logout+jwt"), INVALID, 0),
    "Better Auth's session cache": (
        made(header={"typ": SESSION_CACHE}, claims={"aud": "better-auth:session-cache"}),
        INVALID,
        0,
    ),
    "Better Auth's session cache for us": (header(typ=SESSION_CACHE), INVALID, 0),
    "aud of Better Auth's session cache": (claim(aud="better-auth:session-cache"), INVALID, 1),
    **{
        f"{name} {how}": (of_origin(name, make), verdict, 1)
        for name, how, verdict, make in (
            *((name, "missing", INVALID, lambda _: ABSENT) for name in ("iss", "aud")),
            *((name, "another", INVALID, lambda _: "https://a.example") for name in ("iss", "aud")),
            *((name, "with a slash", INVALID, lambda o: f"{o}/") for name in ("iss", "aud")),
            ("iss", "with a path", INVALID, lambda o: f"{o}/api/auth"),
            ("iss", "with another scheme", INVALID, lambda o: o.replace("http:", "https:")),
            ("iss", "without its port", INVALID, lambda o: o.rpartition(":")[0]),
            ("iss", "a list", INVALID, lambda o: [o]),
            ("aud", "a part of it", INVALID, lambda o: o[:-1]),
            ("aud", "more than it", INVALID, lambda o: f"{o} {o}"),
            ("aud", "a list of it", GOOD, lambda o: [o]),
            ("aud", "a list with it", GOOD, lambda o: ["https://a.example", o, 5]),
            ("aud", "a list without it", INVALID, lambda _: ["https://a.example", None]),
            ("aud", "an empty list", INVALID, lambda _: []),
            ("aud", "a list of a list", INVALID, lambda o: [[o]]),
        )
    },
    # Whose and when: the claims of all tokens are judged alike, test_tokens.py.
    "sub missing": (claim(sub=ABSENT), INVALID, 1),
    "exp an hour past": (lambda i: i.token(claims={"exp": int(time.time()) - 3600}), EXPIRED, 1),
    "exp past, and of the attacker's": (made(signer=ATTACKER, claims={"exp": 1}), INVALID, 1),
    "exp past, and iss another": (claim(exp=1, iss="https://a.example"), INVALID, 1),
    "crit": (header(crit=["exp"]), INVALID, 0),
    # The shared secret beside it.
    "HS256": (lambda _: sign("alice"), GOOD, 0),
    "HS256 as the plugin signs it remotely": (shared(), GOOD, 0),
    "HS256 under a kid of the set": (shared(kid=KNOWN_KID), GOOD, 0),
    "HS256 with another secret": (lambda _: sign("alice", secret="s" * 32), INVALID, 0),
    "HS256 expired": (lambda _: sign("alice", exp=1), EXPIRED, 0),
    "HS256 of the session cookie cache": (shared(typ=SESSION_CACHE), INVALID, 0),
}


class TestTokens:
    @pytest.mark.parametrize(("make", "verdict", "fetches"), TOKENS.values(), ids=TOKENS)
    async def test_are_judged_by_the_published_keys(
        self, scene: Scene, make: Make, verdict: str, fetches: int
    ) -> None:
        assert_verdict(await scene.ask(make(scene.issuer)), verdict)
        assert len(scene.server.fetches) <= fetches
        assert scene.elsewhere.fetches == []

    async def test_need_a_kid_though_there_is_but_one_key(self, scene: Scene) -> None:
        scene.server.keys = [key("EdDSA").jwk]
        await scene.good(scene.token())
        await scene.invalid(scene.token(header={"kid": ABSENT}))


class TestBetterAuthUrl:
    async def test_is_enough_without_a_secret(self, stage: Scene) -> None:
        forms = (("RS256", "PEM"), ("EdDSA", "Raw"), ("EdDSA", "JWK"))
        forged = [by_public_key(algorithm, form)(stage.issuer) for algorithm, form in forms]
        empty = stage.token(secret=b"", header={"alg": "HS256"})
        async with stage.run(BETTER_AUTH_SECRET=None):
            await stage.good(stage.token())
            await stage.invalid(sign("alice"), *forged, empty)

    async def test_holds_in_an_app_without_the_lifespan(self, stage: Scene) -> None:
        bare = FastAPI()

        @bare.get("/api/{user_id}/tasks")
        async def endpoint(user: PathUser) -> str:
            return f"{user['name']}"

        async with stage.run(bare):
            assert (await stage.ask(stage.token())).json() == "Alice"
            await stage.invalid(stage.issuer.stray())

    async def test_is_what_lets_published_keys_count(self, stage: Scene) -> None:
        async with stage.run(BETTER_AUTH_URL=None):
            await stage.invalid(*(stage.token(key(algorithm)) for algorithm in FIVE))
            await stage.good(sign("alice"))
        assert stage.server.fetches == []

    @pytest.mark.parametrize("path", ["/", "/app", "/app/", "/app/v1/"])
    async def test_may_have_a_path_that_the_issuer_has_not(self, stage: Scene, path: str) -> None:
        url = stage.server.origin + path
        async with stage.run(BETTER_AUTH_URL=url.replace("http", "HTTP")):
            await stage.good(stage.token())
            await stage.invalid(*(stage.token(claims={name: url}) for name in ("iss", "aud")))
        [fetch] = stage.server.fetches
        assert fetch.path == (f"{path.rstrip('/')}/jwks" if len(path) > 1 else "/api/auth/jwks")

    @pytest.mark.parametrize("name", ["BETTER_AUTH_URL", "BETTER_AUTH_JWKS_URL"])
    async def test_that_nobody_can_connect_to_stops_the_start(
        self, stage: Scene, name: str
    ) -> None:
        with pytest.raises(SettingsError, match=name):
            await stage.run(app, **{name: "http://[1:2]"}).__aenter__()

    async def test_yields_to_a_url_of_the_keys(self, stage: Scene) -> None:
        async with stage.run(BETTER_AUTH_JWKS_URL=f"{stage.elsewhere.origin}/keys.json"):
            await stage.good(stage.token())
            await stage.good(stage.token(ATTACKER))
        assert stage.server.fetches == []
        assert [fetch.path for fetch in stage.elsewhere.fetches] == ["/keys.json"]

    async def test_yields_to_an_issuer(self, stage: Scene) -> None:
        other = "https://login.example.com/realm/"
        async with stage.run(BETTER_AUTH_ISSUER=other):
            await stage.good(stage.token(claims={"iss": other, "aud": other}))
            await stage.invalid(stage.token(), stage.token(claims={"iss": other}))

    async def test_yields_to_an_audience(self, stage: Scene) -> None:
        origin = stage.server.origin
        async with stage.run(BETTER_AUTH_AUDIENCE="tasks"):
            for good in ("tasks", ["tasks"], [origin, "tasks"]):
                await stage.good(stage.token(claims={"aud": good}))
            for bad in (origin, [origin], "task", "tasks ", ABSENT):
                await stage.invalid(stage.token(claims={"aud": bad}))


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
        tokens = scene.tokens(50, lambda n: key(FIVE[n % 5]))
        for minutes in (0, 5.1, 600):  # At first, with keys that are old, and after a night.
            scene.advance(minutes)
            await scene.good(*tokens, *[tokens[0]] * 25)
            await looked()
        assert len(scene.server.fetches) == 3

    async def test_is_repeated_when_the_keys_are_four_minutes_old(self, scene: Scene) -> None:
        remembered = scene.token()
        for passing, fetches in ((0, 1), (200, 1), (30, 1), (20, 2), (230, 2), (20, 3)):
            scene.clock.ahead += passing
            for token in (remembered, scene.token(), scene.token(key("ES256"))):
                await scene.good(token)
            await looked()
            assert len(scene.server.fetches) == fetches

    async def test_tells_the_server_nothing_and_asks_for_plain_json(self, scene: Scene) -> None:
        token = scene.token()
        await scene.good(token)
        [fetch] = scene.server.fetches
        assert fetch.text.startswith("GET /api/auth/jwks HTTP/1.1\r\n")
        assert "authorization" not in fetch.headers
        assert not [part for part in token.split(".") if part in fetch.text]
        assert key("EdDSA").kid not in fetch.text
        assert fetch.headers["accept"] == "application/json"
        assert fetch.headers["accept-encoding"] == "identity"

    async def test_goes_on_when_the_one_who_needed_it_goes_away(self, scene: Scene) -> None:
        gate = Gate(scene.server)
        first = asyncio.create_task(scene.ask(scene.token()))
        await gate.reached.wait()
        second = asyncio.create_task(scene.ask(scene.token(key("ES256"))))
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        gate.open.set()
        assert_verdict(await second, GOOD)
        assert len(scene.server.fetches) == 1


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
        await scene.good(*scene.tokens(30, lambda n: key("EdDSA", 3 + n % 3)))
        await looked()
        assert len(scene.server.fetches) == 2

    async def test_just_after_a_look_in_vain_is_waited_for_together(self, scene: Scene) -> None:
        scene.set_cooldown(0.5)
        await scene.good(scene.token())
        for number in (3, 4):
            await scene.invalid(scene.issuer.stray())
            fresh = key("EdDSA", number)
            scene.server.keys.append(fresh.jwk)
            async with asyncio.timeout(10):
                answer = asyncio.create_task(scene.ask(scene.issuer.stray()))
                await scene.good(*[scene.token(fresh, claims={"jti": n}) for n in range(30)])
                assert_verdict(await answer, INVALID)
        assert len(scene.server.fetches) == 5

    @pytest.mark.parametrize("how", ["withdrawn", "replaced", "of another algorithm"])
    async def test_takes_the_tokens_of_a_key_that_is_gone_along_with_the_next_fetch(
        self, scene: Scene, how: str
    ) -> None:
        scene.hurry()
        known, rsa, fresh = key("ES256"), key("RS256"), key("EdDSA", 3)
        old, new, keys = {
            "withdrawn": (scene.token(), scene.token(known), [known.jwk]),
            "replaced": (
                scene.token(),
                scene.token(signer=fresh),
                [{**fresh.jwk, "kid": KNOWN_KID}],
            ),
            "of another algorithm": (
                scene.token(rsa),
                scene.token(rsa, header={"alg": "PS256"}),
                [{**rsa.jwk, "alg": "PS256"}],
            ),
        }[how]
        await scene.good(old)
        scene.server.keys = list(keys)
        scene.advance(4.02)
        await scene.good(old)  # A known key never waits, so that who asks first still passes.
        await looked()
        for _ in range(2):
            await scene.invalid(old)
            await scene.good(new)


class TestFlood:
    COOLDOWN = 0.3

    async def test_is_refused_at_once_after_two_fetches_in_vain(self, scene: Scene) -> None:
        scene.set_cooldown(60.0)
        await scene.good(scene.token())
        async with asyncio.timeout(20):
            for kid, fetches in (("first", 2), ("second", 3), ("third", 3)):
                token = scene.token(header={"kid": kid})
                await scene.invalid(token)
                assert len(scene.server.fetches) == fetches
                if kid == "first":
                    scene.clock.ahead += 61

    @pytest.mark.parametrize(("times", "at_once"), [(1, 1000), (200, 1)])
    async def test_of_unknown_kids_is_few_fetches(
        self, scene: Scene, times: int, at_once: int
    ) -> None:
        scene.set_cooldown(self.COOLDOWN)
        started = time.monotonic()
        async with asyncio.timeout(30):  # They do not wait for a cooldown each.
            for _ in range(times):
                await scene.invalid(*(scene.issuer.stray() for _ in range(at_once)))
        at = [fetch.at for fetch in scene.server.fetches]
        assert 1 <= len(at) <= 1 + (time.monotonic() - started) / self.COOLDOWN
        assert all(later - earlier >= self.COOLDOWN for earlier, later in pairwise(at))

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


class TestOutage:
    @each_outage
    async def test_leaves_known_keys_good_for_an_hour_and_is_a_503_then(
        self, scene: Scene, outage: Answer | None
    ) -> None:
        scene.hurry()
        remembered = scene.token()
        await scene.good(remembered)
        await scene.server.fail(outage)
        for minutes in (6, 30, 23.5):
            scene.advance(minutes)
            for token in (remembered, scene.token(), scene.token(key("PS256"))):
                await scene.good(token)
            await scene.invalid(scene.token(signer=ATTACKER))
            await scene.good(sign("alice"))
        scene.advance(1)
        for token in (remembered, scene.token(), scene.issuer.stray()):
            await scene.unavailable(token)
        await scene.good(sign("alice"))
        await scene.server.recover()
        for refused in await scene.refusals(remembered):
            assert_unavailable(refused)
        await scene.good(scene.token(key("ES512")))
        assert scene.elsewhere.fetches == []

    @each_outage
    async def test_with_no_key_known_is_a_503_within_5_s(
        self, scene: Scene, outage: Answer | None
    ) -> None:
        await scene.server.fail(outage)
        async with asyncio.timeout(5):
            await scene.unavailable(*(scene.token() for _ in range(10)))
        assert scene.elsewhere.fetches == []

    @each_outage
    async def test_ends_by_itself_and_says_so(
        self, scene: Scene, caplog: pytest.LogCaptureFixture, outage: Answer | None
    ) -> None:
        caplog.set_level(logging.DEBUG)
        scene.hurry()
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

    async def test_that_spares_the_known_keys_is_logged_once_as_well(
        self, scene: Scene, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        scene.hurry()
        scene.set_cooldown(0.0)
        token = scene.token()
        await scene.good(token)
        assert said(caplog) == []
        scene.server.answer = error
        scene.advance(6)
        async with asyncio.timeout(10):
            while len(scene.server.fetches) < 5:
                await scene.good(token)
            assert len(said(caplog)) == 1
            await scene.server.recover()
            while len(said(caplog)) < 2:
                await scene.good(token)
        await scene.good(token)
        assert [line.startswith("over after") for line in said(caplog)] == [False, True]
        assert not [part for part in token.split(".") if part in caplog.text]

    async def test_of_a_hanging_server_delays_nobody_nor_the_end(self, stage: Scene) -> None:
        stage.set_cooldown(0.0)
        async with asyncio.timeout(20):
            async with stage.run():
                await stage.good(stage.token())
                stage.server.answer = hang
                stage.advance(6)
                # Each of them would wait 60 s, were it to wait at all.
                stage.patch.setattr("kit.keys.FETCH_TIMEOUT", 60.0)
                for _ in range(20):
                    await stage.good(stage.token())
                [fetch] = fetches_under_way()
        assert fetch.cancelled()
        assert len(stage.server.fetches) == 2

    async def test_is_looked_into_once_per_cooldown(self, scene: Scene) -> None:
        scene.set_cooldown(60.0)
        await scene.good(scene.token())
        scene.server.answer = error
        for minutes, fetches in ((6, 2), (2, 3), (2, 4)):
            scene.advance(minutes)
            for _ in range(5):
                await scene.good(scene.token())
                await scene.unavailable(scene.issuer.stray())
            assert len(scene.server.fetches) == fetches

    async def test_leaves_the_shared_secret_alone(self, scene: Scene) -> None:
        scene.patch.setattr("kit.keys.FETCH_TIMEOUT", 60.0)
        gate = Gate(scene.server)
        waiting = asyncio.create_task(scene.good(scene.token()))
        await gate.reached.wait()
        async with asyncio.timeout(10):
            for _ in range(20):
                await scene.good(sign("alice"))
        assert not waiting.done()
        assert len(scene.server.fetches) == 1
        gate.open.set()
        await waiting

    async def test_leaves_it_open_whether_an_unknown_kid_is_fresh(self, scene: Scene) -> None:
        scene.hurry()
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
        scene.advance(6)
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


def with_symmetric_key(**members: object) -> tuple[MakeKey, Make]:
    algorithm = members.get("alg", "HS256")
    forged = made(secret=b"k" * 32, header={"alg": algorithm, "kid": "symmetric"})
    return lambda: symmetric(**members), forged


def weak(kind: str, claimed: str) -> tuple[MakeKey, Make]:
    """A key of a kind that does not count, and a token that it signs."""
    by = key({"Ed448": "EdDSA", "RSA-1024": "RS256"}.get(kind, kind), 9, kind=kind)
    return lambda: {**by.jwk, "alg": claimed}, made(by, header={"alg": claimed})


def odd(algorithm: str, **members: object) -> tuple[MakeKey, Make]:
    """A key with these members, and a token that it signs, with its kid as a string if need be."""
    by = key(algorithm, 9)
    header = {"kid": str(members["kid"])} if "kid" in members else {}
    return lambda: present({**by.jwk, **members}), made(by, header=header)


def leaked(algorithm: str) -> tuple[MakeKey, Make]:
    """A key with its private half, and a token that it signs."""
    by = key(algorithm, 9)
    return lambda: by.private_jwk, made(by)


def itself(entry: object) -> MakeKey:
    return lambda: entry


def spelt(value: object) -> str:
    return "missing" if value is ABSENT else f"{value!a:.16}"


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
ODD: Final[dict[str, tuple[object, ...]]] = {
    "use": ("enc", 5, ["sig"]),
    "alg": ("ES256", "none", ["EdDSA"], 5, "EDDSA"),
    "kty": (ABSENT, None, "EC", "AKP", ["OKP"], "okp"),
    "crv": (ABSENT, "Ed25520", "X25519", ["Ed25519"]),
    "kid": (ABSENT, None, 9, ["9"], {}),
}
FORGERIES: Final[dict[str, tuple[MakeKey, Make]]] = {
    "symmetric without alg": with_symmetric_key(),
    **{f"symmetric for {alg}": with_symmetric_key(alg=alg) for alg in ("HS256", "EdDSA", "RS256")},
    **{f"private {algorithm}": leaked(algorithm) for algorithm in ("EdDSA", "ES256", "RS256")},
    **{f"of small order, {point.hex()}": signed_by_nobody(point) for point in SMALL_ORDER},
    **{
        f"{kind} for {algorithm}": weak(kind, algorithm)
        for kind, algorithms in {
            "ES384": ("ES384", "ES256", "ES512"),
            "ES256K": ("ES256K", "ES256"),
            "Ed448": ("EdDSA",),
            "RSA-1024": ("RS256", "PS256"),
            "ES512": ("ES256",),
            "ES256": ("ES512", "ES384"),
            "RS256": ("RS512",),
            "PS256": ("PS384",),
        }.items()
        for algorithm in algorithms
    },
    **{
        f"RSA for {alg}": odd("RS256", alg=alg)
        for alg in ("ES256", "EdDSA", "HS256", "none", "RSA-OAEP")
    },
    **{
        f"{name} {spelt(value)}": odd("EdDSA", **{name: value})
        for name, values in ODD.items()
        for value in values
    },
}

# What nobody could sign for: entries, members that spoil a sound key, and keys beside the good one.
ENTRIES: Final[list[object]] = [
    *(None, True, 5, float("nan"), "EdDSA", "", [], {}),
    *({"kid": "rubbish"}, {"kid": "rubbish", "kty": "RSA"}, {"kty": "oct", "kid": "rubbish"}),
    symmetric(k=5),
]
RUBBISH: Final[dict[str, MakeKey]] = {
    **{f"{entry!r:.30}": itself(entry) for entry in ENTRIES},
    **{
        f"{algorithm} {name} {spelt(value)}": rubbish(algorithm, **{name: value})
        for algorithm, name, values in (
            ("EdDSA", "x", (ABSENT, None, 5, ["A"], "", "AQAB", "A" * 44, "!" * 43, "A")),
            ("EdDSA", "x", ("é" * 43, "\ud800" * 43)),
            ("ES256", "y", (ABSENT, "A" * 43)),  # A point that is not on its curve.
            ("RS256", "n", (ABSENT, "", 3233)),
            ("RS256", "e", (ABSENT, "AQ", "Ag")),
        )
        for value in values
    },
    "a list of a key": lambda: [key("EdDSA", 9).jwk],
    "nested deep": lambda: {"kid": "rubbish", "kty": "OKP", "crv": nested(5_000)},
    "an object in every member": lambda: {
        name: {} for name in ("kty", "crv", "alg", "kid", "use", "x", "y", "n", "e", "d", "k")
    },
    "the good key's kid on a weak one": lambda: {
        **key("RS256", 9, kind="RSA-1024").jwk,
        "kid": KNOWN_KID,
    },
    "the good key's kid on a symmetric one": lambda: symmetric(alg="HS256", kid=KNOWN_KID),
    "the good key again": lambda: key("EdDSA").jwk,
    "another good key": lambda: key("ES256").jwk,
}

# As another issuer, or a later Better Auth, may write a good key.
VARIANTS: Final[list[tuple[str, dict[str, object]]]] = [
    ("EdDSA", {"use": "sig"}),
    *((algorithm, {"alg": ABSENT}) for algorithm in ("EdDSA", "ES256", "ES512", "RS256")),
    ("RS256", {"key_ops": ["verify"]}),
    ("RS256", {"x5u": "http://127.0.0.1:9/", "x5t": "AAAA"}),
    ("EdDSA", {"createdAt": "2026-01-02", "expiresAt": None}),
]


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

    @pytest.mark.parametrize(("algorithm", "members"), VARIANTS)
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
        scene.set_cooldown(0.0)
        scene.server.answer = saying(lambda server: http(server.key_set.ljust(64 * 1024 + 1)))
        await scene.unavailable(scene.token())
        scene.server.answer = saying(lambda server: http(server.key_set.ljust(64 * 1024)))
        await scene.good(scene.token())

    async def test_may_come_in_pieces(self, scene: Scene) -> None:
        async def dribble(server: KeyServer, _reader: Reader, writer: Writer) -> None:
            whole = in_chunks(server.key_set)
            for start in range(0, len(whole), 100):
                writer.write(whole[start : start + 100])
                await writer.drain()
                await asyncio.sleep(0)

        scene.server.answer = dribble
        await scene.good(scene.token())

    async def test_that_is_out_of_reach_costs_no_second_check_of_a_signature(
        self, scene: Scene
    ) -> None:
        checked: list[object] = []
        verify = OKPAlgorithm.verify

        def note(algorithm: OKPAlgorithm, text: bytes, key: Any, signature: bytes) -> bool:
            checked.append(text)
            return verify(algorithm, text, key, signature)

        scene.patch.setattr(OKPAlgorithm, "verify", note)
        token = scene.token()
        await scene.good(token)
        await scene.server.stop()
        scene.advance(50)
        await scene.good(token)
        assert len(checked) == 1
