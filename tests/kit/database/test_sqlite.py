# [Task]: T080 [From]: specs/requirements.md
"""SQLite's connections: deadlines, cancellation, and what a session for reading may do."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from databases import new, opened
from sqlalchemy import Select, func, literal, select
from sqlalchemy.exc import OperationalError

from kit.database.database import Database
from kit.database.execute import Statement
from kit.database.session import Session
from kit.errors import StatementTooSlow
from models import TASK_TABLE, Task
from tasks.queries import CREATE, LIST


def endless() -> Select[int]:
    """Counts without end."""
    numbers = select(literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(select(numbers.c.n + 1))
    return select(func.count()).select_from(numbers)


type Run = Callable[..., Coroutine[Any, Any, None]]


async def in_session(database: Database, *, reads: bool) -> None:
    async with Session(database, reads=reads) as session:
        with database.watched():
            await session.scalar(endless())


async def by_itself(database: Database, *, reads: bool) -> None:
    await Statement(endless()).rows(Session(database, reads=reads))


@pytest.mark.parametrize("run", [in_session, by_itself])
@pytest.mark.parametrize("reads", [True, False])
class TestEndlessStatement:
    async def test_ends_in_time_while_others_are_served(
        self, ready_sqlite_url: str, run: Run, reads: bool
    ) -> None:
        async with opened(ready_sqlite_url, database_statement_timeout=0.3) as database:
            began = time.monotonic()
            endless = asyncio.create_task(run(database, reads=reads))
            assert await LIST.rows(Session(database), owner="alice") == []
            assert await LIST.rows(Session(database, reads=True), owner="alice") == []
            with pytest.raises(StatementTooSlow):
                await endless
            assert time.monotonic() - began < 3
            await CREATE.rows(Session(database), **new("afterwards"))
            assert await database.serves()

    async def test_ends_when_it_is_cancelled(
        self, ready_sqlite_url: str, run: Run, reads: bool
    ) -> None:
        async with opened(ready_sqlite_url, database_statement_timeout=60) as database:
            began = time.monotonic()
            endless = asyncio.create_task(run(database, reads=reads))
            await asyncio.sleep(0.2)
            endless.cancel()
            with pytest.raises(asyncio.CancelledError):
                await endless
            await CREATE.rows(Session(database), **new("afterwards"))
            async with Session(database, reads=reads) as session:
                assert await session.scalar(select(func.count()).select_from(TASK_TABLE)) == 1
        assert time.monotonic() - began < 10


async def test_session_for_reading_can_not_write(ready_sqlite_url: str) -> None:
    async with opened(ready_sqlite_url) as database, Session(database, reads=True) as session:
        session.add(Task(user_id="alice", title="Buy milk"))
        with pytest.raises(OperationalError, match="readonly"):
            await session.flush()
