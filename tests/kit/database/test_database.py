# [Task]: T020 [From]: specs/requirements.md
"""The database's sessions, and a primary with its replica."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest
from databases import all_returned, execute, in_use, new, opened, settings_for, stored
from fastapi import FastAPI
from pydantic import SecretStr
from sqlmodel import select as select_entities

from db import SessionDep, open_database
from kit.database.database import Database, Replicated
from kit.database.session import Session
from kit.errors import DatabaseUnavailable
from models import Task
from settings import SettingsError
from tasks.queries import CREATE, LIST


class TestSession:
    async def test_is_made_when_it_is_used(self, database: Database) -> None:
        session = Session(database)
        await CREATE.rows(session, **new("by a statement"))
        assert "sync_session" not in vars(session)
        assert not session.has_begun
        async with session:
            [task] = (await session.exec(select_entities(Task))).all()
            assert session.has_begun
            assert task in session
            await session.rollback()
            assert not session.has_begun
        assert session.bind is database.engine

    async def test_lacks_what_a_session_lacks(self, database: Database) -> None:
        for session in (Session(database), copy.copy(Session(database))):
            assert not hasattr(session, "query")


@pytest.fixture
async def replica_url(postgresql_url: str) -> AsyncIterator[str]:
    """The URL of a database that looks like a replica and has one task of its own.

    How it is with a real one: tests/faults/test_replica.py.
    """
    url = f"{postgresql_url.removesuffix('/postgres')}/replica"
    await execute(postgresql_url, "CREATE DATABASE replica")
    try:
        async with opened(url) as database:
            await CREATE.rows(Session(database), **new("of the replica"))
        yield url
    finally:
        await execute(postgresql_url, "DROP DATABASE IF EXISTS replica WITH (FORCE)")


@asynccontextmanager
async def replicated(url: str, read_url: str, *, in_use: bool = True) -> AsyncIterator[Replicated]:
    """A primary with a replica, which has been asked already."""
    async with opened(url, database_read_url=SecretStr(read_url)) as database:
        assert isinstance(database, Replicated)
        await CREATE.rows(Session(database), **new("of the primary"))
        if in_use:
            assert await database.replica.serves()
        yield database


async def read(database: Replicated) -> str:
    """The title of the task that a reader of this moment finds."""
    session = Session(database.for_reading(), database)
    [row] = await LIST.rows(session, owner="alice")
    title: str = row["title"]
    return title


class TestReady:
    async def test_is_one_that_has_its_tables_and_was_seen_working(self, database_url: str) -> None:
        async with open_database(settings_for(database_url)) as database:
            assert not database.seen_working
            database.mark_up()
            assert not await database.is_ready()
            database.tables_ready = True
            assert await database.is_ready()
            database.mark_down("a test says so")
            assert not database.seen_working


FAULTS = [
    "DROP TABLE task",
    "ALTER TABLE task DROP description",
    "DROP DATABASE replica WITH (FORCE)",
]


class TestReplica:
    async def test_is_read_once_it_has_been_seen_working(
        self, postgresql_url: str, replica_url: str
    ) -> None:
        async with replicated(postgresql_url, replica_url, in_use=False) as database:
            assert database.for_reading() is database
            assert await read(database) == "of the primary"
            async with asyncio.timeout(5):
                while database.for_reading() is database:
                    await stored(postgresql_url, "SELECT 1")
            assert await read(database) == "of the replica"
            assert in_use(database) == in_use(database.replica) == 0

    async def test_is_what_get_asks_and_post_does_not(
        self, postgresql_url: str, replica_url: str
    ) -> None:
        app = FastAPI()

        @app.api_route("/", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
        async def endpoint(session: SessionDep, orm: bool = False) -> list[str]:
            if orm:
                return [task.title for task in await session.exec(select_entities(Task))]
            return [row["title"] for row in await LIST.rows(session, owner="alice")]

        async with replicated(postgresql_url, replica_url) as app.state.database:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                for path in ("/", "/?orm=true"):
                    assert (await client.get(path)).json() == ["of the replica"]
                    assert (await client.head(path)).status_code == 200
                    for method in ("POST", "PUT", "PATCH", "DELETE"):
                        answer = await client.request(method, path)
                        assert answer.json() == ["of the primary"]

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_that_fails_at_once_is_stood_in_for(
        self, postgresql_url: str, replica_url: str, fault: str
    ) -> None:
        async with replicated(postgresql_url, replica_url) as database:
            await database.replica.engine.dispose()
            await execute(postgresql_url if "DATABASE" in fault else replica_url, fault)
            assert await read(database) == "of the primary"
            assert database.seen_working
            assert in_use(database) == in_use(database.replica) == 0

    async def test_is_not_blamed_for_its_primary(
        self, postgresql_url: str, replica_url: str
    ) -> None:
        async with replicated(postgresql_url, replica_url) as database:
            with pytest.raises(DatabaseUnavailable), database.replica.watched(), database.watched():
                raise ConnectionRefusedError
            assert database.replica.seen_working
            assert not database.seen_working

    async def test_that_fails_late_leaves_no_time_for_another(
        self, postgresql_url: str, replica_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with replicated(postgresql_url, replica_url) as database:
            late = database.settings.model_copy(update={"database_statement_timeout": 0.2})
            await database.replica.close()
            database.replica = type(database.replica)(late, database.table)
            await database.replica.serves()
            connection = await asyncpg.connect(replica_url)
            async with connection.transaction():
                await connection.execute("LOCK TABLE task")
                caplog.clear()
                with pytest.raises(DatabaseUnavailable):
                    await read(database)
                # That may have been one statement's fault: the replica itself is asked.
                assert database.replica.seen_working
                assert not await database.replica.serves()
                assert await read(database) == "of the primary"
                [record] = caplog.records
                assert "DATABASE_READ_URL" in record.message
            await connection.close()
            await all_returned(database.replica)

    async def test_that_fails_is_asked_again_once_a_second_at_most(
        self, postgresql_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kit.database.database.PROBE_INTERVAL", 3600.0)
        async with replicated(postgresql_url, replica_url) as database:
            for error in (ConnectionResetError(), ConnectionRefusedError()):
                with pytest.raises(DatabaseUnavailable), database.replica.watched():
                    raise error
                assert not await database.replica.serves()
            assert await read(database) == "of the primary"
            monkeypatch.setattr("kit.database.database.PROBE_INTERVAL", 0.0)
            assert await database.replica.serves()
            assert await read(database) == "of the replica"

    @pytest.mark.parametrize(
        ("url", "read_url", "setting"),
        [
            ("mysql://u:hunter2@h/d", None, "DATABASE_URL"),
            ("postgresql://u:hunter2@h/d", "postgresql://u:hunter2@h:port/d", "DATABASE_READ_URL"),
            ("postgresql://u:hunter2@h/d", "sqlite:///hunter2.db", "DATABASE_READ_URL"),
            ("sqlite:///hunter2.db", "postgresql://u:hunter2@h/d", "DATABASE_READ_URL"),
            ("sqlite:///hunter2.db", "sqlite:///hunter2.db", "DATABASE_READ_URL"),
        ],
    )
    async def test_of_a_bad_url_stops_the_start(
        self, url: str, read_url: str | None, setting: str
    ) -> None:
        with pytest.raises(SettingsError, match=f"^{setting} ") as refused:
            async with open_database(settings_for(url, database_read_url=read_url)):
                pytest.fail("it started")
        assert "hunter2" not in str(refused.value)
