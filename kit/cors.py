# [Task]: T007 [From]: specs/requirements.md
"""CORS: which origins may call the service, and which headers scripts may send and read."""

from collections.abc import Mapping

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from settings import get_settings

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "X-Request-ID",
    # Headers of tracing in browsers and of caching.
    "traceparent",
    "tracestate",
    "baggage",
    "sentry-trace",
    "Cache-Control",
    "Pragma",
)
RESPONSE_HEADERS = (
    "Allow",
    "ETag",
    "Idempotency-Replayed",
    "Link",
    "Location",
    "Retry-After",
    "WWW-Authenticate",
    "X-Next-Cursor",
    "X-Request-ID",
)

type RawHeaders = list[tuple[bytes, bytes]]

_VARY: RawHeaders = [(b"vary", b"Origin")]
_ALLOWED: RawHeaders = [
    *_VARY,
    (b"access-control-allow-credentials", b"true"),
    (b"access-control-expose-headers", ", ".join(RESPONSE_HEADERS).encode()),
]


def cors_headers(origin: bytes | None) -> RawHeaders:
    """The CORS headers of a response to a request with this `Origin`.

    The settings are read only if there is an origin.
    """
    if origin is None or not _is_allowed(origin.decode("latin-1")):
        return _VARY
    return [*_ALLOWED, (b"access-control-allow-origin", origin)]


def _is_allowed(origin: str) -> bool:
    return origin.lower() in get_settings().allowed_origins


def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether the request is a CORS preflight."""
    return (
        method == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers
    )


_REQUESTED = "access-control-request-headers"


class _Preflights(CORSMiddleware):
    """Starlette's answers to preflights, with the settings' origins and errors in JSON."""

    def is_allowed_origin(self, origin: str) -> bool:
        return _is_allowed(origin)

    def preflight_response(self, request_headers: Headers) -> Response:
        if not request_headers.get(_REQUESTED):  # Starlette would look for a header without a name.
            named = [(name, value) for name, value in request_headers.items() if name != _REQUESTED]
            request_headers = Headers(dict(named))
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        headers = {
            name: value
            for name, value in response.headers.items()
            if name not in ("content-length", "content-type")
        }
        # Developers read this in the browser's tools; it is JSON like all errors.
        return JSONResponse({"detail": bytes(response.body).decode()}, 400, headers)


# Answers preflights only.
answer_preflight = _Preflights(
    Response(status_code=404),
    allow_credentials=True,
    allow_methods=METHODS,
    allow_headers=REQUEST_HEADERS,
)
