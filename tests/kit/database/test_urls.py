# [Task]: T095 [From]: specs/requirements.md
"""Database URLs as consoles print them and people write them, and what they ask for."""

import logging
import os
import re
import ssl
import time
from pathlib import Path

import pytest
from databases import opened, settings_for
from faults.certificates import Authority
from sqlalchemy import text

from db import open_database
from kit.database.session import Session
from kit.database.urls import place, read_url
from kit.errors import StatementTimeout
from settings import SettingsError


def cases(table: str) -> list[tuple[str, str]]:
    """A URL, and behind an arrow, or below it, what is expected of it.

    One that begins with its parameters is `postgresql://u:hunter2@h/d` with them.
    """
    rows = re.sub(r"^\?", "postgresql://u:hunter2@h/d?", table.strip(), flags=re.MULTILINE)
    lines = rows.replace("\n    ", " => ").splitlines()
    arrows = [line.partition(" => ") for line in lines if not line.startswith("#")]
    return [(url, expected) for url, _, expected in arrows]


def tls_of(attempt: ssl.SSLContext | bool) -> str:
    if not isinstance(attempt, ssl.SSLContext):
        return "plain" if attempt is False else "?"
    if attempt.verify_mode == ssl.CERT_NONE:
        return "encrypted"
    return "verified" if attempt.check_hostname else "verified-ca"


def asked(url: str, target: str = "read-write") -> str:
    """What the driver is told, but for what every URL has it told, or stands in this one."""
    read = read_url(url, target)
    assert read.url.drivername == "postgresql+asyncpg"
    _, to = read.url.get_dialect()().create_connect_args(read.url)
    rest = {**read.arguments, **read.arguments["server_settings"], **read._asdict()}
    tls = "/".join(map(tls_of, rest.pop("ssl")))
    told = [tls]
    place = f"{to.get('user')}:{to.get('password')}@{to.get('host')}:{to.get('port')}"
    place = f"{place}/{to.get('database')}".replace(":None", "")
    if not re.search(f"//{re.escape(place)}($|[?'\" ])", url):
        told = [place, tls]
    for name in ("url", "arguments", "server_settings"):
        del rest[name]
    if rest["application_name"] == "task-api":
        del rest["application_name"]
    for name, value in rest.items():
        if value not in (None, ()):
            told.append(f"{name}={'+'.join(value) if isinstance(value, tuple) else value}")
    return " ".join(told)


ACCEPTED = cases("""
# Neon, pooled, direct, for psql and for Prisma.
postgresql://o:npg_A1@ep-a-pooler.aws.neon.tech/neondb?sslmode=require&channel_binding=require
    verified
postgresql://o:npg_A1@ep-a.aws.neon.tech/neondb?sslmode=require => encrypted
psql 'postgresql://o:npg_A1@ep-a.aws.neon.tech/neondb?sslmode=require' => encrypted
postgresql://o:p@ep-a-pooler.aws.neon.tech/d?sslmode=require&pgbouncer=true&connect_timeout=15
    encrypted statement_cache_size=0 timeout=5.0
?options=endpoint%3Dep-a => encrypted options=endpoint=ep-a
# Supabase, direct, pooled, with Prisma's and Vercel's parameters.
postgresql://postgres:pw@db.abcdef.supabase.co:5432/postgres => encrypted
postgresql://postgres.a:p%40s%2Fw%25@a.pooler.supabase.com:6543/d?pgbouncer=true&connection_limit=1
    postgres.a:p@s/w%@a.pooler.supabase.com:6543/d encrypted statement_cache_size=0 \
ignored=connection_limit
postgres://u:p@h:6543/d?supa=base-pooler.x&workaround=supabase-pooler.vercel&schema=Mine&pgbouncer=1
    encrypted search_path=Mine ignored=supa+workaround
# Render, Railway, Heroku, Fly, Azure, RDS, DigitalOcean, Aiven, Cloud SQL.
postgresql://u:p@dpg-a1-a.oregon-postgres.render.com/d => encrypted
postgresql://postgres:p@roundhouse.proxy.rlwy.net:41234/railway => encrypted
postgres://uab:p1f2@ec2-54-83-1-2.compute-1.amazonaws.com:5432/d4t7 => encrypted
postgres://u:p@tasks-db.flycast:5432/d?sslmode=disable => plain
postgresql://u@srv:p@srv.postgres.database.azure.com/d?sslmode=require => encrypted
postgresql://u:p@x.eu-west-1.rds.amazonaws.com:5432/d?sslmode=verify-full&sslrootcert={root}
    verified
postgresql://doadmin:p@x.db.ondigitalocean.com:25060/defaultdb?sslmode=require => encrypted
postgres://avnadmin:p@x.aivencloud.com:12691/defaultdb?sslmode=require => encrypted
postgresql://u:p@/d?host=/cloudsql/project:europe-west1:instance
    u:p@/cloudsql/project:europe-west1:instance/d encrypted/plain
# Quotes, spaces, upper case, drivers' names.
"postgresql://u:p@h/d" => encrypted
'  POSTGRES://u:p@h/d ' => encrypted
psql postgresql://u:p@h/d => encrypted
postgresql+psycopg2://u:p@h/d => encrypted
PostgreSQL+asyncpg://u:p@h/d => encrypted
# TLS by the host, and by each way to ask for it.
postgresql://localhost/d => None@localhost/d encrypted/plain
postgresql://u:p@127.0.0.1:5433/d => encrypted/plain
postgresql://u:p@[::1]:5433/d => u:p@::1:5433/d encrypted/plain
postgresql://u:p@10.0.0.5/d => encrypted
postgresql://u:p@localhost.example.com/d => encrypted
?sslmode=allow => plain/encrypted
?sslmode=prefer&gssencmode=prefer => encrypted/plain ignored=gssencmode
postgresql://u:p@localhost/d?sslmode=require => encrypted
?sslmode=no-verify&sslrootcert={root}&uselibpqcompat=true => encrypted ignored=uselibpqcompat
?ssl=true => encrypted
?ssl=false&sslmode=disable => plain
?ssl=verify-ca&sslmode=verify-ca => verified-ca
?sslmode=require&sslrootcert={root} => verified-ca
?sslmode=verify-full&sslrootcert=system => verified
?sslmode=verify-full&sslcert={cert}&sslkey={key} => verified
?sslmode=verify-ca&channel_binding=require => verified
?channel_binding=prefer => encrypted
# Parameters for more than what stands before the path.
postgresql:///d?host=/tmp&user=me&password=a%20b+c => me:a b+c@/tmp/d encrypted/plain
postgresql://u:p@localhost/d?host=db.example.com&port=6000&dbname=other
    u:p@db.example.com:6000/other encrypted
postgresql://u@/d?host=/run&port=6000 => u@/run:6000/d encrypted/plain
postgresql:///d => None@None/d encrypted/plain
# Limits, schemas, the server's settings.
?connect_timeout=3&statement_timeout=800 => encrypted timeout=3 statement_timeout=0.8
?connect_timeout=0&options=-c%20statement_timeout%3D5s&statement_timeout=0
    encrypted timeout=5.0 statement_timeout=5.0
?statement_timeout=1min&options=--statement-timeout%3D2s+-c+work_mem%3D8MB
    encrypted options=-c work_mem=8MB statement_timeout=2.0
?search_path=App,%22Odd%20One%22 => encrypted search_path=app+Odd One
?options=-csearch_path%3Dapp,%5C%20public&application_name=mine
    encrypted application_name=mine search_path=app+public
?schema=app&search_path=app => encrypted search_path=app
?statement_cache_size=5&prepared_statement_cache_size=7&pgbouncer=true
    encrypted statement_cache_size=5 prepared_statement_cache_size=7
?keepalives=1&keepalives_idle=30&client_encoding=utf8&sslnegotiation=postgres
    encrypted ignored=keepalives+keepalives_idle+client_encoding+sslnegotiation
# Several hosts, as libpq reads them; the one that is furthest away decides on TLS.
postgres://u:p@h1:6000,h2,h3:7000/d
    u:p@['h1', 'h2', 'h3']:[6000, 5432, 7000]/d encrypted target_session_attrs=read-write
postgresql://u:p@h1,h2/d?port=6000,&target_session_attrs=any
    u:p@['h1', 'h2']:[6000, 5432]/d encrypted target_session_attrs=any
postgresql://u:p@[::1]:5433,[2001:db8::7]/d
    u:p@['::1', '2001:db8::7']:[5433, 5432]/d encrypted target_session_attrs=read-write
postgresql://u:p@a:1,b:2/d?host=h1,::1
    u:p@['h1', '::1']:[1, 2]/d encrypted target_session_attrs=read-write
postgresql://u:p@%2Frun,localhost:6000/d
    u:p@['/run', 'localhost']:[5432, 6000]/d encrypted/plain target_session_attrs=read-write
?target_session_attrs=primary => encrypted target_session_attrs=primary
# A comma or a slash in a password.
postgresql://u:a/b,c@h:6000/d => encrypted
postgresql://u:a,b@h1,h2/d
    u:a,b@['h1', 'h2']:[5432, 5432]/d encrypted target_session_attrs=read-write
""")

REFUSED = cases("""
jdbc:postgresql://h/d?user=u&password=hunter2 => is a URL for Java: write it as postgresql://
prisma+postgres://accelerate.prisma-data.net/?api_key=hunter2
    paste the URL of the database itself
https://hunter2.supabase.co => is the address of a web page: paste the connection string
postgresql://u:hunter2@free-tier.gcp.cockroachlabs.cloud:26257/d?sslmode=verify-full
    is of CockroachDB
cockroachdb://u:hunter2@h:26257/d => is of CockroachDB
mysql://u:hunter2@h1,h2/d => is of a database that is not supported
postgresqlx://u:hunter2@h/d => is of a database that is not supported
host=h dbname=d password=hunter2 => is not a URL: it should look like
psql "host=h password=hunter2" => is not a URL: it should look like
postgresql//u:hunter2@h/d => is not a URL
postgresql://u:hunter2@h:port/d => is not a URL
tasks.db => is not a URL
postgresql://postgres:[YOUR-PASSWORD]@db.abcdef.supabase.co:5432/postgres
    has a placeholder in place of its password
postgresql://u:************@ep-a.aws.neon.tech/neondb => has a placeholder in place of its password
?colour=hunter2 => has a parameter that is not supported; supported are
postgresql://u:pass@word?hunter2=@h/d => has a parameter that is not supported; supported are
?sslcrl=hunter2 => has the parameter sslcrl, which is not supported: remove it
?gssencmode=require => has the parameter gssencmode, which is not supported: remove it
?sslnegotiation=direct => has the parameter sslnegotiation, which is not supported: remove it
?sslmode=require&sslmode=disable => has the parameter sslmode twice
?sslmode=hunter2 => sslmode must be one of
?ssl=hunter2 => ssl must be one of
?ssl=true&sslmode=disable => sslmode and ssl differ
?channel_binding=hunter2 => channel_binding must be
?ssl=prefer&channel_binding=require
    ssl=prefer and channel_binding=require, which exclude each other
?sslmode=verify-ca&sslrootcert=/hunter2 => sslrootcert is not a readable file
?sslmode=require&sslcert=/hunter2 => sslcert and sslkey are not
?sslkey=/hunter2 => sslkey is of use only together with sslcert
?statement_cache_size=hunter2 => statement_cache_size must be a number
?connect_timeout=-1 => connect_timeout must be a number
?connect_timeout=9999999999 => connect_timeout must be a number
?statement_timeout=9999999999999999999 => statement_timeout must be milliseconds
postgresql://u:hunter2@h..x/d => a name that no host can have
postgresql://u:hunter2@h:0/d => a port must be a number
postgresql://u:hunter2%00@h/d => must not hold %00
sqlite:///hunter2\udcff.db => is not UTF-8 text
?statement_timeout=hunter2 => statement_timeout must be milliseconds, or like 5s
?search_path=%22$user%22,public => search_path must be names of schemas
?schema=a&search_path=b => search_path and schema name different schemas
?target_session_attrs=hunter2 => target_session_attrs must be one of
postgresql://u:hunter2@h1,,h2/d => several hosts are written
postgresql://u:hunter2@[::1,h2/d => several hosts are written
postgresql://u:hunter2@h1,h2,h3/d?port=1,2 => several hosts are written
postgresql://u:hunter2@h1:port,h2/d => a port must be
postgresql://u:hunter2@h1:65536,h2/d => a port must be
postgresql://u:p@ss,hunter2@h/d => an @ in its password must be written as %40
postgresql://u:p@hunter2@h/d => an @ in its password must be written as %40
sqlite:// => three slashes
sqlite:///:memory: => three slashes
sqlite://hunter2.db => three slashes
sqlite://hunter2@/x.db => three slashes
sqlite:///x.db?mode=ro&cache=shared => not supported: cache, mode
""")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    own = authority.issue("own")
    return {"root": authority.root, "cert": own.certificate, "key": own.key}


@pytest.mark.parametrize(("url", "expected"), ACCEPTED)
def test_is_understood(url: str, expected: str, files: dict[str, Path]) -> None:
    assert asked(url.format(**files)) == expected


@pytest.mark.parametrize(("url", "reason"), REFUSED)
def test_is_refused_in_plain_words(url: str, reason: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read_url(url, setting="DATABASE_READ_URL")
    said = str(refused.value)
    assert said.startswith("DATABASE_READ_URL ")
    assert reason in said
    assert "hunter2" not in said
    assert refused.value.__suppress_context__


async def test_what_means_nothing_is_one_line_for_debugging(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "tasks.db")
    async with open_database(settings_for("postgresql://u:p@h/d?keepalives=1&supa=x")):
        pass
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert lines == ["ignored parameters of DATABASE_URL: keepalives, supa"]


def test_sslrootcert_is_the_only_authority(files: dict[str, Path]) -> None:
    url = "postgresql://u:p@h/d?sslmode=verify-full&sslrootcert={root}"
    [context] = read_url(url.format(**files)).arguments["ssl"]
    [certificate] = context.get_ca_certs()
    assert certificate["subject"] == ((("commonName", "The suite's authority"),),)


def test_the_setting_chooses_among_hosts_if_the_url_is_silent() -> None:
    assert asked("postgresql://u:p@h1,h2/d", "prefer-standby").endswith("prefer-standby")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h1,h2:6000/d?application_name=a", "u:***@h1:5432,h2:6000/d"),
        ("postgresql://u:p@[::1],h2/d", "u:***@[::1]:5432,h2:5432/d"),
        ("postgresql:///d?host=h1,h2", "h1:5432,h2:5432/d"),
        ("postgresql://u@h/d?sslmode=require&password=p", "u:***@h/d"),
    ],
)
def test_is_shown_without_the_password(url: str, shown: str) -> None:
    assert place(read_url(url).url) == f"postgresql+asyncpg://{shown}"


@pytest.mark.parametrize(
    ("url", "database"),
    [("'SQLITE:////var/x.db'", "/var/x.db"), ("sqlite+pysqlite:///x.db", "x.db")],
)
def test_sqlite_is_opened_by_aiosqlite(url: str, database: str) -> None:
    read = read_url(url)
    assert (read.url.drivername, read.url.database) == ("sqlite+aiosqlite", database)
    assert read.arguments == {}


async def test_sqlite_file_is_in_wal_mode_with_foreign_keys_and_a_busy_timeout(
    sqlite_url: str,
) -> None:
    names = ("journal_mode", "foreign_keys", "busy_timeout")
    async with opened(sqlite_url) as database, Session(database) as own:
        connection = await own.connection()
        pragmas = [await connection.scalar(text(f"PRAGMA {name}")) for name in names]
    assert pragmas == ["wal", 1, 1500]


async def test_the_shorter_statement_timeout_wins(postgresql_url: str) -> None:
    async with opened(f"{postgresql_url}?statement_timeout=100") as database:
        began = time.monotonic()
        with pytest.raises(StatementTimeout), database.watched():
            async with database.engine.connect() as connection:
                await connection.execute(text("SELECT pg_sleep(1)"))
    assert time.monotonic() - began < 1


async def test_home_may_belong_to_another_user(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0)
    monkeypatch.setenv("HOME", str(home))
    is_root = os.geteuid() == 0
    if is_root:  # Who may look into any folder.
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            list(home.iterdir())
        async with opened(postgresql_url) as database:
            assert await database.is_ready()
    finally:
        if is_root:
            os.seteuid(0)
