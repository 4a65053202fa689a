# [Task]: T008 [From]: specs/requirements.md
"""May this request act for this user? `verify_user_access` guards every task endpoint.

Nothing else reads a token. What a valid one is, is told in kit/tokens.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi import FastAPI, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

from kit.access_log import USER
from kit.errors import AccessDenied, MissingToken, ServiceError
from kit.paths import decode_user_id
from kit.tokens import TokenVerifier
from settings import get_settings


class VerifyUserAccess(SecurityBase):
    """The dependency of every task endpoint: a valid bearer token whose `sub` is the path's user.

    Returns the user's id. Raises MissingToken, InvalidToken, ExpiredToken or AccessDenied. It reads
    the path by itself, so that the token is judged before any input is.
    """

    def __init__(self) -> None:
        self.model = HTTPBearer(bearerFormat="JWT", description="A JWT of the frontend's")
        self.scheme_name = "bearer"
        self._tell: Callable[[ServiceError | None], None] | None = None

    async def __call__(self, request: Request) -> str:
        try:
            subject = await _verifier(request.app).subject(_bearer_token(request))
            request.scope[USER] = subject
            if subject != decode_user_id(request.path_params["user_id"]):
                raise AccessDenied("sub is not the user of the path")
        except ServiceError as error:
            if self._tell is not None:
                self._tell(error)
            raise
        if self._tell is not None:
            self._tell(None)
        return subject

    @contextmanager
    def told_to(self, tell: Callable[[ServiceError | None], None]) -> Iterator[None]:
        """Inside, each verdict is told: what is raised, or None."""
        self._tell = tell
        try:
            yield
        finally:
            self._tell = None


verify_user_access = VerifyUserAccess()


def _verifier(app: FastAPI) -> TokenVerifier:
    verifier: TokenVerifier | None = getattr(app.state, "token_verifier", None)
    if verifier is None:  # The lifespan has not run, as in a test of the bare app: HS256 only.
        verifier = TokenVerifier(get_settings(), None)
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
