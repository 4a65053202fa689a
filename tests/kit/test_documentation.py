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
async def page(web: httpx.AsyncClient) -> str:
    response = await web.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return response.text


@pytest.fixture
def assets(page: str) -> dict[str, str]:
    """The path of each file that the page loads, by its name."""
    return {path.rpartition("/")[2]: path for path in re.findall(r'(?:href|src)="([^"]+)"', page)}


class TestPage:
    def test_names_no_other_host(self, page: str) -> None:
        assert "//" not in re.sub(r"<!--.*?-->", "", page)

    def test_has_its_document_and_its_assets_below_the_prefix(
        self, page: str, assets: dict[str, str], prefix: str
    ) -> None:
        assert f"url: '{prefix}/openapi.json'" in page
        assert f"window.location.origin + '{prefix}/docs/oauth2-redirect'" in page
        assert assets.keys() == TYPES.keys()
        assert all(path.startswith(f"{prefix}/docs/") for path in assets.values())

    async def test_has_its_redirect(self, web: httpx.AsyncClient) -> None:
        redirect = await web.get("/docs/oauth2-redirect")
        assert redirect.status_code == 200
        assert "swaggerUIRedirectOauth2" in redirect.text
        assert "http" not in redirect.text

    async def test_is_shown_in_no_frame_and_sends_no_referrer(self, web: httpx.AsyncClient) -> None:
        headers = (await web.get("/docs")).headers
        assert headers["content-security-policy"] == "frame-ancestors 'none'"
        assert headers["referrer-policy"] == "no-referrer"

    async def test_can_be_turned_off(
        self, web: httpx.AsyncClient, assets: dict[str, str], prefix: str, monkeypatch: Patch
    ) -> None:
        paths = ["/docs", "/docs/oauth2-redirect", "/openapi.json"]
        paths += [path.removeprefix(prefix) for path in assets.values()]
        for path in paths:
            assert (await web.get(path)).status_code == 200
        assert (await web.get("/")).json() == {"service": "Task API", "docs": f"{prefix}/docs"}
        monkeypatch.setenv("API_DOCS", "false")
        for path in paths:
            assert_error(await web.get(path), 404, "Not Found")
        assert (await web.get("/")).json() == {"service": "Task API"}

    async def test_has_a_document_that_names_the_prefix(
        self, web: httpx.AsyncClient, prefix: str
    ) -> None:
        servers = (await web.get("/openapi.json")).json()["servers"]
        assert [server["url"] for server in servers] == ([prefix] if prefix else []) + ["/"]
        # ReDoc's page would load its script from another host.
        assert_error(await web.get("/redoc"), 404, "Not Found")


class TestAssets:
    @pytest.mark.parametrize("name", TYPES)
    async def test_are_there_and_kept(
        self, web: httpx.AsyncClient, assets: dict[str, str], name: str
    ) -> None:
        url = f"http://test{assets[name]}"
        got = await web.get(url)
        assert got.status_code == 200
        assert got.headers["content-type"] == TYPES[name]
        assert got.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert int(got.headers["content-length"]) == len(got.content) > 500
        head = await web.head(url)
        assert (head.status_code, head.content) == (200, b"")

    async def test_are_of_a_swagger_ui_that_knows_openapi_3_1(
        self, web: httpx.AsyncClient, assets: dict[str, str]
    ) -> None:
        script = await web.get(f"http://test{assets['swagger-ui-bundle.js']}")
        [version] = re.findall(r'PACKAGE_VERSION:"(\d+)\.', script.text)
        assert int(version) >= 5
        assert app.openapi()["openapi"].startswith("3.1.")

    @pytest.mark.parametrize("name", ["__init__.py", "..%2Fmain.py", "../main.py", "x.js"])
    async def test_are_these_alone(
        self, web: httpx.AsyncClient, assets: dict[str, str], name: str
    ) -> None:
        folder = assets["swagger-ui.css"].removesuffix("swagger-ui.css")
        assert_error(await web.get(f"http://test{folder}{name}"), 404, "Not Found")
        # They are of this version alone.
        assert_error(await web.get("/docs/0.0.0/swagger-ui.css"), 404, "Not Found")

    @pytest.mark.parametrize("part", ["bytes=0-9", "bytes=x", "bytes=999999999-"])
    async def test_are_sent_whole(
        self, web: httpx.AsyncClient, assets: dict[str, str], part: str
    ) -> None:
        url = f"http://test{assets['swagger-ui.css']}"
        got = await web.get(url, headers={"Range": part})
        assert (got.status_code, got.headers["accept-ranges"]) == (200, "none")
        assert got.text == (await web.get(url)).text
