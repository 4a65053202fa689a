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
from sqlalchemy import URL, text

from kit.database.database import Session
from kit.database.sql import utc_now
from kit.database.urls import connection_arguments, place
from settings import SettingsError
from tasks.queries import CREATE, LIST

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
    @pytest.mark.parametrize("name", ["sslmode", "ssl"])
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
        self, host: str, name: str, sslmode: str, tls: object
    ) -> None:
        parsed, arguments = connection_arguments(
            f"postgresql+asyncpg://u:p@{host}/d?{name}={sslmode}"
        )
        assert parsed.query == {}
        assert tls_of(arguments) == tls

    def test_sslmode_and_ssl_may_say_the_same(self) -> None:
        _, arguments = connection_arguments("postgresql://u:p@h/d?ssl=verify-ca&sslmode=verify-ca")
        assert tls_of(arguments) == VERIFIED_CA

    @pytest.mark.parametrize("sslmode", ["", "sslmode=require&", "sslmode=verify-ca&"])
    def test_channel_binding_is_honoured_by_full_verification(self, sslmode: str) -> None:
        url = f"postgresql://u:p@db.example.com/d?{sslmode}channel_binding=require"
        _, arguments = connection_arguments(url)
        assert tls_of(arguments) == VERIFIED

    @pytest.mark.parametrize("name", ["sslmode", "ssl"])
    @pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer"])
    def test_channel_binding_is_refused_where_tls_may_be_missing(
        self, name: str, sslmode: str
    ) -> None:
        url = f"postgresql://u:p@db.example.com/d?{name}={sslmode}&channel_binding=require"
        with pytest.raises(SettingsError, match=f"{name}={sslmode} and channel_binding"):
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
            ("postgresql://u:p@h/d?ssl=true", "ssl must be"),
            ("postgresql://u:p@h/d?ssl=require&sslmode=disable", "sslmode and ssl differ"),
            ("postgresql://u:p@h1,h2/d?target_session_attrs=master", "target_session_attrs must"),
            ("postgresql://u:p@h/d?target_session_attrs=master", "target_session_attrs must"),
            ("postgresql://u:p@h1,,h2/d", "several hosts are written"),
            ("postgresql://u:p@h1,/d", "several hosts are written"),
            ("postgresql://u:p@[::1,h2/d", "several hosts are written"),
            ("postgresql://u:p@::1,h2/d", "several hosts are written"),
            ("postgresql://u:p@h1,h2,h3/d?port=1,2", "several hosts are written"),
            ("postgresql://u:p@h/d?port=1,2", "several hosts are written"),
            ("postgresql://u:p@h1:port,h2/d", "a port must be"),
            ("postgresql://u:p@h1:65536,h2/d", "a port must be"),
            ("postgresql://u:p@h1:0,h2/d", "a port must be"),
            ("postgresql://u:p@ss,word@h/d", "%40"),
            ("postgresql://u:p@ssword@h/d", "%40"),
            ("mysql://u:p@h1,h2/d", "not supported"),
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
        assert "u:p" not in str(refused.value)

    async def test_bad_url_stops_the_start(self) -> None:
        with pytest.raises(SettingsError, match="DATABASE_URL"):
            async with opened("mysql://u:p@h/d"):
                pytest.fail("it started")


class TestSeveralHosts:
    @pytest.mark.parametrize(
        ("url", "hosts", "ports"),
        [
            ("postgresql://u:p@h1:5432,h2:5433/d", ["h1", "h2"], [5432, 5433]),
            ("postgres://u:p@h1:6000,h2,h3:7000/d", ["h1", "h2", "h3"], [6000, 5432, 7000]),
            ("postgresql+asyncpg://u:p@h1,h2/d", ["h1", "h2"], [5432, 5432]),
            ("postgresql://u:p@h1,h2/d?port=6000", ["h1", "h2"], [6000, 6000]),
            ("postgresql://u:p@h1,h2/d?port=6000,", ["h1", "h2"], [6000, 5432]),
            ("postgresql://u:p@[::1]:5433,[2001:db8::7]/d", ["::1", "2001:db8::7"], [5433, 5432]),
            ("postgresql://u:p@/d?host=h1,h2", ["h1", "h2"], [5432, 5432]),
            ("postgresql://u:p@/d?host=h1,::1&port=6000,7000", ["h1", "::1"], [6000, 7000]),
            # As libpq has it, a parameter counts for more.
            ("postgresql://u:p@a:1,b:2/d?host=h1,h2", ["h1", "h2"], [1, 2]),
            ("postgresql://u:p@%2Frun,h2:6000/d", ["/run", "h2"], [5432, 6000]),
        ],
    )
    def test_are_read_as_libpq_reads_them(
        self, url: str, hosts: list[str], ports: list[int]
    ) -> None:
        parsed, arguments = connection_arguments(url)
        assert given(parsed) == {"host": hosts, "port": ports}
        assert (parsed.username, parsed.password, parsed.database) == ("u", "p", "d")
        assert arguments["target_session_attrs"] == "read-write"

    @pytest.mark.parametrize("password", ["a,b", "a,b/c", "a/b,c", "a:b,c"])
    def test_are_not_seen_in_a_password(self, password: str) -> None:
        parsed, arguments = connection_arguments(f"postgresql://u:{password}@h:6000/d")
        assert (parsed.password, parsed.host, parsed.port) == (password, "h", 6000)
        assert parsed.query == {}
        assert "target_session_attrs" not in arguments
        parsed, _ = connection_arguments(f"postgresql://u:{password}@h1,h2/d")
        assert (parsed.password, parsed.query["host"]) == (password, "h1,h2")

    @pytest.mark.parametrize(
        "target", ["any", "primary", "standby", "prefer-standby", "read-write", "read-only"]
    )
    @pytest.mark.parametrize("hosts", ["h1,h2", "h"])
    def test_are_chosen_from_by_target_session_attrs(self, hosts: str, target: str) -> None:
        _, arguments = connection_arguments(
            f"postgresql://u:p@{hosts}/d?target_session_attrs={target}"
        )
        assert arguments["target_session_attrs"] == target

    def test_are_chosen_from_as_the_setting_has_it_if_the_url_is_silent(self) -> None:
        _, arguments = connection_arguments("postgresql://u:p@h1,h2/d", "prefer-standby")
        assert arguments["target_session_attrs"] == "prefer-standby"

    @pytest.mark.parametrize(
        ("hosts", "tls"),
        [
            ("127.0.0.1,localhost", "prefer"),
            ("[::1],%2Ftmp", "prefer"),
            ("localhost,db.example.com", ENCRYPTED),
            ("db.example.com,localhost", ENCRYPTED),
            ("10.0.0.1,10.0.0.2", ENCRYPTED),
        ],
    )
    def test_are_talked_to_as_the_one_that_is_furthest_away(self, hosts: str, tls: object) -> None:
        _, arguments = connection_arguments(f"postgresql://u:p@{hosts}/d")
        assert tls_of(arguments) == tls

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("postgresql://u:p@h1,h2:6000/d?application_name=a", "u:***@h1:5432,h2:6000/d"),
            ("postgresql://u:p@[::1],h2/d", "u:***@[::1]:5432,h2:5432/d"),
            ("postgresql:///d?host=h1,h2", "h1:5432,h2:5432/d"),
            ("postgresql://u:p@h/d?sslmode=require", "u:***@h/d"),
        ],
    )
    def test_are_shown_without_the_password(self, url: str, shown: str) -> None:
        parsed, _ = connection_arguments(url)
        assert place(parsed) == f"postgresql+asyncpg://{shown}"

    def test_may_be_one_socket_with_a_port(self) -> None:
        parsed, arguments = connection_arguments("postgresql://u@/d?host=/run&port=6000")
        assert given(parsed) == {"host": "/run", "port": 6000}
        assert "target_session_attrs" not in arguments


def given(url: URL) -> dict[str, object]:
    """What the driver is told of where to go."""
    _, options = url.get_dialect()().create_connect_args(url)
    return {name: options[name] for name in ("host", "port")}


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
