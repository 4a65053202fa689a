# [Task]: T008 [From]: specs/requirements.md
"""Authentication and authorization. `verify_user_access` guards every task endpoint.

Nothing else reads tokens. kit/tokens.py decides which tokens are valid. The dependencies also work
in a FastAPI app without this service's lifespan; it then fetches Better Auth's keys per request.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from kit.access_log import USER
from kit.errors import AccessDenied, MissingToken, ServiceError
from kit.paths import decode_user_id
from kit.tokens import Claims, TokenVerifier, open_verifier
from settings import get_settings


class GetCurrentUser(SecurityBase):
    """A dependency that gives the claims of a valid bearer token: `user["sub"]`, `user["email"]`.

    The claims are read-only. It is for paths without `{user_id}`: it does not check whose path it
    is. Raises MissingToken, InvalidToken or ExpiredToken.
    """

    # A class variable, so that telemetry counts the verdicts of both dependencies.
    _observer: ClassVar[Callable[[ServiceError | None], None] | None] = None

    def __init__(self) -> None:
        self.model = HTTPBearer(bearerFormat="JWT", description="A JWT of the frontend's")
        self.scheme_name = "bearer"

    async def __call__(self, request: Request) -> Claims:
        observer = GetCurrentUser._observer
        try:
            claims = await _claims(request)
            request.scope[USER] = claims["sub"]
            self._check(request, claims)
        except ServiceError as error:
            if observer is not None:
                observer(error)
            raise
        if observer is not None:
            observer(None)
        return claims

    def _check(self, request: Request, claims: Claims) -> None:
        """Raise AccessDenied unless the user may use the path."""

    @contextmanager
    def observed_by(self, observer: Callable[[ServiceError | None], None]) -> Iterator[None]:
        """Inside, the observer gets each verdict: the error, or None for a valid token."""
        GetCurrentUser._observer = observer
        try:
            yield
        finally:
            GetCurrentUser._observer = None


class VerifyUserAccess(GetCurrentUser):
    """The same, but the token's `sub` must be the path's `{user_id}`. Raises AccessDenied, too.

    It reads the path itself, so that the token is checked before any input is validated.
    """

    def _check(self, request: Request, claims: Claims) -> None:
        if claims["sub"] != decode_user_id(request.path_params["user_id"]):
            raise AccessDenied("sub is not the user of the path")


get_current_user = GetCurrentUser()
verify_user_access = VerifyUserAccess()

CurrentUser = Annotated[Claims, Depends(get_current_user)]
PathUser = Annotated[Claims, Depends(verify_user_access)]


async def _claims(request: Request) -> Claims:
    token = _bearer_token(request)
    verifier: TokenVerifier | None = getattr(request.app.state, "token_verifier", None)
    if verifier is not None:
        return await verifier.claims(token)
    # Without this service's lifespan there is no cache of verdicts or keys.
    async with open_verifier(get_settings()) as fresh:
        return await fresh.claims(token)


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
