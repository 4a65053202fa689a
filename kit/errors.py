# [Task]: T003 [From]: specs/requirements.md
"""The errors that any endpoint can raise, and the handlers of all errors.

    ServiceError
    ├── BodyLost              400
    ├── MissingToken          401
    ├── InvalidToken          401
    │   └── ExpiredToken      401
    ├── AccessDenied          403
    ├── BodyTimeout           408
    ├── BodyTooLarge          413
    ├── UnsupportedMediaType  415
    └── Unavailable           503
        ├── DatabaseUnavailable
        │   └── StatementTimeout
        ├── TooManyLongAnswers
        └── KeysUnavailable

This API's own errors are in ../errors.py. Input that fails validation is FastAPI's
RequestValidationError, 422. Anything else is a bug, 500.
"""

import logging
import re
from collections.abc import Mapping
from itertools import groupby
from types import MappingProxyType
from typing import Any, ClassVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from kit.openapi import Responses, headers

logger = logging.getLogger("tasks.errors")


class ServiceError(HTTPException):
    """The base of all errors. The text it is raised with goes to the log, never to a client.

    It is an HTTPException, so that any FastAPI app with our dependencies answers it correctly.
    """

    status_code: int
    detail: str
    headers: Mapping[str, str] | None = None
    # For the OpenAPI document: the headers that it is always sent with.
    header_names: ClassVar[tuple[str, ...]] = ()
    log_level: ClassVar[int] = logging.INFO

    def __init__(self, reason: str = "") -> None:
        super().__init__(self.status_code, self.detail, self.headers)
        self._reason = reason

    def __str__(self) -> str:
        return self._reason


class BodyLost(ServiceError):
    """The server delivered less of the body than the request's head announced."""

    status_code = 400
    detail = "Request body did not arrive in full"
    # The rest may still arrive. Without this it would be read as the next request.
    headers = MappingProxyType({"Connection": "close"})


def _challenge(description: str) -> Mapping[str, str]:
    challenge = f'Bearer error="invalid_token", error_description="{description}"'
    return MappingProxyType({"WWW-Authenticate": challenge})


class MissingToken(ServiceError):
    """No usable Authorization header. The challenge then has no error code (RFC 6750 §3.1)."""

    status_code = 401
    detail = "Missing authorization token"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})
    header_names = ("WWW-Authenticate",)


class InvalidToken(ServiceError):
    """The token failed a check. The exception's text names it."""

    status_code = 401
    detail = "Invalid token"
    headers = _challenge("Invalid token")
    header_names = ("WWW-Authenticate",)


class ExpiredToken(InvalidToken):
    """The token is valid except that it has expired."""

    detail = "Token has expired"
    headers = _challenge("Token has expired")


class AccessDenied(ServiceError):
    """The token belongs to another user than the path. It does not tell whether that one exists."""

    status_code = 403
    detail = "Access denied"


class BodyTimeout(ServiceError):
    """The body did not arrive within kit.body.BODY_TIMEOUT."""

    status_code = 408
    detail = "Request body did not arrive in time"
    headers = MappingProxyType({"Connection": "close"})


class BodyTooLarge(ServiceError):
    """The body is larger than kit.body.MAX_BODY_BYTES."""

    status_code = 413
    detail = "Request body is too large"


class UnsupportedMediaType(ServiceError):
    """The body is not declared as JSON."""

    status_code = 415
    detail = "Content-Type must be application/json"


class Unavailable(ServiceError):
    """Something that the service needs is down. The same request may succeed later."""

    status_code = 503
    detail = "Service temporarily unavailable"
    headers = MappingProxyType({"Retry-After": "1"})
    header_names = ("Retry-After",)
    # Debug only: the code that raises it logs the outage with logs.Outage.
    log_level = logging.DEBUG


class DatabaseUnavailable(Unavailable):
    """The database can't be reached, has no free connection, or did not answer in time."""


class StatementTimeout(DatabaseUnavailable):
    """One statement failed: by a timeout, lock, conflict or missing index. Others may succeed."""

    log_level = logging.WARNING


class StatementTooSlow(StatementTimeout):
    """A statement was cancelled after DATABASE_STATEMENT_TIMEOUT."""


class TooManyLongAnswers(Unavailable):
    """The process already holds as many bytes of long answers as it may."""


class KeysUnavailable(Unavailable):
    """Better Auth's keys can't be fetched, so the token can't be verified. It may be valid."""


def _example(body: dict[str, Any]) -> dict[str, Any]:
    """The `content` of a response whose schema FastAPI adds."""
    return {"application/json": {"example": body}}


class ErrorBody(BaseModel):
    """What a client gets with every error but 422."""

    detail: str


class InvalidItem(BaseModel):
    """One thing that is wrong with the input: what, where and why. It echoes nothing."""

    type: str
    loc: list[str | int]
    msg: str


class InvalidInput(BaseModel):
    """What a client gets with a 422."""

    detail: list[InvalidItem]


class InternalErrorBody(BaseModel):
    """What a client gets with a 500: a bug, which the log has under `request_id`."""

    detail: str
    request_id: str


# A response that every endpoint may give.
INTERNAL_ERROR: Responses = {
    500: {
        "model": InternalErrorBody,
        "description": "A bug, in the log with the request's id",
        "content": _example(
            {"detail": "Internal Server Error", "request_id": "8f14e45fceea467fa8d20242ac120002"}
        ),
    },
}


def invalid_input(*loc: str, kind: str, message: str) -> Responses:
    """The OpenAPI `responses` of an endpoint with input. The arguments make the example."""
    item = {"type": kind, "loc": loc, "msg": message}
    return {
        422: {
            "model": InvalidInput,
            "description": "Input that is not valid",
            "content": _example({"detail": [item]}),
        }
    }


def error_responses(*errors: type[ServiceError]) -> Responses:
    """The OpenAPI `responses` of an endpoint that may raise these."""
    responses: Responses = {}
    for status, group in groupby(sorted(errors, key=_status), _status):
        same = list(group)
        responses[status] = {
            "model": ErrorBody,
            "description": "; ".join(error.detail for error in same),
            "headers": headers(*(name for error in same for name in error.header_names)),
            "content": {
                "application/json": {
                    "examples": {
                        re.sub(r"\W+", "-", error.detail).lower(): {
                            "value": {"detail": error.detail}
                        }
                        for error in same
                    }
                }
            },
        }
    return responses


def _status(error: type[ServiceError]) -> int:
    return error.status_code


def install_error_handlers(app: FastAPI) -> None:
    """Answer ServiceErrors and the framework's own errors in the same form."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(StarletteHTTPException, _http_error)


async def _service_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)  # noqa: S101  # registered for it
    logger.log(error.log_level, "%s %s: %s", error.status_code, error.detail, error)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for it
    # `input` and `ctx` are left out: they echo the input, and NaN in them is not JSON.
    items = [{"type": e["type"], "loc": e["loc"], "msg": e["msg"]} for e in error.errors()]
    return JSONResponse({"detail": items}, 422)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)  # noqa: S101  # registered for it
    if error.status_code == 405:
        # Starlette names the methods of one route only. RFC 9110 requires all of the path.
        error.headers = {"Allow": ", ".join(sorted(_methods_of_path(request)))}
    return await http_exception_handler(request, error)


def _methods_of_path(request: Request) -> set[str]:
    methods: set[str] = set()
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    for route in iter_route_contexts(request.app.routes):
        if route.methods and route.path_regex.match(path):
            methods |= route.methods
    return methods


def internal_error(request_id: str) -> Response:
    """Log the exception that is being handled, and return the 500."""
    logger.exception("unhandled error")
    return JSONResponse({"detail": "Internal Server Error", "request_id": request_id}, 500)
