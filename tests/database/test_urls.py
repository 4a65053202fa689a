# [Task]: T020 [From]: specs/requirements.md
"""Database URLs as people and providers write them, and what they ask for."""

import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from databases import new, opened
from sqlalchemy import text

from database.database import Session
from database.urls import connection_arguments
from models import utc_now
from queries import CREATE, LIST
from settings import SettingsError

ENCRYPTED = (ssl.CERT_NONE, False)
VERIFIED_CA = (ssl.CERT_REQUIRED, False)
VERIFIED = (ssl.CERT_REQUIRED, True)

NEON = (
    "postgresql://neondb_owner:npg_AbC1dEf2GhI3@ep-cool-darkness-a1b2c3d4-pooler"
    ".us-east-2.aws.neon.tech/neondb?sslmode=require&channel_binding=require"
)


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
