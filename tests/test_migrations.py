# [Task]: T025 [From]: specs/requirements.md
"""The migrations: they make what the models say, and touch nothing that is not ours."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from database.database import open_database
from database.tables import HEAD, MIGRATIONS, keep_tables
from settings import get_settings

ROOT = Path(__file__).parents[1]


def alembic(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as `make migrate` and `make check` run it."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": url,
            "BETTER_AUTH_URL": "http://localhost",
        },
        capture_output=True,
        text=True,
        check=False,
    )


class TestMigrations:
    def test_end_where_the_service_expects(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        assert ScriptDirectory.from_config(config).get_current_head() == HEAD

    def test_make_what_the_models_say(self, database_url: str) -> None:
        assert alembic(database_url, "upgrade", "head").returncode == 0
        checked = alembic(database_url, "check")
        assert checked.returncode == 0, checked.stdout + checked.stderr

    def test_can_be_taken_back(self, database_url: str) -> None:
        assert alembic(database_url, "upgrade", "head").returncode == 0
        assert alembic(database_url, "downgrade", "base").returncode == 0
        assert alembic(database_url, "check").returncode != 0

    async def test_compare_the_task_table_alone(self, postgresql_url: str) -> None:
        connection = await asyncpg.connect(postgresql_url)
        await connection.execute(
            'CREATE TABLE "user" (id text PRIMARY KEY, "emailVerified" boolean);'
            "CREATE TABLE session (token text PRIMARY KEY)"
        )
        assert alembic(postgresql_url, "upgrade", "head").returncode == 0
        checked = alembic(postgresql_url, "check")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        await connection.execute("ALTER TABLE task ADD COLUMN colour text")
        assert alembic(postgresql_url, "check").returncode != 0
        await connection.close()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "tasks")
    return caplog


class TestStart:
    @pytest.mark.parametrize(
        ("grant", "reason"),
        [
            ("USAGE ON SCHEMA public", "lacks a privilege"),
            ("CONNECT ON DATABASE postgres", "may use no schema"),
        ],
    )
    async def test_says_which_privilege_is_missing(
        self,
        monkeypatch: pytest.MonkeyPatch,
        postgresql_url: str,
        log: pytest.LogCaptureFixture,
        grant: str,
        reason: str,
    ) -> None:
        connection = await asyncpg.connect(postgresql_url)
        await connection.execute(f"CREATE ROLE guest LOGIN; GRANT {grant} TO guest")
        monkeypatch.setenv("DATABASE_URL", postgresql_url.replace("postgres@", "guest@"))
        async with open_database(get_settings()) as database:
            await keep_tables(database)
            assert not await database.is_ready()
        [line] = [r.getMessage() for r in log.records if r.levelno == logging.ERROR]
        assert reason in line
        await connection.execute("DROP OWNED BY guest; DROP ROLE guest")
        await connection.close()

    async def test_serves_the_tables_of_a_newer_version(
        self,
        monkeypatch: pytest.MonkeyPatch,
        postgresql_url: str,
        log: pytest.LogCaptureFixture,
    ) -> None:
        assert alembic(postgresql_url, "upgrade", "head").returncode == 0
        connection = await asyncpg.connect(postgresql_url)
        await connection.execute("UPDATE task_schema SET version_num = '9999'")
        await connection.close()
        monkeypatch.setenv("DATABASE_URL", postgresql_url)
        async with open_database(get_settings()) as database:
            await keep_tables(database)
            assert await database.is_ready()
        assert "newer version" in log.text
