# [Task]: T020 [From]: specs/requirements.md
"""From a URL to rows: connections, sessions, statements and failures, on both databases."""

import asyncio
import copy
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest
from databases import (
    EARLIER_TABLE,
    all_returned,
    execute,
    in_use,
    new,
    opened,
    settings_for,
    stored,
)
from fastapi import FastAPI, HTTPException
from pydantic import SecretStr
from sqlalchemy import text
from sqlmodel import select as select_entities
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db import Database, Replicated, Session, SessionDep, open_database
from errors import DatabaseUnavailable, UnhandledErrors, install_error_handlers
from models import Task
from routes.tasks import CREATE, LIST
from settings import SettingsError

EARLIER_INDEX_AND_ROW = """
    CREATE INDEX ix_task_user_id ON task (user_id);
    INSERT INTO task (user_id, title, completed, created_at, updated_at)
    VALUES ('alice', 'old', TRUE, '2025-01-02 03:04:05.000006', '2025-01-02 03:04:05.000007');
"""
RELATIONS = {
    "postgresql": "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    "sqlite": "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite%'",
}


def kind(url: str) -> str:
    return url.partition(":")[0]


class TestTables:
    async def test_are_the_tasks_and_a_note_of_their_version(self, database_url: str) -> None:
        async with opened(database_url):
            made = set(await stored(database_url, RELATIONS[kind(database_url)]))
        expected = {"task", "ix_task_user_id_created_at_id", "task_schema"}
        if kind(database_url) == "postgresql":
            expected |= {"task_pkey", "task_id_seq", "task_schema_pkc"}
        assert made == expected

    async def test_keeps_what_an_earlier_start_made(self, database_url: str) -> None:
        async with opened(database_url) as database:
            await CREATE.rows(Session(database), **new("kept"))
        async with opened(database_url) as database:
            [row] = await LIST.rows(Session(database), owner="alice")
        assert row["title"] == "kept"

    async def test_uses_the_table_of_an_earlier_backend(self, database_url: str) -> None:
        await execute(database_url, EARLIER_TABLE[kind(database_url)])
        await execute(database_url, EARLIER_INDEX_AND_ROW)
        async with opened(database_url) as database:
            made = set(await stored(database_url, RELATIONS[kind(database_url)]))
            [row] = await LIST.rows(Session(database), owner="alice")
            [added] = await CREATE.rows(Session(database), **new("new"))
        assert "ix_task_user_id" in made
        assert (row["id"], row["title"], row["completed"]) == (1, "old", True)
        assert added["id"] == 2
        assert await stored(database_url) == ["old", "new"]

    async def test_eight_at_once_on_an_empty_database(
        self, postgresql_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "tasks")
        async with AsyncExitStack() as stack:
            databases = await asyncio.gather(
                *(stack.enter_async_context(opened(postgresql_url)) for _ in range(8))
            )
            await asyncio.gather(
                *(CREATE.rows(Session(database), **new("one")) for database in databases)
            )
        assert caplog.records == []
        assert await stored(postgresql_url) == ["one"] * 8

    async def test_does_not_wait_for_a_database_that_is_not_there(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"postgresql://u:hunter2@127.0.0.1:{unused.getsockname()[1]}/d"
            async with opened(url) as database:
                with pytest.raises(DatabaseUnavailable):
                    await LIST.rows(Session(database), owner="alice")
                assert in_use(database) == 0
        [error] = [record for record in caplog.records if record.levelno > logging.INFO]
        assert error.levelno == logging.ERROR
        assert "ConnectionRefusedError" in error.getMessage()
        assert "hunter2" not in caplog.text

    async def test_says_which_database_is_unknown(
        self, postgresql_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = f"{postgresql_url.removesuffix('/postgres')}/nowhere"
        async with opened(url):
            pass
        assert 'database "nowhere" does not exist' in caplog.text

    async def test_makes_the_table_once_the_database_is_there(
        self,
        postgresql_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("tables.START_RETRY_INTERVAL", 0.01)
        url = f"{postgresql_url.removesuffix('/postgres')}/late"
        try:
            async with opened(url) as database:
                await execute(postgresql_url, "CREATE DATABASE late")
                async with asyncio.timeout(5):
                    while not database.seen_working:
                        await stored(postgresql_url, "SELECT 1")
                [row] = await CREATE.rows(Session(database), **new("late"))
            assert row["title"] == "late"
        finally:
            await execute(postgresql_url, "DROP DATABASE late WITH (FORCE)")


class Witness:
    """ASGI middleware that notes what another connection reads when the response sets off."""

    def __init__(self, app: ASGIApp, url: str) -> None:
        self.app = app
        self.url = url
        self.seen: list[list[Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen.append(await stored(self.url))
            await send(message)

        await self.app(scope, receive, noting)


@pytest.fixture
def app(database: Database) -> FastAPI:
    """An app of a test's own endpoints on the real database."""
    app = FastAPI()
    app.state.database = database
    install_error_handlers(app)
    app.add_middleware(UnhandledErrors)
    return app


async def post(app: ASGIApp) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post("/")


async def add_by_sql(session: AsyncSession) -> None:
    columns = "user_id, title, completed, created_at, updated_at"
    now = "'2026-01-01 00:00:00.000000'"
    sql = f"INSERT INTO task ({columns}) VALUES ('alice', 'by SQL', FALSE, {now}, {now})"  # noqa: S608
    await (await session.connection()).execute(text(sql))


async def add_by_statement(session: AsyncSession) -> None:
    await CREATE.rows(session, **new("by statement"))


async def add_object(session: AsyncSession) -> None:
    session.add(Task(user_id="alice", title="object"))


async def add_and_flush_object(session: AsyncSession) -> None:
    session.add(Task(user_id="alice", title="flushed object"))
    await session.flush()


async def add_both(session: AsyncSession) -> None:
    session.add(Task(user_id="alice", title="object"))
    await CREATE.rows(session, **new("by statement"))


WRITES = {
    "SQL": (add_by_sql, ["by SQL"]),
    "a statement": (add_by_statement, ["by statement"]),
    "an object": (add_object, ["object"]),
    "a flushed object": (add_and_flush_object, ["flushed object"]),
    "an object and a statement": (add_both, ["object", "by statement"]),
}
every_write = pytest.mark.parametrize(("add", "titles"), WRITES.values(), ids=WRITES)
# A statement of its own is done when it returns; what comes after it can't take it back.
every_transaction = pytest.mark.parametrize(
    "add", [add for name, (add, _) in WRITES.items() if name != "a statement"]
)
type Write = Callable[[AsyncSession], Any]


class TestGetSession:
    @every_write
    async def test_commits_before_the_response_is_sent(
        self, app: FastAPI, database: Database, database_url: str, add: Write, titles: list[str]
    ) -> None:
        @app.post("/", status_code=201)
        async def endpoint(session: SessionDep) -> None:
            await add(session)

        witness = Witness(app, database_url)
        response = await post(witness)
        assert response.status_code == 201
        assert witness.seen == [titles]
        assert in_use(database) == 0

    @every_transaction
    @pytest.mark.parametrize(
        ("error", "status"),
        [(RuntimeError("a bug"), 500), (HTTPException(409), 409), (DatabaseUnavailable(), 503)],
        ids=["bug", "HTTP error", "service error"],
    )
    async def test_rolls_back_when_the_endpoint_fails(
        self,
        app: FastAPI,
        database: Database,
        database_url: str,
        add: Write,
        error: Exception,
        status: int,
    ) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            await add(session)
            raise error

        witness = Witness(app, database_url)
        response = await post(witness)
        assert response.status_code == status
        assert witness.seen == [[]]
        assert await stored(database_url) == []
        assert in_use(database) == 0

    async def test_commits_even_what_was_only_read(self, app: FastAPI, database: Database) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> int:
            return len((await session.exec(select_entities(Task))).all())

        response = await post(app)
        assert response.json() == 0
        assert in_use(database) == 0

    async def test_objects_stay_readable_after_a_commit_of_the_endpoints_own(
        self, app: FastAPI
    ) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> str:
            task = Task(user_id="alice", title="returned")
            session.add(task)
            await session.commit()
            return task.title

        assert (await post(app)).json() == "returned"

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    @every_write
    async def test_commit_that_fails_is_no_success(
        self, app: FastAPI, database: Database, database_url: str, add: Write, titles: list[str]
    ) -> None:
        await execute(
            database_url,
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
                AS $$ BEGIN RAISE EXCEPTION 'refused at commit'; END $$;
            CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON task
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse();
            """,
        )

        @app.post("/", status_code=201)
        async def endpoint(session: SessionDep) -> None:
            await add(session)

        response = await post(app)
        assert response.status_code == 500
        assert "refused at commit" not in response.text
        assert await stored(database_url) == []
        assert in_use(database) == 0

        await execute(database_url, "DROP TRIGGER refuse ON task")
        assert (await post(app)).status_code == 201
        assert await stored(database_url) == titles

    async def test_request_that_waited_too_long_is_a_503(
        self, app: FastAPI, database: Database
    ) -> None:
        @app.post("/")
        async def endpoint(_session: SessionDep) -> None: ...

        app.state.database = busy = Database(
            database.settings.model_copy(
                update={
                    "database_pool_size": 1,
                    "database_pool_timeout": 0.05,
                    "database_connect_timeout": 0.05,
                }
            )
        )
        busy.tables_ready = True
        try:
            async with busy.gate:
                response = await post(app)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert (await post(app)).status_code == 200
        finally:
            await busy.close()

    async def test_bug_in_a_query_is_a_500(self, app: FastAPI, database: Database) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            (await session.exec(select_entities(Task))).one()

        assert (await post(app)).status_code == 500
        assert in_use(database) == 0

    async def test_duplicate_key_is_a_500(self, app: FastAPI, database: Database) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            session.add_all([Task(id=1, user_id="alice", title=title) for title in "ab"])

        assert (await post(app)).status_code == 500
        assert in_use(database) == 0

    async def test_missing_table_is_a_503(
        self, app: FastAPI, database: Database, database_url: str
    ) -> None:
        await execute(database_url, "DROP TABLE task")

        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            await session.exec(select_entities(Task))

        response = await post(app)
        assert response.status_code == 503
        assert response.json() == {"detail": "Service temporarily unavailable"}
        assert in_use(database) == 0


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
        await execute(postgresql_url, "DROP DATABASE replica WITH (FORCE)")


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

    @pytest.mark.parametrize(
        "fault",
        [
            "DROP TABLE task",
            "ALTER TABLE task DROP COLUMN description",
            "ALTER DATABASE replica RENAME TO away",
        ],
    )
    async def test_that_fails_at_once_is_stood_in_for(
        self, postgresql_url: str, replica_url: str, fault: str
    ) -> None:
        async with replicated(postgresql_url, replica_url) as database:
            await database.replica.engine.dispose()
            if "DATABASE" in fault:
                await execute(postgresql_url, fault)
            else:
                await execute(replica_url, fault)
            try:
                assert await read(database) == "of the primary"
                assert database.seen_working
                assert in_use(database) == in_use(database.replica) == 0
            finally:
                if "DATABASE" in fault:
                    await execute(postgresql_url, "ALTER DATABASE away RENAME TO replica")

    async def test_is_not_blamed_for_its_primary(
        self, postgresql_url: str, replica_url: str
    ) -> None:
        async with replicated(postgresql_url, replica_url) as database:
            with (
                pytest.raises(DatabaseUnavailable),
                database.replica.watched(),
                database.watched(),
            ):
                raise ConnectionRefusedError
            assert database.replica.seen_working
            assert not database.seen_working

    async def test_that_fails_late_leaves_no_time_for_another(
        self, postgresql_url: str, replica_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with replicated(postgresql_url, replica_url) as database:
            late = database.settings.model_copy(update={"database_statement_timeout": 0.2})
            await database.replica.close()
            database.replica = type(database.replica)(late)
            await database.replica.serves()
            connection = await asyncpg.connect(replica_url)
            async with connection.transaction():
                await connection.execute("LOCK TABLE task")
                caplog.clear()
                with pytest.raises(DatabaseUnavailable):
                    await read(database)
                # Whoever comes next is not kept waiting.
                assert await read(database) == "of the primary"
                [record] = caplog.records
                assert "DATABASE_READ_URL" in record.message
            await connection.close()
            await all_returned(database.replica)

    async def test_that_fails_is_asked_again_once_a_second_at_most(
        self, postgresql_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("db.PROBE_INTERVAL", 3600.0)
        async with replicated(postgresql_url, replica_url) as database:
            for error in (TimeoutError(), ConnectionRefusedError()):
                with pytest.raises(DatabaseUnavailable), database.replica.watched():
                    raise error
                assert not await database.replica.serves()
            assert await read(database) == "of the primary"
            monkeypatch.setattr("db.PROBE_INTERVAL", 0.0)
            assert await database.replica.serves()
            assert await read(database) == "of the replica"

    @pytest.mark.parametrize(
        ("url", "read_url"),
        [
            ("postgresql://u:hunter2@h/d", "hunter2"),
            ("postgresql://u:hunter2@h/d", "postgresql://u:hunter2@h:port/d"),
            ("postgresql://u:hunter2@h/d", "postgresql://u:hunter2@h/d?sslmode=always"),
            ("postgresql://u:hunter2@h/d", "mysql://u:hunter2@h/d"),
            ("postgresql://u:hunter2@h/d", "sqlite:///hunter2.db"),
            ("sqlite:///hunter2.db", "postgresql://u:hunter2@h/d"),
            ("sqlite:///hunter2.db", "sqlite:///hunter2.db"),
        ],
    )
    async def test_of_a_bad_url_stops_the_start(self, url: str, read_url: str) -> None:
        with pytest.raises(SettingsError) as refused:
            async with open_database(settings_for(url, database_read_url=SecretStr(read_url))):
                pytest.fail("it started")
        assert str(refused.value).startswith("DATABASE_READ_URL")
        assert "hunter2" not in str(refused.value)
