# [Task]: T085 [From]: specs/requirements.md
# ruff: noqa: S608  # A test's own words.
"""Tables that were there before this service: others' are left alone, older ones of ours mended."""

import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import asyncpg
import httpx
import pytest
from databases import EARLIER_TABLE, execute, new, opened, stored
from postgresql import PostgreSQL
from support import Caller

from kit.database import tables
from kit.database.session import Session
from main import app
from tasks.queries import CREATE, LIST

# A row of another application, which nothing may change.
_ROW = "INSERT INTO task VALUES (1, 'alice', 'kept'); "
_FITTING = EARLIER_TABLE["postgresql"]
_OURS = EARLIER_TABLE["sqlite"]
_HELD = """
    INSERT INTO task (user_id, title, completed, created_at, updated_at)
    VALUES ('alice', 'kept', TRUE, '2025-01-02 03:04:05.000006', '2025-01-02 03:04:05.000007');
"""
# SQL that makes what is there, and words of the one line in the log.
REFUSED = {
    "postgresql": {
        "another's": (
            "CREATE TABLE task (id int PRIMARY KEY, user_id text, payload text NOT NULL);" + _ROW,
            "column title is missing; column description is missing",
        ),
        "another's extra column": (
            _FITTING + _HELD + "ALTER TABLE task ADD project int NOT NULL DEFAULT 1;"
            "ALTER TABLE task ALTER project DROP DEFAULT",
            "column project is unknown here, NOT NULL and has no default",
        ),
        "id uuid": (
            _FITTING + "ALTER TABLE task DROP id; ALTER TABLE task ADD id uuid PRIMARY KEY",
            "column id is uuid, not BIGINT",
        ),
        "id without numbers": (
            _FITTING + _HELD + "ALTER TABLE task ALTER id DROP DEFAULT",
            "column id does not number new rows",
        ),
        "a primary key of two columns": (
            _FITTING + "ALTER TABLE task DROP CONSTRAINT task_pkey, ADD PRIMARY KEY (user_id, id)",
            "its primary key is not id",
        ),
        "no primary key": (
            _FITTING + _HELD + "ALTER TABLE task DROP CONSTRAINT task_pkey",
            "its primary key is not id",
        ),
        "completed int": (
            _FITTING + _HELD + "ALTER TABLE task ALTER completed DROP DEFAULT,"
            "ALTER completed TYPE int USING 1",
            "column completed is integer, not BOOLEAN",
        ),
        "created_at date": (
            _FITTING + _HELD + "ALTER TABLE task ALTER created_at TYPE date",
            "column created_at is date, not TIMESTAMP WITH TIME ZONE",
        ),
        "title NULL": (
            _FITTING + _HELD + "ALTER TABLE task ALTER title DROP NOT NULL;"
            "UPDATE task SET title = NULL",
            "column title is NULL in some rows",
        ),
        "generated": (
            _FITTING + "ALTER TABLE task DROP description;"
            "ALTER TABLE task ADD description varchar GENERATED ALWAYS AS (title) STORED",
            "column description is generated",
        ),
        "unique": (_FITTING + _HELD + "CREATE UNIQUE INDEX one ON task (title)", "index one"),
        "check": (_FITTING + "ALTER TABLE task ADD CONSTRAINT c CHECK (id < 9)", "constraint c"),
        "foreign key": (
            "CREATE TABLE users (id text PRIMARY KEY);"
            + _FITTING
            + "ALTER TABLE task ADD CONSTRAINT f FOREIGN KEY (user_id) REFERENCES users",
            "constraint f",
        ),
        "referred to": (
            _FITTING + "CREATE TABLE note (task_id int REFERENCES task ON DELETE CASCADE)",
            "the table note refers to it",
        ),
        "trigger": (
            _FITTING + "CREATE TRIGGER t BEFORE UPDATE ON task FOR EACH ROW "
            "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "the trigger t",
        ),
        "row level security": (_FITTING + "ALTER TABLE task ENABLE ROW LEVEL SECURITY", "security"),
        "unlogged": (_FITTING + "ALTER TABLE task SET UNLOGGED", "it is unlogged"),
        "view": (
            _FITTING + _HELD + "ALTER TABLE task RENAME TO t; CREATE VIEW task AS SELECT * FROM t",
            "it is a view",
        ),
        "materialized": (
            "CREATE MATERIALIZED VIEW task AS SELECT 1 AS id",
            "it is a materialized view",
        ),
        "partitioned": (
            "CREATE TABLE task (id int PRIMARY KEY) PARTITION BY HASH (id)",
            "it is a partitioned table",
        ),
        "sequence": ("CREATE SEQUENCE task", "it is a sequence"),
        "version": ("CREATE TABLE task_schema (id int)", "a table task_schema that is not"),
        "revision": (
            "CREATE TABLE task_schema (version_num text); INSERT INTO task_schema VALUES ('ae10')",
            "a table task_schema that is not",
        ),
        "view of an older one": (
            _FITTING + _HELD + "CREATE VIEW shown AS SELECT id FROM task",
            "up to date: FeatureNotSupportedError (0A000): cannot alter type of a column used",
        ),
    },
    "sqlite": {
        "another's": (
            "CREATE TABLE task (id int PRIMARY KEY, user_id text, payload text NOT NULL);" + _ROW,
            "column title is missing; column description is missing",
        ),
        "id text": (
            _OURS.replace("id INTEGER", "id TEXT") + "INSERT INTO task VALUES "
            "('one', 'alice', 'kept', NULL, 1, '2025-01-01 00:00:00', '2025-01-01 00:00:00')",
            "column id is TEXT, not INTEGER",
        ),
        "extra": (
            _OURS.replace("user_id TEXT", "project INTEGER NOT NULL, user_id TEXT"),
            "column project is unknown here, NOT NULL and has no default",
        ),
        "words": (_OURS + _HELD + "UPDATE task SET completed = 'yes'", "column completed holds"),
        "no times": (_OURS + _HELD + "UPDATE task SET created_at = 'then'", "column created_at"),
        "numbers": (_OURS + _HELD + "UPDATE task SET updated_at = 1735700000", "column updated_at"),
        "blob": (_OURS + _HELD + "UPDATE task SET title = x'00'", "column title holds"),
        "unique": (_OURS + "CREATE UNIQUE INDEX one ON task (title)", "the unique index one"),
        "check": (_OURS.replace("VARCHAR(1000)", "TEXT CHECK (1)"), "CHECK"),
        "collation": (_OURS.replace("user_id TEXT", "user_id TEXT COLLATE NOCASE"), "collation"),
        "trigger": (
            _OURS + "CREATE TRIGGER t AFTER INSERT ON task BEGIN SELECT 1; END",
            "the trigger t",
        ),
        "referred to": (
            _OURS + "CREATE TABLE note (task_id REFERENCES task ON DELETE CASCADE)",
            "the table note refers to it",
        ),
        "view": ("CREATE VIEW task AS SELECT 1 AS id", "it is a view"),
        "virtual": ("CREATE VIRTUAL TABLE task USING fts5(title)", "it is a virtual table"),
        "without rowid": (_OURS.replace(");", ") WITHOUT ROWID;"), "it is WITHOUT ROWID"),
        "version": ("CREATE TABLE task_schema (id int)", "a table task_schema that is not"),
    },
}
CASES = [
    pytest.param(kind, *case, id=f"{kind} {name}")
    for kind, cases in REFUSED.items()
    for name, case in cases.items()
]


async def dump(url: str, server: PostgreSQL) -> str:
    """All that is in the database."""
    if url.startswith("postgresql"):
        return server.dump(url.rpartition("/")[2])
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return "\n".join(connection.iterdump())


@pytest.mark.parametrize(("empty_url", "script", "said"), CASES, indirect=["empty_url"])
async def test_another_s_table_is_left_alone_and_named(
    empty_url: str,
    script: str,
    said: str,
    postgresql_server: PostgreSQL,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await execute(empty_url, script)
    before = await dump(empty_url, postgresql_server)
    monkeypatch.setattr(tables, "REFUSED_RETRY_INTERVAL", 0.01)
    monkeypatch.setenv("DATABASE_URL", empty_url)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        for _ in range(5):
            assert (await Caller(client, "alice").get()).status_code == 503
            assert (await client.get("/health/ready")).status_code == 503
        assert (await Caller(client, "alice").delete("/1")).status_code == 503
    assert await dump(empty_url, postgresql_server) == before
    [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert said in line.getMessage()
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
    ),
}


@pytest.mark.parametrize(
    ("empty_url", "script"),
    [pytest.param(name.split()[0], script, id=name) for name, script in MENDED.items()],
    indirect=["empty_url"],
)
async def test_older_table_is_mended(empty_url: str, script: str) -> None:
    url = empty_url
    await execute(url, script)
    title, long = "t" * 200, "u" * 255
    async with opened(url) as database:
        [row] = await LIST.rows(Session(database), owner="alice")
        assert (row["id"], row["title"], row["completed"]) == (1, "old", False)
        assert row["created_at"] == row["updated_at"] == "2025-01-02T03:04:05.000006Z"
        added = [
            (await CREATE.rows(Session(database), **new(title, long)))[0]["id"] for _ in range(2)
        ]
        assert added == [2, 3]
        with pytest.raises((asyncpg.PostgresError, sqlite3.Error)):
            await CREATE.rows(Session(database), **new("x", new_completed=None))
    assert await stored(url, "SELECT colour FROM colours ORDER BY colour") == [None] * 3
    async with opened(url) as database:
        assert database.tables_ready
    if url.startswith("postgresql"):
        await execute(url, "SELECT setval('task_id_seq', 5000000000)")
        async with opened(url) as database:
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
        await execute(first_schema, f"SET search_path = public; {_FITTING} {_HELD}")
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


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (f"{_FITTING} GRANT ALL ON task TO guest", "must be owner of table task"),
        ("ALTER ROLE guest SET default_transaction_read_only = on", "the database is read-only"),
    ],
    ids=["another owner", "read-only"],
)
async def test_role_that_may_not_is_told_once(
    postgresql_url: str, caplog: pytest.LogCaptureFixture, script: str, said: str
) -> None:
    made = "CREATE ROLE guest LOGIN; GRANT ALL ON SCHEMA public TO guest;"
    await execute(postgresql_url, made + script)
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
