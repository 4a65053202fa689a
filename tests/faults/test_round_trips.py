# [Task]: T032 [From]: specs/requirements.md
"""How often a request waits for the database, counted on the wire."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
from databases import execute
from postgresql import PostgreSQL
from service import Service, create_database, serving, until
from support import Caller

from faults.proxy import Proxy

TIMES = 5
OWNERS = """CREATE TABLE "user" (id text PRIMARY KEY); INSERT INTO "user" VALUES ('alice')"""

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
def service(
    tmp_path_factory: pytest.TempPathFactory, server: PostgreSQL, proxy: Proxy
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    url = create_database(server)
    # With Better Auth's table there, the service need not look for it between two requests.
    asyncio.run(execute(url, OWNERS))
    with serving(folder, DATABASE_URL=proxy.url(url), DATABASE_POOL_SIZE="1") as service:
        yield service


@pytest.fixture
def alice(http: httpx.AsyncClient) -> Caller:
    return Caller(http, "alice")


async def counted(proxy: Proxy, operation: str, alice: Caller, task_id: int) -> int:
    """The round trips of one request."""
    before = proxy.round_trips
    assert (await OPERATIONS[operation](alice, task_id)).is_success
    return proxy.round_trips - before


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_warm_request_is_one(proxy: Proxy, alice: Caller, operation: str) -> None:
    tasks = [await alice.add() for _ in range(TIMES + 1)]
    # The first one may have to prepare its statement.
    first, *others = [await counted(proxy, operation, alice, task["id"]) for task in tasks]
    assert first <= 2
    assert others == [1] * TIMES


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cold_request_is_four_and_first_of_its_kind_is_two(
    proxy: Proxy, http: httpx.AsyncClient, alice: Caller, operation: str
) -> None:
    other = "read" if operation != "read" else "list"
    # Is TLS to be had? Log in; prepare the statement; run it. A server that asks for a password or
    # talks TLS adds its own. On an open connection: prepare the statement; run it.
    steps = ((operation, 4), (other, 4), (operation, 2))
    tasks = [await alice.add() for _ in steps]
    for task, (requested, count) in zip(tasks, steps, strict=True):
        if count == 4:
            proxy.cut()
            until(lambda: proxy.open_connections == 0)
            # Whoever has answered this has seen the end of the connection, too.
            await http.get("/health")
        assert await counted(proxy, requested, alice, task["id"]) == count
