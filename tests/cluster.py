# [Task]: T050 [From]: specs/requirements.md
"""A real Citus cluster: a coordinator and workers, of Debian's PostgreSQL with the extension.

`make distributed` installs both: tests/distributed/install.sh.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import asyncpg
from databases import execute
from postgresql import free_port

BINARIES = Path("/usr/lib/postgresql/15/bin")
# PostgreSQL refuses to run as root.
USER = "postgres" if os.geteuid() == 0 else None
ENCODING = ("--encoding=UTF8", "--locale=C")
SETTINGS: Mapping[str, object] = MappingProxyType(
    {
        "shared_preload_libraries": "citus",
        "wal_level": "logical",
        "max_prepared_transactions": 50,
        "max_connections": 200,
        "fsync": "off",
        # So few, so that a test that makes the table anew need not wait.
        "citus.shard_count": 4,
        "citus.enable_statistics_collection": "off",
    }
)


# docs/citus.md has the same, online.
DISTRIBUTE = """
    ALTER TABLE task DROP CONSTRAINT task_pkey, ADD PRIMARY KEY (user_id, id);
    SELECT create_distributed_table('task', 'user_id');
"""


class Node:
    """One server of the cluster, on a free port of 127.0.0.1; it trusts everyone."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._log = folder / "log"
        self.port = free_port()
        if USER is not None:
            shutil.chown(folder, USER)
        self._run("initdb", "--username=postgres", "--auth=trust", "--no-sync", *ENCODING)
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write("listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\n")
            for name, value in SETTINGS.items():
                configuration.write(f"{name} = '{value}'\n")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-o", f"-p {self.port}", "-l", str(self._log), "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def _run(self, command: str, *arguments: str) -> None:
        subprocess.run(
            [BINARIES / command, "-D", self._data, *arguments],
            user=USER,
            cwd="/",
            # Where libpq, by which nodes talk to each other, looks for certificates.
            env={"PATH": os.environ["PATH"], "HOME": str(self._data)},
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )


class Cluster:
    """A coordinator that knows its workers. Clients talk to the coordinator alone."""

    def __init__(self, coordinator: Node, workers: list[Node]) -> None:
        self.coordinator = coordinator
        self.workers = workers

    async def prepare_workers(self) -> None:
        """Give the servers the extension, as they need it to be asked to join."""
        for node in (self.coordinator, *self.workers):
            await execute(node.url(), "CREATE EXTENSION IF NOT EXISTS citus")
            await _trust_citus(node.url())

    async def join(self) -> None:
        """Make every server part of the cluster."""
        await self.prepare_workers()
        host = f"SELECT citus_set_coordinator_host('127.0.0.1', {self.coordinator.port})"
        await execute(self.coordinator.url(), host)
        for worker in self.workers:
            add = f"SELECT citus_add_node('127.0.0.1', {worker.port})"
            await execute(self.coordinator.url(), add)

    async def empty(self) -> str:
        """The URL of its database, without a table of ours."""
        url = self.coordinator.url()
        ended = "pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        await execute(url, f"SELECT {ended} WHERE application_name = 'task-api'")
        await execute(url, 'DROP TABLE IF EXISTS task, task_schema, "user" CASCADE')
        return url


async def _trust_citus(url: str) -> None:
    """Let it decode what is written, to distribute a table online, where servers ask for that."""
    name = "output_plugin_libraries"
    connection = await asyncpg.connect(url)
    trusted = await connection.fetchval("SELECT current_setting($1, true)", name)
    if trusted is not None:
        names = ", ".join(f"'{library.strip()}'" for library in f"{trusted},citus".split(","))
        await connection.execute(f"ALTER SYSTEM SET {name} = {names}")
        await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


@contextmanager
def citus(workers: int = 2, *, joined: bool = True) -> Iterator[Cluster]:
    """A cluster that is up, until this ends; without `joined`, servers that may become one."""
    with TemporaryDirectory(prefix="task-api-citus-") as name:
        Path(name).chmod(0o755)
        folders = [Path(name, f"node-{number}") for number in range(workers + 1)]
        for folder in folders:
            folder.mkdir()
        with ThreadPoolExecutor() as threads:
            nodes = list(threads.map(Node, folders))
            list(threads.map(Node.start, nodes))
        cluster = Cluster(nodes[0], nodes[1:])
        try:
            if joined:
                asyncio.run(cluster.join())
            yield cluster
        finally:
            for node in (cluster.coordinator, *cluster.workers):
                if (node._data / "postmaster.pid").exists():
                    node.stop("immediate")
