# [Task]: T033 [From]: specs/requirements.md
"""TLS as the URL asks, on servers with good and bad certificates, and on impostors: point 14."""

import asyncio
import logging
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from postgresql import PostgreSQL
from service import serving, until
from support import Caller

from faults.certificates import Authority, Certificate
from faults.pgbouncer import PgBouncer, pooling
from faults.stage import (
    BOUND,
    assert_healthy,
    assert_no_traceback,
    assert_unavailable,
    complaints,
    recovered,
    timed,
)
from main import app

# What a client begins with that wants TLS. It says nothing of anybody.
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
# PostgreSQL's way to say that nobody gets in: an ErrorResponse.
DENIAL = b"E\0\0\0\x18SFATAL\0C28000\0MNo.\0\0"
SECRET_WORDS = (b"alice_of_the_database", b"postgres", b"sesame")


class Certificates:
    """One of each kind, and the authorities that a client may trust."""

    def __init__(self, folder: Path) -> None:
        (folder / "plain").mkdir()
        self.authority = Authority(folder)
        self._plain_authority = Authority(folder / "plain", plain=True)
        self.kinds = {
            "good": self.authority.issue("good"),
            "self-signed": self.authority.issue("self-signed", self_signed=True),
            "wrong host": self.authority.issue("wrong-host", host="other.example"),
            "expired": self.authority.issue("expired", expired=True),
            "plain": self._plain_authority.issue("plain"),
        }

    def with_files(self, parameters: str) -> str:
        """A URL's parameters, with the files that they speak of."""
        cert, key = self.kinds["good"]
        plain_root = self._plain_authority.root
        return parameters.format(
            root=self.authority.root, plain_root=plain_root, cert=cert, key=key
        )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls_server(
    request: pytest.FixtureRequest, postgresql_server: PostgreSQL, certificates: Certificates
) -> Iterator[PgBouncer]:
    """One that lets in nobody without TLS, and shows the certificate of the test's parameter."""
    certificate = certificates.kinds[request.param]
    with pooling(postgresql_server, pool_size=20, certificate=certificate) as server:
        yield server


class Scene(NamedTuple):
    certificates: Certificates
    monkeypatch: pytest.MonkeyPatch
    caplog: pytest.LogCaptureFixture

    def url(self, server: PgBouncer, parameters: str) -> str:
        words = self.certificates.with_files(parameters)
        return f"postgresql://postgres:sesame@localhost:{server.port}/postgres?{words}"

    @asynccontextmanager
    async def alice_at(self, url: str) -> AsyncIterator[Caller]:
        """A caller of the service, in this process, with this database."""
        self.monkeypatch.setenv("DATABASE_URL", url)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as http,
        ):
            yield Caller(http, "alice")

    def warning(self) -> str:
        """The only one."""
        [line] = [r.getMessage() for r in self.caplog.records if r.levelno >= logging.WARNING]
        return line


@pytest.fixture
def scene(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Scene:
    return Scene(certificates, monkeypatch, caplog)


ACCEPTED = [
    # No sslmode: prefer, on loopback.
    ("good", ""),
    ("good", "sslmode=prefer"),
    ("good", "sslmode=require"),
    ("good", "sslmode=allow"),
    ("good", "ssl=true"),
    ("good", "sslmode=verify-ca&sslrootcert={root}"),
    ("good", "sslmode=verify-full&sslrootcert={root}"),
    ("good", "ssl=verify-full&sslrootcert={root}"),
    ("good", "sslmode=require&channel_binding=require&sslrootcert={root}"),
    ("good", "channel_binding=require&sslrootcert={root}"),
    ("self-signed", ""),
    ("self-signed", "sslmode=require"),
    ("self-signed", "sslmode=require&channel_binding=prefer"),
    ("wrong host", "sslmode=no-verify&sslrootcert={root}"),
    ("wrong host", "sslmode=verify-ca&sslrootcert={root}"),
    ("expired", "sslmode=require"),
    # As openssl makes them by PostgreSQL's manual, which libpq accepts.
    ("plain", "sslmode=verify-ca&sslrootcert={plain_root}"),
    ("plain", "sslmode=verify-full&sslrootcert={plain_root}"),
]
REFUSED = [
    ("good", "sslmode=verify-full"),
    ("good", "sslmode=verify-full&sslrootcert=system"),
    ("good", "sslmode=require&channel_binding=require"),
    ("self-signed", "sslmode=verify-ca&sslrootcert={root}"),
    ("self-signed", "sslmode=verify-full&sslrootcert={root}"),
    ("self-signed", "sslmode=require&sslrootcert={root}"),
    ("self-signed", "sslmode=require&channel_binding=require"),
    ("self-signed", "sslmode=require&channel_binding=require&sslrootcert={root}"),
    ("wrong host", "sslmode=verify-full&sslrootcert={root}"),
    ("wrong host", "ssl=verify-full&sslrootcert={root}"),
    ("wrong host", "sslmode=require&channel_binding=require&sslrootcert={root}"),
    ("expired", "sslmode=verify-ca&sslrootcert={root}"),
    ("expired", "sslmode=verify-full&sslrootcert={root}"),
    ("expired", "sslmode=require&channel_binding=require&sslrootcert={root}"),
]


def by_certificate(cases: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("tls_server", "parameters"),
        cases,
        indirect=["tls_server"],
        ids=[" ".join(c) for c in cases],
    )


@pytest.mark.usefixtures("postgresql_url")
class TestServerWithTls:
    @by_certificate(ACCEPTED)
    async def test_is_used_encrypted(
        self, scene: Scene, tls_server: PgBouncer, parameters: str
    ) -> None:
        # Without the translation, `sslmode` in the URL is an unexpected keyword of asyncpg's.
        async with scene.alice_at(scene.url(tls_server, parameters)) as alice:
            await alice.add()
        logins = until(lambda: [x for x in tls_server.log().splitlines() if "login attempt" in x])
        assert all("tls=TLSv1.3" in line for line in logins), logins

    @by_certificate(REFUSED)
    async def test_is_refused_before_it_hears_who_asks(
        self, scene: Scene, tls_server: PgBouncer, parameters: str
    ) -> None:
        # Without verification, `channel_binding=require` would accept whoever answers.
        async with scene.alice_at(scene.url(tls_server, parameters)) as alice:
            answer = await timed(alice.post({"title": "Not for everyone"}))
            assert answer.seconds < BOUND
            assert_unavailable(answer.response)
        until(lambda: "TLS handshake error" in tls_server.log())
        assert "login attempt" not in tls_server.log()
        assert "certificate" in scene.warning()
        assert "\n" not in scene.warning()

    @by_certificate([("good", "sslmode=verify-full&sslrootcert={root}")])
    async def test_among_several_is_the_one_that_it_is_called(
        self, scene: Scene, tls_server: PgBouncer, parameters: str
    ) -> None:
        # The certificate is localhost's, and for nobody who is called by his address.
        url = scene.url(tls_server, parameters)
        wrong, right = f"127.0.0.1:{tls_server.port}", f"localhost:{tls_server.port}"
        async with scene.alice_at(url.replace(right, f"{wrong},{wrong}")) as alice:
            assert (await alice.get()).status_code == 503
        assert "login attempt" not in tls_server.log()
        async with scene.alice_at(url.replace(right, f"{wrong},{right}")) as alice:
            await alice.add()

    @by_certificate([("good", "sslmode=disable")])
    async def test_is_not_used_in_the_clear(
        self, scene: Scene, tls_server: PgBouncer, parameters: str
    ) -> None:
        # The server insists on TLS, and the URL on doing without: neither gives in.
        async with scene.alice_at(scene.url(tls_server, parameters)) as alice:
            assert (await alice.get()).status_code == 503
        assert "SSL required" in scene.warning()

    @pytest.mark.parametrize(
        ("parameters", "status"), [("", 503), ("&sslcert={cert}&sslkey={key}", 200)]
    )
    async def test_is_shown_the_certificate_that_it_asks_for(
        self, scene: Scene, postgresql_server: PostgreSQL, parameters: str, status: int
    ) -> None:
        good, root = scene.certificates.kinds["good"], scene.certificates.authority.root
        with pooling(postgresql_server, certificate=good, clients_root=root) as server:
            async with scene.alice_at(scene.url(server, f"sslmode=require{parameters}")) as alice:
                assert (await alice.get()).status_code == status


class TestServerWithoutTls:
    @pytest.mark.parametrize("parameters", ["", "sslmode=prefer", "sslmode=disable"])
    async def test_is_used_where_tls_is_optional(
        self, scene: Scene, postgresql_url: str, parameters: str
    ) -> None:
        async with scene.alice_at(f"{postgresql_url}?{parameters}") as alice:
            await alice.add()

    @pytest.mark.parametrize(
        "parameters", ["sslmode=require", "sslmode=verify-full", "channel_binding=require"]
    )
    async def test_is_refused_where_tls_is_asked_for(
        self, scene: Scene, postgresql_url: str, parameters: str
    ) -> None:
        # Without this, whoever answers "no TLS here" gets the password.
        async with scene.alice_at(f"{postgresql_url}?{parameters}") as alice:
            assert (await alice.get()).status_code == 503
        # Without this, nobody can tell what to do about it.
        assert "add sslmode=disable to DATABASE_URL" in scene.caplog.text


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
            ("sslmode=require&channel_binding=require&sslrootcert={root}", False),
        ],
    )
    async def test_learns_no_name_and_no_password(
        self, scene: Scene, tmp_path: Path, parameters: str, learns: bool, tls: bool
    ) -> None:
        # The first case shows that this impostor would hear it.
        authority = Authority(tmp_path)
        impostor = Impostor(authority.issue("impostor", self_signed=True) if tls else None)
        listener = await impostor.listen()
        port = listener.sockets[0].getsockname()[1]
        url = f"postgresql://alice_of_the_database:sesame@localhost:{port}/postgres?{parameters}"
        async with listener, scene.alice_at(url.format(root=authority.root)) as alice:
            assert (await alice.get()).status_code == 503
        assert impostor.visitors > 0
        assert any(word in impostor.heard for word in SECRET_WORDS) is learns
        if not learns:
            assert impostor.heard == b""


class TestProcess:
    @pytest.mark.usefixtures("postgresql_url")
    @by_certificate([("wrong host", "sslmode=require&channel_binding=require&sslrootcert={root}")])
    async def test_says_once_that_the_certificate_does_not_verify(
        self, tmp_path: Path, scene: Scene, tls_server: PgBouncer, parameters: str
    ) -> None:
        # Without a sentence of its own: a traceback for each request, and none in plain words.
        with serving(tmp_path, DATABASE_URL=scene.url(tls_server, parameters)) as service:
            async with service.client() as http:
                alice = Caller(http, "alice")
                for _ in range(5):
                    assert_unavailable(await alice.get())
                    await assert_healthy(http)
                [said] = complaints(service)
                assert "certificate" in said
                assert "sesame" not in service.log()
                assert_no_traceback(service)
                # Mended by whoever runs the server, it is believed without a restart.
                tls_server.show(scene.certificates.kinds["good"])
                await recovered(alice, BOUND)
