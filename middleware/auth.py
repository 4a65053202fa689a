# [Task]: T008 [From]: specs/requirements.md
"""Who sends a request, and may they use its path? `verify_user_access` guards every task endpoint.

Nothing else reads a token. kit/tokens.py says which are valid. Without this service's lifespan the
dependencies work in any FastAPI app; there, each request fetches Better Auth's keys anew.
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

    They are read-only. Raises MissingToken, InvalidToken or ExpiredToken. For paths without a
    `{user_id}`: whose path it is, verify_user_access checks.
    """

    # Shared, so that telemetry counts the verdicts of both dependencies.
    _tell: ClassVar[Callable[[ServiceError | None], None] | None] = None

    def __init__(self) -> None:
        self.model = HTTPBearer(bearerFormat="JWT", description="A JWT of the frontend's")
        self.scheme_name = "bearer"

    async def __call__(self, request: Request) -> Claims:
        tell = GetCurrentUser._tell
        try:
            claims = await _claims(request)
            request.scope[USER] = claims["sub"]
            self._check(request, claims)
        except ServiceError as error:
            if tell is not None:
                tell(error)
            raise
        if tell is not None:
            tell(None)
        return claims

    def _check(self, request: Request, claims: Claims) -> None:
        """Raise AccessDenied unless the user may use the path."""

    @contextmanager
    def observed_by(self, tell: Callable[[ServiceError | None], None]) -> Iterator[None]:
        """Inside, each verdict is told: what is raised, or None."""
        GetCurrentUser._tell = tell
        try:
            yield
        finally:
            GetCurrentUser._tell = None


class VerifyUserAccess(GetCurrentUser):
    """The same, and the token's `sub` must be the `{user_id}` of the path. Raises AccessDenied too.

    It reads the path itself, so that the token is judged before any input is.
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
    # An app that has not run this service's lifespan remembers neither verdicts nor keys.
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
