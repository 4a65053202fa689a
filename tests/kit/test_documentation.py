# [Task]: T063 [From]: specs/requirements.md
"""The page of documentation and what it loads; tests/e2e/test_documentation.py opens it."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from support import assert_error

from main import app

type Patch = pytest.MonkeyPatch
PREFIX = "/behind/a-proxy"
TYPES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon-32x32.png": "image/png",
}


@pytest.fixture(params=["", PREFIX], ids=["at the root", "behind a proxy"])
def prefix(request: pytest.FixtureRequest) -> str:
    """What a proxy takes away from the path, and uvicorn's `--root-path` puts back."""
    prefix: str = request.param
    return prefix


@pytest.fixture
async def web(prefix: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, root_path=prefix)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://test{prefix}") as client:
        yield client


@pytest.fixture
async def page(web: httpx.AsyncClient) -> httpx.Response:
    response = await web.get("/docs")
    assert response.status_code == 200
    return response


@pytest.fixture
def assets(page: httpx.Response) -> dict[str, str]:
    """The URL of each file that the page loads, by its name."""
    paths = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    return {path.rpartition("/")[2]: f"http://test{path}" for path in paths}


class TestPage:
    async def test_names_no_other_host(self, web: httpx.AsyncClient, page: httpx.Response) -> None:
        assert "//" not in re.sub(r"<!--.*?-->", "", page.text)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert page.headers["referrer-policy"] == "no-referrer"
        redirect = await web.get("/docs/oauth2-redirect")
        assert redirect.status_code == 200
        assert "swaggerUIRedirectOauth2" in redirect.text
        assert "http" not in redirect.text
        # ReDoc's page would load its script from another host.
        assert_error(await web.get("/redoc"), 404, "Not Found")

    async def test_has_its_document_and_its_assets_below_the_prefix(
        self, web: httpx.AsyncClient, page: httpx.Response, assets: dict[str, str], prefix: str
    ) -> None:
        assert f"url: '{prefix}/openapi.json'" in page.text
        assert f"window.location.origin + '{prefix}/docs/oauth2-redirect'" in page.text
        assert assets.keys() == TYPES.keys()
        assert all(url.startswith(f"http://test{prefix}/docs/") for url in assets.values())
        servers = (await web.get("/openapi.json")).json()["servers"]
        assert [server["url"] for server in servers] == ([prefix] if prefix else []) + ["/"]

    async def test_can_be_turned_off(
        self, web: httpx.AsyncClient, assets: dict[str, str], prefix: str, monkeypatch: Patch
    ) -> None:
        urls = ["/docs", "/docs/oauth2-redirect", "/openapi.json", *assets.values()]
        for url in urls:
            assert (await web.get(url)).status_code == 200
        assert (await web.get("/")).json() == {"service": "Task API", "docs": f"{prefix}/docs"}
        monkeypatch.setenv("API_DOCS", "false")
        for url in urls:
            assert_error(await web.get(url), 404, "Not Found")
        assert (await web.get("/")).json() == {"service": "Task API"}


class TestAssets:
    async def test_are_there_and_kept_and_sent_whole(
        self, web: httpx.AsyncClient, assets: dict[str, str]
    ) -> None:
        for name, url in assets.items():
            got = await web.get(url)
            assert got.status_code == 200
            assert got.headers["content-type"] == TYPES[name]
            assert got.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert int(got.headers["content-length"]) == len(got.content) > 500
            head = await web.head(url)
            assert (head.status_code, head.content) == (200, b"")
            for part in ("bytes=0-9", "bytes=x", "bytes=999999999-"):
                whole = await web.get(url, headers={"Range": part})
                assert (whole.status_code, whole.headers["accept-ranges"]) == (200, "none")
                assert whole.content == got.content

    async def test_are_of_a_swagger_ui_that_knows_openapi_3_1(
        self, web: httpx.AsyncClient, assets: dict[str, str]
    ) -> None:
        script = await web.get(assets["swagger-ui-bundle.js"])
        [version] = re.findall(r'PACKAGE_VERSION:"(\d+)\.', script.text)
        assert int(version) >= 5
        assert app.openapi()["openapi"].startswith("3.1.")

    async def test_are_these_alone(self, web: httpx.AsyncClient, assets: dict[str, str]) -> None:
        folder = assets["swagger-ui.css"].removesuffix("swagger-ui.css")
        names = ("__init__.py", "..%2Fmain.py", "../main.py", "x.js")
        # They are of this version alone.
        for url in (*(folder + name for name in names), "/docs/0.0.0/swagger-ui.css"):
            assert_error(await web.get(url), 404, "Not Found")
