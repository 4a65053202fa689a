# [Task]: T020 [From]: specs/requirements.md
"""The session of an endpoint: it commits before the answer, or leaves nothing behind."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import pytest
from databases import execute, in_use, new, stored
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import text
from sqlmodel import select as select_entities
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db import SessionDep, get_session
from kit.database.database import Database
from kit.errors import DatabaseUnavailable, install_error_handlers
from kit.middleware import RequestMiddleware
from models import Task
from tasks.queries import CREATE


@dataclass
class Witness:
    """ASGI middleware that notes what another connection reads when the response sets off."""

    app: ASGIApp
    database: Database
    seen: list[list[Any]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen.append(await stored(self.database))
            await send(message)

        await self.app(scope, receive, noting)


@pytest.fixture
def app(database: Database) -> FastAPI:
    """An app of a test's own endpoints on the real database."""
    app = FastAPI()
    app.state.database = database
    install_error_handlers(app)
    app.add_middleware(RequestMiddleware)
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
    await add_object(session)
    await session.flush()


async def add_both(session: AsyncSession) -> None:
    await add_object(session)
    await add_by_statement(session)


type Write = Callable[[AsyncSession], Any]
WRITES: list[tuple[Write, list[str]]] = [
    (add_by_sql, ["by SQL"]),
    (add_by_statement, ["by statement"]),
    (add_object, ["object"]),
    (add_and_flush_object, ["object"]),
    (add_both, ["object", "by statement"]),
]
every_write = pytest.mark.parametrize(("add", "titles"), WRITES)


class TestGetSession:
    @every_write
    @pytest.mark.parametrize("scope", ["function", "request", None])
    async def test_commits_before_the_response_is_sent(
        self,
        app: FastAPI,
        database: Database,
        add: Write,
        titles: list[str],
        scope: Any,
    ) -> None:
        @app.post("/", status_code=201)
        async def endpoint(
            session: Annotated[AsyncSession, Depends(get_session, scope=scope)],
        ) -> None:
            await add(session)

        witness = Witness(app, database)
        response = await post(witness)
        assert response.status_code == 201
        assert witness.seen == [titles]
        assert in_use(database) == 0

    @pytest.mark.parametrize(
        ("add", "error", "status"),
        [
            # A statement of its own is done when it returns; nothing later can take it back.
            *((add, RuntimeError("a bug"), 500) for add, _ in WRITES if add != add_by_statement),
            (add_both, HTTPException(409), 409),
            (add_both, DatabaseUnavailable(), 503),
        ],
    )
    async def test_rolls_back_when_the_endpoint_fails(
        self,
        app: FastAPI,
        database: Database,
        add: Write,
        error: Exception,
        status: int,
    ) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            await add(session)
            raise error

        witness = Witness(app, database)
        assert (await post(witness)).status_code == status
        assert witness.seen == [[]]
        assert await stored(database) == []
        assert in_use(database) == 0

    async def test_objects_stay_readable_after_a_commit_of_the_endpoints_own(
        self, app: FastAPI, database: Database
    ) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> list[str]:
            found = (await session.exec(select_entities(Task))).all()
            task = Task(user_id="alice", title="returned")
            session.add(task)
            await session.commit()
            return [task.title, *(other.title for other in found)]

        assert (await post(app)).json() == ["returned"]
        assert in_use(database) == 0

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    @every_write
    async def test_commit_that_fails_is_no_success(
        self, app: FastAPI, database: Database, add: Write, titles: list[str]
    ) -> None:
        await execute(
            database,
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
        assert await stored(database) == []
        assert in_use(database) == 0

        await execute(database, "DROP TRIGGER refuse ON task")
        assert (await post(app)).status_code == 201
        assert await stored(database) == titles

    async def test_asks_nothing_of_tables_that_are_not_up_to_date(
        self, app: FastAPI, database: Database
    ) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            await add_by_statement(session)

        database.tables_ready = False
        assert (await post(app)).status_code == 503
        assert await stored(database) == []
        database.tables_ready = True
        database.mark_down("a test says so")
        assert (await post(app)).status_code == 200
        assert database.seen_working

    async def test_request_that_waited_too_long_is_a_503(
        self, app: FastAPI, database: Database
    ) -> None:
        @app.post("/")
        async def endpoint(_session: SessionDep) -> None: ...

        short = dict.fromkeys(("database_pool_timeout", "database_connect_timeout"), 0.05)
        settings = database.settings.model_copy(update={"database_pool_size": 1, **short})
        app.state.database = busy = Database(settings, database.table)
        busy.tables_ready = True
        try:
            async with busy.gate:
                response = await post(app)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert (await post(app)).status_code == 200
        finally:
            await busy.close()

    @pytest.mark.parametrize(
        ("mistake", "status"), [("no row", 500), ("duplicate key", 500), ("no table", 503)]
    )
    async def test_mistake_is_a_500_and_a_missing_table_a_503(
        self, app: FastAPI, database: Database, mistake: str, status: int
    ) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            if mistake == "duplicate key":
                session.add_all([Task(id=1, user_id="alice", title=title) for title in "ab"])
            else:
                (await session.exec(select_entities(Task))).one()

        if mistake == "no table":
            await execute(database, "DROP TABLE task")
        assert (await post(app)).status_code == status
        assert in_use(database) == 0
