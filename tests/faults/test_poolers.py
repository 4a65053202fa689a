# [Task]: T033 [From]: specs/requirements.md
"""Behind a pooler in transaction mode, of the kind that loses prepared statements: point 13."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from databases import execute, opened, stored
from postgresql import PostgreSQL
from service import create_database, serving
from sqlmodel import col, select
from support import Caller

from faults import stage
from faults.pgbouncer import PgBouncer, pooling
from kit.database.indexes import make_indexes
from kit.database.session import Session
from models import Task

CLIENTS = 40
ROUNDS = 5
SERVER_CONNECTIONS = 5
CURE = "statement_cache_size=0"
STATES = "SELECT user_id || ': ' || title || ', ' || completed FROM task"


@pytest.fixture(scope="module")
def pooler(postgresql_server: PostgreSQL) -> Iterator[PgBouncer]:
    with pooling(postgresql_server, pool_size=SERVER_CONNECTIONS) as pooler:
        yield pooler


@pytest.fixture
def url(postgresql_server: PostgreSQL) -> str:
    """Of an empty database, past the pooler."""
    return create_database(postgresql_server)


@pytest.fixture
def pooled_url(pooler: PgBouncer, url: str) -> str:
    """Of the same database, through the pooler."""
    return pooler.url(urlsplit(url).path.removeprefix("/"))


@asynccontextmanager
async def occupied(pooled_url: str) -> AsyncIterator[Any]:
    """A client of the pooler that has begun a transaction, and with it a server connection."""
    connection = await asyncpg.connect(pooled_url, statement_cache_size=0)
    await connection.execute("BEGIN")
    try:
        yield connection
    finally:
        connection.terminate()


async def work(http: httpx.AsyncClient, user: str) -> list[stage.Answer]:
    """Requests of all six kinds, which leave one completed task for each round."""
    caller, answers = Caller(http, user), []
    for n in range(ROUNDS):
        kept, gone = [
            await stage.timed(caller.post({"title": f"{what} {n}"})) for what in ("Keep", "Drop")
        ]
        one = f"/{kept.response.json().get('id')}"
        answers += [kept, gone]
        for request in (
            caller.put(one, {"description": "Changed"}),
            caller.request("PATCH", f"{one}/complete"),
            caller.get(one if n % 2 else ""),
            caller.delete(f"/{gone.response.json().get('id')}"),
        ):
            answers.append(await stage.timed(request))
    return answers


class TestOldPooler:
    # Said in advance, no request has to be done again.
    @pytest.mark.parametrize("cure", [CURE, ""])
    async def test_serves_every_request(
        self, tmp_path: Path, url: str, pooled_url: str, pooler: PgBouncer, cure: str
    ) -> None:
        environment = {"DATABASE_URL": f"{pooled_url}?{cure}", "DATABASE_POOL_SIZE": f"{CLIENTS}"}
        users, each = [f"user {n}" for n in range(CLIENTS)], CLIENTS * ROUNDS
        async with stage.used(tmp_path, **environment) as (service, http):
            done = await asyncio.gather(*(work(http, user) for user in users))
            answers = [answer for some in done for answer in some]
            stage.assert_in_time(answers, {200: 3 * each, 201: 2 * each, 204: each})
            # Each write exactly once: a toggle done twice would show as not completed.
            assert Counter(await stored(url, STATES)) == {
                f"{user}: Keep {n}, true": 1 for user in users for n in range(ROUNDS)
            }
            pids = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            others = await stored(url, f"{pids} AND pid != pg_backend_pid()")
            assert len(others) <= SERVER_CONNECTIONS
            said = stage.complaints(service)
            assert len(said) == (0 if cure else 1), said
            assert all("loses prepared statements" in line for line in said)
            assert "unsupported startup parameter" not in pooler.log()

    @pytest.mark.parametrize("cure", ["", CURE])
    async def test_starts_with_what_others_have_left_prepared(
        self, tmp_path: Path, pooled_url: str, cure: str
    ) -> None:
        # Without names of its own in the start-up's path: `prepared statement "__asyncpg_stmt_1__"
        # already exists`, from workers at once, and ever after from each that starts anew.
        for _ in range(2):
            async with stage.used(tmp_path, WORKERS="2", DATABASE_URL=f"{pooled_url}?{cure}") as (
                service,
                http,
            ):
                answers = await asyncio.gather(
                    *(Caller(http, f"user {n}").get() for n in range(CLIENTS))
                )
                assert {answer.status_code for answer in answers} == {200}
                said = stage.complaints(service)
                assert len(said) <= (0 if cure else 2), said
                assert all("loses prepared statements" in line for line in said)

    async def test_no_process_runs_the_statements_of_another(
        self, tmp_path: Path, postgresql_server: PostgreSQL, url: str
    ) -> None:
        # Two processes count their statements alike. Without names of its own, the GET that one has
        # prepared as `__asyncpg_stmt_6__` is the DELETE that the other has: under load, 113 of 193
        # tasks that were only ever read were gone.
        with serving(tmp_path, DATABASE_URL=url):
            pass  # The table is made, so that both find the same.
        with pooling(postgresql_server, pool_size=2) as pooler:
            pooled_url = pooler.url(urlsplit(url).path.removeprefix("/"))
            async with occupied(pooled_url) as first, occupied(pooled_url) as second:
                await second.execute("ROLLBACK")
                async with stage.used(tmp_path, DATABASE_URL=pooled_url) as (_, http):
                    alice = Caller(http, "alice")
                    kept = await alice.add()
                    assert (await alice.get(f"/{kept['id']}")).json() == kept
                    # From the second server connection to the first.
                    await second.execute("BEGIN")
                    await first.execute("ROLLBACK")
                    async with stage.used(tmp_path, DATABASE_URL=pooled_url) as (_, others):
                        bob = Caller(others, "bob")
                        gone = await bob.add()
                        await bob.delete(f"/{gone['id']}")
                    await alice.get(f"/{kept['id']}")
        assert await stored(url, STATES) == ["alice: Buy milk, false"]

    async def test_says_which_parameter_the_pooler_refuses(
        self, tmp_path: Path, pooled_url: str
    ) -> None:
        url = f"{pooled_url}?{CURE}&options=-c%20work_mem%3D8MB"
        async with stage.used(tmp_path, DATABASE_URL=url) as (service, http):
            assert (await Caller(http, "alice").get()).status_code == 503
            await stage.assert_healthy(http)
            said = stage.complaints(service)
            assert any("unsupported startup parameter: options" in line for line in said), said
            stage.assert_no_traceback(service)
            assert len(said) <= 3, said

    @pytest.mark.parametrize(
        "parameters", ["schema=Mine", "options=-csearch_path%3D%22Mine%22,public"]
    )
    async def test_keeps_tasks_in_the_schema_of_the_url(
        self, tmp_path: Path, pooled_url: str, url: str, parameters: str
    ) -> None:
        # By names with the schema: what a session sets, the pooler forgets.
        await execute(url, 'CREATE TABLE task (id int); CREATE TABLE "user" (id text PRIMARY KEY)')
        asked = f"{pooled_url}?{CURE}&{parameters}"
        async with stage.used(tmp_path, DATABASE_URL=asked) as (_, http):
            alice = Caller(http, "alice")
            # Of Better Auth's user, which is beyond `schema`, but not beyond the search path.
            refused = await alice.post({"title": "Too early"})
            assert refused.status_code == (201 if "schema" in parameters else 401)
            await execute(url, "INSERT INTO \"user\" VALUES ('alice')")
            made = await alice.add("Mine")
            assert (await alice.get(f"/{made['id']}")).json() == made
        index = '"Mine".ix_task_user_id_created_at_deleted'
        async with opened(asked) as database:
            async with Session(database) as session:
                [*_, task] = await session.exec(select(Task).order_by(col(Task.id)))
                assert task.title == "Mine"
            # An index that is missing is made in that schema, outside of a transaction.
            await execute(url, f"DROP INDEX {index}")
            await make_indexes(database)
            await execute(url, f"DROP INDEX {index}")
