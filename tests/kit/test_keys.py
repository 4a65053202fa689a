# [Task]: T024 [From]: specs/requirements.md
"""The published keys: which tokens they open, when they are fetched, and what an outage costs."""

import asyncio
import gzip
import hmac
import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, NamedTuple

import certifi
import httpx
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI
from jwt.algorithms import OKPAlgorithm, get_default_algorithms
from made_tokens import (
    ABSENT,
    EXPIRED,
    GOOD,
    INVALID,
    UNAVAILABLE,
    ask,
    assert_verdict,
    claims,
    part,
    present,
    verdict,
)
from support import SECRET, assert_error, sign

from kit.keys import FETCH
from kit.tokens import TokenVerifier, open_verifier
from main import app
from middleware.auth import PathUser
from settings import SettingsError, get_settings

ORIGIN: Final = "https://app.example.com"


# --- Keys and tokens --------------------------------------------------------------------------

GENERATE: Final[dict[str, Callable[[], Any]]] = {
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
def private_key(kind: str, _number: int) -> Any:
    return GENERATE[kind]()


class SigningKey(NamedTuple):
    """A key pair as Better Auth keeps it: for one algorithm, under an id of 32 characters."""

    algorithm: str
    number: int
    kind: str

    @property
    def kid(self) -> str:
        return f"{self.algorithm}-{self.kind}-{self.number}-".ljust(32, "k")

    @property
    def private(self) -> Any:
        return private_key(self.kind, self.number)

    def jwk(self, *, private: bool = False, **members: Any) -> dict[str, object]:
        """As it is published, with these members in it, or out of it where ABSENT."""
        key = self.private if private else self.private.public_key()
        own = get_default_algorithms()[self.algorithm].to_jwk(key, as_dict=True)
        own.pop("key_ops", None)
        return present({"alg": self.algorithm, **own, "kid": self.kid, **members})


def key(algorithm: str, number: int = 1, *, kind: str | None = None) -> SigningKey:
    """The same one each time; of the kind that the algorithm wants unless another is given."""
    return SigningKey(algorithm, number, kind or algorithm)


FIVE: Final = ("EdDSA", "ES256", "ES512", "RS256", "PS256")
# For each another one to be mistaken for, the most alike where there is such.
LIKENESS: Final = dict(zip(FIVE, ("ES256", "EdDSA", "ES256", "PS256", "RS256"), strict=True))
KNOWN: Final = key("EdDSA")
FRESH: Final = key("EdDSA", 3)
ATTACKER: Final = key("EdDSA", 7)


def signed_by(signature: Callable[[bytes], bytes], header: object, payload: object) -> str:
    """A JWS by hand, since PyJWT would not make most of what is sent here."""
    text = f"{part(header)}.{part(payload)}"
    return f"{text}.{part(signature(text.encode()))}"


def issued(
    by: SigningKey = KNOWN,
    *,
    signer: SigningKey | None = None,
    using: str | None = None,
    secret: bytes | None = None,
    header: Mapping[str, object] = {},
    **members: Any,
) -> str:
    """Alice's, as the jwt() plugin makes it, but for what is given; ABSENT leaves it out.

    `signer` signs in place of the key that the header names, `using` another algorithm than the
    header's, `secret` with HMAC-SHA256. `members` are claims.
    """
    merged = present({"alg": by.algorithm, "kid": by.kid, **header})

    def signature(text: bytes) -> bytes:
        if secret is not None:
            return hmac.digest(secret, text, "sha256")
        algorithm = get_default_algorithms()[using or f"{merged['alg']}"]
        return algorithm.sign(text, (signer or by).private)

    return signed_by(signature, merged, claims(**{"iss": ORIGIN, "aud": ORIGIN, **members}))


def stray() -> str:
    """A token with a `kid` that nobody has seen."""
    return issued(ATTACKER, header={"kid": token_hex(16)})


# --- The server that publishes the keys -------------------------------------------------------

type Reader = asyncio.StreamReader
type Writer = asyncio.StreamWriter
type Answer = Callable[["KeyServer", Reader, Writer], Awaitable[None]]


class KeyServer:
    """An HTTP server in Better Auth's place: publishes `keys`, or answers as a test has it."""

    def __init__(self) -> None:
        self.keys: list[object] = [key(name, number).jwk() for name in FIVE for number in (1, 2)]
        self.answer: Answer = publish
        # The heads of all requests, and when they came.
        self.fetches: list[str] = []
        self.times: list[float] = []
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

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.times.append(time.monotonic())
            self.fetches.append(head.decode("latin-1"))
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


def saying(make: Callable[[bytes], bytes]) -> Answer:
    """What is made of the good key set, all at once."""

    async def answer(server: KeyServer, _reader: Reader, writer: Writer) -> None:
        writer.write(make(server.key_set))

    return answer


publish: Answer = saying(http)
error: Answer = saying(lambda good: http(good, 500))


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


TEN_MEGABYTES: Final = b" " * 10 * 1024 * 1024
ELSEWHERE: Final = "Location: http://user:hunter2@127.0.0.1:9/keys?token=hunter2"

# What the server does, and what the log says of it. Wherever it can be, the good key set is in the
# answer, so that nothing but the flaw speaks against it.
OUTAGES: Final[dict[str, tuple[Answer | None, str]]] = {
    "down": (None, "Error: "),
    "hanging": (hang, "TimeoutError"),
    "dripping": (drip, "TimeoutError"),
    "failing": (error, "status 500"),
    "elsewhere": (
        saying(lambda good: http(good, 404)),
        "status 404: set BETTER_AUTH_JWKS_URL if the keys are elsewhere",
    ),
    "redirecting": (
        saying(lambda good: http(good, 308, ELSEWHERE)),
        "status 308, Location: http://127.0.0.1:9/keys",
    ),
    "large": (saying(lambda good: in_chunks(good + TEN_MEGABYTES)), "larger than 64 KiB"),
    "compressed": (
        saying(lambda good: http(gzip.compress(good), 200, "Content-Encoding: gzip")),
        "UnicodeDecodeError",
    ),
    "broken off": (saying(lambda good: http(good, length=50_000)), "RemoteProtocolError"),
    "closing": (saying(lambda _: b""), "RemoteProtocolError"),
    "a page": (saying(lambda _: http(b"<!doctype html><title>Sign in</title>")), "JSONDecodeError"),
    "no keys": (saying(lambda _: http(b'{"keys": []}')), "no usable key"),
    "a list": (saying(lambda good: http(good[9:-1])), "no usable key"),
    "nested": (saying(lambda _: http(b"[" * 30_000 + b"]" * 30_000)), "RecursionError"),
}


# --- The service ------------------------------------------------------------------------------


def fetches_under_way() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == FETCH]


class Scene:
    """A verifier of tokens, and the key server that it is told of."""

    def __init__(self, patch: pytest.MonkeyPatch, server: KeyServer) -> None:
        self.patch = patch
        self.server = server
        self.verifier: TokenVerifier
        # Seconds by which the clock is ahead by which keys grow old.
        self.ahead = 0.0
        # The name in this one module: asyncio's timers go by time.monotonic, too.
        patch.setattr("kit.keys.time", self)

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def advance(self, *, minutes: float) -> None:
        self.ahead += minutes * 60

    def set_cooldown(self, seconds: float) -> None:
        self.patch.setattr("kit.keys.COOLDOWN", seconds)

    def set_environment(self, **environment: str | None) -> None:
        """Variables to set, or to remove where None."""
        urls = {
            "BETTER_AUTH_URL": ORIGIN,
            "BETTER_AUTH_JWKS_URL": f"{self.server.origin}/api/auth/jwks",
        }
        for name, value in {**urls, **environment}.items():
            if value is None:
                self.patch.delenv(name, raising=False)
            else:
                self.patch.setenv(name, value)

    @asynccontextmanager
    async def run(self, **environment: str | None) -> AsyncIterator[None]:
        self.set_environment(**environment)
        async with open_verifier(get_settings()) as self.verifier:
            yield

    async def verdict(self, token: str) -> str:
        return await verdict(self.verifier, token)

    async def verdicts(self, *tokens: str) -> set[str]:
        """Of all of them, asked for at once."""
        return set(await asyncio.gather(*map(self.verdict, tokens)))

    async def good(self, *tokens: str) -> None:
        assert await self.verdicts(*tokens) == {GOOD}

    async def invalid(self, *tokens: str) -> None:
        assert not await self.verdicts(*tokens) & {GOOD, EXPIRED, UNAVAILABLE}

    async def unavailable(self, *tokens: str) -> None:
        assert await self.verdicts(*tokens) == {UNAVAILABLE}

    async def good_soon(self, token: str, *, before: str) -> None:
        """Within 10 s, until when this is the verdict."""
        async with asyncio.timeout(10):
            while (said := await self.verdict(token)) != GOOD:
                assert said.startswith(before)
                await asyncio.sleep(0.02)

    async def looked(self) -> None:
        """Until nothing is being fetched any more."""
        await asyncio.gather(*fetches_under_way())


@pytest.fixture(scope="module", autouse=True)
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One authority that is trusted, since each client of httpx takes 0.1 s to read them all."""
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    file = tmp_path_factory.mktemp("keys") / "one.pem"
    file.write_text(first + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", f"{file}")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """A scene before the verifier is there."""
    server = KeyServer()
    await server.start()
    yield Scene(monkeypatch, server)
    await server.stop()


@pytest.fixture
async def scene(stage: Scene) -> AsyncIterator[Scene]:
    """The verifier has both the secret and the server's URL."""
    async with stage.run():
        yield stage


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_service_answers_by_the_published_keys(stage: Scene, ready_sqlite_url: str) -> None:
    stage.set_environment(DATABASE_URL=ready_sqlite_url)
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/health")).status_code == 200
        assert_verdict(await ask(client, f"Bearer {sign('alice')}"), GOOD)
        assert stage.server.fetches == []
        assert_verdict(await ask(client, f"Bearer {issued()}"), GOOD)
        assert_verdict(await ask(client, f"Bearer {stray()}"), INVALID)
        assert_verdict(await ask(client, f"Bearer {issued(exp=1)}"), EXPIRED)
        await stage.server.stop()
        stage.advance(minutes=61)
        response = await ask(client, f"Bearer {issued()}")
        assert_error(response, 503, UNAVAILABLE)
        assert int(response.headers["retry-after"]) >= 1
        assert "www-authenticate" not in response.headers


async def test_hold_in_an_app_without_the_lifespan(stage: Scene) -> None:
    bare = FastAPI()

    @bare.get("/api/{user_id}/tasks")
    async def endpoint(user: PathUser) -> str:
        return f"{user['name']}"

    stage.set_environment()
    async with client_of(bare) as client:
        assert (await ask(client, f"Bearer {issued(name='Alice')}")).json() == "Alice"
        assert_verdict(await ask(client, f"Bearer {stray()}"), INVALID)


# --- Which tokens -----------------------------------------------------------------------------

type Make = Callable[[], str]


def by_public_key(algorithm: str, form: Encoding | None) -> str:
    """HS256, its secret being what everyone knows of the key; None is for its JWK."""
    known = key(algorithm)
    secret = json.dumps(known.jwk()).encode()
    if form is not None:
        kind = PublicFormat.Raw if form is Encoding.Raw else PublicFormat.SubjectPublicKeyInfo
        secret = known.private.public_key().public_bytes(form, kind)
    return issued(known, secret=secret, header={"alg": "HS256"})


def shared(**header: object) -> Make:
    """HS256 with the secret shared with the frontend, as the plugin signs it remotely."""
    header = {"alg": "HS256", "kid": ABSENT, **header}
    return partial(issued, secret=SECRET.encode(), header=header)


def with_signature(by: SigningKey, signature: bytes) -> str:
    return f"{issued(by).rpartition('.')[0]}.{part(signature)}"


def headed(name: str, *values: object, by: SigningKey = KNOWN) -> list[Make]:
    return [partial(issued, by, header={name: value}) for value in values]


def claimed(name: str, *values: Any) -> list[Make]:
    return [partial(issued, **{name: value}) for value in values]


SESSION_CACHE: Final = "better-auth.session-cache+jwt"  # What Better Auth signs for itself.
OTHER: Final = "https://a.example"
ISSUER: Final = "iss is of another issuer or audience"
AUDIENCE: Final = "aud is of another issuer or audience"
ALG: Final = "alg is not accepted"
SIGNATURE: Final = "signature does not match"
UNKNOWN: Final = "kid is of no published key"

# By what is said of them.
TOKENS: Final[dict[str, list[Make]]] = {
    GOOD: [
        *(partial(issued, key(name)) for name in FIVE),
        partial(issued, name="Alice", email="a@b.co", emailVerified=True, image=None, id="alice"),
        *headed("typ", "JWT", "at+jwt"),
        *claimed("aud", [ORIGIN], [OTHER, ORIGIN, 5]),
        # The shared secret beside it, whatever the kid.
        partial(sign, "alice"),
        shared(),
        shared(kid=KNOWN.kid),
    ],
    EXPIRED: [*claimed("exp", 1, int(time.time()) - 3600), partial(sign, "alice", exp=1)],
    SIGNATURE: [
        *(partial(issued, key(name), signer=key(name, 2)) for name in FIVE),
        *(partial(with_signature, KNOWN, b"\0" * size) for size in (1, 63, 64)),
        partial(with_signature, key("ES256"), b"\0" * 64),
        partial(with_signature, key("ES512"), b"\0" * 64),
        partial(with_signature, key("RS256"), b"\0" * 256),
        *(partial(by_public_key, "RS256", form) for form in (Encoding.PEM, Encoding.DER, None)),
        *(partial(by_public_key, "EdDSA", form) for form in (Encoding.PEM, Encoding.Raw, None)),
        partial(issued, secret=SECRET.encode()),
        partial(issued, signer=ATTACKER, exp=1),
        partial(sign, "alice", secret="s" * 32),
    ],
    r"alg is \w+, the key's is \w+": [
        # Signed well, by a key of the set, but the header names one of another algorithm.
        *(partial(issued, key(b), signer=key(a), header={"alg": a}) for a, b in LIKENESS.items()),
        # Signed with the key that the header names, under another algorithm's name.
        *(partial(issued, key(a), header={"alg": b}, using=a) for a, b in LIKENESS.items()),
        # One RSA key serves both algorithms mathematically; it is published for one of them.
        *headed("alg", "RS256", by=key("PS256")),
        *headed("alg", "PS256", by=key("RS256")),
    ],
    ALG: [
        *headed("alg", "PS512", by=key("PS256")),
        *headed("alg", "RS384", by=key("RS256")),
        partial(issued, secret=b"", header={"alg": "none"}),
        partial(issued, header={"alg": "eddsa"}, using="EdDSA"),
        partial(issued, key("ES256"), signer=key("ES384"), header={"alg": "ES384"}),
    ],
    "no kid": headed("kid", ABSENT),
    "kid is not a string": headed("kid", 1, {"kid": KNOWN.kid}),
    UNKNOWN: [
        *headed("kid", "", "nobody's", KNOWN.kid.upper(), "../x", "\ud800", "\0\r\n", "k" * 5_000),
        partial(issued, ATTACKER),
    ],
    "typ is of another kind of token": [
        *headed("typ", "logout+jwt", SESSION_CACHE),
        partial(issued, header={"typ": SESSION_CACHE}, aud="better-auth:session-cache"),
        shared(typ=SESSION_CACHE),
    ],
    "crit or b64 in the header": headed("crit", ["exp"]),
    # The claims of all tokens are judged alike, test_tokens.py.
    "sub is not a string of 1 to 255 characters": claimed("sub", ABSENT),
    ISSUER: [
        *claimed("iss", ABSENT, OTHER, f"{ORIGIN}/", f"{ORIGIN}/api/auth", [ORIGIN]),
        *claimed("iss", ORIGIN.replace("https", "http"), f"{ORIGIN}:443"),
        partial(issued, iss=OTHER, exp=1),
    ],
    AUDIENCE: [
        *claimed("aud", ABSENT, OTHER, f"{ORIGIN}/", ORIGIN[:-1], f"{ORIGIN} {ORIGIN}"),
        *claimed("aud", [OTHER, None], [], [[ORIGIN]], "better-auth:session-cache"),
    ],
}


class TestTokens:
    @pytest.mark.parametrize("said", TOKENS)
    async def test_are_judged_by_the_published_keys(self, scene: Scene, said: str) -> None:
        scene.set_cooldown(0.0)
        for make in TOKENS[said]:
            token = make()
            assert re.fullmatch(said, await scene.verdict(token)), token
        # A token is refused without a look at the keys where its header suffices.
        early = (ALG, "no kid", "kid is not a string", "typ", "crit")
        assert (scene.server.fetches == []) == said.startswith(early)

    async def test_bring_no_keys_along(self, scene: Scene) -> None:
        elsewhere = KeyServer()
        elsewhere.keys.append(ATTACKER.jwk())
        await elsewhere.start()
        scene.set_cooldown(0.0)
        url = f"{elsewhere.origin}/api/auth/jwks"
        for member, value in {"jwk": ATTACKER.jwk(), "jku": url, "x5u": url}.items():
            for kid, said in ((ATTACKER.kid, UNKNOWN), (KNOWN.kid, SIGNATURE), (ABSENT, "no kid")):
                forged = issued(ATTACKER, header={member: value, "kid": kid})
                assert await scene.verdict(forged) == said
            await scene.good(
                issued(header={member: value}), shared(**{member: value, "kid": url})()
            )
        assert await scene.verdict(issued(header={"kid": url})) == UNKNOWN
        assert elsewhere.fetches == []
        await elsewhere.stop()


class TestBetterAuthUrl:
    async def test_is_enough_without_a_secret(self, stage: Scene) -> None:
        async with stage.run(BETTER_AUTH_SECRET=None):
            await stage.good(issued())
            forged = [issued(secret=secret, header={"alg": "HS256"}) for secret in (b"x", b"")]
            assert await stage.verdicts(*forged, sign("alice")) == {ALG}

    async def test_is_what_lets_published_keys_count(self, stage: Scene) -> None:
        async with stage.run(BETTER_AUTH_URL=None, BETTER_AUTH_JWKS_URL=None):
            assert await stage.verdicts(*(issued(key(name)) for name in FIVE)) == {ALG}
            await stage.good(sign("alice"))
        assert stage.server.fetches == []

    @pytest.mark.parametrize(
        ("path", "keys"), [("/", "/api/auth/jwks"), ("/app", "/app/jwks"), ("/a/b/", "/a/b/jwks")]
    )
    async def test_may_have_a_path_that_the_issuer_has_not(
        self, stage: Scene, path: str, keys: str
    ) -> None:
        origin = stage.server.origin
        url = origin.replace("http", "HTTP") + path
        async with stage.run(BETTER_AUTH_URL=url, BETTER_AUTH_JWKS_URL=None):
            await stage.good(issued(iss=origin, aud=origin))
            assert await stage.verdict(issued(iss=origin + path, aud=origin)) == ISSUER
            assert await stage.verdict(issued(iss=origin, aud=origin + path)) == AUDIENCE
        [fetch] = stage.server.fetches
        assert fetch.startswith(f"GET {keys} ")

    @pytest.mark.parametrize("name", ["BETTER_AUTH_URL", "BETTER_AUTH_JWKS_URL"])
    def test_that_nobody_can_connect_to_stops_the_start(self, stage: Scene, name: str) -> None:
        stage.set_environment(**{name: "http://[1:2]"})
        with pytest.raises(SettingsError, match=name):
            get_settings()

    async def test_yields_to_an_issuer_and_an_audience(self, stage: Scene) -> None:
        good = ("tasks", ["tasks"], [ORIGIN, "tasks"])
        bad = (ORIGIN, [ORIGIN], "task", "tasks ", ABSENT)
        async with stage.run(BETTER_AUTH_ISSUER=OTHER, BETTER_AUTH_AUDIENCE="tasks"):
            await stage.good(*(issued(iss=OTHER, aud=aud) for aud in good))
            assert await stage.verdicts(*(issued(iss=OTHER, aud=aud) for aud in bad)) == {AUDIENCE}
            assert await stage.verdict(issued(aud="tasks")) == ISSUER


# --- When they are fetched --------------------------------------------------------------------


class TestFetch:
    async def test_that_can_not_be_set_up_is_tried_again(self, scene: Scene) -> None:
        scene.set_cooldown(0.0)
        with scene.patch.context() as patch:
            patch.setenv("SSL_CERT_FILE", "/nonexistent")
            await scene.unavailable(issued())
        await scene.good(issued())

    async def test_is_one_for_all_who_wait(self, scene: Scene) -> None:
        tokens = [issued(key(FIVE[n % 5]), jti=n) for n in range(20)]
        for minutes in (0, 5.1, 600):  # At first, with keys that are old, and after a night.
            scene.advance(minutes=minutes)
            await scene.good(*tokens, *tokens)
            await scene.looked()
        assert len(scene.server.fetches) == 3

    async def test_is_repeated_when_the_keys_are_four_minutes_old(self, scene: Scene) -> None:
        remembered = issued()
        for passing, fetches in ((0, 1), (200, 1), (30, 1), (20, 2), (230, 2), (20, 3)):
            scene.ahead += passing
            await scene.good(remembered, issued(jti=passing), issued(key("ES256")))
            await scene.looked()
            assert len(scene.server.fetches) == fetches

    async def test_tells_the_server_nothing_and_asks_for_plain_json(self, scene: Scene) -> None:
        token = issued()
        await scene.good(token)
        [fetch] = scene.server.fetches
        assert fetch.startswith("GET /api/auth/jwks HTTP/1.1\r\n")
        assert not [text for text in (KNOWN.kid, *token.split(".")) if text in fetch]
        fetch = fetch.lower()
        assert "authorization" not in fetch
        assert "\r\naccept: application/json\r\n" in fetch
        assert "\r\naccept-encoding: identity\r\n" in fetch

    async def test_goes_on_when_the_one_who_needed_it_goes_away(self, scene: Scene) -> None:
        asked, answered = asyncio.Event(), asyncio.Event()

        async def wait(server: KeyServer, reader: Reader, writer: Writer) -> None:
            asked.set()
            await answered.wait()
            await publish(server, reader, writer)

        scene.server.answer = wait
        first = asyncio.create_task(scene.verdict(issued()))
        await asked.wait()
        second = asyncio.create_task(scene.verdict(issued(key("ES256"))))
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        answered.set()
        assert await second == GOOD
        assert len(scene.server.fetches) == 1

    async def test_makes_its_client_once_while_others_go_on(self, scene: Scene) -> None:
        threads: list[threading.Thread] = []

        class Client(httpx.AsyncClient):
            def __init__(self, **options: Any) -> None:
                threads.append(threading.current_thread())
                super().__init__(**options)

        scene.patch.setattr("httpx.AsyncClient", Client)
        await scene.good(issued())
        scene.advance(minutes=61)
        await scene.good(issued())
        [thread] = threads
        assert thread is not threading.main_thread()
        assert len(scene.server.fetches) == 2


class TestRotation:
    async def test_has_its_first_tokens_accepted_after_one_look(self, scene: Scene) -> None:
        scene.set_cooldown(60.0)
        await scene.good(issued())
        async with asyncio.timeout(10):
            for fresh in (FRESH, key("EdDSA", 4)):
                scene.server.keys.append(fresh.jwk())
                await scene.good(*(issued(fresh, jti=n) for n in range(10)))
        assert len(scene.server.fetches) == 3

    async def test_just_after_a_look_in_vain_is_waited_for_together(self, scene: Scene) -> None:
        scene.set_cooldown(0.3)
        await scene.good(issued())
        for fresh in (FRESH, key("EdDSA", 4)):
            await scene.invalid(stray())
            scene.server.keys.append(fresh.jwk())
            async with asyncio.timeout(10):
                another = asyncio.create_task(scene.invalid(stray()))
                await scene.good(*(issued(fresh, jti=n) for n in range(10)))
                await another
        assert len(scene.server.fetches) == 5

    @pytest.mark.parametrize(
        ("old", "new", "keys"),
        [
            (issued, partial(issued, key("ES256")), lambda: [key("ES256").jwk()]),
            (issued, partial(issued, signer=FRESH), lambda: [FRESH.jwk(kid=KNOWN.kid)]),
            (
                partial(issued, key("RS256")),
                partial(issued, key("RS256"), header={"alg": "PS256"}),
                lambda: [key("RS256").jwk(alg="PS256")],
            ),
        ],
        ids=["withdrawn", "replaced", "of another algorithm"],
    )
    async def test_takes_the_tokens_of_a_key_that_is_gone_along_with_the_next_fetch(
        self, scene: Scene, old: Make, new: Make, keys: Callable[[], list[object]]
    ) -> None:
        scene.set_cooldown(0.05)
        remembered = old()
        await scene.good(remembered)
        scene.server.keys = keys()
        scene.advance(minutes=4.02)
        await scene.good(remembered)  # A known key never waits, so who asks first still passes.
        await scene.looked()
        for _ in range(2):
            await scene.invalid(remembered)
            await scene.good(new())


class TestFlood:
    async def test_is_refused_at_once_after_two_fetches_in_vain(self, scene: Scene) -> None:
        scene.set_cooldown(60.0)
        await scene.good(issued())
        async with asyncio.timeout(20):
            await scene.invalid(stray())
            # Those that wait for the next one delay no known key.
            flood = [asyncio.create_task(scene.verdict(stray())) for _ in range(50)]
            await scene.good(*(issued(key(name), jti=n) for name in FIVE for n in range(3)))
            assert all(waiting.cancel() for waiting in flood)
            await asyncio.wait(flood)
            scene.advance(minutes=1.02)
            await scene.invalid(*(stray() for _ in range(100)))
            await scene.invalid(stray())
        assert len(scene.server.fetches) == 3

    async def test_is_few_fetches_and_gives_way_to_a_fresh_key(self, scene: Scene) -> None:
        cooldown = 0.3
        scene.set_cooldown(cooldown)
        async with asyncio.timeout(30):  # They do not wait for a cooldown each.
            for at_once in (200, *[1] * 100):
                await scene.invalid(*(stray() for _ in range(at_once)))
        times = list(scene.server.times)
        assert len(times) >= 2
        assert all(later - earlier >= cooldown for earlier, later in pairwise(times))
        scene.server.keys.append(FRESH.jwk())
        await scene.good_soon(issued(FRESH), before=UNKNOWN)
        # The next one is waited for again.
        fetches = len(scene.server.fetches)
        scene.server.keys.append(key("EdDSA", 4).jwk())
        await scene.good(issued(key("EdDSA", 4)))
        assert len(scene.server.fetches) == fetches + 1


# --- When they can't be -----------------------------------------------------------------------


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of the key set itself."""
    return [record.getMessage() for record in caplog.records if record.name == "tasks.keys"]


class TestOutage:
    @pytest.mark.parametrize(("outage", "told"), OUTAGES.values(), ids=OUTAGES)
    async def test_leaves_known_keys_good_for_an_hour_and_is_told_of(
        self, scene: Scene, caplog: pytest.LogCaptureFixture, outage: Answer | None, told: str
    ) -> None:
        caplog.set_level(logging.DEBUG)
        scene.patch.setattr("kit.logs.OUTAGE_QUIET", 0.0)
        scene.patch.setattr("kit.keys.FETCH_TIMEOUT", 0.5)
        scene.set_cooldown(0.05)
        remembered = issued()
        await scene.good_soon(remembered, before=UNAVAILABLE)
        caplog.clear()
        await (scene.server.stop() if outage is None else asyncio.sleep(0))
        scene.server.answer = outage or publish
        for minutes in (6, 30, 23.5):
            scene.advance(minutes=minutes)
            await scene.good(remembered, issued(jti=minutes), issued(key("PS256")), sign("alice"))
            await scene.invalid(issued(signer=ATTACKER))
        await scene.looked()
        # Whether it is fresh is not known.
        await scene.unavailable(issued(FRESH))
        await scene.good(issued())
        scene.advance(minutes=1)
        await scene.unavailable(remembered, issued(), stray())
        await scene.good(sign("alice"))
        [beginning] = said(caplog)
        assert f" {scene.server.origin}/api/auth/jwks: " in beginning
        assert told in beginning
        scene.server.keys.append(FRESH.jwk())
        scene.server.answer = publish
        await (scene.server.start() if outage is None else asyncio.sleep(0))
        await scene.good_soon(remembered, before=UNAVAILABLE)
        await scene.good(issued(key("ES512")), issued(FRESH))
        [_, end] = said(caplog)
        assert end.startswith("over after")
        for secret in (*remembered.split("."), "hunter2"):
            assert secret not in beginning + end

    async def test_with_no_key_known_is_a_503_within_5_s(self, scene: Scene) -> None:
        scene.server.answer = hang
        async with asyncio.timeout(5):
            await scene.unavailable(*(issued() for _ in range(10)))

    async def test_of_a_hanging_server_delays_nobody_nor_the_end(self, stage: Scene) -> None:
        stage.set_cooldown(0.0)
        async with asyncio.timeout(20):
            async with stage.run():
                await stage.good(issued())
                stage.server.answer = hang
                stage.advance(minutes=6)
                # Each of them would wait 60 s, were it to wait at all.
                stage.patch.setattr("kit.keys.FETCH_TIMEOUT", 60.0)
                for number in range(20):
                    await stage.good(issued(jti=number), sign("alice"))
                [fetch] = fetches_under_way()
        assert fetch.cancelled()
        assert len(stage.server.fetches) == 2

    async def test_is_looked_into_once_per_cooldown(self, scene: Scene) -> None:
        scene.set_cooldown(60.0)
        await scene.good(issued())
        scene.server.answer = error
        for minutes, fetches in ((6, 2), (2, 3), (2, 4)):
            scene.advance(minutes=minutes)
            for number in range(5):
                await scene.good(issued(jti=number))
                await scene.unavailable(stray())
            assert len(scene.server.fetches) == fetches

    async def test_is_no_attack_that_a_fresh_key_would_have_to_suffer_for(
        self, scene: Scene
    ) -> None:
        scene.set_cooldown(0.0)
        await scene.good(issued())
        scene.server.answer = error
        for _ in range(3):
            await scene.unavailable(stray())
        scene.server.answer = publish
        scene.set_cooldown(0.3)
        scene.advance(minutes=6)
        await scene.good(issued())
        await scene.looked()
        scene.server.keys.append(FRESH.jwk())
        await scene.good(issued(FRESH))
        assert len(scene.server.fetches) == 6


# --- What else may be in a set ----------------------------------------------------------------

# Every encoding of Ed25519's points of small order: five values of y, two of them beyond p, too.
_P = 2**255 - 19
_Y = 0x5FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
SMALL_ORDER: Final = [
    (y | sign << 255).to_bytes(32, "little")
    for y in (0, 1, _Y, _P - _Y, _P - 1, _P, _P + 1)
    for sign in (0, 1)
]

type Forgery = tuple[dict[str, object], str]


def signed_by_nobody(point: bytes) -> Forgery:
    """A key of small order, and a token with one signature for all texts: R is 1 and S is 0.

    It is good for one text in two, four or eight, and for each if the key is 1.
    """
    signature = (1).to_bytes(32, "little") + bytes(32)
    public = ed25519.Ed25519PublicKey.from_public_bytes(point)
    jwk: dict[str, object] = {"kty": "OKP", "crv": "Ed25519", "kid": point.hex(), "x": part(point)}
    for number in range(1000):
        payload = claims(jti=number, iss=ORIGIN, aud=ORIGIN)
        token = signed_by(lambda _: signature, {"alg": "EdDSA", "kid": point.hex()}, payload)
        with suppress(InvalidSignature):
            public.verify(signature, token.rpartition(".")[0].encode())
            return jwk, token
    raise AssertionError


# Members that make a sound key none of ours.
ODD: Final[dict[str, tuple[Any, ...]]] = {
    "use": ("enc", 5, ["sig"]),
    "alg": ("ES256", "none", ["EdDSA"], 5, "EDDSA"),
    "kty": (ABSENT, None, "EC", "AKP", ["OKP"], "okp"),
    "crv": (ABSENT, "Ed25520", "X25519", ["Ed25519"]),
    "kid": (ABSENT, None, 9, ["9"], {}),
}
# Keys of a kind that does not count, and what they may be called.
WEAK: Final = {
    "ES384": ("ES384", "ES256", "ES512"),
    "ES256K": ("ES256K", "ES256"),
    "Ed448": ("EdDSA",),
    "RSA-1024": ("RS256", "PS256"),
    "ES512": ("ES256",),
    "ES256": ("ES512", "ES384"),
    "RS256": ("RS512",),
    "PS256": ("PS384",),
}


def odd(by: SigningKey, *, private: bool = False, **members: Any) -> Forgery:
    """A key with these members, and a token that it signs, under its kid as a string."""
    token = issued(by, header={"kid": f"{members.get('kid', by.kid)}"})
    return by.jwk(private=private, **members), token


def weak(kind: str, called: str) -> Forgery:
    """A key of a kind that does not count, and a token that it signs."""
    by = key({"Ed448": "EdDSA", "RSA-1024": "RS256"}.get(kind, kind), 9, kind=kind)
    return by.jwk(alg=called), issued(by, header={"alg": called})


def symmetric(**members: object) -> dict[str, object]:
    return {"kty": "oct", "kid": "symmetric", "k": part(b"k" * 32), **members}


def forgeries() -> Iterator[Forgery]:
    """Entries that do not count, and tokens that they would let in if they did."""
    for name, values in ODD.items():
        for value in values:
            yield odd(key("EdDSA", 9), **{name: value})
    for algorithm in ("EdDSA", "ES256", "RS256"):
        yield odd(key(algorithm, 9), private=True)
    for called in ("ES256", "EdDSA", "HS256", "none", "RSA-OAEP"):
        yield odd(key("RS256", 9), alg=called)
    for kind, many in WEAK.items():
        for called in many:
            yield weak(kind, called)
    for called in ("HS256", "EdDSA", "RS256"):
        header = {"alg": called, "kid": called}
        yield symmetric(alg=called, kid=called), issued(secret=b"k" * 32, header=header)
    header = {"alg": "HS256", "kid": "symmetric"}
    yield symmetric(), issued(secret=b"k" * 32, header=header)
    yield from map(signed_by_nobody, SMALL_ORDER)


def rubbish() -> Iterator[object]:
    """What nobody could sign for: entries, members that spoil a sound key, and sound keys."""
    yield from (None, True, 5, float("nan"), "EdDSA", "", [], {}, [key("EdDSA", 9).jwk()])
    yield from ({"kid": "rubbish", "kty": kty} for kty in ("", "RSA", "oct"))
    spoilt: list[tuple[str, str, tuple[Any, ...]]] = [
        ("EdDSA", "x", (ABSENT, None, 5, ["A"], "", "AQAB", "A" * 44, "!" * 43, "A")),
        ("EdDSA", "x", ("é" * 43, "\ud800" * 43)),
        ("ES256", "y", (ABSENT, "A" * 43)),  # A point that is not on its curve.
        ("RS256", "n", (ABSENT, "", 3233)),
        ("RS256", "e", (ABSENT, "AQ", "Ag")),
    ]
    for algorithm, name, values in spoilt:
        for value in values:
            yield key(algorithm).jwk(kid="rubbish", **{name: value})
    yield {"kid": "rubbish", "kty": "OKP", "crv": json.loads("[" * 5_000 + "]" * 5_000)}
    yield {name: {} for name in ("kty", "crv", "alg", "kid", "use", "x", "y", "n", "e", "d", "k")}
    yield symmetric(k=5)
    # The good key's kid.
    yield key("RS256", 9, kind="RSA-1024").jwk(kid=KNOWN.kid)
    yield symmetric(alg="HS256", kid=KNOWN.kid)
    yield KNOWN.jwk()
    yield key("ES256").jwk()


class TestKeySet:
    async def test_never_lets_a_key_count_that_is_none_of_ours(self, scene: Scene) -> None:
        scene.set_cooldown(0.0)
        pairs = list(forgeries())
        entries = [entry for entry, _ in pairs]
        scene.server.keys = [*entries, KNOWN.jwk(), *entries]
        await scene.good(issued())
        assert [entry for entry, token in pairs if await scene.verdict(token) == GOOD] == []
        await scene.invalid(*(token for _, token in pairs))

    async def test_is_good_for_its_good_key_whatever_stands_beside(self, scene: Scene) -> None:
        scene.server.keys = [*rubbish(), KNOWN.jwk(), *rubbish()]
        await scene.good(issued())
        await scene.invalid(issued(header={"kid": "rubbish"}))

    @pytest.mark.parametrize(
        ("algorithm", "members"),
        [
            # As another issuer, or a later Better Auth, may write a good key.
            ("EdDSA", {"use": "sig"}),
            *((algorithm, {"alg": ABSENT}) for algorithm in ("EdDSA", "ES256", "ES512", "RS256")),
            ("RS256", {"key_ops": ["verify"], "x5u": "http://127.0.0.1:9/", "x5t": "AAAA"}),
            ("EdDSA", {"createdAt": "2026-01-02", "expiresAt": None}),
        ],
    )
    async def test_may_spell_a_good_key_otherwise(
        self, scene: Scene, algorithm: str, members: dict[str, Any]
    ) -> None:
        scene.server.keys = [key(algorithm).jwk(**members)]
        await scene.good(issued(key(algorithm)))
        await scene.invalid(issued(key(algorithm, 2)))

    async def test_of_two_keys_under_one_kid_trusts_one_at_most(self, scene: Scene) -> None:
        scene.server.keys = [KNOWN.jwk(), key("ES256").jwk(kid=KNOWN.kid)]
        tokens = (issued(), issued(key("ES256"), header={"kid": KNOWN.kid}))
        verdicts = [await scene.verdict(token) for token in tokens]
        assert verdicts.count(GOOD) == 1

    async def test_may_be_up_to_64_kib_large_and_come_in_pieces(self, scene: Scene) -> None:
        scene.set_cooldown(0.0)
        scene.server.answer = saying(lambda good: http(good.ljust(64 * 1024 + 1)))
        await scene.unavailable(issued())

        async def dribble(server: KeyServer, _reader: Reader, writer: Writer) -> None:
            whole = in_chunks(server.key_set.ljust(64 * 1024))
            for start in range(0, len(whole), 1000):
                writer.write(whole[start : start + 1000])
                await writer.drain()
                await asyncio.sleep(0)

        scene.server.answer = dribble
        await scene.good(issued())

    async def test_that_is_out_of_reach_costs_no_second_check_of_a_signature(
        self, scene: Scene
    ) -> None:
        checked: list[object] = []
        verify = OKPAlgorithm.verify

        def note(algorithm: OKPAlgorithm, text: bytes, key: Any, signature: bytes) -> bool:
            checked.append(text)
            return verify(algorithm, text, key, signature)

        scene.patch.setattr(OKPAlgorithm, "verify", note)
        token = issued()
        await scene.good(token)
        await scene.server.stop()
        scene.advance(minutes=50)
        await scene.good(token)
        assert len(checked) == 1
