# [Task]: T008 [From]: specs/requirements.md
"""May this request act for this user? What a valid token is, and whose path it opens.

`verify_user_access` guards every task endpoint; nothing else reads a token.
"""

import re
import time
from typing import Any

import jwt
from fastapi import FastAPI, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from jwt.types import Options

from errors import AccessDenied, ExpiredToken, InvalidToken, MissingToken
from schemas import CONTROLS, USER_ID_LENGTH, decode_user_id
from settings import get_settings

MAX_TOKEN_BYTES = 8 * 1024
# Seconds: clocks of issuer and service differ.
AHEAD_LEEWAY = 30
EXPIRY_LEEWAY = 10
# The end of the year 9999; a later time is no time.
LAST_SECOND = 253_402_300_799
REMEMBERED_TOKENS = 4096

# PyJWT checks the signature; the claims are checked here, more strictly than it would.
_SIGNATURE_ONLY: Options = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TYPES = {"jwt", "at+jwt"}


class TokenVerifier:
    """Judges tokens signed HS256 with the secret shared with the frontend.

    A good token is remembered, its age checked at each use, so that a session's requests cost one
    signature check in all.
    """

    def __init__(self, secret: str) -> None:
        self._key = secret.encode()
        self._verified: dict[str, tuple[str, float]] = {}

    def subject(self, token: str) -> str:
        """The `sub` of a valid token. Raises InvalidToken or ExpiredToken."""
        verified = self._verified.get(token)
        if verified is None:
            verified = self._judge(token)
            if len(self._verified) >= REMEMBERED_TOKENS:
                del self._verified[next(iter(self._verified))]
            self._verified[token] = verified
        subject, expiry = verified
        if time.time() >= expiry + EXPIRY_LEEWAY:
            raise ExpiredToken("exp is past")
        return subject

    def _judge(self, token: str) -> tuple[str, float]:
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken("longer than 8 KiB")
        if not _SHAPE.fullmatch(token):
            raise InvalidToken("not three base64url parts")
        try:
            _check_header(jwt.get_unverified_header(token))
            decoded = jwt.decode_complete(
                token, self._key, algorithms=["HS256"], options=_SIGNATURE_ONLY
            )
        except jwt.PyJWTError as error:
            raise InvalidToken(type(error).__name__) from None
        # The last character of a signature has bits that decoding drops: only one spelling counts.
        if not token.endswith("." + jwt.utils.base64url_encode(decoded["signature"]).decode()):
            raise InvalidToken("signature is not spelt canonically")
        return _check_claims(decoded["payload"])


def _check_header(header: dict[str, Any]) -> None:
    if header.get("alg") != "HS256":
        raise InvalidToken("alg is not accepted")
    if "typ" in header and str(header["typ"]).lower() not in _TYPES:
        raise InvalidToken("typ is of another kind of token")
    # Extensions that must be understood (RFC 7515 §4.1.11), unencoded payloads (RFC 7797).
    if "crit" in header or "b64" in header:
        raise InvalidToken("crit or b64 in the header")


def _check_claims(claims: dict[str, Any]) -> tuple[str, float]:
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
    return subject, claims["exp"]


class VerifyUserAccess(SecurityBase):
    """The dependency of every task endpoint: a valid bearer token whose `sub` is the path's user.

    Returns the user's id. Raises MissingToken, InvalidToken, ExpiredToken or AccessDenied. It reads
    the path by itself, so that the token is judged before any input is.
    """

    def __init__(self) -> None:
        self.model = HTTPBearer(bearerFormat="JWT", description="A JWT of the frontend's")
        self.scheme_name = "bearer"

    async def __call__(self, request: Request) -> str:
        subject = _verifier(request.app).subject(_bearer_token(request))
        if subject != decode_user_id(request.path_params["user_id"]):
            raise AccessDenied("sub is not the user of the path")
        return subject


verify_user_access = VerifyUserAccess()


def _verifier(app: FastAPI) -> TokenVerifier:
    verifier: TokenVerifier | None = getattr(app.state, "token_verifier", None)
    if verifier is None:  # The lifespan has not run, as in a test of the bare app.
        verifier = TokenVerifier(get_settings().better_auth_secret.get_secret_value())
    return verifier


def _bearer_token(request: Request) -> str:
    values: list[bytes] = [
        value for name, value in request.scope["headers"] if name == b"authorization"
    ]
    if len(values) != 1:
        raise MissingToken(f"{len(values)} Authorization headers")
    scheme, _, token = values[0].decode("latin-1").partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not token:
        raise MissingToken("not a bearer token")
    return token
