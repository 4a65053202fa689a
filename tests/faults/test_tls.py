# [Task]: T033 [From]: specs/requirements.md
"""TLS as the URL asks, on servers with good and bad certificates, and on impostors: point 14."""

import asyncio
import logging
import ssl
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pytest
from databases import new, opened
from postgresql import PostgreSQL
from service import until
from support import Caller

from faults import stage
from faults.certificates import Authority, Certificate
from faults.pgbouncer import PgBouncer, pooling
from kit.database.session import Session
from kit.errors import DatabaseUnavailable
from tasks.queries import CREATE

# What a client begins with that wants TLS. It says nothing of anybody.
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
# PostgreSQL's way to say that nobody gets in: an ErrorResponse.
DENIAL = b"E\0\0\0\x18SFATAL\0C28000\0MNo.\0\0"
SECRET_WORDS = (b"alice_of_the_database", b"postgres", b"sesame")


class Certificates(NamedTuple):
    """One of each kind, and the files that a URL's parameters may name."""

    kinds: dict[str, Certificate]
    files: dict[str, Path]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    plain = Authority(tmp_path_factory.mktemp("plain"), plain=True)
    good = authority.issue("good")
    kinds = {
        "good": good,
        "self-signed": authority.issue("self-signed", self_signed=True),
        "wrong host": authority.issue("wrong-host", host="other.example"),
        "expired": authority.issue("expired", expired=True),
        "plain": plain.issue("plain"),
    }
    files = {"root": authority.root, "plain_root": plain.root}
    return Certificates(kinds, {**files, "cert": good.certificate, "key": good.key})


@pytest.fixture
def tls_server(
    request: pytest.FixtureRequest, postgresql_server: PostgreSQL, certificates: Certificates
) -> Iterator[PgBouncer]:
    """One that lets in nobody without TLS, and shows the certificate of the test's parameter."""
    certificate = certificates.kinds[request.param]
    with pooling(postgresql_server, pool_size=20, certificate=certificate) as server:
        yield server


@pytest.fixture
def url(tls_server: PgBouncer, certificates: Certificates, parameters: str) -> str:
    return url_of(tls_server, certificates, parameters)


def url_of(server: PgBouncer, certificates: Certificates, parameters: str) -> str:
    words = parameters.format(**certificates.files)
    return f"postgresql://postgres:sesame@localhost:{server.port}/postgres?{words}"


async def use(url: str) -> None:
    """As a start and a request do. Raises DatabaseUnavailable."""
    async with asyncio.timeout(stage.BOUND), opened(url) as database:
        await CREATE.rows(Session(database), **new("Not for everyone"))


def refused() -> AbstractContextManager[object]:
    return pytest.raises(DatabaseUnavailable)


def warning(caplog: pytest.LogCaptureFixture) -> str:
    """The only one."""
    [line] = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    return line


# One URL for each way to use TLS; tests/kit/database/test_urls.py has others that mean the same.
ACCEPTED = [
    # No sslmode: prefer, on loopback.
    ("good", ""),
    ("good", "sslmode=require"),
    ("good", "sslmode=allow"),
    ("good", "sslmode=verify-ca&sslrootcert={root}"),
    ("good", "sslmode=verify-full&sslrootcert={root}"),
    ("good", "sslmode=require&channel_binding=require&sslrootcert={root}"),
    ("self-signed", ""),
    ("self-signed", "sslmode=require"),
    ("wrong host", "sslmode=verify-ca&sslrootcert={root}"),
    ("expired", "sslmode=require"),
    # As openssl makes them by PostgreSQL's manual, which libpq accepts.
    ("plain", "sslmode=verify-ca&sslrootcert={plain_root}"),
    ("plain", "sslmode=verify-full&sslrootcert={plain_root}"),
]
REFUSED = [
    ("good", "sslmode=verify-full"),
    ("good", "sslmode=require&channel_binding=require"),
    ("self-signed", "sslmode=verify-ca&sslrootcert={root}"),
    ("self-signed", "sslmode=verify-full&sslrootcert={root}"),
    ("self-signed", "sslmode=require&channel_binding=require&sslrootcert={root}"),
    ("wrong host", "sslmode=verify-full&sslrootcert={root}"),
    ("wrong host", "sslmode=require&channel_binding=require&sslrootcert={root}"),
    ("expired", "sslmode=verify-ca&sslrootcert={root}"),
    ("expired", "sslmode=verify-full&sslrootcert={root}"),
]


def by_certificate(cases: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("tls_server", "parameters"),
        [pytest.param(*case, id=" ".join(case)) for case in cases],
        indirect=["tls_server"],
    )


@pytest.mark.usefixtures("postgresql_url")
class TestServerWithTls:
    @by_certificate(ACCEPTED)
    async def test_is_used_encrypted(self, tls_server: PgBouncer, url: str) -> None:
        await use(url)
        logins = until(lambda: [x for x in tls_server.log().splitlines() if "login attempt" in x])
        assert all("tls=TLSv1.3" in line for line in logins), logins

    @by_certificate(REFUSED)
    async def test_is_refused_before_it_hears_who_asks(
        self, tls_server: PgBouncer, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Without verification, `channel_binding=require` would accept whoever answers.
        with refused():
            await use(url)
        until(lambda: "TLS handshake error" in tls_server.log())
        assert "login attempt" not in tls_server.log()
        assert "certificate" in warning(caplog)
        assert "\n" not in warning(caplog)

    @by_certificate([("good", "sslmode=verify-full&sslrootcert={root}")])
    async def test_among_several_is_the_one_that_it_is_called(
        self, tls_server: PgBouncer, url: str
    ) -> None:
        # The certificate is localhost's, and for nobody who is called by his address.
        wrong, right = f"127.0.0.1:{tls_server.port}", f"localhost:{tls_server.port}"
        with refused():
            await use(url.replace(right, f"{wrong},{wrong}"))
        assert "login attempt" not in tls_server.log()
        await use(url.replace(right, f"{wrong},{right}"))

    @by_certificate([("good", "sslmode=disable")])
    async def test_is_not_used_in_the_clear(
        self, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        # The server insists on TLS, and the URL on doing without: neither gives in.
        with refused():
            await use(url)
        assert "SSL required" in warning(caplog)

    async def test_is_shown_the_certificate_that_it_asks_for(
        self, certificates: Certificates, postgresql_server: PostgreSQL
    ) -> None:
        good, root = certificates.kinds["good"], certificates.files["root"]
        with pooling(postgresql_server, certificate=good, clients_root=root) as server:
            with refused():
                await use(url_of(server, certificates, "sslmode=require"))
            shown = "sslmode=require&sslcert={cert}&sslkey={key}"
            await use(url_of(server, certificates, shown))


class TestServerWithoutTls:
    @pytest.mark.parametrize("parameters", ["", "sslmode=prefer", "sslmode=disable"])
    async def test_is_used_where_tls_is_optional(
        self, postgresql_url: str, parameters: str
    ) -> None:
        await use(f"{postgresql_url}?{parameters}")

    @pytest.mark.parametrize(
        "parameters", ["sslmode=require", "sslmode=verify-full", "channel_binding=require"]
    )
    async def test_is_refused_where_tls_is_asked_for(
        self, postgresql_url: str, parameters: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Without this, whoever answers "no TLS here" gets the password.
        with refused():
            await use(f"{postgresql_url}?{parameters}")
        assert "add sslmode=disable to DATABASE_URL" in caplog.text


class Impostor:
    """Answers instead of PostgreSQL, with or without TLS, and keeps what it hears afterwards."""

    def __init__(self, certificate: Certificate | None) -> None:
        self._certificate = certificate
        self.heard = b""
        self.visitors = 0

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._meet, "127.0.0.1", 0)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.visitors += 1
            first = await reader.readexactly(8)
            if first != SSL_REQUEST:
                self.heard += first
            elif self._certificate is None:
                writer.write(b"N")
            else:
                writer.write(b"S")
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*self._certificate)
                await writer.start_tls(context)
            self.heard += await reader.read(1024)
            writer.write(DENIAL)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class TestImpostor:
    @pytest.mark.parametrize("tls", [False, True], ids=["without TLS", "with TLS"])
    @pytest.mark.parametrize(
        ("parameters", "learns"),
        [
            ("sslmode=prefer", True),
            ("sslmode=verify-full&sslrootcert={root}", False),
            ("sslmode=require&channel_binding=require", False),
        ],
    )
    async def test_learns_no_name_and_no_password(
        self, tmp_path: Path, parameters: str, learns: bool, tls: bool
    ) -> None:
        # The first case shows that this impostor would hear it.
        authority = Authority(tmp_path)
        impostor = Impostor(authority.issue("impostor", self_signed=True) if tls else None)
        listener = await impostor.listen()
        port = listener.sockets[0].getsockname()[1]
        url = f"postgresql://alice_of_the_database:sesame@localhost:{port}/postgres?{parameters}"
        with refused():
            async with listener:
                await use(url.format(root=authority.root))
        assert impostor.visitors > 0
        assert any(word in impostor.heard for word in SECRET_WORDS) is learns
        if not learns:
            assert impostor.heard == b""


class TestProcess:
    @pytest.mark.usefixtures("postgresql_url")
    @by_certificate([("wrong host", "sslmode=require&channel_binding=require&sslrootcert={root}")])
    async def test_says_once_that_the_certificate_does_not_verify(
        self, tmp_path: Path, certificates: Certificates, tls_server: PgBouncer, url: str
    ) -> None:
        async with stage.used(tmp_path, DATABASE_URL=url) as (service, http):
            alice = Caller(http, "alice")
            for _ in range(5):
                stage.assert_unavailable(await alice.get())
                await stage.assert_healthy(http)
            [said] = stage.complaints(service)
            assert "certificate" in said
            assert "sesame" not in service.log()
            # Mended by whoever runs the server, it is believed without a restart.
            tls_server.show(certificates.kinds["good"])
            await stage.recovered(alice, stage.BOUND)
