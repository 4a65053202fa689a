# [Task]: T085 [From]: specs/requirements.md
# ruff: noqa: S608  # A test's own words.
"""Tables that were there before this service: others' are left alone, older ones of ours mended."""

import logging
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import asyncpg
import httpx
import pytest
from databases import EARLIER_TABLE, execute, new, opened, settings_for, stored, until
from postgresql import PostgreSQL
from support import Caller

from db import open_database
from kit.database import tables
from kit.database.database import Database
from kit.database.session import Session
from kit.database.tables import TablesRefused, upgrade_tables
from main import app
from tasks.queries import CREATE, LIST

# Another application's, whose row nothing may change.
_FOREIGN = """
    CREATE TABLE task (id int PRIMARY KEY, user_id text, payload text NOT NULL);
    INSERT INTO task VALUES (1, 'alice', 'kept');
"""
_ROW = """
    INSERT INTO task (user_id, title, completed, created_at, updated_at)
    VALUES ('alice', 'kept', TRUE, '2025-01-02 03:04:05.000006', '2025-01-02 03:04:05.000007');
"""
_FITTING = EARLIER_TABLE["postgresql"] + _ROW
_OURS = EARLIER_TABLE["sqlite"]


def cases(table: str, ours: str) -> list[tuple[str, str]]:
    """SQL, and behind an arrow, or below it, what is said of the tables that it makes."""
    arrows = [row.partition(" => ") for row in table.strip().replace("\n    ", " => ").splitlines()]
    made = {"ours": ours, "foreign": _FOREIGN}
    return [
        (re.sub("^(ours|foreign)", lambda found: made[found[0]], script), said)
        for script, _, said in arrows
    ]


POSTGRESQL = cases(
    """
foreign => column title is missing; column description is missing
ours DELETE FROM task; ALTER TABLE task ADD project int NOT NULL
    column project is unknown here, NOT NULL and has no default
ours ALTER TABLE task ALTER id DROP DEFAULT, ALTER id TYPE uuid USING gen_random_uuid()
    column id is uuid, not BIGINT
ours ALTER TABLE task ALTER id DROP DEFAULT => column id does not number new rows
ours ALTER TABLE task DROP CONSTRAINT task_pkey, ADD PRIMARY KEY (user_id, id)
    its primary key is not id
ours ALTER TABLE task DROP CONSTRAINT task_pkey => its primary key is not id
ours ALTER TABLE task ALTER completed DROP DEFAULT, ALTER completed TYPE int USING 1
    column completed is integer, not BOOLEAN
ours ALTER TABLE task ALTER created_at TYPE date
    column created_at is date, not TIMESTAMP WITH TIME ZONE
ours ALTER TABLE task ALTER title DROP NOT NULL; UPDATE task SET title = NULL
    column title is NULL in some rows
ours ALTER TABLE task DROP title, ADD title varchar GENERATED ALWAYS AS (user_id) STORED
    column title is generated
ours CREATE UNIQUE INDEX one ON task (title) => the unique index one
ours ALTER TABLE task ADD CONSTRAINT c CHECK (id < 9) => the constraint c
ours ALTER TABLE task ADD UNIQUE (user_id), ADD FOREIGN KEY (user_id) REFERENCES task (user_id)
    the constraint task_user_id_fkey
ours CREATE TABLE note (task_id int REFERENCES task ON DELETE CASCADE)
    the table note refers to it
ours CREATE TRIGGER t BEFORE UPDATE ON task EXECUTE FUNCTION suppress_redundant_updates_trigger()
    the trigger t
ours ALTER TABLE task ENABLE ROW LEVEL SECURITY => it has row level security
ours ALTER TABLE task SET UNLOGGED => it is unlogged
ours ALTER TABLE task RENAME TO t; CREATE VIEW task AS SELECT * FROM t => it is a view
ours CREATE VIEW shown AS SELECT id FROM task
    up to date: FeatureNotSupportedError (0A000): cannot alter type of a column used
CREATE MATERIALIZED VIEW task AS SELECT 1 AS id => it is a materialized view
CREATE TABLE task (id int PRIMARY KEY) PARTITION BY HASH (id) => it is a partitioned table
CREATE SEQUENCE task => it is a sequence
CREATE TABLE task_schema (id int) => a table task_schema that is not
CREATE TABLE task_schema (version_num text); INSERT INTO task_schema VALUES ('ae10')
    a table task_schema that is not
""",
    _FITTING,
)
SQLITE = [
    *cases(
        """
foreign => column title is missing; column description is missing
ours UPDATE task SET completed = 'yes' => column completed holds
ours UPDATE task SET created_at = 'then' => column created_at holds
ours UPDATE task SET updated_at = 1735700000 => column updated_at holds
ours UPDATE task SET title = x'00' => column title holds
ours CREATE UNIQUE INDEX one ON task (title) => the unique index one
ours ALTER TABLE task ADD other TEXT CHECK (1) => CHECK
ours CREATE TRIGGER t AFTER INSERT ON task BEGIN SELECT 1; END => the trigger t
ours CREATE TABLE note (task_id REFERENCES task ON DELETE CASCADE) => the table note refers to it
CREATE VIEW task AS SELECT 1 AS id => it is a view
CREATE VIRTUAL TABLE task USING fts5(title) => it is a virtual table
CREATE TABLE task_schema (id int) => a table task_schema that is not
""",
        _OURS + _ROW,
    ),
    (_OURS.replace("id INTEGER", "id TEXT"), "column id is TEXT, not INTEGER"),
    (
        _OURS.replace("user_id TEXT", "project INTEGER NOT NULL, user_id TEXT"),
        "column project is unknown here, NOT NULL and has no default",
    ),
    (_OURS.replace("user_id TEXT", "user_id TEXT COLLATE NOCASE"), "collation"),
    (_OURS.replace(");", ") WITHOUT ROWID;"), "it is WITHOUT ROWID"),
]


async def dump(url: str, server: PostgreSQL) -> str:
    """All that is in the database."""
    if url.startswith("postgresql"):
        return server.dump(url.rpartition("/")[2])
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return "\n".join(connection.iterdump())


@pytest.mark.parametrize(
    ("empty_url", "script", "said"),
    [*(("postgresql", *case) for case in POSTGRESQL), *(("sqlite", *case) for case in SQLITE)],
    indirect=["empty_url"],
    ids=lambda value: value[-30:],
)
async def test_another_s_table_is_left_alone_and_named(
    empty_url: str, script: str, said: str, postgresql_server: PostgreSQL
) -> None:
    await execute(empty_url, script)
    before = await dump(empty_url, postgresql_server)
    async with open_database(settings_for(empty_url)) as database:
        with pytest.raises(TablesRefused, match=re.escape(said)):
            await upgrade_tables(database)
    assert await dump(empty_url, postgresql_server) == before


async def test_beside_another_s_table_all_is_503_and_told_once(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(empty_url, _FOREIGN)
    attempts = []

    async def attempted(database: Database) -> None:
        attempts.append(database)
        await upgrade_tables(database)

    monkeypatch.setattr(tables, "upgrade_tables", attempted)
    monkeypatch.setattr(tables, "REFUSED_RETRY_INTERVAL", 0.01)
    monkeypatch.setenv("DATABASE_URL", empty_url)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        await until(lambda: len(attempts) > 2)
        assert (await Caller(client, "alice").get()).status_code == 503
        assert (await Caller(client, "alice").delete("/1")).status_code == 503
        assert (await client.get("/health/ready")).status_code == 503
    assert await stored(empty_url, "SELECT payload FROM task") == ["kept"]
    [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "column title is missing" in line.getMessage()
    assert line.exc_info is None


_SPOILED = """
    CREATE TABLE task (
        id SMALLSERIAL PRIMARY KEY, user_id VARCHAR(50), title VARCHAR(50),
        description TEXT NOT NULL, completed BOOLEAN,
        created_at TIMESTAMP, updated_at TIMESTAMPTZ(0), colour text);
    CREATE INDEX ix_task_user_id ON task (user_id);
    CREATE VIEW colours AS SELECT colour FROM task;
    INSERT INTO task (user_id, title, description, created_at)
    VALUES ('alice', 'old', '', '2025-01-02 03:04:05.000006');
"""
MENDED = {
    "postgresql": _SPOILED,
    "sqlite": _SPOILED.replace("SMALLSERIAL", "INTEGER").replace("TIMESTAMPTZ(0)", "TIMESTAMP"),
    "sqlite ids": _SPOILED.replace("SMALLSERIAL", "BIGINT").replace("TIMESTAMPTZ(0)", "DATETIME")
    + "UPDATE task SET id = 1, created_at = '2025-01-02T05:04:05.000006+02:00'",
    "sqlite check": _SPOILED.replace("SMALLSERIAL", "INTEGER").replace(
        "completed BOOLEAN", "completed BOOLEAN CHECK (completed IN (0, 1))"
    )
    + "UPDATE task SET created_at = '2025-01-02T03:04:05.000006'",
}


@pytest.mark.parametrize(
    ("empty_url", "script"),
    [pytest.param(name.split()[0], script, id=name) for name, script in MENDED.items()],
    indirect=["empty_url"],
)
async def test_older_table_is_mended(empty_url: str, script: str) -> None:
    await execute(empty_url, script)
    longest = new("t" * 200, "u" * 255)
    async with opened(empty_url) as database:
        [row] = await LIST.rows(Session(database), owner="alice")
        assert (row["id"], row["title"], row["completed"]) == (1, "old", False)
        assert row["created_at"] == row["updated_at"] == "2025-01-02T03:04:05.000006Z"
        for number in (2, 3):
            [row] = await CREATE.rows(Session(database), **longest)
            assert row["id"] == number
        with pytest.raises((asyncpg.PostgresError, sqlite3.Error)):
            await CREATE.rows(Session(database), **new("x", new_completed=None))
    assert await stored(empty_url, "SELECT colour FROM colours ORDER BY colour") == [None] * 3
    async with opened(empty_url) as database:
        assert database.tables_ready
    if empty_url.startswith("postgresql"):
        await execute(empty_url, "SELECT setval('task_id_seq', 5000000000)")
        async with opened(empty_url) as database:
            [row] = await CREATE.rows(Session(database), **new("big"))
        assert row["id"] == 5_000_000_001


@pytest.fixture
async def first_schema(postgresql_url: str) -> AsyncIterator[str]:
    """The URL of a database in which the user's own schema comes first in the search path."""
    await execute(postgresql_url, "CREATE SCHEMA postgres")
    yield postgresql_url
    await execute(postgresql_url, "DROP SCHEMA postgres CASCADE")


class TestSearchPath:
    async def test_older_table_of_another_schema_is_used_there(self, first_schema: str) -> None:
        await execute(first_schema, f"SET search_path = public; {_FITTING}")
        for _ in range(2):
            async with opened(first_schema) as database:
                assert len(await LIST.rows(Session(database), owner="alice")) == 1
        versions = "SELECT schemaname FROM pg_tables WHERE tablename = 'task_schema'"
        assert await stored(first_schema, versions) == ["public"]

    async def test_another_s_table_is_not_taken_for_ours_of_another_schema(
        self, first_schema: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with opened(f"{first_schema}?schema=public"):
            pass
        await execute(first_schema, "CREATE TABLE postgres.task (id int PRIMARY KEY)")
        async with opened(first_schema) as database:
            assert not database.tables_ready
        assert "the table postgres.task is not of this service's design" in caplog.text


_MAY_MAKE_TABLES = "GRANT ALL ON SCHEMA public TO guest;"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("", "may use no schema"),
        ("GRANT USAGE ON SCHEMA public TO guest", "lacks a privilege"),
        (
            f"{_MAY_MAKE_TABLES} {_FITTING} GRANT ALL ON task TO guest",
            "must be owner of table task",
        ),
        (
            f"{_MAY_MAKE_TABLES} ALTER ROLE guest SET default_transaction_read_only = on",
            "the database is read-only",
        ),
    ],
)
async def test_role_that_may_not_is_told_once(
    postgresql_url: str, caplog: pytest.LogCaptureFixture, script: str, said: str
) -> None:
    await execute(postgresql_url, f"CREATE ROLE guest LOGIN; {script}")
    async with opened(postgresql_url.replace("postgres@", "guest@")) as database:
        assert not await database.is_ready()
    [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert said in line.getMessage()
    await execute(postgresql_url, "DROP OWNED BY guest; DROP ROLE guest")


async def test_encoding_that_is_not_unicode_is_warned_of(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = "CREATE DATABASE {0} TEMPLATE template0 ENCODING '{0}' LOCALE 'C'"
    for encoding in ("latin1", "sql_ascii"):
        await execute(postgresql_url, made.format(encoding))
        async with opened(f"{postgresql_url.rpartition('/')[0]}/{encoding}") as database:
            assert await database.is_ready()
        assert f"encoding is {encoding.upper()}" in caplog.text
        await execute(postgresql_url, f"DROP DATABASE {encoding} WITH (FORCE)")
