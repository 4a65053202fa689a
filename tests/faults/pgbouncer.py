# [Task]: T033 [From]: specs/requirements.md
"""A real PgBouncer before the suite's PostgreSQL: to share a few connections among many clients,
or to speak TLS, without which that PostgreSQL is built."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from postgresql import PostgreSQL, free_port
from service import until

from faults.certificates import Certificate

# The first version that follows named prepared statements from one server connection to another.
FOLLOWS_STATEMENTS = (1, 21)


class PgBouncer:
    """A pooler on `port` of 127.0.0.1 that trusts everyone.

    It is in transaction mode. With a certificate it is in session mode and insists on TLS.
    """

    def __init__(
        self,
        folder: Path,
        server: PostgreSQL,
        pool_size: int,
        certificate: Certificate | None,
        clients_root: Path | None,
    ) -> None:
        self._folder = folder
        # It refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        self.port = free_port()
        users = folder / "users.txt"
        users.write_text('"postgres" ""\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": users,
            "default_pool_size": pool_size,
            "max_client_conn": 500,
            "pool_mode": "session" if certificate else "transaction",
        }
        if certificate is not None:
            settings["client_tls_sslmode"] = "verify-ca" if clients_root else "require"
            settings["client_tls_cert_file"] = folder / "server.crt"
            settings["client_tls_key_file"] = folder / "server.key"
            self._keep(certificate)
        elif _version() >= FOLLOWS_STATEMENTS:
            # So that every version behaves as the old ones do.
            settings["max_prepared_statements"] = 0
        if clients_root is not None:
            settings["client_tls_ca_file"] = shutil.copy(clients_root, folder / "clients.crt")
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={server.port}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        with (folder / "pgbouncer.log").open("wb") as log:
            self._process = subprocess.Popen(
                [_program(), folder / "pgbouncer.ini"],
                user=self._user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def show(self, certificate: Certificate) -> None:
        """From now on, show this one in place of what it was started with."""
        self._keep(certificate)
        self._process.send_signal(signal.SIGHUP)

    def _keep(self, certificate: Certificate) -> None:
        shutil.copy(certificate.certificate, self._folder / "server.crt")
        key = shutil.copy(certificate.key, self._folder / "server.key")
        if self._user is not None:
            shutil.chown(key, self._user)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def log(self) -> str:
        return (self._folder / "pgbouncer.log").read_text()

    def listens(self) -> bool:
        assert self._process.poll() is None, self.log()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def pooling(
    server: PostgreSQL,
    *,
    pool_size: int = 5,
    certificate: Certificate | None = None,
    clients_root: Path | None = None,
) -> Iterator[PgBouncer]:
    """A pooler in front of a server, from its first listening to its end by force.

    Clients must have a certificate of the authority `clients_root`, if that is given.
    """
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        pooler = PgBouncer(folder, server, pool_size, certificate, clients_root)
        try:
            until(pooler.listens)
            yield pooler
        finally:
            pooler.kill()


def _program() -> str:
    # Debian keeps it where only root's PATH looks.
    path = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert path is not None, "PgBouncer is missing: tests/faults/install.sh installs it"
    return path


def _version() -> tuple[int, int]:
    said = subprocess.run([_program(), "--version"], capture_output=True, check=True, text=True)
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said.stdout)
    assert found, said.stdout
    return int(found[1]), int(found[2])
