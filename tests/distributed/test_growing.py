# [Task]: T050 [From]: specs/requirements.md
"""The SQL of docs/citus.md: from a table on one server to one on several, under load."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, citus
from databases import stored
from faults.stage import Ledger, connected, listed, load, watched
from service import ROOT, serving
from support import Caller

OWNERS = 8


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Of servers that don't know each other yet."""
    with citus(workers=3, joined=False) as cluster:
        yield cluster


def steps() -> list[list[str]]:
    """The statements of the document, by block."""
    document = (ROOT / "docs" / "citus.md").read_text()
    blocks = re.findall(r"```sql\n(.*?)```", document, re.DOTALL)
    return [block.removesuffix(";\n").split(";\n") for block in blocks]


async def run(cluster: Cluster, statements: list[str]) -> None:
    names = ["coordinator", "worker-1", "worker-2", "worker-3"]
    ports = [node.port for node in (cluster.coordinator, *cluster.workers)]
    async with connected(cluster.coordinator.url()) as connection:
        for statement in statements:
            for name, port in zip(names, ports, strict=True):
                statement = statement.replace(f"'{name}', 5432", f"'127.0.0.1', {port}")
            await connection.execute(statement, timeout=120)


NODES = "SELECT DISTINCT nodeport FROM citus_shards WHERE table_name = 'task'::regclass"


async def test_from_one_server_to_several_under_load(cluster: Cluster, tmp_path: Path) -> None:
    connect, distribute, grow = steps()
    await cluster.prepare_workers()
    url = cluster.coordinator.url()
    with serving(tmp_path, DATABASE_URL=url) as service, watched(service):
        async with service.client() as http:
            owners = [Caller(http, f"owner {n}") for n in range(OWNERS)]
            ledgers = [Ledger() for _ in owners]
            free = iter(zip(ledgers, owners, strict=True))

            async def write(stop: asyncio.Event) -> None:
                ledger, owner = next(free)
                await ledger.post_until(owner, stop)

            async with load(OWNERS, write):
                await asyncio.gather(*(ledger.more(20) for ledger in ledgers))
                for statements, nodes in ((connect, 0), (distribute, 3), (grow, 4)):
                    await run(cluster, statements)
                    if nodes:
                        # The coordinator keeps shards too.
                        assert nodes - 1 <= len(await stored(url, NODES)) <= nodes
                    await asyncio.gather(*(ledger.more(20) for ledger in ledgers))
            for ledger, owner in zip(ledgers, owners, strict=True):
                assert ledger.answers.keys() <= {201}, ledger.answers
                ledger.assert_kept(await listed(owner))
    # The next start finds nothing to do.
    with serving(tmp_path, DATABASE_URL=url) as service, watched(service):
        async with service.client() as http:
            assert await listed(Caller(http, "nobody")) == []
