# [Task]: T020 [From]: specs/requirements.md
"""From a URL to rows: connections, sessions, statements and failures, on both databases."""

import asyncio
import copy
import gc
import logging
import socket
import sqlite3
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import sqlalchemy.exc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI, HTTPException
from pydantic import SecretStr
from sqlalchemy import QueuePool, func, select, text
from sqlmodel import select as select_entities
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db import (
    Database,
    Replicated,
    Session,
    SessionDep,
    connection_arguments,
    database_errors,
    open_database,
)
from errors import DatabaseUnavailable, InvalidToken, UnhandledErrors, install_error_handlers
from models import TASK_TABLE, Task, utc_now
from routes.tasks import COMPLETE, CREATE, DELETE, GET, LIST
from settings import Settings, SettingsError
from tables import keep_tables

ENCRYPTED = (ssl.CERT_NONE, False)
VERIFIED_CA = (ssl.CERT_REQUIRED, False)
VERIFIED = (ssl.CERT_REQUIRED, True)

NEON = (
    "postgresql://neondb_owner:npg_AbC1dEf2GhI3@ep-cool-darkness-a1b2c3d4-pooler"
    ".us-east-2.aws.neon.tech/neondb?sslmode=require&channel_binding=require"
)


def settings_for(url: str, **values: Any) -> Settings:
    return Settings(database_url=SecretStr(url), **values)


@asynccontextmanager
async def opened(url: str, **values: Any) -> AsyncIterator[Database]:
    """The database for as long as a service runs, its tables up to date."""
    async with open_database(settings_for(url, **values)) as database:
        await keep_tables(database)
        yield database


async def stored(url: str, sql: str = "SELECT title FROM task ORDER BY id") -> list[Any]:
    """What another connection reads: the first column."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return [row[0] for row in connection.execute(sql)]
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def execute(url: str, script: str) -> None:
    """Run and commit a script over another connection."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(script)
        return
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(script)
    finally:
        await connection.close()


def in_use(database: Database) -> int:
    """Connections that are out of the pool."""
    pool = database.engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()


async def all_returned(database: Database) -> None:
    """Wait until a connection whose statement was cut off is back in the pool."""
    async with asyncio.timeout(5):
        while in_use(database):
            await stored(f"{database.settings.database_url.get_secret_value()}", "SELECT 1")


def new(title: str, owner: str = "alice", **values: object) -> dict[str, object]:
    """Values for CREATE."""
    return {
        "owner": owner,
        "new_title": title,
        "new_description": None,
        "new_completed": False,
        "now": utc_now(),
        **values,
    }


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with opened(database_url) as database:
        yield database


def tls_of(arguments: dict[str, Any]) -> object:
    """The `ssl` argument; of a context, what it verifies."""
    argument = arguments["ssl"]
    if isinstance(argument, ssl.SSLContext):
        return argument.verify_mode, argument.check_hostname
    return argument


class TestPostgreSQLURL:
    @pytest.mark.parametrize(
        ("url", "host", "port", "database", "password", "tls"),
        [
            pytest.param(
                NEON,
                "ep-cool-darkness-a1b2c3d4-pooler.us-east-2.aws.neon.tech",
                None,
                "neondb",
                "npg_AbC1dEf2GhI3",
                VERIFIED,
                id="Neon's pooler",
            ),
            pytest.param(
                "postgresql://o:pw@ep-cool-a1b2.us-east-2.aws.neon.tech/neondb?sslmode=require",
                "ep-cool-a1b2.us-east-2.aws.neon.tech",
                None,
                "neondb",
                "pw",
                ENCRYPTED,
                id="Neon, direct",
            ),
            pytest.param(
                "postgres://uabc:p1f2@ec2-54-83-1-2.compute-1.amazonaws.com:5432/d4t7",
                "ec2-54-83-1-2.compute-1.amazonaws.com",
                5432,
                "d4t7",
                "p1f2",
                ENCRYPTED,
                id="Heroku",
            ),
            pytest.param(
                "postgresql://postgres.abcdef:p%40ss%2Fw%25rd@aws-0-eu-central-1.pooler.supabase.com"
                ":6543/postgres?pgbouncer=true&connection_limit=1",
                "aws-0-eu-central-1.pooler.supabase.com",
                6543,
                "postgres",
                "p@ss/w%rd",
                ENCRYPTED,
                id="Supabase, as for Prisma",
            ),
            pytest.param(
                "postgresql://postgres:pw@db.abcdef.supabase.co:5432/postgres",
                "db.abcdef.supabase.co",
                5432,
                "postgres",
                "pw",
                ENCRYPTED,
                id="Supabase, direct",
            ),
            pytest.param(
                "postgresql+asyncpg://u:p@db.example.com/d",
                "db.example.com",
                None,
                "d",
                "p",
                ENCRYPTED,
                id="asyncpg",
            ),
            pytest.param(
                "postgresql+psycopg2://u:p@db.example.com/d",
                "db.example.com",
                None,
                "d",
                "p",
                ENCRYPTED,
                id="psycopg2",
            ),
            pytest.param(
                "  postgresql://u:p@db.example.com/d\n",
                "db.example.com",
                None,
                "d",
                "p",
                ENCRYPTED,
                id="pasted with spaces around it",
            ),
            pytest.param(
                "postgresql://localhost/d", "localhost", None, "d", None, "prefer", id="localhost"
            ),
            pytest.param(
                "postgresql://u:p@127.0.0.1:5433/d",
                "127.0.0.1",
                5433,
                "d",
                "p",
                "prefer",
                id="127.0.0.1",
            ),
            pytest.param(
                "postgresql://u:p@[::1]:5433/d", "::1", 5433, "d", "p", "prefer", id="[::1]"
            ),
            pytest.param(
                "postgresql://u:p@10.0.0.5/d", "10.0.0.5", None, "d", "p", ENCRYPTED, id="10.0.0.5"
            ),
            pytest.param(
                "postgresql://u:p@localhost.example.com/d",
                "localhost.example.com",
                None,
                "d",
                "p",
                ENCRYPTED,
                id="localhost.example.com",
            ),
        ],
    )
    def test_becomes_asyncpg_arguments(
        self,
        url: str,
        host: str,
        port: int | None,
        database: str,
        password: str | None,
        tls: object,
    ) -> None:
        parsed, arguments = connection_arguments(url)
        assert parsed.drivername == "postgresql+asyncpg"
        assert (parsed.host, parsed.port, parsed.database) == (host, port, database)
        assert parsed.password == password
        assert parsed.query == {}
        assert tls_of(arguments) == tls
        assert arguments["server_settings"] == {"application_name": "task-api"}

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "db.example.com"])
    @pytest.mark.parametrize(
        ("sslmode", "tls"),
        [
            ("disable", False),
            ("allow", "allow"),
            ("prefer", "prefer"),
            ("require", ENCRYPTED),
            ("verify-ca", VERIFIED_CA),
            ("verify-full", VERIFIED),
        ],
    )
    def test_sslmode_means_the_same_for_any_host(
        self, host: str, sslmode: str, tls: object
    ) -> None:
        _, arguments = connection_arguments(f"postgresql://u:p@{host}/d?sslmode={sslmode}")
        assert tls_of(arguments) == tls

    @pytest.mark.parametrize("sslmode", ["", "sslmode=require&", "sslmode=verify-ca&"])
    def test_channel_binding_is_honoured_by_full_verification(self, sslmode: str) -> None:
        url = f"postgresql://u:p@db.example.com/d?{sslmode}channel_binding=require"
        _, arguments = connection_arguments(url)
        assert tls_of(arguments) == VERIFIED

    @pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer"])
    def test_channel_binding_is_refused_where_tls_may_be_missing(self, sslmode: str) -> None:
        url = f"postgresql://u:p@db.example.com/d?sslmode={sslmode}&channel_binding=require"
        with pytest.raises(SettingsError, match="channel_binding"):
            connection_arguments(url)

    @pytest.mark.parametrize("channel_binding", ["prefer", "disable"])
    def test_optional_channel_binding_changes_nothing(self, channel_binding: str) -> None:
        url = f"postgresql://u:p@db.example.com/d?channel_binding={channel_binding}"
        parsed, arguments = connection_arguments(url)
        assert parsed.query == {}
        assert tls_of(arguments) == ENCRYPTED

    @pytest.mark.parametrize(
        ("sslmode", "tls"),
        [("require", VERIFIED_CA), ("verify-ca", VERIFIED_CA), ("verify-full", VERIFIED)],
    )
    def test_sslrootcert_is_the_only_authority(
        self, sslmode: str, tls: object, authority: Path
    ) -> None:
        parsed, arguments = connection_arguments(
            f"postgresql://u:p@db.example.com/d?sslmode={sslmode}&sslrootcert={authority}"
        )
        assert parsed.query == {}
        assert tls_of(arguments) == tls
        [certificate] = arguments["ssl"].get_ca_certs()
        assert certificate["subject"] == ((("commonName", "authority of the suite"),),)

    def test_sslrootcert_system_means_the_authorities_of_the_machine(self) -> None:
        _, arguments = connection_arguments(
            "postgresql://u:p@db.example.com/d?sslmode=verify-full&sslrootcert=system"
        )
        assert tls_of(arguments) == VERIFIED
        assert arguments["ssl"].cert_store_stats() == (
            ssl.create_default_context().cert_store_stats()
        )

    @pytest.mark.parametrize(
        ("url", "query", "tls"),
        [
            ("postgresql:///d?host=/tmp", {"host": "/tmp"}, "prefer"),  # noqa: S108
            ("postgresql://u@/d?host=/var/run/pg", {"host": "/var/run/pg"}, "prefer"),
            ("postgresql://u@/d?host=db.example.com", {"host": "db.example.com"}, ENCRYPTED),
            # The parameter is where the driver goes, whatever stands before the path.
            (
                "postgresql://u@localhost/d?host=db.example.com",
                {"host": "db.example.com"},
                ENCRYPTED,
            ),
            ("postgresql:///d", {}, "prefer"),
        ],
    )
    def test_host_may_be_a_parameter(self, url: str, query: dict[str, str], tls: object) -> None:
        parsed, arguments = connection_arguments(url)
        assert parsed.query == query
        assert tls_of(arguments) == tls

    def test_application_name_and_options_go_to_the_server(self) -> None:
        parsed, arguments = connection_arguments(
            "postgresql://u:p@h/d?application_name=mine&options=endpoint%3Dep-cool-a1b2"
        )
        assert parsed.query == {}
        assert arguments["server_settings"] == {
            "application_name": "mine",
            "options": "endpoint=ep-cool-a1b2",
        }

    @pytest.mark.parametrize(
        ("parameters", "sizes"),
        [
            ("statement_cache_size=0", {"statement_cache_size": 0}),
            (
                "statement_cache_size=5&prepared_statement_cache_size=7",
                {"statement_cache_size": 5, "prepared_statement_cache_size": 7},
            ),
            ("pgbouncer=true", {"statement_cache_size": 0}),
            ("pgbouncer=true&statement_cache_size=5", {"statement_cache_size": 5}),
            ("pgbouncer=false", {}),
            ("", {}),
        ],
    )
    def test_cache_sizes_are_numbers_for_the_driver(
        self, parameters: str, sizes: dict[str, int]
    ) -> None:
        parsed, arguments = connection_arguments(f"postgresql://u:p@h/d?{parameters}")
        assert parsed.query == {}
        assert {n: v for n, v in arguments.items() if n.endswith("cache_size")} == sizes

    @pytest.mark.parametrize("size", ["many", "-1", "1.5"])
    def test_a_cache_size_that_is_no_number_is_refused(self, size: str) -> None:
        with pytest.raises(SettingsError, match="statement_cache_size"):
            connection_arguments(f"postgresql://u:p@h/d?statement_cache_size={size}")

    @pytest.mark.parametrize(
        "name", ["pgbouncer", "connection_limit", "pool_timeout", "connect_timeout"]
    )
    def test_parameters_for_other_clients_are_ignored(self, name: str) -> None:
        parsed, arguments = connection_arguments(f"postgresql://u:p@h/d?{name}=1")
        assert parsed.query == {}
        assert arguments["server_settings"] == {"application_name": "task-api"}

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("postgresql://u:p@h/d?colour=blue", "parameter"),
            ("postgresql://u:p@h/d?sslmode=require&sslmode=disable", "sslmode"),
            ("postgresql://u:p@h/d?sslmode=always", "sslmode must be"),
            ("postgresql://u:p@h/d?channel_binding=always", "channel_binding must be"),
            ("postgresql://u:p@h/d?sslmode=verify-ca&sslrootcert=/none.pem", "sslrootcert"),
            ("mysql://u:p@h/d", "not supported"),
            ("https://h/d", "not supported"),
            ("postgresqlx://u:p@h/d", "not supported"),
            ("host=h dbname=d", "not a URL"),
            ("postgresql://u:p@h:port/d", "not a URL"),
            ("tasks.db", "not a URL"),
            ("", "not a URL"),
        ],
    )
    def test_refused(self, url: str, reason: str) -> None:
        with pytest.raises(SettingsError, match=reason) as refused:
            connection_arguments(url)
        assert str(refused.value).startswith("DATABASE_URL")

    async def test_bad_url_stops_the_start(self) -> None:
        with pytest.raises(SettingsError, match="DATABASE_URL"):
            async with opened("mysql://u:p@h/d"):
                pytest.fail("it started")


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The file of a certificate authority that nobody else knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority of the suite")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(utc_now() - timedelta(days=1))
        .not_valid_after(utc_now() + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "authority.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


class TestSQLiteURL:
    @pytest.mark.parametrize(
        ("url", "database"),
        [
            ("sqlite:///x.db", "x.db"),
            ("sqlite:////var/x.db", "/var/x.db"),
            ("sqlite+aiosqlite:///x.db", "x.db"),
            ("sqlite+pysqlite:///x.db", "x.db"),
            ("sqlite://", None),
            ("sqlite:///:memory:", ":memory:"),
        ],
    )
    def test_becomes_aiosqlite(self, url: str, database: str | None) -> None:
        parsed, arguments = connection_arguments(url)
        assert parsed.drivername == "sqlite+aiosqlite"
        assert parsed.database == database
        assert arguments == {}

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
    async def test_memory_keeps_tasks_as_long_as_it_is_open(self, url: str) -> None:
        async with opened(url) as database:
            await CREATE.rows(Session(database), **new("kept"))
            [row] = await LIST.rows(Session(database), owner="alice")
        assert row["title"] == "kept"

    async def test_file_is_in_wal_mode_with_foreign_keys_and_a_busy_timeout(
        self, sqlite_url: str
    ) -> None:
        async with opened(sqlite_url) as database, Session(database) as own:
            connection = await own.connection()
            pragmas = [
                await connection.scalar(text(f"PRAGMA {name}"))
                for name in ("journal_mode", "foreign_keys", "busy_timeout")
            ]
        assert pragmas == ["wal", 1, 1500]


EARLIER_TABLE = {
    "postgresql": """
        CREATE TABLE task (
            id SERIAL PRIMARY KEY, user_id TEXT NOT NULL, title VARCHAR(200) NOT NULL,
            description VARCHAR(1000), completed BOOLEAN NOT NULL DEFAULT FALSE,
            created_at TIMESTAMPTZ NOT NULL, updated_at TIMESTAMPTZ NOT NULL);
        """,
    "sqlite": """
        CREATE TABLE task (
            id INTEGER PRIMARY KEY, user_id TEXT NOT NULL, title VARCHAR(200) NOT NULL,
            description VARCHAR(1000), completed BOOLEAN NOT NULL DEFAULT 0,
            created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL);
        """,
}
EARLIER_INDEX_AND_ROW = """
    CREATE INDEX ix_task_user_id ON task (user_id);
    INSERT INTO task (user_id, title, completed, created_at, updated_at)
    VALUES ('alice', 'old', TRUE, '2025-01-02 03:04:05.000006', '2025-01-02 03:04:05.000007');
"""
RELATIONS = {
    "postgresql": "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    "sqlite": "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite%'",
}


def kind(url: str) -> str:
    return url.partition(":")[0]


class TestTables:
    async def test_are_the_tasks_and_a_note_of_their_version(self, database_url: str) -> None:
        async with opened(database_url):
            made = set(await stored(database_url, RELATIONS[kind(database_url)]))
        expected = {"task", "ix_task_user_id_created_at_id", "task_schema"}
        if kind(database_url) == "postgresql":
            expected |= {"task_pkey", "task_id_seq", "task_schema_pkc"}
        assert made == expected

    async def test_keeps_what_an_earlier_start_made(self, database_url: str) -> None:
        async with opened(database_url) as database:
            await CREATE.rows(Session(database), **new("kept"))
        async with opened(database_url) as database:
            [row] = await LIST.rows(Session(database), owner="alice")
        assert row["title"] == "kept"

    async def test_uses_the_table_of_an_earlier_backend(self, database_url: str) -> None:
        await execute(database_url, EARLIER_TABLE[kind(database_url)])
        await execute(database_url, EARLIER_INDEX_AND_ROW)
        async with opened(database_url) as database:
            made = set(await stored(database_url, RELATIONS[kind(database_url)]))
            [row] = await LIST.rows(Session(database), owner="alice")
            [added] = await CREATE.rows(Session(database), **new("new"))
        assert "ix_task_user_id" in made
        assert (row["id"], row["title"], row["completed"]) == (1, "old", True)
        assert added["id"] == 2
        assert await stored(database_url) == ["old", "new"]

    async def test_eight_at_once_on_an_empty_database(
        self, postgresql_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "tasks")
        async with AsyncExitStack() as stack:
            databases = await asyncio.gather(
                *(stack.enter_async_context(opened(postgresql_url)) for _ in range(8))
            )
            await asyncio.gather(
                *(CREATE.rows(Session(database), **new("one")) for database in databases)
            )
        assert caplog.records == []
        assert await stored(postgresql_url) == ["one"] * 8

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

    async def test_says_which_database_is_unknown(
        self, postgresql_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = f"{postgresql_url.removesuffix('/postgres')}/nowhere"
        async with opened(url):
            pass
        assert 'database "nowhere" does not exist' in caplog.text

    async def test_makes_the_table_once_the_database_is_there(
        self,
        postgresql_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("tables.START_RETRY_INTERVAL", 0.01)
        url = f"{postgresql_url.removesuffix('/postgres')}/late"
        try:
            async with opened(url) as database:
                await execute(postgresql_url, "CREATE DATABASE late")
                async with asyncio.timeout(5):
                    while not database.seen_working:
                        await stored(postgresql_url, "SELECT 1")
                [row] = await CREATE.rows(Session(database), **new("late"))
            assert row["title"] == "late"
        finally:
            await execute(postgresql_url, "DROP DATABASE late WITH (FORCE)")


class Witness:
    """ASGI middleware that notes what another connection reads when the response sets off."""

    def __init__(self, app: ASGIApp, url: str) -> None:
        self.app = app
        self.url = url
        self.seen: list[list[Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen.append(await stored(self.url))
            await send(message)

        await self.app(scope, receive, noting)


@pytest.fixture
def app(database: Database) -> FastAPI:
    """An app of a test's own endpoints on the real database."""
    app = FastAPI()
    app.state.database = database
    install_error_handlers(app)
    app.add_middleware(UnhandledErrors)
    return app


async def post(app: ASGIApp) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post("/")


async def add_by_sql(session: AsyncSession) -> None:
    columns = "user_id, title, completed, created_at, updated_at"
    now = "'2026-01-01 00:00:00.000000'"
    sql = f"INSERT INTO task ({columns}) VALUES ('alice', 'by SQL', FALSE, {now}, {now})"  # noqa: S608
    await (await session.connection()).execute(text(sql))


async def add_by_statement(session: AsyncSession) -> None:
    await CREATE.rows(session, **new("by statement"))


async def add_object(session: AsyncSession) -> None:
    session.add(Task(user_id="alice", title="object"))


async def add_and_flush_object(session: AsyncSession) -> None:
    session.add(Task(user_id="alice", title="flushed object"))
    await session.flush()


async def add_both(session: AsyncSession) -> None:
    session.add(Task(user_id="alice", title="object"))
    await CREATE.rows(session, **new("by statement"))


WRITES = {
    "SQL": (add_by_sql, ["by SQL"]),
    "a statement": (add_by_statement, ["by statement"]),
    "an object": (add_object, ["object"]),
    "a flushed object": (add_and_flush_object, ["flushed object"]),
    "an object and a statement": (add_both, ["object", "by statement"]),
}
every_write = pytest.mark.parametrize(("add", "titles"), WRITES.values(), ids=WRITES)
# A statement of its own is done when it returns; what comes after it can't take it back.
every_transaction = pytest.mark.parametrize(
    "add", [add for name, (add, _) in WRITES.items() if name != "a statement"]
)
type Write = Callable[[AsyncSession], Any]


class TestGetSession:
    @every_write
    async def test_commits_before_the_response_is_sent(
        self, app: FastAPI, database: Database, database_url: str, add: Write, titles: list[str]
    ) -> None:
        @app.post("/", status_code=201)
        async def endpoint(session: SessionDep) -> None:
            await add(session)

        witness = Witness(app, database_url)
        response = await post(witness)
        assert response.status_code == 201
        assert witness.seen == [titles]
        assert in_use(database) == 0

    @every_transaction
    @pytest.mark.parametrize(
        ("error", "status"),
        [(RuntimeError("a bug"), 500), (HTTPException(409), 409), (DatabaseUnavailable(), 503)],
        ids=["bug", "HTTP error", "service error"],
    )
    async def test_rolls_back_when_the_endpoint_fails(
        self,
        app: FastAPI,
        database: Database,
        database_url: str,
        add: Write,
        error: Exception,
        status: int,
    ) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            await add(session)
            raise error

        witness = Witness(app, database_url)
        response = await post(witness)
        assert response.status_code == status
        assert witness.seen == [[]]
        assert await stored(database_url) == []
        assert in_use(database) == 0

    async def test_commits_even_what_was_only_read(self, app: FastAPI, database: Database) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> int:
            return len((await session.exec(select_entities(Task))).all())

        response = await post(app)
        assert response.json() == 0
        assert in_use(database) == 0

    async def test_objects_stay_readable_after_a_commit_of_the_endpoints_own(
        self, app: FastAPI
    ) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> str:
            task = Task(user_id="alice", title="returned")
            session.add(task)
            await session.commit()
            return task.title

        assert (await post(app)).json() == "returned"

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    @every_write
    async def test_commit_that_fails_is_no_success(
        self, app: FastAPI, database: Database, database_url: str, add: Write, titles: list[str]
    ) -> None:
        await execute(
            database_url,
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
                AS $$ BEGIN RAISE EXCEPTION 'refused at commit'; END $$;
            CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON task
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse();
            """,
        )

        @app.post("/", status_code=201)
        async def endpoint(session: SessionDep) -> None:
            await add(session)

        response = await post(app)
        assert response.status_code == 500
        assert "refused at commit" not in response.text
        assert await stored(database_url) == []
        assert in_use(database) == 0

        await execute(database_url, "DROP TRIGGER refuse ON task")
        assert (await post(app)).status_code == 201
        assert await stored(database_url) == titles

    async def test_request_that_waited_too_long_is_a_503(
        self, app: FastAPI, database: Database
    ) -> None:
        @app.post("/")
        async def endpoint(_session: SessionDep) -> None: ...

        app.state.database = busy = Database(
            database.settings.model_copy(
                update={
                    "database_pool_size": 1,
                    "database_pool_timeout": 0.05,
                    "database_connect_timeout": 0.05,
                }
            )
        )
        busy.tables_ready = True
        try:
            async with busy.gate:
                response = await post(app)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert (await post(app)).status_code == 200
        finally:
            await busy.close()

    async def test_bug_in_a_query_is_a_500(self, app: FastAPI, database: Database) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            (await session.exec(select_entities(Task))).one()

        assert (await post(app)).status_code == 500
        assert in_use(database) == 0

    async def test_duplicate_key_is_a_500(self, app: FastAPI, database: Database) -> None:
        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            session.add_all([Task(id=1, user_id="alice", title=title) for title in "ab"])

        assert (await post(app)).status_code == 500
        assert in_use(database) == 0

    async def test_missing_table_is_a_503(
        self, app: FastAPI, database: Database, database_url: str
    ) -> None:
        await execute(database_url, "DROP TABLE task")

        @app.post("/")
        async def endpoint(session: SessionDep) -> None:
            await session.exec(select_entities(Task))

        response = await post(app)
        assert response.status_code == 503
        assert response.json() == {"detail": "Service temporarily unavailable"}
        assert in_use(database) == 0


class TestSession:
    async def test_is_made_when_it_is_used(self, database: Database) -> None:
        session = Session(database)
        await CREATE.rows(session, **new("by a statement"))
        assert "sync_session" not in vars(session)
        assert not session.has_begun
        async with session:
            [task] = (await session.exec(select_entities(Task))).all()
            assert session.has_begun
            assert task in session
            await session.rollback()
            assert not session.has_begun
        assert session.bind is database.engine

    async def test_lacks_what_a_session_lacks(self, database: Database) -> None:
        for session in (Session(database), copy.copy(Session(database))):
            assert not hasattr(session, "query")


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

        async def never_answers(_connection: object) -> bool:
            asked.set()
            await asyncio.Event().wait()
            return False

        await LIST.rows(Session(database), owner="alice")
        monkeypatch.setattr("db.IDLE_BEFORE_PING", -1.0)
        monkeypatch.setattr("db._is_mute", never_answers)
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


@pytest.fixture
async def replica_url(postgresql_url: str) -> AsyncIterator[str]:
    """The URL of a database that looks like a replica and has one task of its own.

    How it is with a real one: tests/faults/test_replica.py.
    """
    url = f"{postgresql_url.removesuffix('/postgres')}/replica"
    await execute(postgresql_url, "CREATE DATABASE replica")
    try:
        async with opened(url) as database:
            await CREATE.rows(Session(database), **new("of the replica"))
        yield url
    finally:
        await execute(postgresql_url, "DROP DATABASE replica WITH (FORCE)")


@asynccontextmanager
async def replicated(url: str, read_url: str, *, in_use: bool = True) -> AsyncIterator[Replicated]:
    """A primary with a replica, which has been asked already."""
    async with opened(url, database_read_url=SecretStr(read_url)) as database:
        assert isinstance(database, Replicated)
        await CREATE.rows(Session(database), **new("of the primary"))
        if in_use:
            assert await database.replica.serves()
        yield database


async def read(database: Replicated) -> str:
    """The title of the task that a reader of this moment finds."""
    session = Session(database.for_reading(), database)
    [row] = await LIST.rows(session, owner="alice")
    title: str = row["title"]
    return title


class TestReplica:
    async def test_is_read_once_it_has_been_seen_working(
        self, postgresql_url: str, replica_url: str
    ) -> None:
        async with replicated(postgresql_url, replica_url, in_use=False) as database:
            assert database.for_reading() is database
            assert await read(database) == "of the primary"
            async with asyncio.timeout(5):
                while database.for_reading() is database:
                    await stored(postgresql_url, "SELECT 1")
            assert await read(database) == "of the replica"
            assert in_use(database) == in_use(database.replica) == 0

    async def test_is_what_get_asks_and_post_does_not(
        self, postgresql_url: str, replica_url: str
    ) -> None:
        app = FastAPI()

        @app.api_route("/", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
        async def endpoint(session: SessionDep, orm: bool = False) -> list[str]:
            if orm:
                return [task.title for task in await session.exec(select_entities(Task))]
            return [row["title"] for row in await LIST.rows(session, owner="alice")]

        async with replicated(postgresql_url, replica_url) as app.state.database:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                for path in ("/", "/?orm=true"):
                    assert (await client.get(path)).json() == ["of the replica"]
                    assert (await client.head(path)).status_code == 200
                    for method in ("POST", "PUT", "PATCH", "DELETE"):
                        answer = await client.request(method, path)
                        assert answer.json() == ["of the primary"]

    @pytest.mark.parametrize(
        "fault",
        [
            "DROP TABLE task",
            "ALTER TABLE task DROP COLUMN description",
            "ALTER DATABASE replica RENAME TO away",
        ],
    )
    async def test_that_fails_at_once_is_stood_in_for(
        self, postgresql_url: str, replica_url: str, fault: str
    ) -> None:
        async with replicated(postgresql_url, replica_url) as database:
            await database.replica.engine.dispose()
            if "DATABASE" in fault:
                await execute(postgresql_url, fault)
            else:
                await execute(replica_url, fault)
            try:
                assert await read(database) == "of the primary"
                assert database.seen_working
                assert in_use(database) == in_use(database.replica) == 0
            finally:
                if "DATABASE" in fault:
                    await execute(postgresql_url, "ALTER DATABASE away RENAME TO replica")

    async def test_is_not_blamed_for_its_primary(
        self, postgresql_url: str, replica_url: str
    ) -> None:
        async with replicated(postgresql_url, replica_url) as database:
            with (
                pytest.raises(DatabaseUnavailable),
                database.replica.watched(),
                database.watched(),
            ):
                raise ConnectionRefusedError
            assert database.replica.seen_working
            assert not database.seen_working

    async def test_that_fails_late_leaves_no_time_for_another(
        self, postgresql_url: str, replica_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with replicated(postgresql_url, replica_url) as database:
            late = database.settings.model_copy(update={"database_statement_timeout": 0.2})
            await database.replica.close()
            database.replica = type(database.replica)(late)
            await database.replica.serves()
            connection = await asyncpg.connect(replica_url)
            async with connection.transaction():
                await connection.execute("LOCK TABLE task")
                caplog.clear()
                with pytest.raises(DatabaseUnavailable):
                    await read(database)
                # Whoever comes next is not kept waiting.
                assert await read(database) == "of the primary"
                [record] = caplog.records
                assert "DATABASE_READ_URL" in record.message
            await connection.close()
            await all_returned(database.replica)

    async def test_that_fails_is_asked_again_once_a_second_at_most(
        self, postgresql_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("db.PROBE_INTERVAL", 3600.0)
        async with replicated(postgresql_url, replica_url) as database:
            for error in (TimeoutError(), ConnectionRefusedError()):
                with pytest.raises(DatabaseUnavailable), database.replica.watched():
                    raise error
                assert not await database.replica.serves()
            assert await read(database) == "of the primary"
            monkeypatch.setattr("db.PROBE_INTERVAL", 0.0)
            assert await database.replica.serves()
            assert await read(database) == "of the replica"

    @pytest.mark.parametrize(
        ("url", "read_url"),
        [
            ("postgresql://u:hunter2@h/d", "hunter2"),
            ("postgresql://u:hunter2@h/d", "postgresql://u:hunter2@h:port/d"),
            ("postgresql://u:hunter2@h/d", "postgresql://u:hunter2@h/d?sslmode=always"),
            ("postgresql://u:hunter2@h/d", "mysql://u:hunter2@h/d"),
            ("postgresql://u:hunter2@h/d", "sqlite:///hunter2.db"),
            ("sqlite:///hunter2.db", "postgresql://u:hunter2@h/d"),
            ("sqlite:///hunter2.db", "sqlite:///hunter2.db"),
        ],
    )
    async def test_of_a_bad_url_stops_the_start(self, url: str, read_url: str) -> None:
        with pytest.raises(SettingsError) as refused:
            async with open_database(settings_for(url, database_read_url=SecretStr(read_url))):
                pytest.fail("it started")
        assert str(refused.value).startswith("DATABASE_READ_URL")
        assert "hunter2" not in str(refused.value)


def named(error: Exception) -> str:
    return f"{type(error).__module__} {error!r}"


def wrapped(cause: BaseException) -> sqlalchemy.exc.DBAPIError:
    return sqlalchemy.exc.DBAPIError("SELECT 1", {}, cause)


class TestDatabaseErrors:
    @pytest.mark.parametrize(
        "error",
        [
            asyncpg.PostgresConnectionError("08000"),
            asyncpg.ConnectionDoesNotExistError("08003"),
            asyncpg.ProtocolViolationError("08P01"),
            asyncpg.InvalidPasswordError("28P01"),
            asyncpg.InvalidAuthorizationSpecificationError("28000"),
            asyncpg.InvalidCatalogNameError("3D000"),
            asyncpg.TooManyConnectionsError("53300"),
            asyncpg.OutOfMemoryError("53200"),
            asyncpg.DiskFullError("53100"),
            asyncpg.QueryCanceledError("57014"),
            asyncpg.AdminShutdownError("57P01"),
            asyncpg.CrashShutdownError("57P02"),
            asyncpg.CannotConnectNowError("57P03"),
            asyncpg.LockNotAvailableError("55P03"),
            asyncpg.SerializationError("40001"),
            asyncpg.DeadlockDetectedError("40P01"),
            asyncpg.ReadOnlySQLTransactionError("25006"),
            asyncpg.UndefinedTableError("42P01"),
            asyncpg.InsufficientPrivilegeError("42501"),
            asyncpg.InvalidSQLStatementNameError("26000"),
            asyncpg.DuplicatePreparedStatementError("42P05"),
            asyncpg.InterfaceError("connection is closed"),
            ConnectionRefusedError(),
            ConnectionResetError(),
            socket.gaierror(),
            TimeoutError(),
            ssl.SSLCertVerificationError(),
            sqlalchemy.exc.TimeoutError(),
            sqlite3.OperationalError("database is locked"),
            wrapped(asyncpg.CannotConnectNowError("57P03")),
            wrapped(asyncpg.ReadOnlySQLTransactionError("25006")),
            wrapped(sqlite3.OperationalError("database is locked")),
        ],
        ids=named,
    )
    def test_failure_to_serve_is_unavailable(self, error: Exception) -> None:
        with pytest.raises(DatabaseUnavailable) as raised, database_errors():
            raise error
        assert raised.value.__cause__ is error
        cause = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
        assert str(raised.value).endswith(f" ({type(cause).__name__}: {cause})")

    @pytest.mark.parametrize(
        "error",
        [
            asyncpg.UniqueViolationError("23505"),
            asyncpg.NotNullViolationError("23502"),
            asyncpg.CharacterNotInRepertoireError("22021"),
            asyncpg.NumericValueOutOfRangeError("22003"),
            asyncpg.PostgresSyntaxError("42601"),
            asyncpg.UndefinedColumnError("42703"),
            sqlite3.IntegrityError("UNIQUE constraint failed"),
            sqlite3.ProgrammingError("Incorrect number of bindings"),
            wrapped(asyncpg.UniqueViolationError("23505")),
            wrapped(sqlite3.IntegrityError("UNIQUE constraint failed")),
            sqlalchemy.exc.NoResultFound(),
            sqlalchemy.exc.MultipleResultsFound(),
            sqlalchemy.exc.InvalidRequestError(),
            sqlalchemy.exc.ArgumentError(),
            sqlalchemy.exc.MissingGreenlet(),
            sqlalchemy.exc.StatementError("a bind is missing", "SELECT 1", {}, ValueError()),
            HTTPException(404),
            KeyError("title"),
            ValueError(),
        ],
        ids=named,
    )
    def test_bug_of_ours_stays_what_it_is(self, error: Exception) -> None:
        with pytest.raises(type(error)) as raised, database_errors():
            raise error
        assert raised.value is error

    @pytest.mark.parametrize("wrap", [False, True], ids=["raw", "wrapped"])
    def test_missing_user_is_a_token_that_outlived_its_user(self, wrap: bool) -> None:
        error = asyncpg.ForeignKeyViolationError("23503")
        with pytest.raises(InvalidToken), database_errors():
            raise wrapped(error) if wrap else error

    def test_success_passes(self) -> None:
        with database_errors():
            done = True
        assert done

    async def test_bad_argument_of_a_statement_is_a_bug(self, postgresql_url: str) -> None:
        async with opened(postgresql_url) as database:
            with pytest.raises(asyncpg.DataError):
                await GET.row(Session(database), owner="alice", task_id="one")
            assert in_use(database) == 0
