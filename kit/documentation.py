# [Task]: T063 [From]: specs/decisions.md
"""The interactive documentation at `/docs`, whose script and style come from here, too (D42)."""

from functools import cache
from importlib.metadata import Distribution, distribution

from fastapi.openapi.docs import get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

_SCRIPT, _STYLE, _ICON = ASSETS = "swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"
_OAUTH2_REDIRECT = "/docs/oauth2-redirect"
# A year; another version has other URLs.
_FOR_EVER = "public, max-age=31536000, immutable"


@cache
def _swagger_ui() -> Distribution:
    """The package that has the assets. They are read as files; none of its code is run."""
    return distribution("fastapi-swagger")


async def page(request: Request) -> HTMLResponse:
    """As FastAPI's own, with assets from here."""
    root = request.scope.get("root_path", "").rstrip("/")
    assets = f"{root}/docs/{_swagger_ui().version}"
    return get_swagger_ui_html(
        openapi_url=root + request.app.openapi_url,
        title=f"{request.app.title} - Swagger UI",
        swagger_js_url=f"{assets}/{_SCRIPT}",
        swagger_css_url=f"{assets}/{_STYLE}",
        swagger_favicon_url=f"{assets}/{_ICON}",
        oauth2_redirect_url=root + _OAUTH2_REDIRECT,
    )


async def oauth2_redirect(_request: Request) -> HTMLResponse:
    """Where a sign-in with OAuth 2 would come back to."""
    return get_swagger_ui_oauth2_redirect_html()


async def asset(request: Request) -> FileResponse:
    """A file of this version, which a browser asks for once."""
    name = request.path_params["name"]
    if name not in ASSETS or request.path_params["version"] != _swagger_ui().version:
        raise HTTPException(404)
    # Whole files only: FileResponse answers a malformed Range in plain text.
    request.scope["headers"] = [h for h in request.scope["headers"] if h[0] != b"range"]
    return FileResponse(
        f"{_swagger_ui().locate_file('fastapi_swagger/resources')}/{name}",
        headers={"Cache-Control": _FOR_EVER, "Accept-Ranges": "none"},
    )


routes = [
    Route("/docs", page, include_in_schema=False),
    Route(_OAUTH2_REDIRECT, oauth2_redirect, include_in_schema=False),
    Route("/docs/{version}/{name}", asset, include_in_schema=False),
]
