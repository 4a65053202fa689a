# [Task]: T007 [From]: specs/requirements.md
"""Which browser origins may call the service, and what their scripts may send and read."""

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
    # Those of browsers' tracing and caching.
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
    """The headers of a response to a request with this `Origin`.

    The settings are not read before there is one.
    """
    if origin is None or not _is_allowed(origin.decode("latin-1")):
        return _VARY
    return [*_ALLOWED, (b"access-control-allow-origin", origin)]


def _is_allowed(origin: str) -> bool:
    return origin.lower() in get_settings().allowed_origins


def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser asks if it may send a request."""
    return (
        method == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers
    )


class _Preflights(CORSMiddleware):
    """Starlette's answers, by the settings' origins and in JSON."""

    def is_allowed_origin(self, origin: str) -> bool:
        return _is_allowed(origin)

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        headers = {
            name: value
            for name, value in response.headers.items()
            if name not in ("content-length", "content-type")
        }
        # Errors are JSON here, and a preflight's is read by the developer, not by the script.
        return JSONResponse({"detail": bytes(response.body).decode()}, 400, headers)


# What a browser is told then. Nothing else comes here.
answer_preflight = _Preflights(
    Response(status_code=404),
    allow_credentials=True,
    allow_methods=METHODS,
    allow_headers=REQUEST_HEADERS,
)
