# [Task]: T026 [From]: specs/reliance.md
"""What is relied on beyond documented interfaces is still as it was: for upgrades."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from databases import new, opened, stored
from faults.proxy import Proxy
from sqlmodel import select

from kit.database.failures import nothing_sent, service_error
from kit.database.pool import Connection, pool_of
from kit.database.session import Session
from kit.errors import DatabaseUnavailable
from models import Task
from tasks.queries import CREATE, GET

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"__asyncpg_stmt_[0-9a-f]+__[0-9a-f]{12}")


class TestDocument:
    def test_names_files_and_tests_that_exist(self) -> None:
        document = (ROOT / "specs/reliance.md").read_text()
        rows = re.findall(r"^\| .+ \| .+ \| (.+) \| (.+) \|$", document, re.MULTILINE)[2:]
        assert len(rows) >= 8
        tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
        for files, test in rows:
            for name in re.findall(r"`([\w/]+\.py)`", files):
                assert (ROOT / name).is_file()
            for name in re.findall(r"`((?:test_|Test)\w+)`", test):
                assert re.search(rf"(class|def) {name}\b", tests), name


class TestStatementNames:
    async def test_are_those_of_no_other_connection(self, postgresql_url: str) -> None:
        names = []
        for _ in range(2):
            async with opened(postgresql_url, database_pool_size=1) as database:
                await CREATE.rows(Session(database), **new("named"))
                [connection] = pool_of(database.engine).at_hand
                prepared = await connection.driver.fetch("SELECT name FROM pg_prepared_statements")
                names += [row["name"] for row in prepared]
        assert len(names) >= 4
        assert all(NAME.fullmatch(name) for name in names)
        assert len(set(names)) == len(names)


@pytest.fixture
async def connection(postgresql_url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(
        postgresql_url, connection_class=Connection, command_timeout=0.2
    )
    yield connection
    await connection.close()


class TestPreparedStatement:
    async def test_is_run_without_asyncpgs_layers(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sql = "SELECT $1::int AS number, $2::text AS word"
        prepared = await connection.fetch(sql, 1, "a")
        monkeypatch.delattr(asyncpg.Connection, "_execute")
        again = await connection.fetch(sql, 1, "a")
        assert [dict(record) for record in again] == [{"number": 1, "word": "a"}]
        assert again == prepared

    async def test_is_alone_on_its_connection(self, connection: Connection) -> None:
        await connection.fetch("SELECT 1")
        first, second = await asyncio.gather(
            *(connection.fetch("SELECT 1") for _ in range(2)), return_exceptions=True
        )
        assert first == [(1,)]
        assert isinstance(second, asyncpg.InterfaceError)

    async def test_is_cut_off_in_time(self, connection: Connection) -> None:
        assert await connection.fetch("SELECT pg_sleep($1)", 0) == [(None,)]
        with pytest.raises(TimeoutError):
            await connection.fetch("SELECT pg_sleep($1)", 5)


async def ask_for_ever(connection: asyncpg.Connection) -> None:
    while True:
        await connection.fetch("SELECT 1")


class TestDriversWords:
    async def test_tell_of_a_closed_connection(self, postgresql_url: str) -> None:
        connection = await asyncpg.connect(postgresql_url)
        await connection.close()
        with pytest.raises(asyncpg.InterfaceError) as raised:
            await connection.fetch("SELECT 1")
        assert nothing_sent(raised.value)

    async def test_tell_of_a_server_that_has_said_goodbye(
        self, postgresql_url: str, proxy: Proxy
    ) -> None:
        connection = await asyncpg.connect(proxy.url(postgresql_url))
        pid = connection.get_server_pid()
        with proxy.ends_lost():
            await stored(postgresql_url, f"SELECT pg_terminate_backend({pid}, 5000)")
            with pytest.raises(asyncpg.InternalClientError) as raised:
                await ask_for_ever(connection)
            assert nothing_sent(raised.value)
        connection.terminate()

    async def test_do_not_tell_so_of_a_mistaken_call(self, postgresql_url: str) -> None:
        connection = await asyncpg.connect(postgresql_url)
        with pytest.raises(asyncpg.InterfaceError) as raised:
            await connection.fetch("SELECT $1::int")
        assert not nothing_sent(raised.value)
        await connection.close()

    def test_tell_of_a_missing_table(self) -> None:
        with (
            closing(sqlite3.connect(":memory:")) as connection,
            pytest.raises(sqlite3.OperationalError) as raised,
        ):
            connection.execute("SELECT * FROM task")
        assert isinstance(service_error(raised.value, "DATABASE_URL"), DatabaseUnavailable)


class TestPool:
    async def test_gives_sqlalchemy_what_a_statement_has_used(self, database_url: str) -> None:
        async with opened(database_url, database_pool_size=1) as database:
            [row] = await CREATE.rows(Session(database), **new("by a statement"))
            pool = pool_of(database.engine)
            [connection] = pool.at_hand
            async with Session(database) as session:
                [task] = (await session.exec(select(Task))).all()
                assert task.title == "by a statement"
                assert not pool.at_hand
            assert pool.checkedin() == 1
            found = await GET.row(Session(database), owner="alice", task_id=row["id"])
            assert found == row
            [again] = pool.at_hand
            assert again.driver is connection.driver
