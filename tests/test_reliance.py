# [Task]: T026 [From]: specs/reliance.md
"""What is relied on beyond documented interfaces is still as it was: for upgrades."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from databases import new, opened, stored
from faults.proxy import Proxy
from sqlmodel import select

from kit.database.failures import nothing_sent, service_error
from kit.database.idle import pool_of
from kit.database.session import Session
from kit.errors import DatabaseUnavailable
from models import Task
from tasks.queries import CREATE, GET

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"(__asyncpg_stmt_[0-9a-f]+_|task_api)_[0-9a-f]{12,16}")


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

    def test_names_every_private_module_that_is_imported(self) -> None:
        document = (ROOT / "specs/reliance.md").read_text()
        imports = re.compile(r"^ *from ((?!kit)[\w.]*\b_[a-z]\w*(?:\.\w+)*) import", re.MULTILINE)
        for path in (ROOT / "kit").rglob("*.py"):
            for module in imports.findall(path.read_text()):
                assert module.rpartition(".")[2] in document, (path, module)


class TestStatementNames:
    async def test_are_those_of_no_other_connection(self, postgresql_url: str) -> None:
        names = []
        for _ in range(2):
            async with opened(postgresql_url, database_pool_size=1) as database:
                await CREATE.rows(Session(database), **new("named"))
                [connection] = pool_of(database.engine).idle
                prepared = await connection.driver.fetch("SELECT name FROM pg_prepared_statements")
                names += [row["name"] for row in prepared]
        assert len(names) >= 4
        assert all(NAME.fullmatch(name) for name in names)
        assert len(set(names)) == len(names)


class TestDriversWords:
    async def test_tell_of_a_closed_connection_and_not_of_a_mistaken_call(
        self, postgresql_url: str
    ) -> None:
        connection = await asyncpg.connect(postgresql_url)
        with pytest.raises(asyncpg.InterfaceError) as mistaken:
            await connection.fetch("SELECT $1::int")
        await connection.close()
        with pytest.raises(asyncpg.InterfaceError) as closed:
            await connection.fetch("SELECT 1")
        assert (nothing_sent(mistaken.value), nothing_sent(closed.value)) == (False, True)

    async def test_tell_of_a_server_that_has_said_goodbye(
        self, postgresql_url: str, proxy: Proxy
    ) -> None:
        connection = await asyncpg.connect(proxy.url(postgresql_url))
        pid = connection.get_server_pid()

        async def ask_for_ever() -> None:
            while True:
                await connection.fetch("SELECT 1")

        with proxy.ends_lost():
            await stored(postgresql_url, f"SELECT pg_terminate_backend({pid}, 5000)")
            with pytest.raises(asyncpg.InternalClientError) as raised:
                await ask_for_ever()
            assert nothing_sent(raised.value)
        connection.terminate()

    def test_tell_of_a_missing_table(self) -> None:
        with (
            closing(sqlite3.connect(":memory:")) as connection,
            pytest.raises(sqlite3.OperationalError) as raised,
        ):
            connection.execute("SELECT * FROM task")
        assert isinstance(service_error(raised.value, "DATABASE_URL"), DatabaseUnavailable)


class TestPool:
    async def test_gives_sqlalchemy_what_a_statement_has_used(
        self, ready_postgresql_url: str
    ) -> None:
        async with opened(ready_postgresql_url, database_pool_size=1) as database:
            [row] = await CREATE.rows(Session(database), **new("by a statement"))
            pool = pool_of(database.engine)
            [connection] = pool.idle
            async with Session(database) as session:
                [task] = (await session.exec(select(Task))).all()
                assert task.title == "by a statement"
                assert not pool.idle
            assert pool.checkedin() == 1
            found = await GET.row(Session(database), owner="alice", task_id=row["id"])
            assert found == row
            [again] = pool.idle
            assert again.driver is connection.driver
