# [Task]: T032 [From]: specs/requirements.md
"""How often a request waits for the database, counted on the wire."""

from collections.abc import Awaitable, Callable, Iterator
from statistics import median

import httpx
import pytest
from postgresql import PostgreSQL
from proxy import Proxy, proxying
from service import Service, create_database, serving, until
from stage import postgresql, someone
from support import Caller

TIMES = 5

# What each does with the task of this id, which a DELETE makes for itself.
OPERATIONS: dict[str, Callable[[Caller, int], Awaitable[httpx.Response]]] = {
    "list": lambda alice, _: alice.get(),
    "create": lambda alice, _: alice.post({"title": "Buy milk"}),
    "read": lambda alice, task_id: alice.get(f"/{task_id}"),
    "update": lambda alice, task_id: alice.put(f"/{task_id}", {"title": "Buy oats"}),
    "delete": lambda alice, task_id: alice.delete(f"/{task_id}"),
    "toggle": lambda alice, task_id: alice.complete(task_id),
}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: PostgreSQL) -> Iterator[Proxy]:
    with proxying(server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, server: PostgreSQL, proxy: Proxy
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    url = proxy.url(create_database(server))
    with serving(folder, DATABASE_URL=url, DATABASE_POOL_SIZE="1") as service:
        yield service


async def counted(
    proxy: Proxy, operation: str, http: httpx.AsyncClient, alice: Caller, *, cold: bool
) -> int:
    """The round trips of one request, on a connection that is yet to be made if it is cold."""
    task = await alice.add()
    if cold:
        proxy.cut()
        until(lambda: proxy.open_connections == 0)
        # Whoever has answered this has seen the end of the connection, too.
        await http.get("/health")
    before = proxy.round_trips
    assert (await OPERATIONS[operation](alice, task["id"])).is_success
    return proxy.round_trips - before


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_warm_request_is_one(service: Service, proxy: Proxy, operation: str) -> None:
    # Without the cure: BEGIN, the statement and COMMIT, each waited for, and a ping before them.
    async with service.client() as http:
        alice = someone(http)
        counts = [
            await counted(proxy, operation, http, alice, cold=False) for _ in range(TIMES + 1)
        ]
    # The first prepares its statement. A look for Better Auth's table may fall into one other.
    assert median(counts[1:]) == 1, counts


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cold_request_is_four(service: Service, proxy: Proxy, operation: str) -> None:
    async with service.client() as http:
        alice = someone(http)
        counts = [await counted(proxy, operation, http, alice, cold=True) for _ in range(TIMES)]
    # Is TLS to be had? Log in; prepare the statement; run it. A server that asks for a password or
    # talks TLS adds its own.
    assert median(counts) == 4, counts
