# [Task]: T055 [From]: specs/requirements.md
"""A user with very many tasks keeps nobody else waiting, and is held in memory once."""

import asyncio
from pathlib import Path

from service import Service, serving
from support import Caller

from faults.stage import connected, someone

TASKS = 60_000
FILL = """
    INSERT INTO task (user_id, title, description, completed, created_at, updated_at)
    SELECT $1, 'Buy milk ' || n, repeat('x', 100), false, now() - n * interval '1 second', now()
    FROM generate_series(1, $2) n
"""


def peak(service: Service) -> int:
    """Bytes that the process has had in memory at most."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def test_long_list_harms_nobody_else(empty_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, DATABASE_URL=empty_url) as service:
        async with service.client() as http:
            hoarder, other = someone(http), someone(http)
            task = await other.add()
            async with connected(empty_url) as connection:
                await connection.execute(FILL, hoarder.user, TASKS)
            before = peak(service)
            listing = asyncio.create_task(hoarder.get())
            answered = 0
            while not listing.done():
                assert (await other.get(f"/{task['id']}")).status_code == 200
                answered += 1
            response = await listing
            assert len(response.json()) == TASKS
            # Without turns between, one or two get through while rows arrive.
            assert answered > 20
            assert peak(service) - before < 2 * len(response.content)


async def test_long_list_is_no_statement_that_takes_too_long(
    empty_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, DATABASE_URL=empty_url, DATABASE_STATEMENT_TIMEOUT="0.1") as service:
        async with service.client() as http:
            hoarder = Caller(http, "hoarder")
            await hoarder.add()
            async with connected(empty_url) as connection:
                await connection.execute(FILL, hoarder.user, TASKS)
            response = await hoarder.get()
            assert len(response.json()) == TASKS + 1
