# [Task]: T025 [From]: specs/requirements.md
"""The migrations: they make what the models say, and touch nothing that is not ours."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from databases import execute, new, opened, stored, until
from forkserver import run
from service import Service, running
from support import SECRET, Caller

from kit.database import tables
from kit.database.session import Session
from kit.database.tables import MIGRATIONS, versions
from tasks.queries import CREATE, LIST

ROOT = Path(__file__).parents[1]


def alembic(url: str, *arguments: str, sources: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command as `make migrate` and `make check` run it."""
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": url,
        "BETTER_AUTH_URL": "http://localhost",
    }
    return run(["alembic", *arguments], sources, environment)


class TestMigrations:
    def test_are_numbered_in_the_order_of_alembics_graph(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        graph = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
        assert versions() == graph[::-1]
        assert versions() == [f"{number:04}" for number in range(1, len(graph) + 1)]

    async def test_make_what_the_models_say_of_the_task_table_alone_and_can_be_taken_back(
        self, empty_url: str
    ) -> None:
        others = """
            CREATE TABLE "user" (id text PRIMARY KEY, "emailVerified" boolean);
            CREATE TABLE session (token text PRIMARY KEY);
        """
        await execute(empty_url, others)
        assert alembic(empty_url, "upgrade", "head").returncode == 0
        checked = alembic(empty_url, "check")
        assert checked.returncode == 0, checked.stdout
        await execute(empty_url, "ALTER TABLE task ADD COLUMN colour text")
        assert alembic(empty_url, "check").returncode != 0
        assert alembic(empty_url, "downgrade", "base").returncode == 0
        assert await stored(empty_url, 'SELECT count(*) FROM "user", session') == [0]
        await execute(empty_url, "CREATE TABLE task (id int PRIMARY KEY)")
        refused = alembic(empty_url, "upgrade", "head")
        assert refused.returncode != 0
        assert "column title is missing" in refused.stdout
        assert "Traceback" not in refused.stdout


async def test_tables_of_a_newer_version_are_served(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(database_url, "UPDATE task_schema SET version_num = '9999'")
    async with opened(database_url) as database:
        assert await database.is_ready()
    assert "newer version" in caplog.text


FILES = ("*.py", "*.mako", "*.toml")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the project without its tests."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FILES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    copy = tmp_path / "sources"
    for name in listed.stdout.split():
        if not name.startswith(("tests/", "benchmarks/", "examples/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


# What CLAUDE.md's recipe for a column says: where, and what is added in front.
COLUMN = {
    "models.py": [
        (
            "    # The defaults belong to the columns,",
            """    colour: str = Field(default="", sa_column_kwargs={"server_default": ""})
    priority: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    due_at: Instant | None = Field(default=None, sa_column=Column(UTCDateTime))
""",
        )
    ],
    "schemas.py": [
        (
            "class TaskUpdate(",
            """class TaskCreate(TaskCreate):
    colour: Annotated[str, StringConstraints(max_length=20)] = ""
    priority: int = 0
    due_at: AwareDatetime | None = None


""",
        ),
        (
            "class TaskCompletion(",
            """class TaskUpdate(TaskUpdate, total=False):
    colour: str
    priority: int
    due_at: AwareDatetime | None


""",
        ),
        (
            "# Writes rows as a JSON array.",
            """class TaskPublic(TaskPublic):
    colour: str
    priority: int
    due_at: Instant | None


""",
        ),
        ("    BeforeValidator,", "    AwareDatetime,\n"),
    ],
}


def edit(sources: Path) -> None:
    for name, insertions in COLUMN.items():
        text = (sources / name).read_text()
        for before, added in insertions:
            assert text.count(before) == 1, before
            text = text.replace(before, added + before)
        (sources / name).write_text(text)


class TestRecipe:
    """The one in CLAUDE.md, to the end."""

    def command(self) -> list[str]:
        guide = (ROOT / "CLAUDE.md").read_text()
        found = re.search(r"`\.venv/bin/alembic (revision\s+--autogenerate -m \"[^\"]*\")`", guide)
        assert found
        return shlex.split(found[1])

    async def test_adds_a_column_to_a_table_in_use(
        self, tmp_path: Path, sources: Path, database_url: str
    ) -> None:
        async with opened(database_url) as database:
            await CREATE.rows(Session(database), **new("old"))
        edit(sources)
        made = alembic(database_url, *self.command(), sources=sources)
        assert made.returncode == 0, made.stdout
        number = f"{len(versions()) + 1:04}"
        [migration] = (sources / "migrations/versions").glob(f"{number}_*.py")
        assert "sqlmodel" not in migration.read_text()
        environment = {"BETTER_AUTH_SECRET": SECRET, "DATABASE_URL": database_url}
        with running(Service(tmp_path, environment, sources=sources)) as service:
            async with service.client() as http:
                assert (await http.get("/health/ready")).status_code == 200
                await self.assert_columns_are_like_any_other(Caller(http, "alice"))
            assert "newer version" not in service.log()
        # Of a deleted task that is kept for its key, nothing is left.
        colours = "SELECT colour FROM task ORDER BY id"
        assert await stored(database_url, colours) == ["", "", "", "red"]
        assert await stored(database_url, "SELECT version_num FROM task_schema") == [number]
        checked = alembic(database_url, "check", sources=sources)
        assert checked.returncode == 0, checked.stdout

    async def assert_columns_are_like_any_other(self, alice: Caller) -> None:
        [old] = (await alice.get()).json()
        assert (old["colour"], old["priority"], old["due_at"]) == ("", 0, None)
        body = {"title": "t", "colour": "red", "priority": 2, "due_at": "2026-05-06T07:08:09+02:00"}
        shown = {**body, "due_at": "2026-05-06T05:08:09.000000Z"}
        changes: list[dict[str, object]] = [{"colour": "blue"}, {"priority": 3}, {"due_at": None}]
        key = {"Idempotency-Key": "k"}
        made, again = [await alice.post(body, headers=key) for _ in range(2)]
        task = made.json()
        assert task.items() >= shown.items()
        assert (again.status_code, again.json()) == (201, task)
        for change in changes:
            other = await alice.post(body | change, headers=key)
            assert other.status_code == 422, change
        path = f"/{task['id']}"
        assert (await alice.get(path)).json() == task
        assert (await alice.get()).json() == [task, old]
        assert (await alice.put(path, {})).json() == task
        for change in changes:
            changed = (await alice.put(path, change)).json()
            assert changed["updated_at"] > task["updated_at"]
            assert changed == task | change | {"updated_at": changed["updated_at"]}
            task = changed
        plain = await alice.post({"title": "t"}, headers={"Idempotency-Key": "l"})
        assert plain.status_code == 201
        assert (await alice.delete(path)).status_code == 204
        await alice.add("kept", colour="red")


BUG = """
def upgrade() -> None:
    if not (Path(__file__).parent / "mended").exists():
        raise ZeroDivisionError("a bug in the migration")
"""


async def test_migration_with_a_bug_is_said_plainly_and_tried_again(
    empty_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    number, before = f"{len(versions()) + 1:04}", versions()[-1]
    copy = shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    (copy / f"versions/{number}_bug.py").write_text(
        f"from pathlib import Path\nrevision = {number!r}\ndown_revision = {before!r}\n{BUG}"
    )
    monkeypatch.setattr(tables, "MIGRATIONS", copy)
    monkeypatch.setattr(tables, "BUG_RETRY_INTERVAL", 0.01)
    async with opened(empty_url) as database:
        assert not await database.is_ready()
        await until(lambda: caplog.text.count("a bug in the migration") > 1)
        assert "the tables can't be brought up to date" in caplog.text
        (copy / "versions/mended").touch()
        await until(lambda: database.tables_ready)
        assert await LIST.rows(Session(database), owner="alice") == []
