# [Task]: T020 [From]: specs/requirements.md
"""Statements on their own and in transactions, on both databases, and what becomes of them."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any

import asyncpg
import pytest
from databases import EARLIER_TABLE, all_returned, execute, in_use, new, opened, stored, until
from faults.proxy import Proxy
from sqlalchemy import bindparam, event, func, insert, select, update
from sqlmodel import select as select_entities
from sqlmodel.ext.asyncio.session import AsyncSession

from kit.database.database import Database
from kit.database.execute import Statement
from kit.database.idle import pool_of
from kit.database.session import Session
from kit.database.sql import rfc3339_text, utc_now
from kit.errors import DatabaseUnavailable, StatementTimeout
from models import TASK_TABLE, Task
from schemas import TaskPublic
from tasks import queries
from tasks.queries import CREATE, CREATE_WITHIN, GET, LIST

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


async def tasks_of_alice(session: AsyncSession | Database) -> list[Any]:
    if isinstance(session, Database):
        session = Session(session)
    return await LIST.rows(session, owner="alice")


async def delete(database: Database, task_id: int) -> object:
    statement = queries.DELETE.any_version
    return await statement.row(Session(database), owner="alice", expired=utc_now(), task_id=task_id)


class TestStatement:
    async def test_rows_have_one_form_on_both_databases(self, database: Database) -> None:
        now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
        values = new("Écrire ✍️", new_description=None, new_completed=True, now=now)
        assert await LIST.row(Session(database), owner="alice") is None
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
        assert list(row) == list(TaskPublic.model_fields)
        assert type(row["completed"]) is bool  # Which SQLite has not.
        assert await LIST.rows(Session(database), owner="alice") == [row]
        assert await GET.row(Session(database), owner="alice", task_id=1) == row
        newer = await CREATE.row(Session(database), **new("newer"))
        assert await LIST.row(Session(database), owner="alice") == newer

    async def test_alone_is_done_when_it_returns_or_leaves_nothing(
        self, database: Database
    ) -> None:
        async with Session(database) as session:
            [row] = await CREATE.rows(session, **new("alone"))
            assert not session.in_transaction()
            assert in_use(database) == 0
            assert await stored(database) == ["alone"]
        assert await delete(database, row["id"]) == {"id": row["id"]}
        with pytest.raises((sqlite3.IntegrityError, asyncpg.NotNullViolationError)):
            await CREATE.rows(Session(database), **new("", new_title=None))
        assert in_use(database) == 0
        await CREATE.rows(Session(database), **new("after"))
        assert await stored(database) == ["after"]

    @pytest.mark.parametrize("create", [CREATE, CREATE_WITHIN], ids=["insert", "with … insert"])
    @pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
    async def test_takes_part_in_the_transaction_of_its_session(
        self, database: Database, create: Statement, foreign: bool
    ) -> None:
        for kept in (False, True):
            made = AsyncSession(database.engine) if foreign else Session(database)
            async with made as session:
                if not foreign:
                    await session.begin()
                [row] = await create.rows(session, **new("by statement", task_limit=1))
                session.add(Task(user_id="alice", title="pending"))
                assert await stored(database) == []
                pending, found = await tasks_of_alice(session)
                assert (pending["title"], found) == ("pending", row)
                await (session.commit() if kept else session.rollback())
            assert await stored(database) == ["by statement", "pending"] * kept

    async def test_is_undone_after_a_savepoint_or_a_query_began_the_transaction(
        self, database: Database
    ) -> None:
        async with Session(database) as session:
            async with session.begin_nested():
                await CREATE.rows(session, **new("in a savepoint"))
            await session.rollback()
            await session.exec(select_entities(Task))
            await CREATE.rows(session, **new("after a query"))
            await session.rollback()
        assert await stored(database) == []

    async def test_uses_the_connection_of_a_foreign_session(self, database: Database) -> None:
        async with database.engine.connect() as connection, connection.begin() as outer:
            async with AsyncSession(connection) as session:
                await CREATE.rows(session, **new("on a connection"))
                await session.commit()
            count = await connection.scalar(select(func.count()).select_from(TASK_TABLE))
            assert count == 1
            await outer.rollback()
        assert await stored(database) == []


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


@on_postgresql
class TestLocked:
    """specs/decisions.md, D36."""

    async def test_statement_stuck_on_a_lock_ends_in_time(
        self,
        database_url: str,
        locked: int,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("kit.database.database.PROBE_INTERVAL", 3600.0)
        async with opened(database_url, database_statement_timeout=0.2) as database:
            asked = questions(database)
            caplog.clear()
            with pytest.raises(StatementTimeout, match="TimeoutError"):
                await delete(database, locked)
            await all_returned(database)
            # That is no outage. Whether it serves is asked at once, and once.
            assert database.seen_working
            assert caplog.records == []
            assert await database.serves()
            assert await database.serves()
            assert len(asked) == 1
            with pytest.raises(StatementTimeout):
                await delete(database, locked)
            # Any answer tells as much.
            assert len(await tasks_of_alice(database)) == 1
            assert await database.serves()
            assert len(asked) == 1

    @pytest.mark.usefixtures("locked")
    async def test_start_beside_a_writer_needs_no_lock(
        self, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """While it waited for one, every other writer would wait behind it."""
        async with asyncio.timeout(5), opened(database_url) as database:
            await CREATE.rows(Session(database), **new("beside"))
        assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []

    async def test_cancelled_statement_gives_its_connection_back(
        self, database: Database, locked: int
    ) -> None:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        stuck = asyncio.create_task(delete(database, locked))
        async with asyncio.timeout(1):
            while await stored(database, waiting) == [0]:
                assert not stuck.done()
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        await all_returned(database)
        assert len(await tasks_of_alice(database)) == 1
        assert await stored(database, waiting) == [0]

    async def test_id_beyond_the_column_of_an_earlier_table_is_no_task(
        self, database_url: str
    ) -> None:
        await execute(database_url, "DROP TABLE task, task_schema")
        await execute(database_url, EARLIER_TABLE["postgresql"])
        async with opened(database_url) as database:
            assert await GET.row(Session(database), owner="alice", task_id=2**63 - 1) is None
            assert await delete(database, 2**31) is None


REFUSALS = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('tries') <= {} THEN RAISE 'refused' USING ERRCODE = '{}'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON task FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@on_postgresql
@pytest.mark.parametrize("state", ["40001", "40P01"])
class TestConflict:
    """The server has rolled back what a conflict ended, so that it can be run again."""

    async def test_is_repeated(self, database: Database, state: str) -> None:
        await execute(database, REFUSALS.format(3, state))
        await asyncio.gather(*(CREATE.rows(Session(database), **new("once")) for _ in range(20)))
        assert await stored(database) == ["once"] * 20

    async def test_that_lasts_is_no_outage(self, database: Database, state: str) -> None:
        await execute(database, REFUSALS.format(10**9, state))
        for alone in (True, False):
            began = time.monotonic()
            async with Session(database) as session:
                if not alone:
                    await session.connection()
                with pytest.raises(StatementTimeout):
                    await CREATE.rows(session, **new("never"))
            assert time.monotonic() - began < 1
            assert database.seen_working


class TestExactlyOnce:
    """specs/decisions.md, D11."""

    async def test_write_whose_answer_was_lost_is_not_done_again(
        self, beyond: Database, proxy: Proxy, postgresql_url: str
    ) -> None:
        proxy.lose_answers(1)
        with pytest.raises(DatabaseUnavailable):
            await CREATE.rows(Session(beyond), **new("unknown"))
        assert await stored(postgresql_url) == ["known", "unknown"]
        await CREATE.rows(Session(beyond), **new("next"))
        assert await stored(postgresql_url) == ["known", "unknown", "next"]

    async def test_read_whose_answer_was_lost_is_done_again_once(
        self, beyond: Database, proxy: Proxy
    ) -> None:
        proxy.lose_answers(1)
        [row] = await tasks_of_alice(beyond)
        assert row["title"] == "known"
        before = proxy.connections
        proxy.lose_answers(100)
        with pytest.raises(DatabaseUnavailable):
            await tasks_of_alice(beyond)
        assert proxy.connections == before + 1
        proxy.lose_answers(0)
        assert not beyond.seen_working
        assert await tasks_of_alice(beyond) == [row]
        assert beyond.seen_working

    @pytest.mark.parametrize(
        "refusal",
        [
            asyncpg.exceptions.InvalidCachedStatementError("the table has changed"),
            asyncpg.InterfaceError("connection is closed"),
            asyncpg.InternalClientError("cannot switch to state 2"),
            asyncpg.InvalidSQLStatementNameError("does not exist"),
            asyncpg.InternalServerError("could not find valid entry for shard 102008"),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_what_never_begins_is_given_up(
        self, beyond: Database, monkeypatch: pytest.MonkeyPatch, refusal: Exception
    ) -> None:
        refused = []

        async def refuse(*_: object, **__: object) -> None:
            refused.append(refusal)
            raise refusal

        monkeypatch.setattr("kit.database.pool.Connection.run_prepared", refuse)
        monkeypatch.setattr("kit.database.execute.REPEAT_WITHIN", 0.05)
        with pytest.raises(DatabaseUnavailable):
            await CREATE.rows(Session(beyond), **new("never"))
        assert len(refused) > 1
        assert not beyond.seen_working


class TestMute:
    async def test_connection_is_closed_and_tells_that_the_database_does_not_serve(
        self, beyond: Database, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        proxy.stall()
        with pytest.raises(StatementTimeout):
            await tasks_of_alice(beyond)
        assert beyond.seen_working
        await all_returned(beyond)
        assert not pool_of(beyond.engine).idle
        assert not beyond.seen_working
        [record] = [r for r in caplog.records if r.name == "tasks.db"]
        assert "does not answer any more" in record.message
        proxy.resume()
        await until(lambda: proxy.open_connections == 0)
        assert len(await tasks_of_alice(beyond)) == 1

    async def test_server_is_an_outage_and_no_late_statement(
        self, proxy: Proxy, ready_postgresql_url: str
    ) -> None:
        url = proxy.url(ready_postgresql_url)
        async with opened(url, database_connect_timeout=0.2) as database:
            proxy.stall()
            proxy.cut()
            await until(lambda: proxy.open_connections == 0)
            with pytest.raises(DatabaseUnavailable) as raised:
                await CREATE.rows(Session(database), **new("in vain"))
            assert not isinstance(raised.value, StatementTimeout)
            assert not database.seen_working


def questions(database: Database) -> list[str]:
    """What is asked from now on through SQLAlchemy, as a probe asks."""
    asked: list[str] = []
    event.listen(
        database.engine_for(reads=True).sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, sql, *_: asked.append(sql),
    )
    return asked


async def test_probe_asks_once_for_all(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> list[bool]:
        return await asyncio.gather(*(database.serves() for _ in range(20)))

    asked = questions(database)
    monkeypatch.setattr("kit.database.database.PROBE_INTERVAL", 3600.0)
    database.mark_down("a test says so")
    assert not any(await ask())
    assert asked == []
    monkeypatch.setattr("kit.database.database.PROBE_INTERVAL", 0.1)
    await asyncio.sleep(0.1)
    await ask()
    assert len(asked) == 1
    assert all(await ask())
    with pytest.raises(StatementTimeout), database.watched():
        raise TimeoutError
    await ask()
    assert len(asked) == 2


class TestDefaults:
    """Those of the table's columns, in a Statement that an endpoint adds."""

    async def test_an_update_moves_updated_at(self, database: Database) -> None:
        touch = Statement(
            update(TASK_TABLE)
            .where(TASK_TABLE.c.id == bindparam("task_id"))
            .values(title=bindparam("new_title"))
            .returning(TASK_TABLE.c.updated_at)
        )
        [task] = await CREATE.rows(Session(database), **new("first"))
        version = task["updated_at"]
        for _ in range(3):
            [row] = await touch.rows(Session(database), task_id=task["id"], new_title="x")
            assert rfc3339_text(row["updated_at"]) > version
            version = rfc3339_text(row["updated_at"])

    async def test_an_insert_must_name_what_has_a_default(self, database: Database) -> None:
        add = Statement(insert(TASK_TABLE).values(user_id="alice", title="x"))
        with pytest.raises(TypeError, match="created_at, updated_at"):
            await add.rows(Session(database))
