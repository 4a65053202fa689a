# [Task]: T056 [From]: specs/requirements.md
"""The release before and this one side by side on one database, under load, through the migration.

The release before is taken from git: the commit before the newest migration was added.
"""

import asyncio
import io
import itertools
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from databases import execute, stored
from service import ROOT, Service, running
from support import SECRET, Caller

from faults.stage import eventually, load
from kit.database.tables import versions

# By the newer one, while both serve.
MADE = ("ux_task_user_id_idempotency_key", "ix_task_user_id_created_at_deleted")
FILL = """
    INSERT INTO task (user_id, title, completed, created_at, updated_at)
    SELECT 'user ' || n % 1000, 'task ' || n, false, now(), now() FROM generate_series(1, 100000) n
"""
VALID = """
    SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = 'task'::regclass AND indisvalid
"""


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def release_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its sources."""
    newest = f"migrations/versions/{versions()[-1]}_*.py"
    added = git("log", "--diff-filter=A", "--format=%H", "--", newest).decode().split()
    archive = git("archive", f"{added[-1]}~" if added else "HEAD")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    assert not list(folder.glob(newest))
    return folder


@pytest.fixture
def start(tmp_path: Path, empty_url: str) -> Callable[[Path], Service]:
    environment = {"BETTER_AUTH_SECRET": SECRET, "DATABASE_URL": empty_url}

    def start(sources: Path) -> Service:
        # The release before has no serve.py yet.
        uvicorn = None if (sources / "serve.py").exists() else ()
        return Service(tmp_path, environment, uvicorn=uvicorn, sources=sources)

    return start


class Users:
    """Calls of every kind, and what they were answered."""

    _names = map("caller {}".format, itertools.count())

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.answers: Counter[int] = Counter()

    async def call_until(self, stop: asyncio.Event) -> None:
        user = Caller(self._http, next(self._names))
        while not stop.is_set():
            task = await user.add()
            path = f"/{task['id']}"
            for answer in (
                await user.get(path),
                await user.put(path, {"title": "changed"}),
                await user.complete(task["id"]),
                await user.get(),
                await user.delete(path),
            ):
                self.answers[answer.status_code] += 1

    async def have(self, more: int) -> None:
        """Wait until so many more have been answered."""
        target = self.answers.total() + more
        await eventually(lambda: self.answers.total() >= target)


async def test_answer_nothing_but_2xx(
    start: Callable[[Path], Service], release_before: Path, empty_url: str
) -> None:
    with running(start(release_before)) as older:
        await execute(empty_url, FILL)
        async with older.client() as http, load(4, (users := Users(http)).call_until):
            await users.have(200)
            newer = start(ROOT)
            try:
                await asyncio.to_thread(newer.wait_for_health)
                async with newer.client() as its_http:
                    its_users = Users(its_http)
                    async with load(4, its_users.call_until):
                        await eventually(lambda: newer.log().count("is there") == len(MADE))
                        await users.have(200)
                        await its_users.have(200)
                    alice = Caller(its_http, "alice")
                    first, again = [
                        await alice.post({"title": "Buy milk"}, headers={"Idempotency-Key": "key"})
                        for _ in range(2)
                    ]
                    assert first.content == again.content
                    # The release before sees it, too.
                    assert (await Caller(http, "alice").get()).json() == [first.json()]
            finally:
                newer.kill()
        assert users.answers.keys() == its_users.answers.keys() == {200, 204}
        assert "Traceback" not in older.log() + newer.log()
    assert {*MADE} <= {*await stored(empty_url, VALID)}
