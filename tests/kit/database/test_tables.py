# [Task]: T020 [From]: specs/requirements.md
"""How the tables come to be: on an empty database, an earlier one, one that is late."""

import asyncio
import logging
import socket
from contextlib import AsyncExitStack

import pytest
from databases import EARLIER_TABLE, execute, in_use, new, opened, settings_for, stored, until

from db import open_database
from kit.database.session import Session
from kit.database.tables import START_PATIENCE
from kit.errors import DatabaseUnavailable
from models import TASK_TABLE
from tasks.queries import CREATE, LIST

EARLIER_INDEX_AND_ROW = """
    CREATE INDEX ix_task_user_id ON task (user_id);
    INSERT INTO task (user_id, title, completed, created_at, updated_at)
    VALUES ('alice', 'old', TRUE, '2025-01-02 03:04:05.000006', '2025-01-02 03:04:05.000007');
"""
RELATIONS = {
    "postgresql": "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    "sqlite": "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite%'",
}


class TestTables:
    async def test_are_the_tasks_and_a_note_of_their_version(self, empty_url: str) -> None:
        kind = empty_url.partition(":")[0]
        expected = {"task", "task_schema", *(index.name for index in TASK_TABLE.indexes)}
        if kind == "postgresql":
            expected |= {"task_pkey", "task_id_seq", "task_schema_pkc"}
        async with opened(empty_url):
            assert set(await stored(empty_url, RELATIONS[kind])) == expected

    async def test_uses_the_table_of_an_earlier_backend(self, empty_url: str) -> None:
        kind = empty_url.partition(":")[0]
        await execute(empty_url, EARLIER_TABLE[kind] + EARLIER_INDEX_AND_ROW)
        async with opened(empty_url) as database:
            made = set(await stored(empty_url, RELATIONS[kind]))
            [row] = await LIST.rows(Session(database), owner="alice")
            [added] = await CREATE.rows(Session(database), **new("new"))
        assert "ix_task_user_id" in made
        assert (row["id"], row["title"], row["completed"]) == (1, "old", True)
        assert added["id"] == 2
        async with opened(empty_url) as database:  # What an earlier start made is kept.
            rows = await LIST.rows(Session(database), owner="alice")
        assert [row["title"] for row in rows] == ["new", "old"]

    async def test_eight_at_once_on_an_empty_database(
        self, postgresql_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "tasks")
        async with AsyncExitStack() as stack:
            starts = [stack.enter_async_context(opened(postgresql_url)) for _ in range(8)]
            databases = await asyncio.gather(*starts)
            creates = [CREATE.rows(Session(database), **new("one")) for database in databases]
            await asyncio.gather(*creates)
        assert caplog.records == []
        assert await stored(postgresql_url) == ["one"] * 8

    async def test_that_are_up_to_date_are_waited_for_by_no_start(self, database_url: str) -> None:
        """Such as while another process has the tables' lock, or SQLite's for writing."""
        async with (
            open_database(settings_for(database_url)) as other,
            other.changing_tables(),
            asyncio.timeout(START_PATIENCE / 2),
            opened(database_url) as database,
        ):
            assert await LIST.rows(Session(database), owner="alice") == []

    async def test_does_not_wait_for_a_database_that_is_not_there(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"postgresql://u:hunter2@127.0.0.1:{unused.getsockname()[1]}/d"
            async with opened(url) as database:
                with pytest.raises(DatabaseUnavailable):
                    await LIST.rows(Session(database), owner="alice")
                assert in_use(database) == 0
        [error] = [record for record in caplog.records if record.levelno > logging.INFO]
        assert error.levelno == logging.ERROR
        assert "ConnectionRefusedError" in error.getMessage()
        assert "hunter2" not in caplog.text

    async def test_makes_the_table_once_the_database_is_there(
        self, postgresql_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("kit.database.tables.START_RETRY_INTERVAL", 0.01)
        async with opened(f"{postgresql_url.removesuffix('/postgres')}/late") as database:
            assert 'database "late" does not exist' in caplog.text
            await execute(postgresql_url, "CREATE DATABASE late")
            await until(lambda: database.seen_working)
            [row] = await CREATE.rows(Session(database), **new("late"))
        assert row["title"] == "late"
        await execute(postgresql_url, "DROP DATABASE late WITH (FORCE)")
