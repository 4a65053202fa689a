# [Task]: T032 [From]: specs/requirements.md
"""What most of these modules share: a server of a module's own, a proxy to it, and a service."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from postgresql import PostgreSQL
from service import Service, create_database, serving
from support import Caller

from faults.proxy import Proxy, proxying
from faults.stage import POOL, Scene, postgresql, someone, watched


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def url(server: PostgreSQL) -> str:
    return create_database(server)


@pytest.fixture
def empty_url(server: PostgreSQL) -> str:
    """A database that no service has seen."""
    return create_database(server)


@pytest.fixture(scope="module")
def proxy(server: PostgreSQL) -> Iterator[Proxy]:
    with proxying(server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, url: str, proxy: Proxy) -> Iterator[Service]:
    """The service that the tests share, and leave well. It has its database through the proxy."""
    folder = tmp_path_factory.mktemp("service")
    address = proxy.url(url)
    with serving(folder, DATABASE_URL=address, DATABASE_POOL_SIZE=str(POOL)) as service:
        yield service


@pytest.fixture
async def http(service: Service, proxy: Proxy) -> AsyncIterator[httpx.AsyncClient]:
    async with service.client() as http:
        with watched(service):
            try:
                yield http
            finally:
                proxy.restore()


@pytest.fixture
def alice(http: httpx.AsyncClient) -> Caller:
    return someone(http)


@pytest.fixture
def scene(
    server: PostgreSQL,
    url: str,
    proxy: Proxy,
    service: Service,
    http: httpx.AsyncClient,
    alice: Caller,
) -> Scene:
    return Scene(server, url, proxy, service, http, alice)
