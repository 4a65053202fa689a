# [Task]: T032 [From]: specs/requirements.md
"""SQLite, the embedded default: many writers, a locked file, a process that is killed."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from service import Service, running, serving
from support import SECRET, Caller

from faults import stage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
def service(tmp_path: Path, path: Path) -> Iterator[Service]:
    with serving(tmp_path, DATABASE_URL=f"sqlite:///{path}") as service, stage.watched(service):
        yield service


def locked(path: Path) -> contextlib.AbstractContextManager[sqlite3.Connection]:
    """Another process is the file's writer for as long as this lasts."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return contextlib.closing(connection)


class TestPoint3WritesAtOnce:
    async def test_over_two_processes_all_succeed_and_toggles_alternate(
        self, tmp_path: Path, path: Path
    ) -> None:
        settings = {"DATABASE_URL": f"sqlite:///{path}", "BETTER_AUTH_SECRET": SECRET}
        # Both start at once on a file that is not there yet.
        both = [Service(tmp_path, settings) for _ in range(2)]
        with running(both[0]), running(both[1]):
            async with both[0].client() as http, both[1].client() as other_http:
                callers = Caller(http, "alice"), Caller(other_http, "alice")
                posts = [callers[n % 2].post({"title": f"Writer {n}"}) for n in range(100)]
                answers = await stage.at_once(posts)
                assert stage.statuses(answers) == {201: 100}
                kept = await stage.listed(callers[0])
                assert await stage.listed(callers[1]) == kept
                assert sorted(task["title"] for task in kept) == sorted(
                    f"Writer {n}" for n in range(100)
                )
                toggled = kept[0]["id"]
                answers = await stage.at_once(callers[n % 2].complete(toggled) for n in range(101))
                stage.assert_alternate(answers)
            assert stage.complaints(both[0]) + stage.complaints(both[1]) == []


class TestPoint9LockedFile:
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
                asked = asyncio.create_task(stage.at_once(writes))
                await stage.assert_healthy(http)
                reads: list[stage.Answer] = []
                while not asked.done():
                    reads += await stage.at_once([alice.get(f"/{task['id']}")])
                stage.assert_in_time(reads)
                assert 200 in stage.statuses(reads)
                answers = await asked
                stage.assert_in_time(answers, {503: len(writes)})
                # Whoever only reads is not concerned, once the writers have gone.
                read = await stage.timed(alice.get(f"/{task['id']}"))
                assert read.response.json() == task
            await stage.recovered(alice)
            answers = await stage.at_once(stage.reads_and_writes(alice, 20, "Afterwards"))
            assert stage.statuses(answers) == {200: 10, 201: 10}
            titles = {task["title"] for task in await stage.listed(alice)}
            assert "During" not in titles
        said = stage.complaints(service)
        # The database is not called away while others read. A line for each write that met the
        # lock, as many as fit into the wait for a turn; the rest found no turn, in two lines.
        assert not [line for line in said if "does not serve" in line]
        assert len([line for line in said if "database is locked" in line]) <= 3, said
        assert len([line for line in said if "database is locked" not in line]) <= 2, said


class TestFiles:
    async def test_are_readable_by_their_owner_only(self, path: Path, service: Service) -> None:
        async with service.client() as http:
            await Caller(http, "alice").add()
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.glob("*.db*")}
        assert modes == {f"tasks.db{suffix}": 0o600 for suffix in ("", "-wal", "-shm")}


class TestBrokenFile:
    @pytest.fixture(params=[b"no database at all", b"SQLite format 3\0" + 999 * b"x"])
    def broken(self, path: Path, request: pytest.FixtureRequest) -> Path:
        path.write_bytes(request.param * 10)
        return path

    async def test_is_said_once_and_mended_without_a_restart(
        self, tmp_path: Path, broken: Path
    ) -> None:
        async with stage.used(tmp_path, DATABASE_URL=f"sqlite:///{broken}") as (service, http):
            alice = Caller(http, "alice")
            for _ in range(3):
                stage.assert_unavailable(await alice.get())
                assert (await http.get("/health/ready")).status_code == 503
            [complaint] = stage.complaints(service)
            assert "the file of DATABASE_URL is damaged, or is no SQLite database" in complaint
            await asyncio.to_thread(broken.unlink)
            await stage.recovered(alice)
