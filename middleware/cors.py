# [Task]: T007 [From]: specs/requirements.md
"""Which browser origins may call the service, and what their scripts may send and read."""

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from settings import get_settings

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "X-Request-ID",
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


class AllowedOrigins(CORSMiddleware):
    """Starlette's CORS for the origins of the settings, not read before they are needed."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            app,
            allow_credentials=True,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
        )

    def is_allowed_origin(self, origin: str) -> bool:
        return origin.lower() in get_settings().allowed_origins

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
