# [Task]: T032 [From]: specs/requirements.md
"""SQLite, the embedded default: many writers, a locked file, a process that is killed."""

import asyncio
import contextlib
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from service import Service, running, serving
from support import SECRET, Caller

from faults.stage import (
    Answer,
    assert_alternate,
    assert_healthy,
    assert_in_time,
    assert_unavailable,
    at_once,
    complaints,
    listed,
    reads_and_writes,
    recovered,
    statuses,
    timed,
    watched,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def service(tmp_path: Path, path: Path) -> Iterator[Service]:
    with serving(tmp_path, DATABASE_URL=f"sqlite:///{path}") as service, watched(service):
        yield service


def locked(path: Path) -> contextlib.AbstractContextManager[sqlite3.Connection]:
    """Another process is the file's writer for as long as this lasts."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return contextlib.closing(connection)


@contextlib.asynccontextmanager
async def by_two_processes(folder: Path, path: Path) -> AsyncIterator[tuple[Caller, Caller]]:
    """Alice at two services that start at once on a file that is not there yet, and complain of
    nothing."""
    settings = {"DATABASE_URL": f"sqlite:///{path}", "BETTER_AUTH_SECRET": SECRET}
    both = Service(folder, settings), Service(folder, settings)
    with running(both[0]) as one, running(both[1]) as other:
        async with one.client() as http, other.client() as other_http:
            yield Caller(http, "alice"), Caller(other_http, "alice")
        assert complaints(one) + complaints(other) == []


class TestWal:
    # Without the cure, the rollback journal: a reader of the file, such as a backup, keeps every
    # writer out.

    async def test_lets_others_read_while_the_service_writes(
        self, path: Path, service: Service
    ) -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
            assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM task").fetchone() == (0,)
            async with service.client() as http:
                answers = await at_once(reads_and_writes(Caller(http, "alice"), 20, "During"))
            assert statuses(answers) == {200: 10, 201: 10}
            reader.execute("COMMIT")
            assert reader.execute("SELECT count(*) FROM task").fetchone() == (10,)


class TestPoint3WritesAtOnce:
    # Without the cure, no busy timeout, or a transaction that reads before it writes: "database is
    # locked" for whoever comes second.

    async def test_of_100_writers_over_two_processes_all_succeed(
        self, tmp_path: Path, path: Path
    ) -> None:
        async with by_two_processes(tmp_path, path) as callers:
            answers = await at_once(
                callers[n % 2].post({"title": f"Writer {n}"}) for n in range(100)
            )
            assert statuses(answers) == {201: 100}
            kept = await listed(callers[0])
            assert await listed(callers[1]) == kept
        assert {task["title"] for task in kept} == {f"Writer {n}" for n in range(100)}
        assert len(kept) == 100

    async def test_101_toggles_over_two_processes_are_an_exact_alternation(
        self, tmp_path: Path, path: Path
    ) -> None:
        async with by_two_processes(tmp_path, path) as callers:
            task = await callers[0].add()
            answers = await at_once(callers[n % 2].complete(task["id"]) for n in range(101))
        assert_alternate(answers)


class TestPoint9LockedFile:
    # Without the cure, an endless wait, or "database is locked" as a 500 with a traceback.

    async def test_ends_in_time_and_is_over_when_it_is_free(
        self, path: Path, service: Service
    ) -> None:
        async with service.client() as http:
            alice = Caller(http, "alice")
            task = await alice.add("Before")
            with locked(path):
                writes = [
                    alice.post({"title": "During"}),
                    alice.put(f"/{task['id']}", {"title": "During"}),
                    *(alice.complete(task["id"]) for _ in range(20)),
                ]
                asked = asyncio.create_task(at_once(writes))
                await assert_healthy(http)
                reads: list[Answer] = []
                while not asked.done():
                    reads += await at_once([alice.get(f"/{task['id']}")])
                assert_in_time(reads)
                assert 200 in statuses(reads)
                answers = await asked
                assert statuses(answers) == {503: len(writes)}
                assert_in_time(answers)
                for answer in answers:
                    assert_unavailable(answer.response)
                # Whoever only reads is not concerned, once the writers have gone.
                read = await timed(alice.get(f"/{task['id']}"))
                assert read.response.json() == task
            await recovered(alice)
            answers = await at_once(reads_and_writes(alice, 20, "Afterwards"))
            assert statuses(answers) == {200: 10, 201: 10}
            titles = {task["title"] for task in await listed(alice)}
            assert "During" not in titles
        said = complaints(service)
        # The database is not called away while others read. A line for each write that met the
        # lock, as many as fit into the wait for a turn; the rest found no turn, in two lines.
        assert not [line for line in said if "does not serve" in line]
        assert len([line for line in said if "database is locked" in line]) <= 3, said
        assert len([line for line in said if "database is locked" not in line]) <= 2, said


class TestFiles:
    # Without the cure, what the umask leaves: everybody on the machine reads all tasks.

    async def test_are_readable_by_their_owner_only(self, path: Path, service: Service) -> None:
        async with service.client() as http:
            await Caller(http, "alice").add()
            modes = {
                file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("*.db*")
            }
        assert modes == {f"tasks.db{suffix}": 0o600 for suffix in ("", "-wal", "-shm")}


class TestBrokenFile:
    # Without the cure, a 500 with a traceback for each request.

    @pytest.fixture(params=[b"no database at all", b"SQLite format 3\0" + 999 * b"x"])
    def broken(self, path: Path, request: pytest.FixtureRequest) -> Path:
        path.write_bytes(request.param * 10)
        return path

    async def test_is_said_once_and_mended_without_a_restart(
        self, tmp_path: Path, broken: Path
    ) -> None:
        with serving(tmp_path, DATABASE_URL=f"sqlite:///{broken}") as service:
            async with service.client() as http:
                alice = Caller(http, "alice")
                for _ in range(3):
                    assert_unavailable(await alice.get())
                    assert (await http.get("/health/ready")).status_code == 503
                [complaint] = complaints(service)
                assert "the file of DATABASE_URL is damaged, or is no SQLite database" in complaint
                await asyncio.to_thread(broken.unlink)
                await recovered(alice)
