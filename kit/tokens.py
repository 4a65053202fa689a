# [Task]: T008 [From]: specs/requirements.md
"""Decides whether a token is valid. middleware/auth.py decides which paths it may use."""

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
# Seconds, since the clocks of issuer and service differ.
AHEAD_LEEWAY = 30
EXPIRY_LEEWAY = 10
# The end of the year 9999. Later times are refused.
LAST_SECOND = 253_402_300_799
# The most tokens, and bytes of tokens, whose verdicts are cached. The oldest is dropped first.
REMEMBERED_TOKENS = 4096
REMEMBERED_BYTES = 4 * 1024 * 1024

# PyJWT checks signatures only. The claims are checked here, more strictly.
_JWS = jwt.PyJWS()
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TYPES = {"jwt", "at+jwt"}


# The claims of a valid token, deeply read-only. JSON arrays are tuples.
type Claims = Mapping[str, Any]


class _ReadOnlyDict(dict[str, Any]):
    """A read-only dict. It compares and serialises like a dict; its copies are ordinary dicts."""

    def _refuse(self, *_arguments: object, **_options: object) -> NoReturn:
        raise TypeError("claims are read-only: requests with the same token share them")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class _Verdict(NamedTuple):
    # All requests with the token share them.
    claims: Claims
    expiry: float
    # The published key of the signature; None for a shared secret, which never changes.
    key: jwt.PyJWK | None


class _Expected(NamedTuple):
    """The issuers and audiences to accept."""

    issuers: tuple[str, ...]
    audiences: tuple[str, ...]

    def check(self, claims: dict[str, Any], *, only_if_there: bool = False) -> None:
        """Raise InvalidToken unless both match. `only_if_there` skips absent or unset ones."""
        for name, accepted in (("iss", self.issuers), ("aud", self.audiences)):
            if only_if_there and not (name in claims and accepted):
                continue
            value = claims.get(name)
            values = value if name == "aud" and isinstance(value, list) else [value]
            if not any(one in accepted for one in values):
                raise InvalidToken(f"{name} is of another issuer or audience")


class TokenVerifier:
    """Verifies tokens as the settings say.

    HS256 is only used with the shared secrets. The algorithms of keys.ALGORITHMS are only used with
    the published key of the token's `kid`, and then `iss` and `aud` must match (RFC 8725 §3.1,
    §3.8). The verdict on a valid token is cached. Each use checks its expiry and its key again.
    """

    def __init__(self, settings: Settings, key_set: KeySet | None) -> None:
        self._secrets = settings.secrets
        self._key_set = key_set
        # For tokens signed with published keys.
        self._expected = _Expected(settings.issuers, settings.audiences)
        # For HS256 tokens: only explicit settings, since their signers choose their own names.
        self._named = _Expected(settings.named_issuers, settings.named_audiences)
        self._verdicts: dict[str, _Verdict] = {}
        self._bytes = 0

    async def claims(self, token: str) -> Claims:
        """The claims of a valid token.

        Raises InvalidToken, ExpiredToken, or KeysUnavailable if the keys can't be fetched.
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
    """The key that the signature matches, and the payload."""
    for key in keys:
        try:
            # Only the one algorithm that _keys has matched with these keys.
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
    # `crit` names extensions that must be supported (RFC 7515 §4.1.11); `b64` is RFC 7797.
    if "crit" in header or "b64" in header:
        raise InvalidToken("crit or b64 in the header")
    if not isinstance(header.get("kid", ""), str):
        raise InvalidToken("kid is not a string")
    return header


def _check_claims(claims: dict[str, Any]) -> float:
    """Check sub, exp, iat and nbf, and return the time of expiry. Raises InvalidToken."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 1 <= len(subject) <= USER_ID_LENGTH:
        raise InvalidToken(f"sub is not a string of 1 to {USER_ID_LENGTH} characters")
    if CONTROLS.search(subject):
        raise InvalidToken("sub holds control characters")
    if "exp" not in claims:
        raise InvalidToken("no exp")
    for name in ("exp", "iat", "nbf"):
        value = claims.get(name, 0)
        # True is an int, so the exact type is checked. NaN and 1e300 are floats, so the range is.
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
    """The verifier while the service runs, with a key set if the settings name one."""
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
