# [Task]: T107 [From]: specs/requirements.md
"""CLAUDE.md's recipes for a new endpoint, followed to the end: the fast way and FastAPI's own."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from databases import on_one_database
from fastapi import APIRouter, Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from sqlalchemy import bindparam, func
from sqlalchemy import select as select_columns
from sqlmodel import col, select, update
from sqlmodel.ext.asyncio.session import AsyncSession
from support import JSON, Caller, assert_error

from db import ReadSession, ReadSessionDep, SessionDep, Statement, get_session
from kit.errors import install_error_handlers
from kit.routing import DirectRoute, TaskAPI
from main import lifespan
from middleware.auth import CurrentUser, PathUser, verify_user_access
from models import TASK_TABLE, Task
from routes import tasks
from schemas import TaskCreate, TaskId, TaskPublic, TaskUpdate, UserId
from tasks.queries import CREATE

# --- The fast way -----------------------------------------------------------------------------

COUNT_COMPLETED = Statement(
    select_columns(func.count().label("completed")).where(
        TASK_TABLE.c.user_id == bindparam("owner"),
        TASK_TABLE.c.deleted_at.is_(None),
        TASK_TABLE.c.completed,
    )
)
fast = APIRouter(
    prefix="/api/{user_id}", route_class=DirectRoute, dependencies=[Depends(verify_user_access)]
)


@fast.get("/statistics")
async def statistics(user_id: UserId, user: PathUser, session: ReadSessionDep) -> JSONResponse:
    row = await COUNT_COMPLETED.row(session, owner=user_id)
    assert row is not None
    return JSONResponse({"of": user["sub"], **row})


# --- FastAPI's ordinary way -------------------------------------------------------------------

ordinary = APIRouter(prefix="/api/{user_id}/notes", dependencies=[Depends(verify_user_access)])
anyones = APIRouter()


@ordinary.post("", status_code=201)
async def add_note(
    user_id: UserId, body: TaskCreate, session: Annotated[AsyncSession, Depends(get_session)]
) -> Task:
    task = Task(user_id=user_id, **body.model_dump())
    session.add(task)
    await session.flush()
    return task


@ordinary.get("")
async def list_notes(user_id: UserId, session: ReadSessionDep) -> list[Task]:
    return list(await session.exec(select(Task).where(col(Task.user_id) == user_id)))


@ordinary.put("/{task_id}", response_model=Task)
async def rename_note(
    user_id: UserId, task_id: TaskId, body: TaskCreate, session: SessionDep
) -> Any:
    task = await session.get(Task, task_id)
    if task is None or task.user_id != user_id:
        raise HTTPException(404)
    task.title = body.title
    await session.flush()
    return task


@anyones.get("/me")
async def me(user: CurrentUser) -> str:
    return f"{user['sub']}"


async def no_write_is_typed(session: ReadSession) -> None:
    """mypy refuses each of these: it would complain of an ignore that ignores nothing."""
    session.add(Task(user_id="alice", title="t"))  # type: ignore[attr-defined]
    await session.commit()  # type: ignore[attr-defined]
    await session.exec(update(Task))  # type: ignore[call-overload]
    await CREATE.row(session)  # type: ignore[arg-type]


def like_main() -> FastAPI:
    app = TaskAPI(lifespan=lifespan, routes=[*tasks.router.routes, *fast.routes])
    app.include_router(ordinary)
    app.include_router(anyones)
    install_error_handlers(app)
    return app


def elsewhere() -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    for router in (tasks.router, fast, ordinary, anyones):
        app.include_router(router)
    install_error_handlers(app)
    return app


@pytest.fixture(params=[like_main, elsewhere])
async def http(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    app = request.param()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        yield http


def at(http: httpx.AsyncClient, path: str, user: str = "alice") -> Caller:
    caller = Caller(http, user)
    caller.tasks = path
    return caller


class TestEndpoint:
    async def test_of_both_ways_works_beside_the_six(self, http: httpx.AsyncClient) -> None:
        alice, notes = Caller(http, "alice"), at(http, "/api/alice/notes")
        made = await notes.post({"title": " A note ", "completed": True})
        assert made.status_code == 201
        task = made.json()
        assert (await alice.get()).json() == [task]
        counted = await at(http, "/api/alice/statistics").get()
        assert counted.json() == {"of": "alice", "completed": 1}
        assert (await at(http, "/me").get()).json() == "alice"

        path = f"/{task['id']}"
        before = (await alice.get(path)).headers["etag"]
        renamed = (await notes.put(path, {"title": "Renamed"})).json()
        after = await alice.get(path)
        assert after.json() == renamed
        assert renamed["updated_at"] > task["updated_at"] == task["created_at"]
        assert after.headers["etag"] != before

        keyed = await alice.post({"title": "gone"}, headers={"Idempotency-Key": "k"})
        assert (await alice.delete(f"/{keyed.json()['id']}")).status_code == 204
        assert (await notes.get()).json() == [renamed]
        assert (await notes.put(f"/{keyed.json()['id']}", {"title": "x"})).status_code == 404

    async def test_of_both_ways_is_another_user_s_to_none(self, http: httpx.AsyncClient) -> None:
        for path in ("/api/alice/notes", "/api/alice/statistics"):
            assert_error(await at(http, path, "bob").get(), 403, "Access denied")
            assert_error(await http.get(path), 401, "Missing authorization token")
        assert_error(await http.get("/me"), 401, "Missing authorization token")


@on_one_database
@pytest.mark.parametrize("http", [like_main], indirect=True)
class TestDeclaredBody:
    """In this app, FastAPI's own way reads no body before the token is judged."""

    @pytest.mark.parametrize("body", [b'{"title":', b"x" * 70_000], ids=["malformed", "large"])
    async def test_is_read_after_the_token_is_judged(
        self, http: httpx.AsyncClient, body: bytes
    ) -> None:
        refused = await http.post("/api/alice/notes", content=body, headers=JSON)
        assert_error(refused, 401, "Missing authorization token")
        alice, bob = [at(http, "/api/alice/notes", user) for user in ("alice", "bob")]
        refused = await bob.request("POST", content=body, headers=JSON)
        assert_error(refused, 403, "Access denied")
        mine = await alice.request("POST", content=body, headers=JSON)
        assert mine.status_code == (413 if len(body) > 65536 else 422)


# A value for each member that a client may send.
VALUES: dict[str, Any] = {"title": "Another", "description": "Of it", "completed": True}


@pytest.mark.parametrize("name", VALUES)
async def test_each_member_of_a_body_is_stored_and_comes_back(alice: Caller, name: str) -> None:
    assert VALUES.keys() == TaskCreate.model_fields.keys() == TaskUpdate.__annotations__.keys()
    body = {name: VALUES[name]}
    added = await alice.add(**{"title": "t", **body})
    changed = await alice.put(f"/{(await alice.add())['id']}", body)
    for task in (added, changed.json()):
        assert task.keys() == TaskPublic.model_fields.keys()
        assert task.items() >= body.items()
        assert (await alice.get(f"/{task['id']}")).json() == task
