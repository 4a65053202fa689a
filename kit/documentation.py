# [Task]: T063 [From]: specs/decisions.md
"""The interactive documentation at `/docs`, served without other hosts (D42).

API_DOCS turns it off, and the OpenAPI document, too.
"""

from functools import cache
from importlib.metadata import Distribution, distribution

from fastapi.openapi.docs import get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from settings import get_settings

_SCRIPT, _STYLE, _ICON = ASSETS = "swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"
PAGE, DOCUMENT = "/docs", "/openapi.json"
_OAUTH2_REDIRECT = "/docs/oauth2-redirect"
_HEADERS = {"Content-Security-Policy": "frame-ancestors 'none'", "Referrer-Policy": "no-referrer"}
# A year. Another version has another URL.
_FOR_EVER = "public, max-age=31536000, immutable"


@cache
def _swagger_ui() -> Distribution:
    """The package that contains the assets. They are read as files; its code is not run."""
    return distribution("fastapi-swagger")


async def document(request: Request) -> JSONResponse:
    """The OpenAPI document. With a root path, its first server is that path."""
    _check_that_it_is_on()
    document = request.app.openapi()
    if root := request.scope.get("root_path", "").rstrip("/"):
        document = {**document, "servers": [{"url": root}, *document.get("servers", [])]}
    return JSONResponse(document)


def _check_that_it_is_on() -> None:
    if not get_settings().api_docs:
        raise HTTPException(404)


async def page(request: Request) -> HTMLResponse:
    """FastAPI's page with local assets. It can't be shown in a frame."""
    _check_that_it_is_on()
    root = request.scope.get("root_path", "").rstrip("/")
    assets = f"{root}/docs/{_swagger_ui().version}"
    shown = get_swagger_ui_html(
        openapi_url=root + DOCUMENT,
        title=f"{request.app.title} - Swagger UI",
        swagger_js_url=f"{assets}/{_SCRIPT}",
        swagger_css_url=f"{assets}/{_STYLE}",
        swagger_favicon_url=f"{assets}/{_ICON}",
        oauth2_redirect_url=root + _OAUTH2_REDIRECT,
    )
    shown.headers.update(_HEADERS)
    return shown


async def oauth2_redirect(_request: Request) -> HTMLResponse:
    """The redirect page of an OAuth 2 sign-in."""
    _check_that_it_is_on()
    return get_swagger_ui_oauth2_redirect_html()


async def asset(request: Request) -> FileResponse:
    """An asset of this version, which browsers cache."""
    _check_that_it_is_on()
    name = request.path_params["name"]
    if name not in ASSETS or request.path_params["version"] != _swagger_ui().version:
        raise HTTPException(404)
    # FileResponse would answer a malformed Range in plain text, so only whole files are served.
    request.scope["headers"] = [h for h in request.scope["headers"] if h[0] != b"range"]
    return FileResponse(
        f"{_swagger_ui().locate_file('fastapi_swagger/resources')}/{name}",
        headers={"Cache-Control": _FOR_EVER, "Accept-Ranges": "none"},
    )


routes = [
    Route(DOCUMENT, document, include_in_schema=False),
    Route(PAGE, page, include_in_schema=False),
    Route(_OAUTH2_REDIRECT, oauth2_redirect, include_in_schema=False),
    Route("/docs/{version}/{name}", asset, include_in_schema=False),
]
