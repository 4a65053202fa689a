# [Task]: T020 [From]: specs/requirements.md
"""Connections: those that are dead are replaced, and prepared statements are run as they are."""

import asyncio
import gc
from contextlib import AsyncExitStack

import pytest
from databases import execute, in_use, new, opened, settings_for, stored
from faults.proxy import Proxy
from sqlalchemy import text
from sqlmodel import select as select_entities

from kit.database.database import Database, new_database
from kit.database.idle import pool_of
from kit.database.session import Session
from kit.errors import DatabaseUnavailable
from models import TASK_TABLE, Task
from tasks.queries import CREATE, LIST

KILL = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'task-api'
"""


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestKilledConnection:
    async def test_is_replaced_for_statements(self, database: Database) -> None:
        async with AsyncExitStack() as held:
            for _ in range(4):
                connection = await held.enter_async_context(database.engine.connect())
                await connection.execute(text("SELECT 1"))
        assert await stored(database, KILL) == [True] * 4
        results = await asyncio.gather(
            *(CREATE.rows(Session(database), **new("after")) for _ in range(4)),
            *(LIST.rows(Session(database), owner="alice") for _ in range(4)),
        )
        assert len(results) == 8
        async with Session(database) as session:
            assert len((await session.exec(select_entities(Task))).all()) == 4

    async def test_is_replaced_in_a_session(self, database: Database) -> None:
        assert await stored(database, KILL) == [True]
        async with Session(database) as session:
            session.add(Task(user_id="alice", title="after"))
            await session.commit()
        assert await stored(database) == ["after"]


class TestIdleConnection:
    """One that a firewall has forgotten, without a word, is asked before it is used."""

    async def test_is_replaced(
        self, beyond: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kit.database.idle.IDLE_BEFORE_PING", 0.05)
        with proxy.stranded():
            await asyncio.sleep(0.06)
            assert len(await LIST.rows(Session(beyond), owner="alice")) == 1
        with proxy.stranded():
            await asyncio.sleep(0.06)
            async with Session(beyond) as session:
                assert len((await session.exec(select_entities(Task))).all()) == 1

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    async def test_leaves_nothing_where_the_request_is_given_up_meanwhile(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked = asyncio.Event()

        async def never_answers(_driver: object, _used_at: float) -> bool:
            asked.set()
            await asyncio.Event().wait()
            return False

        await LIST.rows(Session(database), owner="alice")
        monkeypatch.setattr("kit.database.idle._is_dead", never_answers)
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


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_pool_without_a_free_connection_is_unavailable(database_url: str) -> None:
    async with opened(database_url, database_pool_size=1) as database:
        async with database.engine.connect():
            with pytest.raises(DatabaseUnavailable):
                await LIST.rows(Session(database), owner="alice")
        assert await LIST.rows(Session(database), owner="alice") == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_statement_is_prepared_anew_when_the_table_has_changed(database: Database) -> None:
    await CREATE.rows(Session(database), **new("kept"))
    assert len(await LIST.rows(Session(database), owner="alice")) == 1
    await execute(database, "ALTER TABLE task ALTER COLUMN title TYPE text")
    [row] = await LIST.rows(Session(database), owner="alice")
    assert row["title"] == "kept"


class TestPoolerThatLosesNames:
    """Through a real one: tests/faults/test_poolers.py."""

    async def test_is_gone_without_names_for(
        self, beyond: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What one server connection knows and another does not, without a pooler."""
        await stored(beyond, "SELECT 1")
        [connection] = pool_of(beyond.engine).idle
        await connection.driver.execute("DEALLOCATE ALL")
        await CREATE.rows(Session(beyond), **new("without a name"))
        [fresh] = pool_of(beyond.engine).idle
        assert fresh.driver is not connection.driver
        assert connection.driver.is_closed()
        assert await fresh.driver.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0
        assert [r.message for r in caplog.records if "no names" in r.message] != []
        assert len(caplog.records) == 1


class TestRefusedLogIn:
    """Whatever code a server or a pooler refuses a connection with, that is an outage."""

    @pytest.mark.parametrize("state", ["XX000", "55000", "22023", "P0001", "0LP01", "99999"])
    async def test_is_unavailable(self, state: str) -> None:
        said = f"SFATAL\0C{state}\0Mthe endpoint is disabled\0\0".encode()
        refusal = b"E" + (len(said) + 4).to_bytes(4) + said

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1024)
            writer.write(refusal)
            writer.close()

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            url = f"postgresql://alice:secret@127.0.0.1:{port}/tasks?sslmode=disable"
            database = new_database(settings_for(url), TASK_TABLE)
            with pytest.raises(DatabaseUnavailable, match="the endpoint is disabled"):
                await LIST.rows(Session(database), owner="alice")
            assert not await database.serves()
