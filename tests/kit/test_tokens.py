# [Task]: T017 [From]: specs/requirements.md
"""What a good token is, how long it is remembered, and what is logged of the others."""

import asyncio
import base64
import logging
import string
import time
from collections.abc import AsyncIterator, Callable
from functools import cache
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


class TestTwoSecrets:
    @pytest.fixture(autouse=True)
    def changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BETTER_AUTH_SECRET", NEW)
        monkeypatch.setenv("BETTER_AUTH_SECRET_PREVIOUS", SECRET)

    async def test_are_both_accepted_and_no_third(self) -> None:
        async with open_verifier(get_settings()) as verifier:
            for secret in (NEW, SECRET):
                assert (await verifier.claims(sign("alice", secret=secret)))["sub"] == "alice"
            with pytest.raises(InvalidToken, match="signature does not match"):
                await verifier.claims(sign("alice", secret=OTHER))

    async def test_are_one_when_the_change_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET_PREVIOUS")
        async with open_verifier(get_settings()) as verifier:
            assert (await verifier.claims(sign("alice", secret=NEW)))["sub"] == "alice"
            with pytest.raises(InvalidToken):
                await verifier.claims(sign("alice", secret=SECRET))

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
    variables: dict[str, str],
    members: dict[str, Any],
    good: bool,
    monkeypatch: pytest.MonkeyPatch,
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


def public_jwk() -> dict[str, object]:
    public = own_key("EdDSA").public_key()
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": part(public.public_bytes(Encoding.Raw, PublicFormat.Raw)),
    }


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

CLAIMS: dict[str, tuple[dict[str, object], str]] = {
    "exp missing": ({"exp": ABSENT}, INVALID),
    "exp a string": ({"exp": "4102444800"}, INVALID),
    "exp true": ({"exp": True}, INVALID),
    "exp null": ({"exp": None}, INVALID),
    "exp a list": ({"exp": [4102444800]}, INVALID),
    "exp NaN": ({"exp": float("nan")}, INVALID),
    "exp Infinity": ({"exp": float("inf")}, INVALID),
    "exp -Infinity": ({"exp": float("-inf")}, INVALID),
    "exp 1e300": ({"exp": 1e300}, INVALID),
    "exp negative": ({"exp": -1}, INVALID),
    "exp a huge int": ({"exp": 10**30}, INVALID),
    "exp in milliseconds": ({"exp": 4102444800000}, INVALID),
    "exp a float": ({"exp": 4102444800.5}, GOOD),
    "exp an hour ahead": ({"exp": FromNow(3600)}, GOOD),
    "exp 5 s past": ({"exp": FromNow(-5)}, GOOD),
    "exp 11 s past": ({"exp": FromNow(-11)}, EXPIRED),
    "exp an hour past": ({"exp": FromNow(-3600)}, EXPIRED),
    "exp zero": ({"exp": 0}, EXPIRED),
    "exp a past float": ({"exp": 1.5}, EXPIRED),
    "iat missing": ({"iat": ABSENT}, GOOD),
    "iat 30 s ahead": ({"iat": FromNow(30)}, GOOD),
    "iat 33 s ahead": ({"iat": FromNow(33)}, INVALID),
    "iat a year past": ({"iat": FromNow(-31_536_000)}, GOOD),
    "iat a float": ({"iat": 1.5}, GOOD),
    "iat a string": ({"iat": "1"}, INVALID),
    "iat true": ({"iat": True}, INVALID),
    "iat null": ({"iat": None}, INVALID),
    "iat NaN": ({"iat": float("nan")}, INVALID),
    "iat an object": ({"iat": {}}, INVALID),
    "nbf now": ({"nbf": FromNow(0)}, GOOD),
    "nbf 30 s ahead": ({"nbf": FromNow(30)}, GOOD),
    "nbf 33 s ahead": ({"nbf": FromNow(33)}, INVALID),
    "nbf a string": ({"nbf": "1"}, INVALID),
    "nbf false": ({"nbf": False}, INVALID),
    "nbf null": ({"nbf": None}, INVALID),
    "nbf 1e300": ({"nbf": 1e300}, INVALID),
    "sub missing": ({"sub": ABSENT}, INVALID),
    "sub a number": ({"sub": 7}, INVALID),
    "sub true": ({"sub": True}, INVALID),
    "sub null": ({"sub": None}, INVALID),
    "sub empty": ({"sub": ""}, INVALID),
    "sub a list": ({"sub": ["alice"]}, INVALID),
    "sub an object": ({"sub": {"id": "alice"}}, INVALID),
    "sub 255 characters": ({"sub": "a" * 255}, GOOD),
    "sub 256 characters": ({"sub": "a" * 256}, INVALID),
    "sub 255 characters beyond the BMP": ({"sub": "𝄞" * 255}, GOOD),
    "sub 256 characters beyond the BMP": ({"sub": "𝄞" * 256}, INVALID),
    "sub with a space and punctuation": ({"sub": "auth0|1 2'3@b.co"}, GOOD),
    "sub not Latin": ({"sub": "日本"}, GOOD),
    "sub with NUL": ({"sub": "ali\0ce"}, INVALID),
    "sub with a newline": ({"sub": "alice\n"}, INVALID),
    "sub with DEL": ({"sub": "ali\x7fce"}, INVALID),
    "sub with a C1 control": ({"sub": "ali\x85ce"}, INVALID),
    "sub with a lone surrogate": ({"sub": "ali\ud800ce"}, INVALID),
    "Better Auth's session cookie cache": (
        {"sub": ABSENT, "session": {"userId": "alice"}, "user": {"id": "alice"}, "version": "1"},
        INVALID,
    ),
    "Better Auth's e-mail verification": ({"sub": ABSENT, "email": "alice@b.co"}, INVALID),
    "Better Auth's change of e-mail": (
        {
            "sub": ABSENT,
            "email": "alice@b.co",
            "updateTo": "alice@c.co",
            "requestType": "change-email-verification",
        },
        INVALID,
    ),
    "a whole Better Auth user": (
        {"id": "alice", "email": "alice@b.co", "iss": "https://a.co", "aud": "https://a.co"},
        GOOD,
    ),
}

# Each signed with HMAC-SHA256 and the secret, so that nothing but the header decides.
HEADERS: dict[str, tuple[dict[str, object], str]] = {
    "typ absent": ({"typ": ABSENT}, GOOD),
    "typ JWT": ({"typ": "JWT"}, GOOD),
    "typ jwt": ({"typ": "jwt"}, GOOD),
    "typ at+jwt": ({"typ": "at+jwt"}, GOOD),
    "typ of Better Auth's session cache": ({"typ": "better-auth.session-cache+jwt"}, INVALID),
    "typ JWE": ({"typ": "JWE"}, INVALID),
    "typ empty": ({"typ": ""}, INVALID),
    "typ a number": ({"typ": 1}, INVALID),
    "typ null": ({"typ": None}, INVALID),
    "typ a list": ({"typ": ["JWT"]}, INVALID),
    "crit of an unknown extension": ({"crit": ["urn:x"], "urn:x": 1}, INVALID),
    "crit of a known member": ({"crit": ["exp"], "exp": 1}, INVALID),
    "crit empty": ({"crit": []}, INVALID),
    "crit null": ({"crit": None}, INVALID),
    "crit a string": ({"crit": "b64"}, INVALID),
    "crit of b64 true": ({"crit": ["b64"], "b64": True}, INVALID),
    "b64 false": ({"b64": False}, INVALID),
    "b64 false and crit": ({"b64": False, "crit": ["b64"]}, INVALID),
    "jku": ({"jku": "http://127.0.0.1:9/jwks.json"}, GOOD),
    "x5u": ({"x5u": "http://127.0.0.1:9/key.pem"}, GOOD),
    "jwk": ({"jwk": {"kty": "oct", "k": part(b"k" * 32)}}, GOOD),
    "kid": ({"kid": "../../dev/null"}, GOOD),
    "kid a number": ({"kid": 7}, INVALID),
    "an unknown member": ({"cty": "x", "urn:x": [1]}, GOOD),
    "alg hs256": ({"alg": "hs256"}, INVALID),
    "alg with a space": ({"alg": "HS256 "}, INVALID),
    "alg missing": ({"alg": ABSENT}, INVALID),
    "alg null": ({"alg": None}, INVALID),
    "alg empty": ({"alg": ""}, INVALID),
    "alg a list": ({"alg": ["HS256"]}, INVALID),
    "alg a number": ({"alg": 256}, INVALID),
    "alg none": ({"alg": "none"}, INVALID),
    "alg None": ({"alg": "None"}, INVALID),
    "alg NONE": ({"alg": "NONE"}, INVALID),
    "alg nOnE": ({"alg": "nOnE"}, INVALID),
    "alg HS384 over SHA-256": ({"alg": "HS384"}, INVALID),
    "alg RS256 over the secret": ({"alg": "RS256"}, INVALID),
    "alg EdDSA over the secret": ({"alg": "EdDSA"}, INVALID),
    "alg dir": ({"alg": "dir", "enc": "A256GCM"}, INVALID),
}

# Of a member given twice the last one counts (RFC 7515 §4).
RAW_HEADERS: dict[str, tuple[bytes, str]] = {
    "alg HS256 then none": (b'{"alg":"HS256","alg":"none"}', INVALID),
    "alg none then HS256": (b'{"alg":"none","alg":"HS256"}', GOOD),
    "not JSON": (b'{"alg":"HS256"', INVALID),
    "not UTF-8": (b'{"alg":"HS256","kid":"\xff"}', INVALID),
    "binary": (b"\x00\xff\x00", INVALID),
    "a string": (b'"HS256"', INVALID),
    "a list": (b'["alg","HS256"]', INVALID),
    "null": (b"null", INVALID),
    "a number": (b"256", INVALID),
    "nested deep": (b"[" * 2500 + b"]" * 2500, INVALID),
    "nested deep and not closed": (b'{"alg":' * 750, INVALID),
}

RAW_PAYLOADS: dict[str, bytes] = {
    "a list": b'["alice"]',
    "a string": b'"alice"',
    "a number": b"4102444800",
    "null": b"null",
    "true": b"true",
    "not JSON": b"sub=alice&exp=4102444800",
    "cut off": b'{"sub":"alice","exp":4102444800',
    "with something behind it": b'{"sub":"alice","exp":4102444800} x',
    "not UTF-8": b'{"sub":"alice\xff","exp":4102444800}',
    "a surrogate in UTF-8": b'{"sub":"alice\xed\xa0\x80","exp":4102444800}',
    "exp of 5,000 digits": b'{"sub":"alice","exp":' + b"9" * 5000 + b"}",
    "exp beyond a float": b'{"sub":"alice","exp":1e999}',
    "nested deep": b"[" * 2500 + b"]" * 2500,
    "nested deep and not closed": b'{"sub":' * 750,
}

FORGERIES: dict[str, Callable[[], str]] = {
    "alg none and no signature": lambda: f"{part(header(alg='none'))}.{part(claims())}.",
    "alg None and no signature": lambda: f"{part(header(alg='None'))}.{part(claims())}.",
    "alg none and no dot": lambda: f"{part(header(alg='none'))}.{part(claims())}",
    "alg HS256 and no signature": lambda: f"{part(header())}.{part(claims())}.",
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
    "RS256": lambda: signed_with_own_key("RS256"),
    "PS256": lambda: signed_with_own_key("PS256"),
    "ES256": lambda: signed_with_own_key("ES256"),
    "EdDSA": lambda: signed_with_own_key("EdDSA", kid="k" * 32),
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


@pytest.mark.asyncio(loop_scope="class")
class TestTokens:
    @pytest.mark.parametrize(("members", "verdict"), CLAIMS.values(), ids=CLAIMS)
    async def test_are_judged_by_their_claims(
        self, sqlite_client: httpx.AsyncClient, members: dict[str, object], verdict: str
    ) -> None:
        sub = members.get("sub")
        user = sub if isinstance(sub, str) and sub else "alice"
        judged = token(payload=claims(**members))
        assert_verdict(await ask(sqlite_client, f"Bearer {judged}", user=user), verdict)

    @pytest.mark.parametrize(("members", "verdict"), HEADERS.values(), ids=HEADERS)
    async def test_are_judged_by_their_header(
        self, sqlite_client: httpx.AsyncClient, members: dict[str, object], verdict: str
    ) -> None:
        judged = token(header(**members))
        assert_verdict(await ask(sqlite_client, f"Bearer {judged}"), verdict)

    @pytest.mark.parametrize(("raw", "verdict"), RAW_HEADERS.values(), ids=RAW_HEADERS)
    async def test_have_an_object_as_their_header(
        self, sqlite_client: httpx.AsyncClient, raw: bytes, verdict: str
    ) -> None:
        judged = token(raw)
        assert len(judged) <= 8192
        assert_verdict(await ask(sqlite_client, f"Bearer {judged}"), verdict)

    @pytest.mark.parametrize("raw", RAW_PAYLOADS.values(), ids=RAW_PAYLOADS)
    async def test_have_an_object_of_good_claims_as_their_payload(
        self, sqlite_client: httpx.AsyncClient, raw: bytes
    ) -> None:
        judged = token(payload=raw)
        assert len(judged) <= 8192
        assert_verdict(await ask(sqlite_client, f"Bearer {judged}"), INVALID)

    @pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
    async def test_of_anyone_else_are_refused(
        self, sqlite_client: httpx.AsyncClient, forge: Callable[[], str]
    ) -> None:
        assert_verdict(await ask(sqlite_client, f"Bearer {forge()}"), INVALID)

    @pytest.mark.parametrize("respell", SPELLINGS.values(), ids=SPELLINGS)
    async def test_have_one_spelling(
        self, sqlite_client: httpx.AsyncClient, respell: Callable[[str], str]
    ) -> None:
        good = sign("alice")
        assert_verdict(await ask(sqlite_client, f"Bearer {good}"), GOOD)
        assert_verdict(await ask(sqlite_client, f"Bearer {respell(good)}"), INVALID)

    async def test_end_in_a_character_without_loose_bits(
        self, sqlite_client: httpx.AsyncClient
    ) -> None:
        text, _, signature = sign("alice").rpartition(".")
        for respelt in loose_spellings(signature):
            assert decoded(respelt) == decoded(signature)
            assert_verdict(await ask(sqlite_client, f"Bearer {text}.{respelt}"), INVALID)
        assert_verdict(await ask(sqlite_client, f"Bearer {text}.{signature}"), GOOD)

    async def test_are_signed_to_the_last_character(self, sqlite_client: httpx.AsyncClient) -> None:
        text, _, signature = sign("alice").rpartition(".")
        assert_verdict(await ask(sqlite_client, f"Bearer {text}.{signature}"), GOOD)
        for position, character in enumerate(signature):
            # Half an alphabet away: no bit pattern that decoding would drop.
            other = BASE64URL[(BASE64URL.index(character) + 32) % 64]
            changed = signature[:position] + other + signature[position + 1 :]
            assert_verdict(await ask(sqlite_client, f"Bearer {text}.{changed}"), INVALID)

    async def test_may_be_8_kib_long(self, sqlite_client: httpx.AsyncClient) -> None:
        assert_verdict(await ask(sqlite_client, f"Bearer {token_of(8192)}"), GOOD)

    @pytest.mark.parametrize("make", OVERSIZED.values(), ids=OVERSIZED)
    async def test_may_not_be_longer(
        self, sqlite_client: httpx.AsyncClient, make: Callable[[], str]
    ) -> None:
        assert_verdict(await ask(sqlite_client, f"Bearer {make()}"), INVALID)

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
    "alg none": (lambda: token(header(alg="none")), "alg"),
    "RS256": (lambda: signed_with_own_key("RS256"), "alg"),
    "typ": (lambda: token(header(typ="better-auth.session-cache+jwt")), "typ"),
    "crit": (lambda: token(header(crit=["urn:x"])), "crit"),
    "b64": (lambda: token(header(b64=False)), "b64"),
    "a header that is not JSON": (lambda: token(b"alg=HS256&"), "header"),
    "claims that are not JSON": (lambda: token(payload=b"sub=alice"), "payload"),
    "four parts": (lambda: f"{token()}.YQ", "parts"),
    "too long": (lambda: token_of(8193), "8 KiB"),
    "no exp": (lambda: token(payload=claims(exp=ABSENT)), "exp"),
    "exp a string": (lambda: token(payload=claims(exp="4102444800")), "exp"),
    "iat ahead": (lambda: token(payload=claims(iat=FromNow(60))), "iat"),
    "nbf ahead": (lambda: token(payload=claims(nbf=FromNow(60))), "nbf"),
    "no sub": (lambda: token(payload=claims(sub=ABSENT)), "sub"),
    "sub with a control": (lambda: token(payload=claims(sub="ali\x1bce")), "sub"),
    "expired": (lambda: token(payload=claims(exp=1)), "exp"),
}
LIBRARY_WORDS = [
    *(name for name in vars(jwt.exceptions) if name.endswith("Error")),
    "PyJWT",
    "jwt.",
    "Traceback",
    "hmac",
    "verification failed",
    "segments",
    "padding",
    "Expecting value",
]


@pytest.mark.asyncio(loop_scope="class")
class TestLog:
    @pytest.mark.parametrize(("make", "word"), LOGGED.values(), ids=LOGGED)
    async def test_says_which_check_failed(
        self,
        sqlite_client: httpx.AsyncClient,
        caplog: pytest.LogCaptureFixture,
        make: Callable[[], str],
        word: str,
    ) -> None:
        response = await ask(sqlite_client, f"Bearer {make()}")
        [line] = [r.getMessage() for r in caplog.records if r.name == "tasks.errors"]
        verdict, _, reason = line.partition(": ")
        assert verdict == f"401 {response.json()['detail']}"
        assert word.lower() in reason.lower()

    @pytest.mark.parametrize("make", [make for make, _ in LOGGED.values()], ids=LOGGED)
    async def test_says_nothing_of_the_token_the_secret_or_the_library(
        self,
        sqlite_client: httpx.AsyncClient,
        caplog: pytest.LogCaptureFixture,
        make: Callable[[], str],
    ) -> None:
        caplog.set_level(logging.DEBUG)
        judged = make()
        response = await ask(sqlite_client, f"Bearer {judged}")
        assert response.status_code == 401
        assert "401" in caplog.text
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
