# [Task]: T015 [From]: specs/requirements.md
"""The suite's fixtures: both databases, the app with its lifespan run, and callers of it."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import httpx
import pytest
from cluster import DISTRIBUTE, Cluster, citus
from databases import execute, new, opened, started
from faults.proxy import Proxy, proxying
from postgresql import PostgreSQL
from support import SECRET, Caller

from db import Statement
from kit.database.database import Database
from kit.database.session import Session
from main import app
from settings import Settings
from tasks.queries import CREATE, LIST


def pytest_collection_finish() -> None:
    # What has been imported and collected stays: it need not be looked through for garbage again.
    gc.freeze()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    # Not in pytest's own folder, which each run closes to other users, PostgreSQL's among them.
    with TemporaryDirectory(prefix="task-api-") as folder:
        server = PostgreSQL(Path(folder))
        server.start()
        yield server
        server.stop("immediate")


# The server takes a moment to end what an earlier test has closed.
EMPTY = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE application_name = 'task-api';
    DROP SCHEMA public CASCADE;
    CREATE SCHEMA public;
"""


@pytest.fixture
async def emptied(postgresql_server: PostgreSQL) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the database that is empty when a test begins."""
    connection = await asyncpg.connect(postgresql_server.url())
    await connection.execute(EMPTY)
    yield connection
    await connection.close()


@pytest.fixture
async def postgresql_url(postgresql_server: PostgreSQL, emptied: asyncpg.Connection) -> str:  # noqa: ARG001
    """The URL of an empty database."""
    return postgresql_server.url()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a database that does not exist yet."""
    return f"sqlite:///{tmp_path}/tasks.db"


# What a start makes takes a tenth of a second, which a start of each test's own would make minutes.


@pytest.fixture(scope="session")
def postgresql_tables(postgresql_server: PostgreSQL) -> str:
    """SQL that makes what a start makes."""
    url = postgresql_server.url("tables")
    asyncio.run(execute(postgresql_server.url(), "CREATE DATABASE tables"))
    asyncio.run(started(url))
    return postgresql_server.dump("tables")


@pytest.fixture
async def ready_postgresql_url(
    postgresql_url: str, emptied: asyncpg.Connection, postgresql_tables: str
) -> str:
    await emptied.execute(postgresql_tables)
    return postgresql_url


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as a start leaves it."""
    file = tmp_path_factory.mktemp("tables") / "tasks.db"
    asyncio.run(started(f"sqlite:///{file}"))
    return file


@pytest.fixture
def ready_sqlite_url(sqlite_url: str, sqlite_tables: Path) -> str:
    copyfile(sqlite_tables, sqlite_url.removeprefix("sqlite:///"))
    return sqlite_url


@pytest.fixture(scope="session")
def citus_cluster() -> Iterator[Cluster]:
    with citus() as cluster:
        yield cluster


@pytest.fixture
def ready_citus_url(citus_cluster: Cluster) -> str:
    """The URL of a cluster whose table of tasks is distributed, and empty."""
    url = asyncio.run(citus_cluster.empty())
    asyncio.run(started(url))
    asyncio.run(execute(url, DISTRIBUTE))
    return url


# `make distributed` has it be Citus.
DATABASES = os.environ.get("TEST_DATABASES", "sqlite postgresql").split()


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database as a start leaves it, of each kind in turn."""
    url: str = request.getfixturevalue(f"ready_{request.param}_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database as a first start finds it, of each kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what a test sets: no `.env` of the developer's, no setting of the shell's."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET)


@pytest.fixture
async def client(
    monkeypatch: pytest.MonkeyPatch, database_url: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the running app, on each database in turn."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with opened(database_url) as database:
        yield database


@pytest.fixture
def proxy(postgresql_server: PostgreSQL) -> Iterator[Proxy]:
    """What loses, holds back or cuts off whatever passes."""
    with proxying(postgresql_server.port) as proxy:
        yield proxy


@pytest.fixture
async def beyond(proxy: Proxy, ready_postgresql_url: str) -> AsyncIterator[Database]:
    """A database beyond the proxy, with one connection, on which all statements are known."""
    settings = {"database_pool_size": 1, "database_statement_timeout": 0.3}
    async with opened(proxy.url(ready_postgresql_url), **settings) as database:
        await CREATE.rows(Session(database), **new("known"))
        await LIST.rows(Session(database), owner="alice")
        yield database


@pytest.fixture
def caller(client: httpx.AsyncClient) -> Callable[[str], Caller]:
    """Makes a user with a valid token."""
    return lambda user: Caller(client, user)


@pytest.fixture
def alice(caller: Callable[[str], Caller]) -> Caller:
    return caller("alice")


@pytest.fixture
def bob(caller: Callable[[str], Caller]) -> Caller:
    return caller("bob")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Statement]:
    """The statements that have run."""
    statements: list[Statement] = []
    records = Statement.records

    async def counted(self: Statement, *args: Any, **values: Any) -> Any:
        found = await records(self, *args, **values)
        statements.append(self)
        return found

    monkeypatch.setattr(Statement, "records", counted)
    return statements
