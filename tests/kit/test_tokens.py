# [Task]: T017 [From]: specs/requirements.md
"""What a good token is, how long it is remembered, and what is logged of the others."""

import asyncio
import base64
import logging
import string
import time
from collections.abc import AsyncIterator, Callable
from functools import cache, partial
from typing import Any

import httpx
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jwt.algorithms import HMACAlgorithm
from made_tokens import (
    ABSENT,
    EXPIRED,
    GOOD,
    INVALID,
    MISSING,
    FromNow,
    ask,
    assert_verdict,
    claims,
    header,
    part,
    signed,
    token,
)
from support import SECRET, assert_error, sign

from kit.errors import InvalidToken
from kit.tokens import open_verifier
from main import app
from settings import get_settings

NEW = "the secret of today, which is of 32 bytes at least"
OTHER = "a secret of nobody's, which is of 32 bytes at least"


@pytest.mark.parametrize("changing", [True, False])
async def test_of_two_secrets_are_accepted_while_they_change(
    changing: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks")
    monkeypatch.setenv("BETTER_AUTH_SECRET", NEW)
    if changing:
        monkeypatch.setenv("BETTER_AUTH_SECRET_PREVIOUS", SECRET)
    async with open_verifier(get_settings()) as verifier:
        assert ("BETTER_AUTH_SECRET_PREVIOUS" in caplog.text) == changing
        for secret in (NEW, SECRET, OTHER):
            signed = sign("alice", secret=secret)
            if secret == NEW or (secret == SECRET and changing):
                assert (await verifier.claims(signed))["sub"] == "alice"
            else:
                with pytest.raises(InvalidToken, match="signature does not match"):
                    await verifier.claims(signed)
    assert SECRET not in caplog.text


ISSUER = "BETTER_AUTH_ISSUER"
AUDIENCE = "BETTER_AUTH_AUDIENCE"


@pytest.mark.parametrize(
    ("variables", "members", "good"),
    [
        # What follows from the URL alone is for published keys only.
        ({"BETTER_AUTH_URL": "https://a.example"}, {"iss": "b", "aud": "c"}, True),
        ({ISSUER: "a, b"}, {"iss": "b", "aud": "c"}, True),
        ({ISSUER: "a, b"}, {}, True),
        ({ISSUER: "a, b"}, {"iss": "c"}, False),
        ({AUDIENCE: "a,b"}, {"iss": "c", "aud": "b"}, True),
        ({AUDIENCE: "a,b"}, {"aud": ["c", "b"]}, True),
        ({AUDIENCE: "a,b"}, {"aud": ["c", {}]}, False),
    ],
)
async def test_of_a_shared_secret_name_whom_the_settings_name(
    variables: dict[str, str], members: dict[str, Any], good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with open_verifier(get_settings()) as verifier:
        if good:
            assert (await verifier.claims(sign("alice", **members)))["sub"] == "alice"
        else:
            with pytest.raises(InvalidToken, match="of another issuer or audience"):
                await verifier.claims(sign("alice", **members))


BASE64URL = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"

type OwnKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def token_of(size: int) -> str:
    """A good token of exactly so many characters."""
    for kid in ("", "k", "ki"):
        spare = (size - len(token(header(kid=kid), claims(filler="")))) * 3 // 4
        for length in range(spare - 3, spare + 3):
            candidate = token(header(kid=kid), claims(filler="x" * length))
            if len(candidate) == size:
                return candidate
    raise AssertionError(f"no token of {size} characters")


@cache
def own_key(algorithm: str) -> OwnKey:
    match algorithm:
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return rsa.generate_private_key(65537, 2048)


def signed_with_own_key(algorithm: str, **headers: object) -> str:
    return jwt.encode(claims(), own_key(algorithm), algorithm=algorithm, headers=headers)


def unsigned(alg: str) -> str:
    return f"{part(header(alg=alg))}.{part(claims())}."


def public_jwk() -> dict[str, object]:
    public = own_key("EdDSA").public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "x": part(public)}


def with_public_key_as_secret(encoding: Encoding, alg: str) -> str:
    public = own_key("RS256").public_key()
    secret = public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    return token(header(alg=alg), secret=secret)


def padded(good: str) -> str:
    """The good token with a byte more in its header, which needs padding then, and is signed so."""
    text = part(decoded(good.split(".")[0]) + b" ")
    return signed(f"{text}{'=' * (-len(text) % 4)}.{good.split('.')[1]}")


def in_standard_alphabet(good: str) -> str:
    """The good token, or a sibling whose signature has both, with `+` and `/` for `-` and `_`."""
    number = 0
    while not {"-", "_"} <= set(good.rpartition(".")[2]):
        number += 1
        good = token(payload=claims(jti=number))
    text, _, signature = good.rpartition(".")
    return f"{text}.{signature.replace('-', '+').replace('_', '/')}"


def loose_spellings(signature: str) -> list[str]:
    """The three that decode to the same 32 bytes, for two bits of the last character are unused."""
    last = BASE64URL.index(signature[-1])
    return [signature[:-1] + BASE64URL[other] for other in range(last + 1, last + 4)]


def with_loose_bits(good: str) -> str:
    return with_part(good, 2, loose_spellings(good.split(".")[2])[0])


def with_part(good: str, index: int, replacement: str) -> str:
    parts = good.split(".")
    parts[index] = replacement
    return ".".join(parts)


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def sqlite_client(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[httpx.AsyncClient]:
    """One client for a whole class, of a database that nothing is stored in."""
    folder = tmp_path_factory.mktemp("auth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("ALLOWED_ORIGINS", "BETTER_AUTH_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("DATABASE_URL", f"sqlite:///{folder}/tasks.db")
        patch.setenv("BETTER_AUTH_SECRET", SECRET)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
        ):
            yield client


# --- The matrix -------------------------------------------------------------------------------

# A claim, and values of it that a good token may or may not have.
CLAIMS: list[tuple[str, str, list[object]]] = [
    ("exp", INVALID, [ABSENT, "4102444800", True, None, [4102444800], -1, 10**30, 4102444800000]),
    ("exp", INVALID, [1e300, *map(float, ("nan", "inf", "-inf"))]),
    ("exp", GOOD, [4102444800.5, FromNow(3600), FromNow(-5)]),
    ("exp", EXPIRED, [FromNow(-11), FromNow(-3600), 0, 1.5]),
    ("iat", GOOD, [ABSENT, FromNow(30), FromNow(-31_536_000), 1.5]),
    ("iat", INVALID, [FromNow(33), "1", True, None, float("nan"), {}]),
    ("nbf", GOOD, [FromNow(0), FromNow(30)]),
    ("nbf", INVALID, [FromNow(33), "1", False, None, 1e300]),
    ("sub", INVALID, [ABSENT, 7, True, None, "", ["alice"], {"id": "alice"}]),
]
# What else Better Auth signs with the secret: its session cookie cache, e-mail verification,
# change of e-mail; and a whole user of its own.
BETTER_AUTHS: list[tuple[dict[str, object], str]] = [
    ({"session": {"userId": "alice"}, "user": {"id": "alice"}, "version": "1"}, INVALID),
    ({"email": "alice@b.co"}, INVALID),
    (
        {"email": "a@b.co", "updateTo": "a@c.co", "requestType": "change-email-verification"},
        INVALID,
    ),
    ({"sub": "alice", "id": "alice", "iss": "https://a.co", "aud": "https://a.co"}, GOOD),
]

# Each signed with HMAC-SHA256 and the secret, so that nothing but the header decides.
HEADERS: list[tuple[dict[str, Any], str]] = [
    *(({"typ": typ}, GOOD) for typ in (ABSENT, "JWT", "jwt", "at+jwt")),
    *(({"typ": typ}, INVALID) for typ in ("better-auth.session-cache+jwt", "JWE", "", 1, None)),
    ({"typ": ["JWT"]}, INVALID),
    ({"crit": ["urn:x"], "urn:x": 1}, INVALID),
    ({"crit": ["exp"], "exp": 1}, INVALID),
    ({"crit": []}, INVALID),
    ({"crit": None}, INVALID),
    ({"crit": "b64"}, INVALID),
    ({"crit": ["b64"], "b64": True}, INVALID),
    ({"crit": ["b64"], "b64": False}, INVALID),
    ({"b64": False}, INVALID),
    ({"jku": "http://127.0.0.1:9/jwks.json"}, GOOD),
    ({"x5u": "http://127.0.0.1:9/key.pem"}, GOOD),
    ({"jwk": {"kty": "oct", "k": part(b"k" * 32)}}, GOOD),
    ({"kid": "../../dev/null"}, GOOD),
    ({"kid": 7}, INVALID),
    ({"cty": "x", "urn:x": [1]}, GOOD),
    *(({"alg": alg}, INVALID) for alg in ("hs256", "HS256 ", ABSENT, None, "", ["HS256"], 256)),
    *(({"alg": alg}, INVALID) for alg in ("none", "None", "NONE", "nOnE", "HS384", "RS256")),
    ({"alg": "EdDSA"}, INVALID),
    ({"alg": "dir", "enc": "A256GCM"}, INVALID),
]

# Of a member given twice the last one counts (RFC 7515 §4).
RAW_HEADERS: list[tuple[bytes, str]] = [
    (b'{"alg":"HS256","alg":"none"}', INVALID),
    (b'{"alg":"none","alg":"HS256"}', GOOD),
    (b'{"alg":"HS256"', INVALID),
    (b'{"alg":"HS256","kid":"\xff"}', INVALID),
    *((raw, INVALID) for raw in (b"\x00\xff\x00", b'"HS256"', b'["alg","HS256"]', b"null", b"256")),
    (b"[" * 2500 + b"]" * 2500, INVALID),
    (b'{"alg":' * 750, INVALID),
]
RAW_PAYLOADS = [
    *(b'["alice"]', b'"alice"', b"4102444800", b"null", b"true"),
    b"sub=alice&exp=4102444800",
    b'{"sub":"alice","exp":4102444800',
    b'{"sub":"alice","exp":4102444800} x',
    b'{"sub":"alice\xff","exp":4102444800}',
    b'{"sub":"alice\xed\xa0\x80","exp":4102444800}',  # A surrogate.
    b'{"sub":"alice","exp":' + b"9" * 5000 + b"}",
    b'{"sub":"alice","exp":1e999}',
    b"[" * 2500 + b"]" * 2500,
    b'{"sub":' * 750,
]

FORGERIES: dict[str, Callable[[], str]] = {
    "alg none and no signature": lambda: unsigned("none"),
    "alg None and no signature": lambda: unsigned("None"),
    "alg none and no dot": lambda: unsigned("none")[:-1],
    "alg HS256 and no signature": lambda: unsigned("HS256"),
    "HS384 with the secret": lambda: token(header(alg="HS384"), digest="sha384"),
    "HS512 with the secret": lambda: token(header(alg="HS512"), digest="sha512"),
    "HS256 over SHA-512": lambda: token(digest="sha512"),
    "HS256 over SHA-1": lambda: token(digest="sha1"),
    "another secret": lambda: sign("alice", secret="another secret, quite as long as ours is"),
    "the secret cut short": lambda: sign("alice", secret=SECRET[:-1]),
    "the secret's first 32 bytes": lambda: sign("alice", secret=SECRET[:32]),
    "the secret and a newline": lambda: sign("alice", secret=SECRET + "\n"),
    "the secret in capitals": lambda: sign("alice", secret=SECRET.upper()),
    "an empty secret": lambda: token(secret=""),
    "another secret and an old exp": lambda: token(
        payload=claims(exp=1), secret="another secret, quite as long as ours is"
    ),
    **{
        algorithm: partial(signed_with_own_key, algorithm, kid="k" * 32)
        for algorithm in ("RS256", "PS256", "ES256", "EdDSA")
    },
    "EdDSA that brings its key": lambda: signed_with_own_key("EdDSA", jwk=public_jwk()),
    "HS256 that brings its key": lambda: token(
        header(jwk={"kty": "oct", "k": part(b"k" * 32)}), secret=b"k" * 32
    ),
    "HS256 with a kid of an empty file": lambda: token(header(kid="../../dev/null"), secret=""),
    "a public key in PEM as the secret": lambda: with_public_key_as_secret(Encoding.PEM, "HS256"),
    "a public key in DER as the secret": lambda: with_public_key_as_secret(Encoding.DER, "HS256"),
    "a public key as the secret, said to be RS256": lambda: with_public_key_as_secret(
        Encoding.PEM, "RS256"
    ),
    "JWE": lambda: (
        f"{part({'alg': 'dir', 'enc': 'A256GCM'})}..{part(b'i' * 12)}.YQ.{part(b't' * 16)}"
    ),
    "JWE with an encrypted key": lambda: ".".join(
        [part({"alg": "A256KW", "enc": "A256GCM"}), part(b"k" * 40), part(b"i" * 12), "YQ", "YQ"]
    ),
    "a session token of Better Auth's": lambda: "x" * 32,
}

# Good but for their size, where they are tokens at all.
OVERSIZED: dict[str, Callable[[], str]] = {
    "8,193 bytes": lambda: token_of(8193),
    "10 MB": lambda: token(payload=claims(filler="x" * 7_500_000)),
    "10 MB of letters": lambda: "x" * 10_000_000,
    "10 MB of dots": lambda: "." * 10_000_000,
}

# Of a good token, whose verdict is remembered by then.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "one part": lambda good: good.replace(".", ""),
    "two parts": lambda good: good.rpartition(".")[0],
    "no header": lambda good: with_part(good, 0, ""),
    "no payload": lambda good: with_part(good, 1, ""),
    "no signature": lambda good: with_part(good, 2, ""),
    "only dots": lambda _: "..",
    "four parts": lambda good: f"{good}.YQ",
    "a dot at the end": lambda good: f"{good}.",
    "a dot at the start": lambda good: f".{good}",
    "five parts": lambda good: f"{good}.YQ.YQ",
    "padding": lambda good: f"{good}=",
    "padding in the header": lambda good: good.replace(".", "==.", 1),
    "padding that is signed": padded,
    "a space within": lambda good: good.replace(".", ". ", 1),
    "a tab at the end": lambda good: f"{good}\t",
    "a second word": lambda good: f"{good} x",
    "a comma and a second token": lambda good: f"{good}, Bearer {good}",
    "in quotes": lambda good: f'"{good}"',
    "not ASCII": lambda good: f"{good}é",
    "a full-width dot": lambda good: good.replace(".", "\uff0e", 1),
    "a full-width letter": lambda good: good.replace("e", "\uff45", 1),
    "percent-encoded": lambda good: good.replace(".", "%2E"),
    "the standard alphabet": in_standard_alphabet,
    "the signature in capitals": lambda good: with_part(good, 2, good.split(".")[2].upper()),
    "the signature cut short": lambda good: good[:-1],
    "the signature made longer": lambda good: f"{good}A",
    "the signature twice": lambda good: good + good.split(".")[2],
    "the signature of another token": lambda good: with_part(good, 2, sign("bob").split(".")[2]),
    "the claims of another token": lambda good: with_part(good, 1, sign("bob").split(".")[1]),
    "another header": lambda good: with_part(good, 0, part(header(kid="x"))),
    "the whole token in base64url": lambda good: part(good.encode()),
}


def spelt(value: object) -> str:
    return f"{value!a:.60}".replace(repr(ABSENT), "absent")


def claimed(**members: object) -> Callable[[], str]:
    return lambda: token(payload=claims(**members))


def headed(**members: object) -> Callable[[], str]:
    return lambda: token(header(**members))


TOKENS: list[tuple[str, Callable[[], str], str]] = [
    *(
        (f"{name} {spelt(value)}", claimed(**{name: value}), verdict)
        for name, verdict, values in CLAIMS
        for value in values
    ),
    *((str([*more]), claimed(**{"sub": ABSENT, **more}), said) for more, said in BETTER_AUTHS),
    *((" ".join(map(spelt, more.items())), headed(**more), said) for more, said in HEADERS),
    *((f"header {raw!r:.60}", partial(token, raw), verdict) for raw, verdict in RAW_HEADERS),
    *((f"payload {raw!r:.60}", partial(token, None, raw), INVALID) for raw in RAW_PAYLOADS),
    *((name, make, INVALID) for name, make in (FORGERIES | OVERSIZED).items()),
]


@pytest.mark.asyncio(loop_scope="class")
class TestTokens:
    @pytest.mark.parametrize(
        ("make", "verdict"), [row[1:] for row in TOKENS], ids=[row[0] for row in TOKENS]
    )
    async def test_are_judged_by_what_they_say_and_who_signed_them(
        self, sqlite_client: httpx.AsyncClient, make: Callable[[], str], verdict: str
    ) -> None:
        assert_verdict(await ask(sqlite_client, f"Bearer {make()}"), verdict)

    async def test_are_of_any_subject_that_can_be_a_user(
        self, sqlite_client: httpx.AsyncClient
    ) -> None:
        # Of characters beyond the BMP, with spaces and punctuation, not Latin.
        for sub in ("a" * 255, "𝄞" * 255, "auth0|1 2'3@b.co", "日本"):
            assert_verdict(await ask(sqlite_client, f"Bearer {sign(sub)}", user=sub), GOOD)
        for sub in ("a" * 256, "𝄞" * 256, "ali\0ce", "a\n", "a\x7fe", "a\x85e", "a\ud800e"):
            judged = token(payload=claims(sub=sub))
            assert_verdict(await ask(sqlite_client, f"Bearer {judged}", user=sub), INVALID)

    @pytest.mark.parametrize("respell", SPELLINGS.values(), ids=SPELLINGS)
    async def test_have_one_spelling(
        self, sqlite_client: httpx.AsyncClient, respell: Callable[[str], str]
    ) -> None:
        good = sign("alice")
        assert_verdict(await ask(sqlite_client, f"Bearer {good}"), GOOD)
        assert_verdict(await ask(sqlite_client, f"Bearer {respell(good)}"), INVALID)

    async def test_are_signed_to_the_last_bit(self, sqlite_client: httpx.AsyncClient) -> None:
        text, _, signature = sign("alice").rpartition(".")
        assert_verdict(await ask(sqlite_client, f"Bearer {text}.{signature}"), GOOD)
        others = loose_spellings(signature)
        assert {decoded(other) for other in others} == {decoded(signature)}
        for position, character in enumerate(signature):
            # Half an alphabet away: no bit pattern that decoding would drop.
            other = BASE64URL[(BASE64URL.index(character) + 32) % 64]
            others.append(signature[:position] + other + signature[position + 1 :])
        for other in others:
            assert_verdict(await ask(sqlite_client, f"Bearer {text}.{other}"), INVALID)
        assert_verdict(await ask(sqlite_client, f"Bearer {text}.{signature}"), GOOD)

    async def test_may_be_8_kib_long(self, sqlite_client: httpx.AsyncClient) -> None:
        assert_verdict(await ask(sqlite_client, f"Bearer {token_of(8192)}"), GOOD)

    async def test_never_make_the_service_fetch_a_key(
        self, sqlite_client: httpx.AsyncClient
    ) -> None:
        visitors: asyncio.Queue[int] = asyncio.Queue()

        async def note(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            visitors.put_nowait(writer.get_extra_info("peername")[1])
            writer.close()

        async with await asyncio.start_server(note, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            url = f"http://127.0.0.1:{port}/jwks.json"
            judged = token(header(jku=url, x5u=url, kid=url))
            assert_verdict(await ask(sqlite_client, f"Bearer {judged}"), GOOD)
            forged = signed_with_own_key("EdDSA", jku=url, x5u=url, kid=url)
            assert_verdict(await ask(sqlite_client, f"Bearer {forged}"), INVALID)
            # Visitors come in order, so any other one would be seen before this one.
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await visitors.get() == writer.get_extra_info("sockname")[1]
            writer.close()
            await writer.wait_closed()


@pytest.fixture
def signature_checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the library has been asked to check since, which it still does."""
    checked: list[bytes] = []
    verify = HMACAlgorithm.verify

    def note(algorithm: HMACAlgorithm, text: bytes, key: bytes, signature: bytes) -> bool:
        checked.append(text)
        return verify(algorithm, text, key, signature)

    monkeypatch.setattr(HMACAlgorithm, "verify", note)
    return checked


class TestRememberedVerdict:
    async def test_lasts_until_the_token_expires(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expiry = int(time.time()) + 60
        authorization = f"Bearer {sign('alice', exp=expiry)}"
        assert_verdict(await ask(client, authorization), GOOD)
        monkeypatch.setattr("kit.tokens.time.time", lambda: expiry + 9.5)
        assert_verdict(await ask(client, authorization), GOOD)
        monkeypatch.setattr("kit.tokens.time.time", lambda: expiry + 10.5)
        assert_verdict(await ask(client, authorization), EXPIRED)

    async def test_of_a_token_too_early_is_not_kept(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start = int(time.time()) + 300
        authorization = f"Bearer {sign('alice', nbf=start)}"
        assert_verdict(await ask(client, authorization), INVALID)
        monkeypatch.setattr("kit.tokens.time.time", lambda: start)
        assert_verdict(await ask(client, authorization), GOOD)

    async def test_opens_no_other_user_s_path(self, client: httpx.AsyncClient) -> None:
        authorization = f"Bearer {sign('alice')}"
        assert_verdict(await ask(client, authorization), GOOD)
        assert_error(await ask(client, authorization, user="bob"), 403, "Access denied")
        assert_verdict(await ask(client, authorization), GOOD)

    async def test_saves_a_signature_check(
        self, client: httpx.AsyncClient, signature_checks: list[bytes]
    ) -> None:
        authorization = f"Bearer {sign('alice')}"
        for _ in range(3):
            assert_verdict(await ask(client, authorization), GOOD)
        assert len(signature_checks) == 1

    @pytest.mark.parametrize(("exp", "verdict"), [(4102444800, GOOD), (1, EXPIRED)])
    async def test_is_one_of_a_bounded_number(
        self,
        client: httpx.AsyncClient,
        monkeypatch: pytest.MonkeyPatch,
        signature_checks: list[bytes],
        exp: int,
        verdict: str,
    ) -> None:
        monkeypatch.setattr("kit.tokens.REMEMBERED_TOKENS", 3)
        for _ in range(2):
            for number in range(10):
                authorization = f"Bearer {sign('alice', iat=1, exp=exp, jti=str(number))}"
                assert_verdict(await ask(client, authorization), verdict)
        # When a token comes round again, it has been forgotten for those that came between.
        assert len(signature_checks) == 20
        assert len(set(signature_checks)) == 10

    async def test_is_one_of_a_bounded_number_of_bytes(
        self,
        client: httpx.AsyncClient,
        monkeypatch: pytest.MonkeyPatch,
        signature_checks: list[bytes],
    ) -> None:
        monkeypatch.setattr("kit.tokens.REMEMBERED_BYTES", 3 * 8192)
        small = [f"Bearer {sign('alice', jti=str(number))}" for number in range(10)]
        for authorization in small * 2:
            assert_verdict(await ask(client, authorization), GOOD)
        assert len(signature_checks) == 10  # All of them are remembered.
        large = [f"Bearer {token(payload=claims(filler='x' * 5900 + n))}" for n in "abcd"]
        for authorization in large:
            assert_verdict(await ask(client, authorization), GOOD)
        assert len(signature_checks) == 14
        assert_verdict(await ask(client, large[-1]), GOOD)
        assert len(signature_checks) == 14
        for authorization in (large[0], small[0]):  # Both had to go.
            assert_verdict(await ask(client, authorization), GOOD)
        assert len(signature_checks) == 16


# --- What is not said -------------------------------------------------------------------------

# A token, and the word by which an operator knows what was wrong with it.
LOGGED: dict[str, tuple[Callable[[], str], str]] = {
    "another secret": (lambda: token(secret="another secret, quite as long"), "signature"),
    "the signature's loose bits": (lambda: with_loose_bits(token()), "signature"),
    "alg none": (headed(alg="none"), "alg"),
    "RS256": (lambda: signed_with_own_key("RS256"), "alg"),
    "typ": (headed(typ="better-auth.session-cache+jwt"), "typ"),
    "crit": (headed(crit=["urn:x"]), "crit"),
    "b64": (headed(b64=False), "b64"),
    "a header that is not JSON": (lambda: token(b"alg=HS256&"), "header"),
    "claims that are not JSON": (lambda: token(payload=b"sub=alice"), "payload"),
    "four parts": (lambda: f"{token()}.YQ", "parts"),
    "too long": (lambda: token_of(8193), "8 KiB"),
    "no exp": (claimed(exp=ABSENT), "exp"),
    "exp a string": (claimed(exp="4102444800"), "exp"),
    "iat ahead": (claimed(iat=FromNow(60)), "iat"),
    "nbf ahead": (claimed(nbf=FromNow(60)), "nbf"),
    "no sub": (claimed(sub=ABSENT), "sub"),
    "sub with a control": (claimed(sub="ali\x1bce"), "sub"),
    "expired": (claimed(exp=1), "exp"),
}
LIBRARY_WORDS = [
    *(name for name in vars(jwt.exceptions) if name.endswith("Error")),
    *("PyJWT", "jwt.", "Traceback", "hmac", "verification failed", "segments", "padding"),
    "Expecting value",
]


@pytest.mark.asyncio(loop_scope="class")
class TestLog:
    @pytest.mark.parametrize(("make", "word"), LOGGED.values(), ids=LOGGED)
    async def test_says_which_check_failed_and_nothing_of_the_token_the_secret_or_the_library(
        self,
        sqlite_client: httpx.AsyncClient,
        caplog: pytest.LogCaptureFixture,
        make: Callable[[], str],
        word: str,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        judged = make()
        response = await ask(sqlite_client, f"Bearer {judged}")
        [line] = [r.getMessage() for r in caplog.records if r.name == "tasks.errors"]
        verdict, _, reason = line.partition(": ")
        assert verdict == f"401 {response.json()['detail']}"
        assert word.lower() in reason.lower()
        for said in (response.text, repr(response.headers.raw), caplog.text):
            assert not [text for text in (judged, *judged.split(".")) if text in said]
            assert SECRET not in said
            assert not [word for word in LIBRARY_WORDS if word.lower() in said.lower()]

    async def test_says_that_no_bearer_token_was_sent(
        self, sqlite_client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        basic = "YWxpY2U6c2VjcmV0"
        assert_verdict(await ask(sqlite_client, f"Basic {basic}"), MISSING)
        assert "401 Missing authorization token: not a bearer token" in caplog.text
        assert basic not in caplog.text

    async def test_never_shows_a_good_token(
        self, sqlite_client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        good = sign("alice")
        assert_verdict(await ask(sqlite_client, f"Bearer {good}"), GOOD)
        assert "GET" in caplog.text
        assert good not in caplog.text
        assert SECRET not in caplog.text


# --- Anything at all --------------------------------------------------------------------------

RAW_VALUES = st.binary(max_size=200).map(lambda raw: raw.translate(None, b"\r\n\0"))
SEGMENTS = st.text(BASE64URL, max_size=60)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
HEADER_NAMES = ["alg", "typ", "kid", "crit", "b64", "jwk", "zip", "cty"]
CLAIM_NAMES = ["exp", "iat", "nbf", "aud", "iss", "jti"]

in_any_example = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.asyncio(loop_scope="class")
class TestAnything:
    @in_any_example
    @given(value=RAW_VALUES | RAW_VALUES.map(b"Bearer ".__add__))
    @example(b"Bearer \xff\xfe")
    @example(b"Bearer ..")
    @example(b"Bearer \x0b\x0c\x85\xa0")
    async def test_in_the_header_is_refused(
        self, sqlite_client: httpx.AsyncClient, value: bytes
    ) -> None:
        response = await ask(sqlite_client, value)
        assert response.status_code == 401
        verdict = response.json()["detail"]
        assert verdict in (MISSING, INVALID)
        assert_verdict(response, verdict)

    @in_any_example
    @given(parts=st.lists(SEGMENTS, min_size=3, max_size=3))
    async def test_shaped_like_a_token_is_refused(
        self, sqlite_client: httpx.AsyncClient, parts: list[str]
    ) -> None:
        assert_verdict(await ask(sqlite_client, f"Bearer {'.'.join(parts)}"), INVALID)

    @in_any_example
    @given(head=st.binary(max_size=60), payload=st.binary(max_size=60))
    async def test_signed_with_the_secret_is_refused_unless_it_is_json(
        self, sqlite_client: httpx.AsyncClient, head: bytes, payload: bytes
    ) -> None:
        for judged in (
            token(b"\xff" + head, b"\xff" + payload),
            token(None, b"\xff" + payload),
            token(b"\xff" + head, None),
        ):
            assert_verdict(await ask(sqlite_client, f"Bearer {judged}"), INVALID)

    @in_any_example
    @given(
        head=st.dictionaries(st.sampled_from(HEADER_NAMES), JSON_VALUES, max_size=3),
        members=st.dictionaries(st.sampled_from(CLAIM_NAMES), JSON_VALUES, max_size=3),
        sub=JSON_VALUES,
    )
    async def test_signed_with_the_secret_opens_no_other_user_s_path(
        self,
        sqlite_client: httpx.AsyncClient,
        head: dict[str, object],
        members: dict[str, object],
        sub: object,
    ) -> None:
        subject = None if sub == "alice" else sub
        judged = token(header(**head), claims(**members, sub=subject))
        response = await ask(sqlite_client, f"Bearer {judged}")
        if response.status_code == 403:
            assert_error(response, 403, "Access denied")
        else:
            assert_verdict(response, EXPIRED if EXPIRED in response.text else INVALID)
