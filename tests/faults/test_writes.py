# [Task]: T032 [From]: specs/requirements.md
"""What was promised is kept: points 1 to 5 of the reliability rules, on real servers."""

import asyncio
import contextlib
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from databases import execute
from postgresql import PostgreSQL
from service import Service, create_database, serving
from support import Caller, sign

from faults import stage


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with stage.postgresql(fsync="on") as server:
        yield server


@pytest.fixture(scope="module", params=["read committed", "repeatable read"])
def two_workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, server: PostgreSQL
) -> Iterator[Service]:
    url = create_database(server)
    isolation = f"default_transaction_isolation = '{request.param}'"
    asyncio.run(execute(url, f"ALTER DATABASE {url.rpartition('/')[2]} SET {isolation}"))
    with serving(tmp_path_factory.mktemp("service"), WORKERS="2", DATABASE_URL=url) as service:
        yield service


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with service.client() as http:
        yield http


REFUSE_AT_COMMIT = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'refused at the commit'; END $$;
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE OR DELETE ON task
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()
"""


class TestPoint1CommitThatFails:
    async def test_is_an_error_in_json_and_stores_nothing(self, url: str, alice: Caller) -> None:
        task = await alice.add("Before")
        one = f"/{task['id']}"
        async with stage.connected(url) as connection:
            await connection.execute(REFUSE_AT_COMMIT)
            for response in (
                await alice.post({"title": "Never"}),
                await alice.put(one, {"title": "Never"}),
                await alice.complete(task["id"]),
                await alice.delete(one),
            ):
                assert response.status_code in (500, 503), response.text
                assert response.headers["content-type"] == "application/json"
                assert isinstance(response.json()["detail"], str)
                assert "refused" not in response.text
            await connection.execute("DROP FUNCTION refuse CASCADE")
        assert (await alice.get()).json() == [task]
        assert await stage.backends(url, "state LIKE 'idle in transaction%'") == 0
        assert (await alice.put(one, {"title": "After"})).json()["title"] == "After"


class TestPoint2AcknowledgedWrites:
    @pytest.mark.parametrize("database", ["postgresql", "sqlite"])
    async def test_outlive_a_kill_of_the_service(
        self, tmp_path: Path, url: str, database: str
    ) -> None:
        ledger = stage.Ledger()
        url = url if database == "postgresql" else f"sqlite:///{tmp_path}/tasks.db"
        with serving(tmp_path, DATABASE_URL=url) as victim:
            async with victim.client() as http:
                alice = stage.someone(http)
                async with stage.load(8, lambda stop: ledger.post_until(alice, stop)):
                    await ledger.reach(200)
                    victim.process.kill()
        assert ledger.answers.keys() & {500, 503} == set()
        async with stage.used(tmp_path, DATABASE_URL=url) as (_, http):
            ledger.assert_kept(await stage.listed(Caller(http, alice.user)))

    @pytest.mark.parametrize("mode", ["immediate", "fast"])
    async def test_outlive_a_stop_of_the_server(self, scene: stage.Scene, mode: str) -> None:
        ledger = stage.Ledger()
        with stage.watched(scene.service):
            async with stage.load(8, lambda stop: ledger.post_until(scene.alice, stop)):
                await ledger.reach(200)
                async with stage.stopped(scene.server, mode):
                    await stage.assert_healthy(scene.http)
                await ledger.more(100)
        assert ledger.answers.keys() <= {201, 503}
        ledger.assert_kept(await stage.listed(scene.alice))


class TestPoint3WritesAtOnce:
    @pytest.fixture
    def service(self, two_workers: Service) -> Service:
        """What keeps order must lie in the database."""
        return two_workers

    async def test_101_toggles_are_an_exact_alternation(
        self, service: Service, alice: Caller
    ) -> None:
        task = await alice.add()
        answers = await stage.at_once(alice.complete(task["id"]) for _ in range(101))
        last = stage.assert_alternate(answers)
        now = (await alice.get(f"/{task['id']}")).json()
        assert (now["completed"], now["updated_at"]) == (True, last)
        assert stage.complaints(service) == []

    async def test_updates_of_different_fields_lose_none(self, alice: Caller) -> None:
        for n in range(20):
            task = await alice.add("Before")
            one = f"/{task['id']}"
            changes = [alice.put(one, {name: f"{n}"}) for name in ("title", "description")]
            answers = await stage.at_once(
                [*changes, alice.complete(task["id"], json={"completed": True})]
            )
            assert stage.statuses(answers) == {200: 3}
            after = (await alice.get(one)).json()
            assert after == {**after, "title": f"{n}", "description": f"{n}", "completed": True}


def hang_up(client: socket.socket, *, rudely: bool) -> None:
    if rudely:
        # No wait for anything under way: the close is a reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def sending(service: Service, sent: bytes) -> socket.socket:
    """A client on a socket of its own, from which it never reads."""
    client = socket.create_connection(("127.0.0.1", service.port))
    client.sendall(sent)
    return client


def message(method: str, path: str, body: bytes, user: str = "stranger") -> bytes:
    head = (
        f"{method} /api/{user}/tasks{path} HTTP/1.1\r\nHost: test\r\n"
        f"Authorization: Bearer {sign(user)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


POST = message("POST", "", b'{"title": "Gone"}')


class TestPoint4ClientsThatHangUp:
    @pytest.mark.parametrize(
        "sent",
        [
            pytest.param(POST[:60], id="in_the_headers"),
            pytest.param(POST[: POST.index(b"\r\n\r\n") + 4], id="before_the_body"),
            pytest.param(POST, id="before_the_answer"),
            pytest.param(message("GET", "", b""), id="before_a_list"),
        ],
    )
    async def test_leave_nothing_behind(self, scene: stage.Scene, sent: bytes) -> None:
        with stage.watched(scene.service):
            for n in range(3 * stage.POOL):
                hang_up(sending(scene.service, sent), rudely=n % 2 == 0)
            await scene.assert_well()
            assert await stage.backends(scene.url) <= stage.POOL

    async def test_leave_nothing_behind_during_a_statement(self, scene: stage.Scene) -> None:
        task = await scene.alice.add()
        sent = message("PUT", f"/{task['id']}", b'{"title": "Gone"}', scene.alice.user)
        with stage.watched(scene.service):
            async with stage.rows_locked(scene.url, task["id"]):
                strangers = [sending(scene.service, sent) for _ in range(stage.SHARE)]
                await stage.have_backends(
                    scene.url, stage.SHARE, "wait_event_type = 'Lock'", stage.BOUND
                )
                for n, stranger in enumerate(strangers):
                    hang_up(stranger, rudely=n % 2 == 0)
            await scene.assert_well()
            assert await stage.backends(scene.url) <= stage.POOL


@pytest.mark.parametrize("workers", [1, 2])
class TestPoint5Sigterm:
    @pytest.fixture
    def url(self, server: PostgreSQL) -> str:
        return create_database(server)

    @pytest.fixture
    def service(self, tmp_path: Path, url: str, workers: int) -> Iterator[Service]:
        environment = {"DATABASE_URL": url, "DATABASE_STATEMENT_TIMEOUT": "2"}
        with serving(tmp_path, WORKERS=str(workers), **environment) as service:
            yield service

    @pytest.mark.parametrize("unlocked", [True, False])
    async def test_lets_what_is_in_flight_succeed_or_says_that_it_can_not(
        self, service: Service, url: str, alice: Caller, unlocked: bool
    ) -> None:
        ids = [(await alice.add("Before"))["id"] for _ in range(6)]
        async with contextlib.AsyncExitStack() as lock:
            await lock.enter_async_context(stage.rows_locked(url, *ids))
            writes = stage.at_once(alice.put(f"/{task_id}", {"title": "After"}) for task_id in ids)
            asked = asyncio.create_task(writes)
            await stage.have_backends(url, len(ids), "wait_event_type = 'Lock'", stage.BOUND)
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            await stage.eventually(lambda: "Shutting down" in service.log(), stage.BOUND)
            if unlocked:
                await lock.aclose()
            answers = await asked
            stage.assert_in_time(answers, {200 if unlocked else 503: len(ids)})
            await self._assert_ended_well(service, began)
        await stage.have_backends(url, 0, within=stage.BOUND)
        async with stage.connected(url) as connection:
            titles = {row["title"] for row in await connection.fetch("SELECT title FROM task")}
        assert titles == {"After" if unlocked else "Before"}

    async def test_ends_an_idle_service(self, service: Service, alice: Caller) -> None:
        # A connection that is kept alive is no work in flight.
        await alice.add()
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        await self._assert_ended_well(service, began)

    async def _assert_ended_well(self, service: Service, began: float) -> None:
        within = began + 10 - time.monotonic()
        await stage.eventually(lambda: service.process.poll() is not None, within)
        assert service.process.returncode == 0, service.log()
        stage.assert_no_traceback(service)
