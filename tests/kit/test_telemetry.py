# [Task]: T060 [From]: specs/requirements.md
"""What OpenTelemetry gets of the service, and that it costs nothing where nobody asks for it."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from collector import Collector, attributes, collecting
from databases import execute
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from postgresql import PostgreSQL
from service import Service, create_database, serving, until
from support import SECRET, Caller, sign

from kit.database.database import Database
from kit.telemetry.start import asked_for
from main import app

ROOT = Path(__file__).parents[2]
# Milliseconds, in place of seconds and minutes.
SOON = {
    "OTEL_BSP_SCHEDULE_DELAY": "50",
    "OTEL_BLRP_SCHEDULE_DELAY": "50",
    "OTEL_METRIC_EXPORT_INTERVAL": "50",
}
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
# Nobody listens there.
NOWHERE = "http://127.0.0.1:9"

type Patch = pytest.MonkeyPatch
type Running = Callable[..., AbstractAsyncContextManager[Caller]]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> Running:
    """Runs the app in this process, observed: all has been sent when it has ended."""

    @asynccontextmanager
    async def run(database_url: str, **environment: str) -> AsyncIterator[Caller]:
        telemetry = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON}
        for name, value in {"DATABASE_URL": database_url, **telemetry, **environment}.items():
            monkeypatch.setenv(name, value)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield Caller(client, "alice")

    return run


def gauge(collector: Collector, name: str) -> dict[str, int]:
    """What was sent last, by pool."""
    sent = collector.metric(name)
    points = sent[-1].gauge.data_points if sent else ()
    return {attributes(p)["db.client.connection.pool.name"]: p.as_int for p in points}


def verdicts(collector: Collector) -> dict[str, int]:
    sent = collector.metric("tasks.token.verdicts")
    return {attributes(p)["reason"]: p.as_int for p in sent[-1].sum.data_points} if sent else {}


@pytest.fixture(scope="module")
def lasting_collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory,
    postgresql_server: PostgreSQL,
    lasting_collector: Collector,
) -> Iterator[Service]:
    folder, url = tmp_path_factory.mktemp("observed"), create_database(postgresql_server)
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": lasting_collector.url}
    with serving(folder, DATABASE_URL=url, **endpoint, **SOON) as service:
        yield service


class TestService:
    """A real process, a real PostgreSQL, a real receiver."""

    @pytest.fixture
    def collector(self, lasting_collector: Collector) -> Collector:
        return lasting_collector

    @pytest.fixture
    async def client(self, service: Service) -> AsyncIterator[httpx.AsyncClient]:
        async with service.client() as client:
            yield client

    async def test_sends_a_span_for_each_request_and_statement(
        self, client: httpx.AsyncClient, collector: Collector
    ) -> None:
        traced = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        response = await Caller(client, "alice").post({"title": "Traced"}, headers=traced)
        assert response.status_code == 201

        def in_trace() -> list[Span]:
            return [span for span in collector.spans() if span.trace_id.hex() == TRACE]

        until(lambda: len(in_trace()) >= 2)
        request, statement = in_trace()
        assert request.name == "POST /api/{user_id}/tasks"
        assert request.kind == Span.SPAN_KIND_SERVER
        assert request.parent_span_id.hex() == CALLER
        assert attributes(request)["http.route"] == "/api/{user_id}/tasks"
        assert attributes(request)["http.response.status_code"] == 201
        assert statement.name == "INSERT task"
        assert statement.kind == Span.SPAN_KIND_CLIENT
        assert statement.parent_span_id == request.span_id
        said = attributes(statement)
        assert "INSERT INTO task" in said.pop("db.query.text")
        assert said == {
            "db.system.name": "postgresql",
            "db.operation.name": "INSERT",
            "db.collection.name": "task",
            "server.address": "127.0.0.1",
        }
        assert request.start_time_unix_nano <= statement.start_time_unix_nano
        assert statement.end_time_unix_nano <= request.end_time_unix_nano

        def routes() -> list[str | None]:
            durations = collector.metric("http.server.request.duration")[-1:]
            points = [point for metric in durations for point in metric.histogram.data_points]
            return [attributes(point).get("http.route") for point in points]

        until(lambda: "/api/{user_id}/tasks" in routes())

    async def test_counts_verdicts_on_tokens_by_reason(
        self, client: httpx.AsyncClient, collector: Collector
    ) -> None:
        before = verdicts(collector)
        alice = Caller(client, "alice")
        await alice.get()
        await client.get(alice.tasks)
        for token in ("nonsense", "non-sense", sign("alice", exp=1), sign("bob")):
            alice.token = token
            assert (await alice.get()).status_code in (401, 403)
        expected = {"valid": 1, "missing": 1, "invalid": 2, "expired": 1, "denied": 1}

        def counted() -> dict[str, int]:
            now = verdicts(collector)
            return {r: n - before.get(r, 0) for r, n in now.items() if n != before.get(r)}

        until(lambda: counted() == expected)

    async def test_sends_the_lines_of_the_log_with_their_trace(
        self, client: httpx.AsyncClient, collector: Collector, service: Service
    ) -> None:
        response = await Caller(client, "alice").get("/77", headers={"X-Request-ID": "missing"})
        assert response.status_code == 404

        def records() -> dict[str, Any]:
            mine = [r for r in collector.records() if attributes(r)["request_id"] == "missing"]
            return {record.body.string_value: record for record in mine}

        until(lambda: len(records()) >= 2)
        found = records()
        line = "GET /api/{user_id}/tasks/{task_id} 404"
        assert set(found) == {line, "404 Task not found: "}
        said = attributes(found[line])
        assert (said["method"], said["status"]) == ("GET", 404)
        assert said["route"] == "/api/{user_id}/tasks/{task_id}"
        # And where they stand without telemetry, too.
        assert f"] {line} " in service.logged("missing")[-1]
        trace = found[line].trace_id
        assert found["404 Task not found: "].trace_id == trace
        until(lambda: any(span.trace_id == trace for span in collector.spans("SELECT task")))
        assert collector.records("_granian.serve")

    async def test_tells_nobodys_business(
        self, client: httpx.AsyncClient, collector: Collector
    ) -> None:
        private = Caller(client, "private-person")
        await private.add("private-title", description="private-description")
        await private.get("?search=private-word&access_token=private-token")
        await client.get("/private-path")
        preflight = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "GET"}
        await client.options(private.tasks, headers=preflight)
        seen = {"headers": {"X-Request-ID": "last-of-them"}}
        await private.get("/1", **seen)
        until(
            lambda: any(attributes(r)["request_id"] == "last-of-them" for r in collector.records())
        )
        until(lambda: collector.spans("OPTIONS"))
        until(lambda: verdicts(collector).get("valid", 0) >= 3)
        for secret in (b"private", SECRET.encode(), private.token.encode()):
            assert not any(secret in body for body in collector.raw)

    async def test_says_which_service_it_is(self, collector: Collector) -> None:
        until(lambda: collector.traces and collector.metrics and collector.logs)
        assert {r["service.name"] for r in collector.resources()} == {"task-api"}
        assert {r["service.version"] for r in collector.resources()} == {app.version}
        # One process, one instance.
        assert len({r["service.instance.id"] for r in collector.resources()}) == 1


class TestCollectorThatFails:
    @pytest.mark.parametrize("listening", [False, True])
    async def test_neither_slows_nor_breaks_nor_floods(
        self, tmp_path: Path, listening: bool
    ) -> None:
        full = {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
        mute = socket.create_server(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{mute.getsockname()[1]}" if listening else NOWHERE
        with serving(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **full, **SOON) as service:
            async with service.client() as client:
                alice = Caller(client, "alice")
                task = await alice.add()
                for _ in range(100):
                    began = time.monotonic()
                    assert (await alice.get(f"/{task['id']}")).json() == task
                    # Whatever waits for a collector waits for seconds.
                    assert time.monotonic() - began < 1.0
            if not listening:
                until(lambda: "log records are not taken" in service.log())
            service.process.send_signal(signal.SIGTERM)
            # An orderly end, in seconds.
            assert service.process.wait(10) == 0
            log = service.log()
        mute.close()
        lines = [line for line in log.splitlines() if " ms client=" not in line]
        told = [line for line in lines if "not taken" in line or "telemetry is dropped" in line]
        assert len(told) <= 4
        assert len({line.partition(":")[2][:40] for line in told}) == len(told)
        assert "Traceback" not in log
        # Nothing else is said but what any start and end say.
        others = [line for line in lines if line not in told]
        assert [line for line in others if not line.startswith("INFO:")] == []
        assert len(others) <= 12, others

    async def test_is_told_of_once_and_when_it_is_over(
        self, tmp_path: Path, collector: Collector
    ) -> None:
        collector.status = 503
        only = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        with serving(tmp_path, **endpoint, **only, **SOON) as service:
            until(lambda: "spans are not taken by the collector" in service.log())
            until(lambda: collector.refused >= 2)
            collector.status = 200
            async with service.client() as client:
                while "over after" not in service.log():
                    await client.get("/health")
                    await asyncio.sleep(0.1)
            told = [line for line in service.log().splitlines() if "not taken" in line]
        assert [line.partition(":")[0] for line in told] == ["ERROR", "WARNING"]
        assert collector.spans("GET /health")


class TestRecords:
    async def test_that_are_left_at_the_end_are_sent(
        self, running: Running, sqlite_url: str, collector: Collector
    ) -> None:
        late = dict.fromkeys(SOON, "60000")
        async with running(sqlite_url, OTEL_SERVICE_NAME="another", **late) as alice:
            await alice.add()
            assert collector.raw == []
        assert len(collector.spans("INSERT task")) == 1
        assert verdicts(collector) == {"valid": 1}
        assert collector.records("tasks.access")
        assert {r["service.name"] for r in collector.resources()} == {"another"}

    async def test_of_a_statement_that_fails(
        self, running: Running, sqlite_url: str, collector: Collector
    ) -> None:
        async with running(sqlite_url) as alice:
            await execute(sqlite_url, "DROP TABLE task")
            failed = await alice.get("/1")
        assert failed.status_code >= 500
        [statement] = collector.spans("SELECT task")
        assert statement.status == Status(code=Status.STATUS_CODE_ERROR)
        assert attributes(statement)["error.type"]
        [request] = collector.spans("GET /api/{user_id}/tasks/{task_id}")
        assert request.status.code == Status.STATUS_CODE_ERROR

    async def test_of_connections_in_use_and_requests_that_wait(
        self, running: Running, sqlite_url: str, collector: Collector
    ) -> None:
        patient = {"DATABASE_POOL_TIMEOUT": "30"}
        used, pending = (f"db.client.connection.{name}" for name in ("count", "pending_requests"))
        async with running(sqlite_url, **patient) as alice, AsyncExitStack() as others:
            database: Database = app.state.database
            await others.enter_async_context(database.gate)
            waiting = asyncio.create_task(alice.post({"title": "Waits"}))
            await asyncio.to_thread(until, lambda: database.gate.waiting)
            until(lambda: gauge(collector, used) == {"DATABASE_URL": 1})
            until(lambda: gauge(collector, pending) == {"DATABASE_URL": 1})
            await others.aclose()
            assert (await waiting).status_code == 201
        assert gauge(collector, used) == gauge(collector, pending) == {"DATABASE_URL": 0}

    async def test_of_a_replica_too(
        self, running: Running, postgresql_url: str, collector: Collector
    ) -> None:
        async with running(postgresql_url, DATABASE_READ_URL=postgresql_url) as alice:
            await alice.add()
            assert len((await alice.get()).json()) == 1
            pools = {"DATABASE_URL": 0, "DATABASE_READ_URL": 0}
            used = "db.client.connection.count"
            await asyncio.to_thread(until, lambda: gauge(collector, used) == pools)
        assert len(collector.spans("SELECT task")) == 1

    async def test_of_an_exception_in_the_log(
        self, running: Running, sqlite_url: str, collector: Collector
    ) -> None:
        async with running(sqlite_url):
            try:
                raise LookupError("a bug")
            except LookupError:
                logging.getLogger("tasks.errors").exception("unhandled error")
        [record] = collector.records("tasks.errors")
        assert record.severity_text == "ERROR"
        assert attributes(record)["exception.type"] == "LookupError"
        assert "raise LookupError" in attributes(record)["exception.stacktrace"]

    async def test_end_with_the_lifespan(
        self, running: Running, sqlite_url: str, collector: Collector, monkeypatch: Patch
    ) -> None:
        async with running(sqlite_url) as alice:
            await alice.get()
        seen = len(collector.spans())
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        async with running(sqlite_url) as alice:
            assert (await alice.get()).status_code == 200
            database: Database = app.state.database
            assert database.statement_span is None
        assert len(collector.spans()) == seen
        assert logging.getLogger("opentelemetry").handlers == []


ALL = ("traces", "metrics", "logs")
SOMEWHERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}


class TestAskedFor:
    @pytest.mark.parametrize(
        ("variables", "signals"),
        [
            ({}, ()),
            ({"OTEL_SERVICE_NAME": "tasks", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ()),
            (SOMEWHERE, ALL),
            ({**SOMEWHERE, "OTEL_SDK_DISABLED": "True"}, ()),
            ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": NOWHERE}, ("logs",)),
            ({"OTEL_TRACES_EXPORTER": "otlp"}, ("traces",)),
            ({**SOMEWHERE, "OTEL_METRICS_EXPORTER": "none"}, ("traces", "logs")),
            ({**SOMEWHERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ALL),
        ],
    )
    def test_is_what_the_variables_say(
        self, variables: dict[str, str], signals: tuple[str, ...]
    ) -> None:
        assert asked_for(variables) == list(signals)

    @pytest.mark.parametrize(
        ("variables", "complaint"),
        [
            ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTLP protocol of traces"),
            ({"OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc"}, "OTLP protocol of logs"),
            ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER must be otlp or none"),
            # One that the SDK judges.
            ({"OTEL_BSP_MAX_QUEUE_SIZE": "1"}, "max_export_batch_size"),
        ],
    )
    async def test_in_vain_is_told_and_no_reason_not_to_serve(
        self,
        running: Running,
        sqlite_url: str,
        collector: Collector,
        caplog: pytest.LogCaptureFixture,
        variables: dict[str, str],
        complaint: str,
    ) -> None:
        async with running(sqlite_url, **variables) as alice:
            assert (await alice.get()).status_code == 200
        [line] = [r for r in caplog.records if r.name == "tasks.telemetry"]
        assert line.levelname == "WARNING"
        assert line.getMessage().startswith("telemetry is off: ")
        assert complaint in line.getMessage()
        assert collector.spans() == []


class TestOff:
    # Begins to serve three times: unasked, without the extra, and as it should be. Each time it
    # prints what of telemetry has been imported.
    CODE = f"""
import asyncio, os, sys
from main import app
async def start():
    async with app.router.lifespan_context(app):
        mine = ("opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf", "requests")
        print([name for name in (*mine, "kit.telemetry.export") if sys.modules.get(name)])
asyncio.run(start())
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "{NOWHERE}"
sys.modules["opentelemetry.sdk"] = None
asyncio.run(start())
del sys.modules["opentelemetry.sdk"]
asyncio.run(start())
"""

    def test_imports_nothing_and_is_told_of_without_the_extra(self, tmp_path: Path) -> None:
        ran = subprocess.run(
            [sys.executable, "-c", self.CODE],
            cwd=tmp_path,
            env={"PYTHONPATH": f"{ROOT}", "BETTER_AUTH_SECRET": SECRET, "LOG_FORMAT": "text"},
            capture_output=True,
            text=True,
            check=True,
        )
        off, without, on = ran.stdout.splitlines()
        assert off == "[]"
        assert ["kit.telemetry.export" in imported for imported in (without, on)] == [False, True]
        [line] = [line for line in ran.stderr.splitlines() if "telemetry is off" in line]
        assert line.startswith("WARNING:  [-] telemetry is off: ")
        assert line.endswith("run uv sync --extra otel")
