# [Task]: T020 [From]: specs/requirements.md
"""Statements on their own and in transactions, on both databases, and what becomes of them."""

import asyncio
import gc
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta, timezone

import asyncpg
import pytest
import sqlalchemy.exc
from databases import (
    EARLIER_TABLE,
    all_returned,
    execute,
    in_use,
    new,
    opened,
    settings_for,
    stored,
)
from sqlalchemy import func, select, text
from sqlmodel import select as select_entities
from sqlmodel.ext.asyncio.session import AsyncSession

from database.database import Database, Session, open_database
from errors import DatabaseUnavailable
from models import TASK_TABLE, Task, utc_now
from queries import COMPLETE, CREATE, DELETE, GET, LIST


class TestStatement:
    async def test_rows_have_one_form_on_both_databases(self, database: Database) -> None:
        now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
        values = new("Écrire ✍️", new_description=None, new_completed=True, now=now)
        [row] = await CREATE.rows(Session(database), **values)
        assert row == {
            "id": 1,
            "user_id": "alice",
            "title": "Écrire ✍️",
            "description": None,
            "completed": True,
            "created_at": "2026-01-02T01:04:05.000000Z",
            "updated_at": "2026-01-02T01:04:05.000000Z",
        }
        assert list(row) == TASK_TABLE.columns.keys()
        assert type(row["completed"]) is bool  # Which SQLite has not.
        assert await LIST.rows(Session(database), owner="alice") == [row]
        assert await GET.row(Session(database), owner="alice", task_id=1) == row

    async def test_row_is_the_first_or_none(self, database: Database) -> None:
        assert await LIST.row(Session(database), owner="alice") is None
        for title in ("first", "second"):
            await CREATE.rows(Session(database), **new(title))
        row = await LIST.row(Session(database), owner="alice")
        assert row is not None
        assert row["title"] == "second"

    async def test_alone_is_done_when_it_returns(
        self, database: Database, database_url: str
    ) -> None:
        async with Session(database) as session:
            [row] = await CREATE.rows(session, **new("alone"))
            assert not session.in_transaction()
            assert in_use(database) == 0
            assert await stored(database_url) == ["alone"]
            assert await DELETE.row(session, owner="alice", task_id=row["id"]) == {"id": row["id"]}
            assert await stored(database_url) == []

    async def test_alone_and_failed_leaves_nothing(
        self, database: Database, database_url: str
    ) -> None:
        with pytest.raises((sqlite3.IntegrityError, asyncpg.NotNullViolationError)):
            await CREATE.rows(Session(database), **new("", new_title=None))
        assert in_use(database) == 0
        await CREATE.rows(Session(database), **new("after"))
        assert await stored(database_url) == ["after"]

    @pytest.mark.parametrize("kept", [True, False], ids=["commit", "rollback"])
    async def test_takes_part_in_a_begun_transaction(
        self, database: Database, database_url: str, kept: bool
    ) -> None:
        async with Session(database) as session:
            await session.begin()
            [row] = await CREATE.rows(session, **new("in a transaction"))
            assert await stored(database_url) == []
            assert await LIST.rows(session, owner="alice") == [row]
            await (session.commit() if kept else session.rollback())
        assert await stored(database_url) == (["in a transaction"] if kept else [])

    async def test_takes_part_in_a_transaction_that_a_query_began(
        self, database: Database, database_url: str
    ) -> None:
        async with Session(database) as session:
            await session.exec(select_entities(Task))
            await CREATE.rows(session, **new("in a transaction"))
            await session.rollback()
        assert await stored(database_url) == []

    async def test_two_in_one_transaction_stand_or_fall_together(
        self, database: Database, database_url: str
    ) -> None:
        async def two() -> None:
            async with Session(database) as session, session.begin():
                await CREATE.rows(session, **new("first"))
                await CREATE.rows(session, **new("", new_title=None))

        with pytest.raises(sqlalchemy.exc.IntegrityError):
            await two()
        assert await stored(database_url) == []
        assert in_use(database) == 0

    async def test_reads_what_a_session_has_pending(
        self, database: Database, database_url: str
    ) -> None:
        async with Session(database) as session:
            session.add(Task(user_id="alice", title="pending"))
            [row] = await LIST.rows(session, owner="alice")
            assert row["title"] == "pending"
            await session.rollback()
        assert await stored(database_url) == []

    async def test_object_of_the_same_session_sees_what_it_wrote(self, database: Database) -> None:
        async with Session(database) as session:
            task = Task(user_id="alice", title="object")
            session.add(task)
            await session.flush()
            assert task.id is not None
            values = {"new_completed": None, "now": utc_now()}
            await COMPLETE.row(session, owner="alice", task_id=task.id, **values)
            await session.refresh(task)
            assert task.completed is True

    @pytest.mark.parametrize("kept", [True, False], ids=["commit", "rollback"])
    async def test_uses_the_transaction_of_a_foreign_session(
        self, database: Database, database_url: str, kept: bool
    ) -> None:
        async with AsyncSession(database.engine) as session:
            [row] = await CREATE.rows(session, **new("foreign"))
            assert await stored(database_url) == []
            assert await LIST.rows(session, owner="alice") == [row]
            await (session.commit() if kept else session.rollback())
        assert await stored(database_url) == (["foreign"] if kept else [])

    async def test_reads_what_a_foreign_session_has_pending(
        self, database: Database, database_url: str
    ) -> None:
        async with AsyncSession(database.engine) as session:
            session.add(Task(user_id="alice", title="pending"))
            [row] = await LIST.rows(session, owner="alice")
            assert row["title"] == "pending"
        assert await stored(database_url) == []

    async def test_uses_the_connection_of_a_foreign_session(
        self, database: Database, database_url: str
    ) -> None:
        async with database.engine.connect() as connection, connection.begin() as outer:
            async with AsyncSession(connection) as session:
                await CREATE.rows(session, **new("on a connection"))
                await session.commit()
            count = await connection.scalar(select(func.count()).select_from(TASK_TABLE))
            assert count == 1
            await outer.rollback()
        assert await stored(database_url) == []

    async def test_many_at_once_are_all_done(self, database: Database, database_url: str) -> None:
        async def add(title: str) -> None:
            async with database.gate:
                await CREATE.rows(Session(database), **new(title))

        titles = [f"task {number}" for number in range(30)]
        await asyncio.gather(*(add(title) for title in titles))
        assert sorted(await stored(database_url)) == sorted(titles)
        assert in_use(database) == 0


@pytest.fixture
async def locked(postgresql_url: str, database: Database) -> AsyncIterator[int]:
    """The id of a task whose row another transaction holds."""
    [row] = await CREATE.rows(Session(database), **new("locked"))
    holder = await asyncpg.connect(postgresql_url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("UPDATE task SET title = title")
    yield row["id"]
    await transaction.rollback()
    await holder.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestPostgreSQLFailures:
    async def test_killed_connections_are_replaced(
        self, database: Database, database_url: str
    ) -> None:
        async with AsyncExitStack() as held:
            for _ in range(4):
                connection = await held.enter_async_context(database.engine.connect())
                await connection.execute(text("SELECT 1"))
        killed = await stored(
            database_url,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'task-api'",
        )
        assert killed == [True] * 4
        results = await asyncio.gather(
            *(CREATE.rows(Session(database), **new("after")) for _ in range(4)),
            *(LIST.rows(Session(database), owner="alice") for _ in range(4)),
        )
        assert len(results) == 8
        async with Session(database) as session:
            assert len((await session.exec(select_entities(Task))).all()) == 4

    async def test_request_given_up_while_an_idle_connection_is_asked_leaves_nothing(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked = asyncio.Event()

        async def never_answers(_driver: object, _used_at: float) -> bool:
            asked.set()
            await asyncio.Event().wait()
            return False

        await LIST.rows(Session(database), owner="alice")
        monkeypatch.setattr("database.pool._is_dead", never_answers)
        waiting = asyncio.create_task(LIST.rows(Session(database), owner="alice"))
        await asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        del waiting
        gc.collect()  # Which would complain of a connection that nobody has given back.
        assert in_use(database) == 0
        assert caplog.records == []
        monkeypatch.undo()
        assert await LIST.rows(Session(database), owner="alice") == []

    async def test_killed_connection_is_replaced_in_a_session(
        self, database: Database, database_url: str
    ) -> None:
        kill = (
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'task-api'"
        )
        assert await stored(database_url, kill) == [True]
        async with Session(database) as session:
            session.add(Task(user_id="alice", title="after"))
            await session.commit()
        assert await stored(database_url) == ["after"]

    async def test_statement_stuck_on_a_lock_ends_in_time(
        self, database_url: str, locked: int
    ) -> None:
        quick = settings_for(database_url, database_statement_timeout=0.2)
        async with open_database(quick) as database:
            async with asyncio.timeout(5):
                with pytest.raises(DatabaseUnavailable, match="TimeoutError"):
                    await DELETE.row(Session(database), owner="alice", task_id=locked)
            await all_returned(database)
            assert len(await LIST.rows(Session(database), owner="alice")) == 1

    @pytest.mark.usefixtures("locked")
    async def test_start_beside_a_writer_needs_no_lock(
        self, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """While it waited for one, every other writer would wait behind it."""
        async with asyncio.timeout(5), opened(database_url) as database:
            await CREATE.rows(Session(database), **new("beside"))
        assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []

    async def test_cancelled_statement_gives_its_connection_back(
        self, database: Database, database_url: str, locked: int
    ) -> None:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        stuck = asyncio.create_task(DELETE.row(Session(database), owner="alice", task_id=locked))
        async with asyncio.timeout(1):
            while await stored(database_url, waiting) == [0]:
                assert not stuck.done()
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        await all_returned(database)
        assert len(await LIST.rows(Session(database), owner="alice")) == 1
        assert await stored(database_url, waiting) == [0]

    async def test_pool_without_a_free_connection_is_unavailable(self, database_url: str) -> None:
        async with opened(database_url, database_pool_size=1) as database:
            async with database.engine.connect():
                with pytest.raises(DatabaseUnavailable):
                    await LIST.rows(Session(database), owner="alice")
            assert await LIST.rows(Session(database), owner="alice") == []

    async def test_changed_table_does_not_break_known_statements(
        self, database: Database, database_url: str
    ) -> None:
        await CREATE.rows(Session(database), **new("kept"))
        assert len(await LIST.rows(Session(database), owner="alice")) == 1
        await execute(database_url, "ALTER TABLE task ALTER COLUMN title TYPE text")
        [row] = await LIST.rows(Session(database), owner="alice")
        assert row["title"] == "kept"

    async def test_id_beyond_the_column_of_an_earlier_table_is_no_task(
        self, database_url: str
    ) -> None:
        await execute(database_url, EARLIER_TABLE["postgresql"])
        async with opened(database_url) as database:
            session = Session(database)
            assert await GET.row(session, owner="alice", task_id=2**63 - 1) is None
            assert await DELETE.row(session, owner="alice", task_id=2**31) is None
