# [Task]: T020 [From]: specs/requirements.md
"""The app put together: the habits of FastAPI's users, its graph, its OpenAPI document."""

import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from service import ROOT
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession
from support import Caller, assert_error, assert_invalid

from db import get_session
from main import app
from middleware.auth import verify_user_access
from models import Task


@pytest.fixture
async def session() -> AsyncIterator[AsyncSession]:
    """Of in-memory SQLite with every table, as FastAPI's tutorial sets it up; the app has it."""
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        app.dependency_overrides[get_session] = lambda: session
        yield session
        app.dependency_overrides.clear()
    await engine.dispose()


@pytest.fixture
async def bare_client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app whose lifespan has not run."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def use_all_six(caller: Caller) -> None:
    task = await caller.add("Buy milk")
    path = f"/{task['id']}"
    assert (await caller.get()).json() == [task]
    assert (await caller.get(path)).json() == task
    assert (await caller.put(path, {"title": "Buy oats"})).json()["title"] == "Buy oats"
    assert (await caller.complete(task["id"])).json()["completed"] is True
    assert (await caller.delete(path)).status_code == 204
    assert (await caller.get()).json() == []


@pytest.fixture
def alice(bare_client: httpx.AsyncClient) -> Caller:
    return Caller(bare_client, "alice")


class TestOverrides:
    @pytest.mark.usefixtures("session")
    async def test_get_session_with_or_without_the_lifespan(self, alice: Caller) -> None:
        await use_all_six(alice)
        async with app.router.lifespan_context(app):
            await use_all_six(alice)

    async def test_a_session_of_the_tests_own_sees_and_is_seen(
        self, session: AsyncSession, alice: Caller
    ) -> None:
        session.add(Task(user_id="alice", title="Only added"))
        assert [task["title"] for task in (await alice.get()).json()] == ["Only added"]
        await alice.add("By the API")
        titles = (await session.exec(select(Task.title).order_by("id"))).all()
        assert list(titles) == ["Only added", "By the API"]
        await session.rollback()
        assert (await alice.get()).json() == []

    @pytest.mark.usefixtures("session")
    async def test_verify_user_access_on_every_endpoint(self, alice: Caller) -> None:
        app.dependency_overrides[verify_user_access] = lambda: None
        alice.token = "nonsense"
        await use_all_six(alice)
        # A NUL in the path is refused even so.
        tasks, alice.tasks = alice.tasks, "/api/a%00b/tasks"
        assert_invalid(await alice.get(), "path", "user_id")
        alice.tasks = tasks
        del app.dependency_overrides[verify_user_access]
        assert_error(await alice.get(), 401, "Invalid token")


class TestBareApp:
    """Without its lifespan, and with nothing put in its place."""

    async def test_is_alive_judges_tokens_and_is_not_ready(
        self, bare_client: httpx.AsyncClient, alice: Caller, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert (await bare_client.get("/health")).json() == {"status": "ok"}
        unready = await bare_client.get("/health/ready")
        assert_error(unready, 503, "Service temporarily unavailable")
        for _ in range(2):
            assert_error(await alice.get(), 503, "Service temporarily unavailable")
        # What is missing is said in one line.
        [line] = [record.getMessage() for record in caplog.records if record.name == "tasks.db"]
        assert "start it without --lifespan off" in line
        alice.token = "nonsense"
        assert_error(await alice.get(), 401, "Invalid token")
        alice.token = Caller(bare_client, "bob").token
        assert_error(await alice.get(), 403, "Access denied")


def test_dependencies_of_every_endpoint() -> None:
    routes: list[Any] = list(iter_route_contexts(app.routes))
    endpoints = [
        route
        for route in routes
        if isinstance(route.original_route, APIRoute) and str(route.path).startswith("/api/")
    ]
    assert len(endpoints) == 8  # HEAD of a list and of a task are routes, too.
    for route in endpoints:
        first, *others = route.dependant.dependencies
        assert first.call is verify_user_access
        # The session ends before the response is sent.
        assert [d.scope for d in others if d.call is get_session] == ["function"]
    health = [route for route in routes if route.path == "/health"]
    assert {method for route in health for method in route.methods} == {"GET", "HEAD"}
    assert all(route.dependant.dependencies == [] for route in health)


class TestProbes:
    @pytest.mark.parametrize(
        ("path", "body"),
        [("/", b'{"service":"Task API","docs":"/docs"}'), ("/health", b'{"status":"ok"}')],
    )
    async def test_answer_in_one_line(
        self, path: str, body: bytes, bare_client: httpx.AsyncClient
    ) -> None:
        for method, content in (("GET", body), ("HEAD", b"")):
            answer = await bare_client.request(method, path)
            assert (answer.status_code, answer.content) == (200, content)
            assert answer.headers["content-type"] == "application/json"
            assert int(answer.headers["content-length"]) == len(body)

    @pytest.mark.parametrize("level", ["info", "debug"])
    async def test_that_went_well_are_logged_for_debugging_only(
        self,
        level: str,
        bare_client: httpx.AsyncClient,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("LOG_LEVEL", level)
        access = logging.getLogger("tasks.access")
        monkeypatch.setattr(access, "handlers", [logging.NullHandler()])
        async with app.router.lifespan_context(app):
            for path in ("/health", "/health/ready", "/health/no", "/"):
                await bare_client.get(path)
        probes = ["GET /health 200", "GET /health/ready 200"] if level == "debug" else []
        logged = [r.getMessage() for r in caplog.records if r.name == access.name]
        assert logged == [*probes, "GET - 404", "GET / 200"]


async def test_openapi_describes_operations_tokens_and_tasks(
    bare_client: httpx.AsyncClient,
) -> None:
    """The rest is in kit/test_openapi.py."""
    document = (await bare_client.get("/openapi.json")).json()
    scheme = document["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    task = document["components"]["schemas"]["TaskPublic"]
    assert task["properties"].keys() == set(task["required"])
    required = {}
    for path, operations in document["paths"].items():
        if path.startswith("/api/"):
            for method, operation in operations.items():
                assert operation["security"] == [{"bearer": []}]
                assert operation["summary"]
                assert operation["description"]
                assert method == "delete" or "schemas/TaskPublic" in str(operation["responses"])
                if "requestBody" in operation:
                    required[method] = operation["requestBody"]["required"]
    assert required == {"post": True, "put": True, "patch": False}


def test_import_waits_with_what_is_heavy() -> None:
    # httpx until keys have to be fetched, Alembic until there is something to apply.
    code = "import sys, main; print(*{'httpx', 'alembic', 'mako'} & sys.modules.keys())"
    command = [sys.executable, "-c", code]
    imported = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert imported.stdout.split() == []
