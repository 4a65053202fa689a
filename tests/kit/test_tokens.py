# [Task]: T017 [From]: specs/requirements.md
"""What a good token is, how long it is remembered, and what is logged of the others."""

import json
import logging
import string
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import count
from typing import Any

import httpx
import pytest
from databases import on_one_database
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
    verdict,
)
from support import SECRET, sign

from kit.tokens import TokenVerifier, open_verifier
from settings import get_settings

OTHER = "a secret of nobody's, which is of 32 bytes at least"
BASE64URL = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"

SHAPE = "not three base64url parts"
SIGNATURE = "signature does not match"

type Patch = pytest.MonkeyPatch
type Make = Callable[[], str]


@pytest.fixture
async def verifier() -> AsyncIterator[TokenVerifier]:
    async with open_verifier(get_settings()) as verifier:
        yield verifier


# --- Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changing", [True, False])
async def test_of_two_secrets_are_accepted_while_they_change(
    changing: bool, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks")
    new = SECRET[::-1]
    monkeypatch.setenv("BETTER_AUTH_SECRET", new)
    if changing:
        monkeypatch.setenv("BETTER_AUTH_SECRET_PREVIOUS", SECRET)
    async with open_verifier(get_settings()) as verifier:
        for secret, good in ((new, True), (SECRET, changing), (OTHER, False)):
            said = await verdict(verifier, sign("alice", secret=secret))
            assert said == (GOOD if good else SIGNATURE)
    assert ("BETTER_AUTH_SECRET_PREVIOUS" in caplog.text) == changing
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("variable", "members", "said"),
    [
        # What follows from the URL alone is for published keys only.
        ("BETTER_AUTH_URL=https://a.example", {"iss": "b", "aud": "c"}, GOOD),
        ("BETTER_AUTH_ISSUER=a, b", {"iss": "b", "aud": "c"}, GOOD),
        ("BETTER_AUTH_ISSUER=a, b", {}, GOOD),
        ("BETTER_AUTH_ISSUER=a, b", {"iss": "c"}, "iss is of another issuer or audience"),
        ("BETTER_AUTH_AUDIENCE=a,b", {"iss": "c", "aud": "b"}, GOOD),
        ("BETTER_AUTH_AUDIENCE=a,b", {"aud": ["c", "b"]}, GOOD),
        ("BETTER_AUTH_AUDIENCE=a,b", {"aud": ["c", {}]}, "aud is of another issuer or audience"),
    ],
)
async def test_of_a_shared_secret_name_whom_the_settings_name(
    variable: str, members: dict[str, Any], said: str, monkeypatch: Patch
) -> None:
    monkeypatch.setenv(*variable.split("=", 1))
    async with open_verifier(get_settings()) as verifier:
        assert await verdict(verifier, sign("alice", **members)) == said


# --- The matrix -------------------------------------------------------------------------------


def claimed(name: str, *values: object) -> list[Make]:
    """A token for each of these values of one claim."""
    return [partial(lambda one: token(payload=claims(**{name: one})), value) for value in values]


def headed(name: str, *values: object, secret: str = SECRET) -> list[Make]:
    """The same of a member of the header."""
    return [
        partial(lambda one: token(header(**{name: one}), secret=secret), value) for value in values
    ]


def raw_headers(*values: bytes) -> list[Make]:
    return [partial(token, value) for value in values]


def raw_payloads(*values: bytes) -> list[Make]:
    return [partial(token, None, value) for value in values]


def in_standard_alphabet() -> str:
    """A good token whose signature has both `-` and `_`, with `+` and `/` for them."""
    tokens = (token(payload=claims(jti=number)) for number in count())
    good = next(one for one in tokens if {"-", "_"} <= set(one.rpartition(".")[2]))
    return good.replace("-", "+").replace("_", "/")


def with_part_of_another(index: int) -> str:
    parts = sign("alice").split(".")
    parts[index] = token(header(kid="x"), claims(sub="bob")).split(".")[index]
    return ".".join(parts)


# By what is said of them. Each has one flaw and is signed with the secret, unless that is its flaw.
TOKENS: dict[str, list[Make]] = {
    GOOD: [
        *claimed("exp", 4102444800.5, FromNow(3600), FromNow(-5)),
        *claimed("iat", ABSENT, FromNow(30), FromNow(-31_536_000), 1.5),
        *claimed("nbf", FromNow(0), FromNow(30)),
        # Of characters beyond the BMP, with spaces and punctuation, not Latin.
        *claimed("sub", "a" * 255, "𝄞" * 255, "auth0|1 2'3@b.co", "日本"),
        *claimed("aud", "https://a.co"),
        *headed("typ", ABSENT, "JWT", "jwt", "at+jwt"),
        # Members that name keys are never followed.
        *headed("jku", "http://127.0.0.1:9/jwks.json"),
        *headed("x5u", "http://127.0.0.1:9/key.pem"),
        *headed("jwk", {"kty": "oct", "k": part(b"k" * 32)}),
        *headed("kid", "../../dev/null"),
        *headed("cty", "x"),
        # Of a member given twice the last one counts (RFC 7515 §4).
        *raw_headers(b'{"alg":"none","alg":"HS256"}'),
    ],
    EXPIRED: claimed("exp", FromNow(-11), FromNow(-3600), 0, 1.5),
    "no exp": claimed("exp", ABSENT),
    "exp is not a time": [
        *claimed("exp", "4102444800", True, None, [4102444800], -1, 4102444800000, 10**30, 1e300),
        *claimed("exp", *map(float, ("nan", "inf", "-inf"))),
        *raw_payloads(b'{"sub":"alice","exp":1e999}'),
    ],
    "iat is in the future": claimed("iat", FromNow(33)),
    "iat is not a time": claimed("iat", "1", True, None, float("nan"), {}),
    "nbf is in the future": claimed("nbf", FromNow(33)),
    "nbf is not a time": claimed("nbf", "1", False, None, 1e300),
    # Among them what else Better Auth signs with the secret, for a session or an e-mail.
    "sub is not a string of 1 to 255 characters": claimed(
        "sub", ABSENT, 7, True, None, "", ["alice"], {"id": "alice"}, "a" * 256, "𝄞" * 256
    ),
    "sub holds control characters": claimed(
        "sub", "ali\0ce", "a\n", "a\x7fe", "a\x85e", "a\ud800e"
    ),
    "typ is of another kind of token": headed(
        "typ", "better-auth.session-cache+jwt", "JWE", "", 1, None, ["JWT"]
    ),
    "crit or b64 in the header": [
        *headed("crit", ["urn:x"], ["exp"], [], None, "b64", ["b64"]),
        *headed("b64", False, True),
    ],
    "kid is not a string": headed("kid", 7),
    "alg is not accepted": [
        *headed("alg", "hs256", "HS256 ", ABSENT, None, "", ["HS256"], 256, "none", "None", "nOnE"),
        *headed("alg", "HS384", "HS512", "RS256", "PS256", "ES256", "EdDSA", "dir"),
        *raw_headers(b'{"alg":"HS256","alg":"none"}'),
    ],
    "header is not JSON": raw_headers(b"\0", b'{"alg":"HS256","kid":"\xff"}', b'{"a":' * 750),
    "header is not a JSON object": raw_headers(
        *(b'"HS256"', b'["alg","HS256"]', b"null", b"256", b"[" * 2500 + b"]" * 2500)
    ),
    "header is not base64url": [lambda: f"A.{sign('alice').partition('.')[2]}"],
    "payload is not JSON": raw_payloads(
        b"sub=alice&exp=4102444800",
        b'{"sub":"alice","exp":4102444800',
        b'{"sub":"alice","exp":4102444800} x',
        b'{"sub":"alice\xff","exp":4102444800}',
        b'{"sub":"alice\xed\xa0\x80","exp":4102444800}',  # A surrogate.
        b'{"sub":"alice","exp":' + b"9" * 5000 + b"}",
    ),
    "payload is not a JSON object": raw_payloads(
        *(b'["alice"]', b'"alice"', b"4102444800", b"null", b"[" * 2500 + b"]" * 2500)
    ),
    SIGNATURE: [
        *(
            partial(sign, "alice", secret=secret)
            for secret in (OTHER, SECRET[:-1], SECRET[:32], f"{SECRET}\n", SECRET.upper())
        ),
        partial(sign, "alice", secret=OTHER, exp=1),
        *headed("kid", "../../dev/null", secret=""),
        *headed("jwk", {"kty": "oct", "k": part(b"k" * 32)}, secret="k" * 32),
        *(partial(token, digest=digest) for digest in ("sha512", "sha1")),
        *(partial(with_part_of_another, index) for index in range(3)),
    ],
    "signature can't be checked": [lambda: f"{sign('alice')}AA"],
    SHAPE: [
        lambda: "x" * 32,  # A session token of Better Auth's.
        lambda: "..",
        lambda: f"{part(header(alg='none'))}.{part(claims())}.",
        lambda: f"{part(header())}.{part(claims())}",
        lambda: f"{part({'alg': 'dir', 'enc': 'A256GCM'})}..{part(b'i' * 12)}.YQ.YQ",
        lambda: f"{sign('alice')}\n",
        lambda: signed(f"{part(b'{"alg":"HS256" }')}==.{part(claims())}"),
        in_standard_alphabet,
    ],
    "longer than 8 KiB": [lambda: "." * 8193],
}

in_any_example = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
HEADER_NAMES = ["alg", "typ", "kid", "crit", "b64", "jwk", "zip", "cty"]
CLAIM_NAMES = ["sub", "exp", "iat", "nbf", "aud", "iss", "jti"]


class TestTokens:
    @pytest.mark.parametrize("said", TOKENS)
    async def test_are_judged_by_what_they_say_and_who_signed_them(
        self, verifier: TokenVerifier, said: str
    ) -> None:
        for make in TOKENS[said]:
            judged = make()
            assert await verdict(verifier, judged) == said, judged

    async def test_may_be_8_kib_long(self, verifier: TokenVerifier) -> None:
        for size, length, said in ((6095, 8192, GOOD), (6096, 8193, "longer than 8 KiB")):
            long = token(b'{"alg":"HS256"}', json.dumps(claims()).encode().ljust(size))
            assert len(long) == length
            assert await verdict(verifier, long) == said

    @in_any_example
    @given(position=st.integers(0, 200), cut=st.integers(0, 200), text=st.text(max_size=3))
    @example(500, 0, "=")
    @example(36, 1, "\uff0e")  # A full-width dot.
    async def test_have_one_spelling(
        self, verifier: TokenVerifier, position: int, cut: int, text: str
    ) -> None:
        good = sign("alice")
        assert await verdict(verifier, good) == GOOD
        respelt = good[:position] + text + good[position + cut :]
        assert (await verdict(verifier, respelt) == GOOD) == (respelt == good)

    async def test_are_signed_to_the_last_bit(self, verifier: TokenVerifier) -> None:
        text, _, signature = sign("alice").rpartition(".")
        for position in range(43):
            # Decoding drops two bits of the last character.
            for other in BASE64URL if position == 42 else BASE64URL[::21]:
                forged = signature[:position] + other + signature[position + 1 :]
                said = await verdict(verifier, f"{text}.{forged}")
                assert (said == GOOD) == (forged == signature)

    @in_any_example
    @given(head=st.none() | st.binary(max_size=60), payload=st.none() | st.binary(max_size=60))
    async def test_are_json(
        self, verifier: TokenVerifier, head: bytes | None, payload: bytes | None
    ) -> None:
        said = await verdict(verifier, token(head, payload))
        assert (said == GOOD) == (head is payload is None)

    @in_any_example
    @given(
        head=st.dictionaries(st.sampled_from(HEADER_NAMES), JSON_VALUES, max_size=3),
        members=st.dictionaries(st.sampled_from(CLAIM_NAMES), JSON_VALUES, max_size=3),
    )
    async def test_of_any_members_are_good_or_refused(
        self, verifier: TokenVerifier, head: dict[str, object], members: dict[str, object]
    ) -> None:
        judged = token(header(**head), claims(**members))
        if await verdict(verifier, judged) == GOOD:
            subject = (await verifier.claims(judged))["sub"]
            assert subject == members.get("sub", "alice")
            assert isinstance(subject, str)


# --- What is remembered -----------------------------------------------------------------------


@pytest.fixture
def signature_checks(monkeypatch: Patch) -> list[bytes]:
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
        self, verifier: TokenVerifier, monkeypatch: Patch
    ) -> None:
        expiry = int(time.time()) + 60
        judged = sign("alice", exp=expiry)
        assert await verdict(verifier, judged) == GOOD
        for now, said in ((expiry + 9.5, GOOD), (expiry + 10.5, EXPIRED)):
            monkeypatch.setattr("kit.tokens.time.time", lambda now=now: now)
            assert await verdict(verifier, judged) == said

    async def test_of_a_token_too_early_is_not_kept(
        self, verifier: TokenVerifier, monkeypatch: Patch
    ) -> None:
        start = int(time.time()) + 300
        judged = sign("alice", nbf=start)
        assert await verdict(verifier, judged) == "nbf is in the future"
        monkeypatch.setattr("kit.tokens.time.time", lambda: start)
        assert await verdict(verifier, judged) == GOOD

    @pytest.mark.parametrize(("exp", "said"), [(4102444800, GOOD), (1, EXPIRED)])
    async def test_saves_a_signature_check_and_is_one_of_a_bounded_number(
        self,
        verifier: TokenVerifier,
        monkeypatch: Patch,
        signature_checks: list[bytes],
        exp: int,
        said: str,
    ) -> None:
        monkeypatch.setattr("kit.tokens.REMEMBERED_TOKENS", 3)
        tokens = [sign("alice", iat=1, exp=exp, jti=f"{number}") for number in range(4)]
        # The first of four makes room for the last; then each for the next.
        for number, checks in ((0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (1, 4), (0, 5), (1, 6)):
            assert await verdict(verifier, tokens[number]) == said
            assert len(signature_checks) == checks

    async def test_is_one_of_a_bounded_number_of_bytes(
        self, verifier: TokenVerifier, monkeypatch: Patch, signature_checks: list[bytes]
    ) -> None:
        monkeypatch.setattr("kit.tokens.REMEMBERED_BYTES", 3 * 8192)
        small = [sign("alice", jti=f"{number}") for number in range(10)]
        large = [token(payload=claims(filler="x" * 5900 + letter)) for letter in "abcd"]
        # All small ones are remembered; the first of the large ones and they have to go.
        for judged, checks in (
            (small * 2, 10),
            (large, 14),
            (large[-1:], 14),
            ([large[0], small[0]], 16),
        ):
            for one in judged:
                assert await verdict(verifier, one) == GOOD
            assert len(signature_checks) == checks


# --- Requests ---------------------------------------------------------------------------------


@on_one_database
class TestRequests:
    async def test_have_nothing_of_their_tokens_in_the_log_but_what_is_wrong(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        for judged, said, logged in (
            (f"Bearer {sign('alice')}", GOOD, "GET"),
            (f"Bearer {sign('alice', secret=OTHER)}", INVALID, f"401 {INVALID}: {SIGNATURE}"),
            (f"Bearer {sign('alice', exp=1)}", EXPIRED, f"401 {EXPIRED}: exp is past"),
            ("Basic YWxpY2U6c2VjcmV0", MISSING, f"401 {MISSING}: not a bearer token"),
        ):
            caplog.clear()
            response = await ask(client, judged)
            assert_verdict(response, said)
            assert logged in caplog.text
            for text in (response.text, repr(response.headers.raw), caplog.text):
                for secret in (judged.split(" ")[1], *judged.split(".")[1:], SECRET, "Traceback"):
                    assert secret not in text

    @in_any_example
    @given(
        value=st.binary(max_size=200).map(lambda raw: raw.translate(None, b"\r\n\0")),
        scheme=st.sampled_from([b"", b"Bearer "]),
    )
    @example(b"\xff\xfe", b"Bearer ")
    @example(b"\x0b\x0c\x85\xa0", b"Bearer ")
    async def test_may_have_anything_in_the_header(
        self, client: httpx.AsyncClient, scheme: bytes, value: bytes
    ) -> None:
        response = await ask(client, scheme + value)
        assert_verdict(response, INVALID if INVALID in response.text else MISSING)
