# [Task]: T056 [From]: specs/decisions.md
"""Indexes that a table in use lacks, on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from databases import execute, new, opened, started, stored
from support import Caller, assert_error

from kit.database.indexes import INDEXES_LOCK, make_indexes
from kit.database.session import Session
from kit.errors import DatabaseUnavailable, StatementTimeout
from models import TASK_TABLE
from tasks.queries import CREATE, CREATE_ONCE

UNIQUE = "ux_task_user_id_idempotency_key"
DROP = f"DROP INDEX IF EXISTS {UNIQUE}, ix_task_user_id_created_at_deleted"
VALID = """
    SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = 'task'::regclass AND indisvalid AND NOT indisprimary
"""
# What a process leaves that dies half-way.
SPOIL = """
    UPDATE pg_index SET indisvalid = false
    WHERE indexrelid = 'ux_task_user_id_idempotency_key'::regclass
"""
PARTITION = """
    ALTER TABLE task RENAME TO task_old;
    CREATE TABLE task (
        LIKE task_old INCLUDING DEFAULTS INCLUDING IDENTITY,
        CONSTRAINT partitioned_pkey PRIMARY KEY (user_id, id)
    ) PARTITION BY HASH (user_id);
    CREATE TABLE task_0 PARTITION OF task FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE task_1 PARTITION OF task FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    DROP TABLE task_old;
"""
COUNT_PARTS = """
    SELECT count(*) FROM pg_index JOIN pg_inherits ON inhrelid = indexrelid WHERE indisvalid
"""
ALL = {index.name for index in TASK_TABLE.indexes}


@pytest.fixture
def database_url(ready_postgresql_url: str) -> str:
    return ready_postgresql_url


@asynccontextmanager
async def other_at(url: str, sql: str) -> AsyncIterator[Any]:
    """Another connection's transaction, in which this has been done."""
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(sql)
    yield transaction
    await connection.close()


class TestMakeIndexes:
    async def test_makes_what_is_missing_or_half_made(self, database_url: str) -> None:
        async with opened(database_url) as database:
            await CREATE.row(Session(database), **new("kept"))
            for damage in (DROP, SPOIL):
                await execute(database_url, damage)
                assert set(await stored(database_url, VALID)) < ALL
                await make_indexes(database)
                assert set(await stored(database_url, VALID)) == ALL
        [definition] = await stored(database_url, f"SELECT pg_get_indexdef('{UNIQUE}'::regclass)")
        assert "UNIQUE" in definition
        assert "WHERE (idempotency_key IS NOT NULL)" in definition

    async def test_keeps_no_write_waiting(self, database_url: str) -> None:
        async with opened(database_url) as database:
            await execute(database_url, DROP)
            async with other_at(database_url, "UPDATE task SET title = title") as slow:
                making = asyncio.create_task(make_indexes(database))
                waits = "SELECT count(*) FROM pg_stat_progress_create_index"
                async with asyncio.timeout(10):
                    while await stored(database_url, waits) == [0]:
                        assert not making.done()
                assert await CREATE.row(Session(database), **new("not kept waiting"))
                assert not making.done()
                await slow.commit()
            await making
        assert set(await stored(database_url, VALID)) == ALL

    async def test_leaves_alone_what_another_process_is_making(self, database_url: str) -> None:
        async with opened(database_url) as database:
            await execute(database_url, SPOIL)
            async with other_at(database_url, "LOCK task IN SHARE UPDATE EXCLUSIVE MODE"):
                with pytest.raises(StatementTimeout):
                    await make_indexes(database)
                assert await stored(database_url, f"SELECT '{UNIQUE}'::regclass::text") == [UNIQUE]
            await make_indexes(database)
        assert set(await stored(database_url, VALID)) == ALL

    async def test_waits_for_another_process_without_asking_for_a_lock(
        self, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks = 0

        async def look(_seconds: float) -> None:
            nonlocal looks
            looks += 1
            if looks == 3:
                await transaction.rollback()

        async with opened(database_url) as database:
            await execute(database_url, DROP)
            lock = f"SELECT pg_advisory_xact_lock({INDEXES_LOCK})"
            async with other_at(database_url, lock) as transaction:
                monkeypatch.setattr("kit.database.indexes.asyncio.sleep", look)
                await make_indexes(database)
        assert looks == 3
        assert set(await stored(database_url, VALID)) == ALL

    @pytest.mark.parametrize("half_made", ["SELECT 1", "CREATE INDEX {index}_1 ON task_1 (title)"])
    async def test_makes_those_of_a_partitioned_table(
        self, database_url: str, half_made: str
    ) -> None:
        async with opened(database_url) as database:
            await execute(database_url, PARTITION)
            await execute(database_url, half_made.format(index=UNIQUE))
            await CREATE.row(Session(database), **new("kept"))
            await make_indexes(database)
            assert set(await stored(database_url, VALID)) == ALL
            key = {"idempotency_key": "key", "idempotency_mark": b"mark"}
            once = [
                await CREATE_ONCE.row(Session(database), **new("once"), **key) for _ in range(2)
            ]
        assert once[0] == once[1]
        indexes = await stored(database_url, COUNT_PARTS)
        # The primary key's as well, in each of the two.
        assert indexes == [2 * (len(ALL) + 1)]

    async def test_is_the_work_of_the_start_of_several_at_once(self, database_url: str) -> None:
        await execute(database_url, DROP)
        await asyncio.gather(*(started(database_url) for _ in range(4)))
        assert set(await stored(database_url, VALID)) == ALL

    async def test_of_a_database_that_is_away_says_so(self, database_url: str) -> None:
        async with opened(database_url) as database:
            await execute(database_url, "ALTER TABLE task RENAME TO other")
            with pytest.raises(DatabaseUnavailable):
                await make_indexes(database)


async def test_without_them_all_but_a_key_is_served(
    alice: Caller, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(database_url, DROP)
    key = {"Idempotency-Key": "key"}
    refused = await alice.post({"title": "Buy milk"}, headers=key)
    assert_error(refused, 503, "Service temporarily unavailable")
    assert "an index of the table task is still being made" in caplog.text
    task = await alice.add()
    assert (await alice.get()).json() == [task]
    assert (await alice.delete(f"/{task['id']}")).status_code == 204
    ready = await alice._client.get("/health/ready")
    assert ready.status_code == 200
