# [Task]: T008 [From]: specs/requirements.md
"""What a valid token is, and whose it is. Whose path it opens is decided in middleware/auth.py."""

import json
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, NoReturn

import jwt
from jwt.utils import base64url_decode

from kit.errors import ExpiredToken, InvalidToken
from kit.keys import ALGORITHMS, KeySet
from kit.paths import CONTROLS, USER_ID_LENGTH
from settings import Settings

logger = logging.getLogger("tasks.tokens")

MAX_TOKEN_BYTES = 8 * 1024
# Seconds: clocks of issuer and service differ.
AHEAD_LEEWAY = 30
EXPIRY_LEEWAY = 10
# The end of the year 9999; a later time is no time.
LAST_SECOND = 253_402_300_799
# Of these only so many are remembered, and so many bytes of them: the oldest goes first.
REMEMBERED_TOKENS = 4096
REMEMBERED_BYTES = 4 * 1024 * 1024

# Signatures only: the claims are checked here, more strictly than PyJWT would.
_JWS = jwt.PyJWS()
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TYPES = {"jwt", "at+jwt"}


# What a valid token says, read-only to its depths: JSON's arrays are tuples in it.
type Claims = Mapping[str, Any]


class _ReadOnlyDict(dict[str, Any]):
    """A dict, so that it can be compared and serialised; its copies are ordinary dicts."""

    def _refuse(self, *_arguments: object, **_options: object) -> NoReturn:
        raise TypeError("claims are read-only: requests with the same token share them")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class _Verdict(NamedTuple):
    # Shared by all requests with the token.
    claims: Claims
    expiry: float
    # The published key that it rests on; None for a shared secret, which never changes.
    key: jwt.PyJWK | None


class _Expected(NamedTuple):
    """Who may have issued a token, and for whom."""

    issuers: tuple[str, ...]
    audiences: tuple[str, ...]

    def check(self, claims: dict[str, Any], *, only_if_there: bool = False) -> None:
        """Raises InvalidToken. Only what is there counts for tokens that need have neither."""
        for name, accepted in (("iss", self.issuers), ("aud", self.audiences)):
            if only_if_there and not (name in claims and accepted):
                continue
            value = claims.get(name)
            values = value if name == "aud" and isinstance(value, list) else [value]
            if not any(one in accepted for one in values):
                raise InvalidToken(f"{name} is of another issuer or audience")


class TokenVerifier:
    """Judges tokens by the policy of the settings.

    HS256 only ever meets the shared secrets; the algorithms of keys.ALGORITHMS only ever meet a
    published key with the token's `kid`, and then `iss` and `aud` count too (RFC 8725 §3.1, §3.8).
    A good token is remembered, and its age and key looked at again with each use.
    """

    def __init__(self, settings: Settings, key_set: KeySet | None) -> None:
        self._secrets = settings.secrets
        self._key_set = key_set
        # Of tokens with published keys.
        self._expected = _Expected(settings.issuers, settings.audiences)
        # Of HS256 tokens: only what is set outright, since their signers use names of their own.
        self._named = _Expected(settings.named_issuers, settings.named_audiences)
        self._verdicts: dict[str, _Verdict] = {}
        self._bytes = 0

    async def claims(self, token: str) -> Claims:
        """The claims of a valid token.

        Raises InvalidToken, ExpiredToken, or KeysUnavailable when no verdict can be reached.
        """
        verdict = self._verdicts.get(token)
        if verdict is None or not await self._still_holds(verdict):
            verdict = await self._judge(token)
            self._remember(token, verdict)
        if time.time() >= verdict.expiry + EXPIRY_LEEWAY:
            raise ExpiredToken("exp is past")
        return verdict.claims

    def _remember(self, token: str, verdict: _Verdict) -> None:
        self._forget(token)
        self._verdicts[token] = verdict
        self._bytes += len(token)
        while len(self._verdicts) > REMEMBERED_TOKENS or self._bytes > REMEMBERED_BYTES:
            self._forget(next(iter(self._verdicts)))

    def _forget(self, token: str) -> None:
        if self._verdicts.pop(token, None) is not None:
            self._bytes -= len(token)

    async def _still_holds(self, verdict: _Verdict) -> bool:
        if verdict.key is None or self._key_set is None:
            return True
        key = await self._key_set.key(str(verdict.key.key_id), verdict.key.algorithm_name)
        return key is verdict.key

    async def _judge(self, token: str) -> _Verdict:
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken("longer than 8 KiB")
        if not _SHAPE.fullmatch(token):
            raise InvalidToken("not three base64url parts")
        header = _header(token)
        keys = await self._keys(header)
        key, payload = _signed_payload(token, keys, header["alg"])
        claims = _json_object(payload, "payload")
        expiry = _check_claims(claims)
        try:
            read_only: Claims = _read_only(claims)
        except RecursionError:
            raise InvalidToken("claims are nested too deeply") from None
        published = key if isinstance(key, jwt.PyJWK) else None
        if published is None:
            self._named.check(claims, only_if_there=True)
        else:
            self._expected.check(claims)
        return _Verdict(read_only, expiry, published)

    async def _keys(self, header: dict[str, Any]) -> Sequence[bytes | jwt.PyJWK]:
        match header.get("alg"):
            case "HS256" if self._secrets:
                return self._secrets
            case str(algorithm) if algorithm in ALGORITHMS and self._key_set is not None:
                if "kid" not in header:
                    raise InvalidToken("no kid")
                return [await self._key_set.key(header["kid"], algorithm)]
            case _:
                raise InvalidToken("alg is not accepted")


def _signed_payload(
    token: str, keys: Sequence[bytes | jwt.PyJWK], algorithm: str
) -> tuple[bytes | jwt.PyJWK, bytes]:
    """The first of the keys that the token is signed with, and what it says."""
    for key in keys:
        try:
            # One algorithm, which _keys has found to be one for these keys.
            return key, _JWS.decode_complete(token, key, [algorithm])["payload"]
        except jwt.InvalidSignatureError:
            continue
        except jwt.PyJWTError:
            raise InvalidToken("signature can't be checked") from None
    raise InvalidToken("signature does not match")


def _json_object(text: bytes, part: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise InvalidToken(f"{part} is not JSON") from None
    if not isinstance(value, dict):
        raise InvalidToken(f"{part} is not a JSON object")
    return value


def _header(token: str) -> dict[str, Any]:
    try:
        text = base64url_decode(token.partition(".")[0])
    except ValueError:
        raise InvalidToken("header is not base64url") from None
    header = _json_object(text, "header")
    if "typ" in header and str(header["typ"]).lower() not in _TYPES:
        raise InvalidToken("typ is of another kind of token")
    # Extensions that must be understood (RFC 7515 §4.1.11), unencoded payloads (RFC 7797).
    if "crit" in header or "b64" in header:
        raise InvalidToken("crit or b64 in the header")
    if not isinstance(header.get("kid", ""), str):
        raise InvalidToken("kid is not a string")
    return header


def _check_claims(claims: dict[str, Any]) -> float:
    """The time at which they expire."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 1 <= len(subject) <= USER_ID_LENGTH:
        raise InvalidToken(f"sub is not a string of 1 to {USER_ID_LENGTH} characters")
    if CONTROLS.search(subject):
        raise InvalidToken("sub holds control characters")
    if "exp" not in claims:
        raise InvalidToken("no exp")
    for name in ("exp", "iat", "nbf"):
        value = claims.get(name, 0)
        # The exact type, since True is an int; the range, since NaN and 1e300 are floats.
        if type(value) not in (int, float) or not 0 <= value <= LAST_SECOND:
            raise InvalidToken(f"{name} is not a time")
        if name != "exp" and value > time.time() + AHEAD_LEEWAY:
            raise InvalidToken(f"{name} is in the future")
    expiry: float = claims["exp"]
    return expiry


def _read_only(value: Any) -> Any:
    if isinstance(value, dict):
        return _ReadOnlyDict({name: _read_only(part) for name, part in value.items()})
    return tuple(map(_read_only, value)) if isinstance(value, list) else value


@asynccontextmanager
async def open_verifier(settings: Settings) -> AsyncIterator[TokenVerifier]:
    """The verifier for as long as the service runs, with the key set if one is asked for."""
    if settings.better_auth_secret_previous is not None:
        logger.info(
            "tokens of BETTER_AUTH_SECRET_PREVIOUS are accepted: remove it when the last of them "
            "has expired"
        )
    async with AsyncExitStack() as stack:
        key_set = None
        if settings.jwks_url is not None:
            key_set = KeySet(settings.jwks_url)
            stack.push_async_callback(key_set.close)
        yield TokenVerifier(settings, key_set)
