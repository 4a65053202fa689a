# [Task]: T022 [From]: specs/requirements.md
"""The public keys of a Better Auth server, fetched on demand and kept through its outages.

kit/tokens.py decides which tokens may use them.
"""

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import jwt

from kit.errors import InvalidToken, KeysUnavailable
from kit.logs import Outage

if TYPE_CHECKING:
    import httpx  # At run time, the first fetch imports it: without a key set, it is not needed.

logger = logging.getLogger("tasks.keys")

# Better Auth's algorithms, with the `kty` and `crv` of their keys.
ALGORITHMS: dict[str, tuple[str, str | None]] = {
    "EdDSA": ("OKP", "Ed25519"),
    "ES256": ("EC", "P-256"),
    "ES512": ("EC", "P-521"),
    "RS256": ("RSA", None),
    "PS256": ("RSA", None),
}
# The name of the task that fetches the keys.
FETCH = "fetch of the key set"

MIN_RSA_BITS = 2048
# The prime p of Ed25519's field, and `y` of its eight points of small order. Anybody can sign for
# such a key: "Taming the many EdDSAs" (Chalkias, Garillot, Nikolaenko). A key may contain y or
# y + p, with either sign of x.
_P = 2**255 - 19
_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER = frozenset({0, 1, _P - 1, _Y, _P - _Y})
MAX_KEY_SET_BYTES = 64 * 1024

# Seconds.
FETCH_TIMEOUT = 2.0
REFRESH_AFTER = 240.0
USABLE_FOR = 3600.0
COOLDOWN = 2.0

# After so many fetches in a row without the key, an unknown `kid` no longer waits for the next one.
MAX_MISSES = 2


class KeySet:
    """The keys by `kid`. The first use fetches them. A use after four minutes fetches them again in
    the background, so a known key never waits.

    If the server fails or publishes no key, the last good keys stay in use for an hour, so that an
    outage logs nobody out. Better Auth publishes a new key only when it signs the first token with
    it, so an unknown `kid` starts a fetch. All requests that need it share one fetch. After a fetch
    without the key, a cooldown follows. Requests wait for its end, since their key may be newer,
    but not after MAX_MISSES such fetches in a row: then it is likely an attack.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: httpx.AsyncClient | None = None
        self._keys: dict[str, jwt.PyJWK] = {}
        self._good_at = self._looked_at = self._blocked_until = float("-inf")
        self._failing = False
        self._outage = Outage(logger, "the key set of Better Auth can't be fetched")
        self._misses = 0
        self._fetching: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
        if self._client is not None:
            await self._client.aclose()

    async def key(self, kid: str, algorithm: str) -> jwt.PyJWK:
        """The key with this `kid`, which must fit the algorithm.

        Raises InvalidToken if the server has no such key, KeysUnavailable if it does not answer.
        """
        asked = time.monotonic()
        if asked - self._good_at > REFRESH_AFTER:
            self._fetch()  # In the background: a known key is used meanwhile.
        if kid not in self._usable():
            await self._fetch_until_known(kid, asked)
        if self._looked_at >= asked and not self._failing:  # The fetch has found the key.
            self._blocked_until = float("-inf")
            self._misses = 0
        key = self._keys[kid]
        if key.algorithm_name != algorithm:
            raise InvalidToken(f"alg is {algorithm}, the key's is {key.algorithm_name}")
        return key

    def _usable(self) -> dict[str, jwt.PyJWK]:
        return self._keys if time.monotonic() - self._good_at <= USABLE_FOR else {}

    async def _fetch_until_known(self, kid: str, asked: float) -> None:
        while kid not in self._usable():
            if self._looked_at >= asked or (self._failing and self._is_blocked()):
                if self._failing:
                    raise KeysUnavailable("the key set can't be fetched")
                raise InvalidToken("kid is of no published key")
            if self._is_blocked():
                if self._misses >= MAX_MISSES:
                    raise InvalidToken("kid is of no published key, like those before")
                await asyncio.sleep(self._blocked_until - time.monotonic())
            fetching = self._fetch()
            if fetching is not None:
                await asyncio.shield(fetching)

    def _is_blocked(self) -> bool:
        return time.monotonic() < self._blocked_until

    def _fetch(self) -> asyncio.Task[None] | None:
        """The running fetch or a new one; None during a cooldown."""
        if self._fetching is None and not self._is_blocked():
            self._fetching = asyncio.create_task(self._replace_keys(), name=FETCH)
        return self._fetching

    async def _replace_keys(self) -> None:
        try:
            if self._client is None:
                # In a thread: importing httpx and loading its certificates take 0.2 s.
                self._client = await asyncio.to_thread(_new_client)
            keys = _usable_keys(await self._download(self._client))
        except _fetch_errors() as error:
            self._failing = True
            self._outage.begins(f"{self._url}: {type(error).__name__}: {error}")
        else:
            self._failing = False
            self._outage.ends()
            self._misses += 1  # `key` resets it if it finds the key.
            self._keys = keys
            self._good_at = time.monotonic()
        finally:
            self._fetching = None
            self._looked_at = time.monotonic()
            self._blocked_until = self._looked_at + COOLDOWN

    async def _download(self, client: "httpx.AsyncClient") -> bytes:
        body = bytearray()
        # For the whole exchange: httpx restarts its own timeout with every byte that arrives.
        async with asyncio.timeout(FETCH_TIMEOUT):
            # Not compressed, so that the size limit counts all bytes.
            headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
            async with client.stream("GET", self._url, headers=headers) as response:
                if response.status_code != 200:
                    raise ValueError(_refusal(response))
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > MAX_KEY_SET_BYTES:
                        raise ValueError("larger than 64 KiB")
        return bytes(body)


def _refusal(response: "httpx.Response") -> str:
    """The log text for an answer without keys."""
    text = f"status {response.status_code}"
    if "location" in response.headers:
        # Credentials and parameters may be secret, so they are removed.
        parts = urlsplit(response.headers["location"])
        host = parts.netloc.rpartition("@")[2]
        text += f", Location: {urlunsplit((parts.scheme, host, parts.path, '', ''))}"
    if response.status_code == 404:
        text += ": set BETTER_AUTH_JWKS_URL if the keys are elsewhere"
    return text


def _new_client() -> "httpx.AsyncClient":
    import httpx

    return httpx.AsyncClient(timeout=FETCH_TIMEOUT, follow_redirects=False)


def _fetch_errors() -> tuple[type[Exception], ...]:
    import httpx

    return httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RecursionError


def _usable_keys(document: bytes) -> dict[str, jwt.PyJWK]:
    """The public signature keys of a JWK Set (RFC 7517) by `kid`. Other keys are ignored.

    Raises ValueError if there are none.
    """
    parsed = json.loads(document)
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    keys = {}
    for jwk in listed if isinstance(listed, list) else []:
        key = _public_key(jwk)
        if key is not None:
            keys[jwk["kid"]] = key
    if not keys:
        raise ValueError("no usable key in it")
    return keys


def _public_key(jwk: Any) -> jwt.PyJWK | None:
    # A key with a private member is not trusted: everybody who reads the set could sign with it.
    if not isinstance(jwk, dict) or not isinstance(jwk.get("kid"), str) or "d" in jwk:
        return None
    if jwk.get("use", "sig") != "sig":
        return None
    # Checked before PyJWT: the kind must be one of ALGORITHMS, and an `alg` must fit the kind.
    kind = (jwk.get("kty"), jwk.get("crv"))
    fitting = [algorithm for algorithm, key_kind in ALGORITHMS.items() if key_kind == kind]
    if not fitting or jwk.get("alg", fitting[0]) not in fitting:
        return None
    try:
        key = jwt.PyJWK(jwk, jwk.get("alg", fitting[0]))
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    # cryptography itself refuses points off the curve, and RSA exponents that are even or below 3.
    return None if _is_weak(jwk["kty"], key.key) else key


def _is_weak(kty: str, key: Any) -> bool:
    match kty:
        case "RSA":
            return bool(key.key_size < MIN_RSA_BITS)
        case "OKP":
            y = int.from_bytes(key.public_bytes_raw(), "little") % 2**255
            return y % _P in _SMALL_ORDER
    return False
