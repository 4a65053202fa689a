# [Task]: T015 [From]: specs/requirements.md
"""An opened database, what is stored in it as another connection sees it, and rows to put there."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from support import SECRET

from db import open_database
from kit.database.database import Database
from kit.database.idle import pool_of
from kit.database.sql import utc_now
from kit.database.tables import keep_tables
from settings import Settings

# For a test of an answer that is given before a database is asked.
on_one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

_EARLIER = """
    CREATE TABLE task (
        id {id} PRIMARY KEY, user_id TEXT NOT NULL, title VARCHAR(200) NOT NULL,
        description VARCHAR(1000), completed BOOLEAN NOT NULL DEFAULT {no},
        created_at {instant} NOT NULL, updated_at {instant} NOT NULL);
"""
# As a service of before the migrations made it.
EARLIER_TABLE = {
    "postgresql": _EARLIER.format(id="SERIAL", no="FALSE", instant="TIMESTAMPTZ"),
    "sqlite": _EARLIER.format(id="INTEGER", no="0", instant="DATETIME"),
}


def settings_for(url: str, **values: Any) -> Settings:
    return Settings(database_url=SecretStr(url), better_auth_secret=SecretStr(SECRET), **values)


@asynccontextmanager
async def opened(url: str, **values: Any) -> AsyncIterator[Database]:
    """The database for as long as a service runs, its tables up to date."""
    async with open_database(settings_for(url, **values)) as database:
        await keep_tables(database)
        yield database


async def started(url: str) -> None:
    """Have a start make the tables."""
    async with opened(url):
        pass


def url_of(database: Database | str) -> str:
    if isinstance(database, str):
        return database
    return database.settings.database_url.get_secret_value()


async def stored(
    database: Database | str, sql: str = "SELECT title FROM task ORDER BY id"
) -> list[Any]:
    """What another connection reads: the first column."""
    if (url := url_of(database)).startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return [row[0] for row in connection.execute(sql)]
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def execute(database: Database | str, script: str) -> None:
    """Run and commit a script over another connection."""
    if (url := url_of(database)).startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(script)
        return
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(script)
    finally:
        await connection.close()


def in_use(database: Database) -> int:
    """Connections that somebody works with."""
    pool = pool_of(database.engine)
    return pool.checkedout() - len(getattr(pool, "idle", ()))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks, threads and servers do, 10 s at most."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def all_returned(database: Database) -> None:
    """Wait until a connection whose statement was cut off is back in the pool."""
    await until(lambda: in_use(database) == 0)


def new(title: str, owner: str = "alice", **values: object) -> dict[str, object]:
    """Values for CREATE."""
    return {
        "owner": owner,
        "new_title": title,
        "new_description": None,
        "new_completed": False,
        "now": utc_now(),
        **values,
    }
