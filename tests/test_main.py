# [Task]: T020 [From]: specs/requirements.md
"""The app put together: the habits of FastAPI's users, its graph, its OpenAPI document."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from service import PLAIN, serving, until
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession
from support import Caller, assert_error

from db import get_session
from main import app
from middleware.auth import verify_user_access
from models import Task

OPERATIONS = [
    ("GET", "/api/{user_id}/tasks", "200"),
    ("POST", "/api/{user_id}/tasks", "201"),
    ("GET", "/api/{user_id}/tasks/{task_id}", "200"),
    ("PUT", "/api/{user_id}/tasks/{task_id}", "200"),
    ("DELETE", "/api/{user_id}/tasks/{task_id}", "204"),
    ("PATCH", "/api/{user_id}/tasks/{task_id}/complete", "200"),
]


@pytest.fixture
async def engine() -> AsyncIterator[AsyncEngine]:
    """In-memory SQLite with every table, as FastAPI's tutorial sets it up."""
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    yield engine
    await engine.dispose()


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session


@pytest.fixture
def overrides() -> Iterator[dict[Any, Any]]:
    yield app.dependency_overrides
    app.dependency_overrides.clear()


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


class TestOverrides:
    async def test_get_session_without_the_lifespan(
        self, overrides: dict[Any, Any], session: AsyncSession, bare_client: httpx.AsyncClient
    ) -> None:
        overrides[get_session] = lambda: session
        await use_all_six(Caller(bare_client, "alice"))

    async def test_get_session_with_the_lifespan(
        self, overrides: dict[Any, Any], session: AsyncSession, bare_client: httpx.AsyncClient
    ) -> None:
        overrides[get_session] = lambda: session
        async with app.router.lifespan_context(app):
            await use_all_six(Caller(bare_client, "alice"))

    async def test_a_session_of_the_tests_own_sees_and_is_seen(
        self, overrides: dict[Any, Any], session: AsyncSession, bare_client: httpx.AsyncClient
    ) -> None:
        overrides[get_session] = lambda: session
        alice = Caller(bare_client, "alice")
        session.add(Task(user_id="alice", title="Only added"))
        assert [task["title"] for task in (await alice.get()).json()] == ["Only added"]
        await alice.add("By the API")
        titles = (await session.exec(select(Task.title).order_by("id"))).all()
        assert list(titles) == ["Only added", "By the API"]
        await session.rollback()
        assert (await alice.get()).json() == []

    async def test_verify_user_access_on_every_endpoint(
        self, overrides: dict[Any, Any], session: AsyncSession, bare_client: httpx.AsyncClient
    ) -> None:
        overrides[get_session] = lambda: session
        overrides[verify_user_access] = lambda: None
        alice = Caller(bare_client, "alice")
        alice.token = "nonsense"
        await use_all_six(alice)
        del overrides[verify_user_access]
        assert_error(await alice.get(), 401, "Invalid token")

    async def test_a_nul_in_the_path_is_422_even_so(
        self, overrides: dict[Any, Any], session: AsyncSession, bare_client: httpx.AsyncClient
    ) -> None:
        overrides[get_session] = lambda: session
        overrides[verify_user_access] = lambda: None
        response = await bare_client.get("/api/a%00b/tasks")
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"] == ["path", "user_id"]


class TestBareApp:
    """Without its lifespan, and with nothing put in its place."""

    async def test_is_alive_and_not_ready(self, bare_client: httpx.AsyncClient) -> None:
        assert (await bare_client.get("/health")).json() == {"status": "ok"}
        unready = await bare_client.get("/health/ready")
        assert_error(unready, 503, "Service temporarily unavailable")

    async def test_judges_tokens(self, bare_client: httpx.AsyncClient) -> None:
        alice = Caller(bare_client, "alice")
        alice.token = "nonsense"
        assert_error(await alice.get(), 401, "Invalid token")
        alice.token = Caller(bare_client, "bob").token
        assert_error(await alice.get(), 403, "Access denied")


class TestDependencies:
    def routes(self) -> list[Any]:
        routes = [
            route
            for route in iter_route_contexts(app.routes)
            if isinstance(route.original_route, APIRoute) and str(route.path).startswith("/api/")
        ]
        assert len(routes) == 8  # HEAD of a list and of a task are routes, too.
        return routes

    def calls(self, dependant: Dependant) -> list[Any]:
        return [dependency.call for dependency in dependant.dependencies]

    def test_every_endpoint_asks_verify_user_access_first(self) -> None:
        for route in self.routes():
            assert self.calls(route.dependant)[0] is verify_user_access

    def test_every_endpoint_ends_its_session_before_the_response(self) -> None:
        for route in self.routes():
            [session] = [d for d in route.dependant.dependencies if d.call is get_session]
            assert session.scope == "function"

    def test_health_depends_on_nothing(self) -> None:
        routes = [r for r in iter_route_contexts(app.routes) if r.path == "/health"]
        assert {method for route in routes for method in route.methods or ()} == {"GET", "HEAD"}
        assert all(route.dependant.dependencies == [] for route in routes)


class TestProbes:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_root_names_the_service_in_one_line(
        self, method: str, bare_client: httpx.AsyncClient
    ) -> None:
        answer = await bare_client.request(method, "/")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        expected = b'{"service":"Task API","docs":"/docs"}'
        assert int(answer.headers["content-length"]) == len(expected)
        assert answer.content == (expected if method == "GET" else b"")

    @pytest.mark.parametrize("level", ["info", "debug"])
    def test_that_went_well_are_logged_for_debugging_only(self, level: str, tmp_path: Path) -> None:
        with serving(tmp_path, LOG_LEVEL=level) as service:
            base = f"http://127.0.0.1:{service.port}"
            for path in ("/health", "/health/ready", "/health/no", "/"):
                httpx.get(f"{base}{path}", **PLAIN)
            until(lambda: "GET / 200" in service.log())
            assert ("/health 200" in service.log()) is (level == "debug")
            assert ("/health/ready 200" in service.log()) is (level == "debug")
            assert "GET - 404" in service.log()

    async def test_without_a_lifespan_one_line_says_what_is_missing(
        self, bare_client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):
            answer = await Caller(bare_client, "alice").get()
            assert_error(answer, 503, "Service temporarily unavailable")
        [line] = [record.getMessage() for record in caplog.records if record.name == "tasks.db"]
        assert "start it without --lifespan off" in line


class TestOpenAPI:
    @pytest.fixture
    async def document(self, bare_client: httpx.AsyncClient) -> dict[str, Any]:
        response = await bare_client.get("/openapi.json")
        assert response.status_code == 200
        document: dict[str, Any] = response.json()
        return document

    @pytest.mark.parametrize(("method", "path", "status"), OPERATIONS)
    def test_describes_every_operation(
        self, document: dict[str, Any], method: str, path: str, status: str
    ) -> None:
        operation = document["paths"][path][method.lower()]
        assert operation["security"] == [{"bearer": []}]
        assert {status, "401", "403", "503"} <= operation["responses"].keys()
        assert operation["summary"]
        assert operation["description"]
        if status != "204":
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert "#/components/schemas/TaskPublic" in str(schema)

    def test_lets_the_authorize_button_take_a_bearer_token(self, document: dict[str, Any]) -> None:
        scheme = document["components"]["securitySchemes"]["bearer"]
        assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")

    @pytest.mark.parametrize(
        ("method", "path", "required", "members"),
        [
            ("post", OPERATIONS[1][1], True, {"title", "description", "completed"}),
            ("put", OPERATIONS[3][1], True, {"title", "description", "completed"}),
            ("patch", OPERATIONS[5][1], False, {"completed"}),
        ],
    )
    def test_describes_request_bodies(
        self, document: dict[str, Any], method: str, path: str, required: bool, members: set[str]
    ) -> None:
        body = document["paths"][path][method]["requestBody"]
        assert body["required"] is required
        reference = body["content"]["application/json"]["schema"]["$ref"]
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
        assert schema["properties"].keys() == members

    def test_lists_the_members_of_a_task(self, document: dict[str, Any]) -> None:
        task = document["components"]["schemas"]["TaskPublic"]
        assert task["properties"].keys() == set(task["required"])

    async def test_is_readable_at_docs(self, bare_client: httpx.AsyncClient) -> None:
        response = await bare_client.get("/docs")
        assert response.status_code == 200
        assert "/openapi.json" in response.text


def test_import_waits_with_what_is_heavy() -> None:
    # httpx until keys have to be fetched, Alembic until there is something to apply.
    code = "import sys, main; print(*{'httpx', 'alembic', 'mako'} & sys.modules.keys())"
    root = Path(__file__).parents[1]
    imported = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert imported.stdout.split() == []
