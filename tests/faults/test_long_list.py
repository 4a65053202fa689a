# [Task]: T090 [From]: specs/requirements.md
"""A user with very many tasks, or with clients that don't read: others are served as ever."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from service import PATIENCE, Service, serving
from support import Caller

from faults.stage import fill, served, someone, timed, unread
from kit.long_answers import IN_ALL
from tasks.lists import SHORT_LIST

# Six bytes in JSON.
ESCAPED = "\x01"
# Seconds: as long as others may have to wait.
SOON = 2.0


@pytest.fixture
def service(empty_url: str, tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path, DATABASE_URL=empty_url) as service:
        yield service


async def statuses(clients: list[socket.socket]) -> list[int]:
    async def status(client: socket.socket) -> int:
        return int((await asyncio.to_thread(client.recv, 12, socket.MSG_PEEK)).split()[1])

    return list(await asyncio.gather(*map(status, clients)))


async def assert_served(*others: Caller) -> None:
    for other in others:
        for path in ("", "?limit=2"):
            answer = await timed(other.get(path))
            assert (answer.status, answer.seconds < SOON) == (200, True), answer


async def test_long_lists_keep_nobody_waiting(service: Service, empty_url: str) -> None:
    async with service.client() as http:
        hoarder, other = someone(http), someone(http)
        await fill(empty_url, hoarder.user, 10_000, "x")
        await other.add()
        with ExitStack() as stack:
            lists = [unread(service, hoarder, "?sort=title") for _ in range(4)]
            sockets = [stack.enter_context(one) for one in lists]
            answering = asyncio.create_task(statuses(sockets))
            while not answering.done():
                await assert_served(other)
            assert set(await answering) <= {200, 503}
        assert len((await hoarder.get("?sort=title")).json()) == 10_000


@pytest.mark.parametrize(
    ("tasks", "path", "clients"),
    [(10_000, "", 8), (200, "?limit=200", 100)],
    ids=["lists", "pages"],
)
async def test_unread_answers_are_bounded(
    service: Service, empty_url: str, tasks: int, path: str, clients: int
) -> None:
    async with service.client() as http:
        hoarder, other, third = (someone(http) for _ in range(3))
        await fill(empty_url, hoarder.user, tasks, ESCAPED)
        await fill(empty_url, third.user, SHORT_LIST // 2, "x")
        await other.add()
        before = service.memory("VmHWM")
        with ExitStack() as stack:
            sockets = [stack.enter_context(unread(service, hoarder, path)) for _ in range(clients)]
            answers = await statuses(sockets)
            assert answers.count(200) >= 1
            # The system's own buffers may take each page at once.
            assert set(answers) <= {200, 503}
            assert path or 503 in answers
            await assert_served(other, third)
        # One list of this kind is 60 MB: as it comes from the database, as JSON, and as chunks.
        assert service.memory("VmHWM") - before < 3 * IN_ALL
        await served(hoarder, PATIENCE, path)
