# [Task]: T024 [From]: specs/requirements.md
"""The tie between tasks and Better Auth's users, on databases as its migrations leave them."""

import asyncio
import gc
import logging
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from itertools import pairwise
from typing import Any, Final

import asyncpg
import httpx
import pytest
from support import Caller, assert_error

from kit.database import tables
from kit.database.database import TABLES_LOCK, Database
from kit.routing import TaskAPI
from main import app, lifespan

CASCADE: Final = "c"
# Seconds, in place of the service's own interval.
LOOK_INTERVAL: Final = 0.05

type Users = Callable[[str], Caller]
type Run = Callable[..., AbstractAsyncContextManager[Users]]


# --- Both sides -------------------------------------------------------------------------------


class BetterAuth:
    """Better Auth's own connection to the database, and what it does there."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def migrate(self, id_column: str = "id text PRIMARY KEY", *constraints: str) -> None:
        columns = [
            id_column,
            "name text NOT NULL",
            "email text NOT NULL UNIQUE",
            '"emailVerified" boolean NOT NULL',
            "image text",
            '"createdAt" timestamptz DEFAULT CURRENT_TIMESTAMP NOT NULL',
            '"updatedAt" timestamptz DEFAULT CURRENT_TIMESTAMP NOT NULL',
            *constraints,
        ]
        await self.connection.execute(f'CREATE TABLE "user" ({", ".join(columns)})')

    async def sign_up(self, *users: str) -> None:
        for user in users:
            await self.connection.execute(
                'INSERT INTO "user" (id, name, email, "emailVerified") VALUES ($1, $2, $3, true)',
                user,
                user.capitalize(),
                f"{user}@example.com",
            )

    async def delete(self, user: str) -> None:
        assert await self.connection.execute('DELETE FROM "user" WHERE id = $1', user) == "DELETE 1"

    async def owners(self) -> list[str]:
        """Of each task there is, in order."""
        rows = await self.connection.fetch("SELECT user_id FROM task ORDER BY user_id")
        return [row["user_id"] for row in rows]

    async def keys(self) -> list[Any]:
        """The foreign keys of the task table: name, what is referred to, what a deletion does."""
        return [
            tuple(row)
            for row in await self.connection.fetch(
                "SELECT conname, confrelid::regclass::text, confdeltype::text FROM pg_constraint "
                "WHERE conrelid = to_regclass('task') AND contype = 'f'"
            )
        ]

    async def is_linked(self) -> bool:
        return [(to, action) for _, to, action in await self.keys()] == [('"user"', CASCADE)]


@pytest.fixture
async def auth(postgresql_url: str) -> AsyncIterator[BetterAuth]:
    connection = await asyncpg.connect(postgresql_url)
    yield BetterAuth(connection)
    await connection.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Run:
    """Runs the app on PostgreSQL, or on another URL, and makes its users."""
    for name in ("POOL", "CONNECT", "STATEMENT"):  # A busy machine is not what is tested.
        monkeypatch.setenv(f"DATABASE_{name}_TIMEOUT", "10")

    @asynccontextmanager
    async def running(url: str | None = None) -> AsyncIterator[Users]:
        monkeypatch.setenv("DATABASE_URL", url or request.getfixturevalue("postgresql_url"))
        transport = httpx.ASGITransport(app)
        async with (
            asyncio.timeout(30),
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield lambda user: Caller(client, user)

    return running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service looks for Better Auth's table more often than it would."""
    monkeypatch.setattr("kit.database.tables.OWNERS_LOOK_INTERVAL", LOOK_INTERVAL)


async def until(condition: Callable[[], Awaitable[bool]], *, asking: Caller | None = None) -> None:
    """Wait for it, 10 s at most, while someone asks for tasks."""
    async with asyncio.timeout(10):
        while True:
            if await condition():
                return
            if asking is not None:
                assert (await asking.get()).status_code == 200
            await asyncio.sleep(0.02)


async def look_in_vain(user: Caller, auth: BetterAuth) -> None:
    """Requests for as long as several of the looks take."""
    end = time.monotonic() + 5 * LOOK_INTERVAL
    while time.monotonic() < end:
        assert (await user.get()).status_code == 200
        assert await auth.keys() == []


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the service has logged as out of order, a lost exception of a task included."""
    gc.collect()
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith(("tasks", "asyncio"))
    ]


# --- A table that is there --------------------------------------------------------------------


class TestUsers:
    async def test_are_tied_to_their_tasks_at_the_start(
        self, run: Run, auth: BetterAuth, caplog: pytest.LogCaptureFixture
    ) -> None:
        await auth.migrate()
        async with run():
            await until(auth.is_linked)
        assert complaints(caplog) == []

    async def test_take_their_tasks_along_when_they_are_deleted(
        self, run: Run, auth: BetterAuth
    ) -> None:
        await auth.migrate()
        await auth.sign_up("alice", "bob")
        async with run() as users:
            await until(auth.is_linked)
            for user in ("alice", "alice", "bob"):
                await users(user).add()
            await auth.delete("alice")
            assert await auth.owners() == ["bob"]
            assert (await users("alice").get()).json() == []
            assert len((await users("bob").get()).json()) == 1

    async def test_get_no_task_while_unknown(self, run: Run, auth: BetterAuth) -> None:
        await auth.migrate()
        await auth.sign_up("bob")
        async with run() as users:
            await until(auth.is_linked)
            response = await users("alice").post({"title": "Buy milk"})
            assert_error(response, 401, "Invalid token")
            assert response.headers["www-authenticate"] == (
                'Bearer error="invalid_token", error_description="Invalid token"'
            )
            assert (await users("alice").get()).json() == []
            await users("bob").add()
            assert await auth.owners() == ["bob"]

    async def test_get_no_task_once_deleted_though_their_token_lasts(
        self, run: Run, auth: BetterAuth
    ) -> None:
        await auth.migrate()
        await auth.sign_up("alice", "bob")
        async with run() as users:
            await until(auth.is_linked)
            alice, bob = users("alice"), users("bob")
            task = await alice.add()
            kept = await bob.add()
            await auth.delete("alice")
            for _ in range(2):
                assert_error(await alice.post({"title": "Again"}), 401, "Invalid token")
            assert_error(await alice.put(f"/{task['id']}", {"title": "x"}), 404, "Task not found")
            assert_error(await alice.complete(task["id"]), 404, "Task not found")
            assert (await alice.get()).json() == []
            await bob.add()
            assert (await bob.get(f"/{kept['id']}")).json() == kept
            await auth.sign_up("alice")
            await alice.add()
            assert await auth.owners() == ["alice", "bob", "bob"]

    async def test_are_asked_for_after_the_input(self, run: Run, auth: BetterAuth) -> None:
        await auth.migrate()
        async with run() as users:
            await until(auth.is_linked)
            assert (await users("alice").post({"title": ""})).status_code == 422

    async def test_are_tied_but_once(self, run: Run, auth: BetterAuth) -> None:
        await auth.migrate()
        async with run():
            await until(auth.is_linked)
        before = await auth.keys()
        number = await auth.connection.fetchval("SELECT max(oid) FROM pg_constraint")
        for _ in range(2):
            async with run() as users:
                assert (await users("alice").get()).status_code == 200
        assert await auth.keys() == before
        assert await auth.connection.fetchval("SELECT max(oid) FROM pg_constraint") == number

    @pytest.mark.parametrize("there", ["nothing", "tasks", "users", "both"])
    async def test_are_tied_but_once_by_eight_starts_at_once(
        self,
        run: Run,
        auth: BetterAuth,
        postgresql_url: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        there: str,
    ) -> None:
        if there in ("tasks", "both"):
            async with run() as users:
                await users("alice").add()
        if there in ("users", "both"):
            await auth.migrate()
            await auth.sign_up("alice")
        caplog.clear()
        monkeypatch.setenv("DATABASE_URL", postgresql_url)
        starts = [lifespan(TaskAPI()) for _ in range(8)]
        await asyncio.gather(*(start.__aenter__() for start in starts))
        if there in ("users", "both"):
            await until(auth.is_linked)
        for start in reversed(starts):
            await start.__aexit__(None, None, None)
        assert complaints(caplog) == []
        if there in ("nothing", "tasks"):
            assert await auth.keys() == []
        async with run() as users:
            await users("alice").add()


class TestNoUsers:
    @pytest.mark.usefixtures("impatient")
    async def test_hinder_nobody(
        self, run: Run, auth: BetterAuth, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with run() as users:
            alice = users("alice")
            task = await alice.add()
            await look_in_vain(alice, auth)
            assert (await alice.complete(task["id"])).status_code == 200
            assert (await alice.delete(f"/{task['id']}")).status_code == 204
        assert complaints(caplog) == []


SUITABLE: Final = {
    "text": "id text PRIMARY KEY",
    "varchar(255)": "id varchar(255) PRIMARY KEY",
    "varchar(36)": "id varchar(36) PRIMARY KEY",
    "varchar": "id varchar PRIMARY KEY",
    "unique text": "id text UNIQUE",
    "text with a default": "id text DEFAULT gen_random_uuid()::text PRIMARY KEY",
}
UNSUITABLE: Final = {
    "uuid": ["id uuid DEFAULT gen_random_uuid() PRIMARY KEY"],
    "serial": ["id serial PRIMARY KEY"],
    "bigserial": ["id bigserial PRIMARY KEY"],
    "bigint": ["id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"],
    "integer": ["id integer PRIMARY KEY"],
    "text that is not unique": ["id text NOT NULL"],
    "text unique with another column": ["id text NOT NULL", "UNIQUE (id, email)"],
    "text unique in the end": ["id text PRIMARY KEY DEFERRABLE INITIALLY DEFERRED"],
    "no id": ["uid text PRIMARY KEY"],
}


class TestIdColumn:
    @pytest.mark.parametrize("column", SUITABLE.values(), ids=SUITABLE)
    async def test_of_text_is_referred_to(self, run: Run, auth: BetterAuth, column: str) -> None:
        await auth.migrate(column)
        await auth.sign_up("alice", "bob")
        async with run() as users:
            await until(auth.is_linked)
            await users("alice").add()
            await users("bob").add()
            await auth.delete("alice")
            assert await auth.owners() == ["bob"]

    @pytest.mark.usefixtures("impatient")
    @pytest.mark.parametrize("columns", UNSUITABLE.values(), ids=UNSUITABLE)
    async def test_of_another_kind_is_left_alone(
        self, run: Run, auth: BetterAuth, caplog: pytest.LogCaptureFixture, columns: list[str]
    ) -> None:
        await auth.migrate(*columns)
        async with run() as users:
            await users("alice").add()
            await look_in_vain(users("alice"), auth)
            assert await auth.owners() == ["alice"]
        assert complaints(caplog) == []

    @pytest.mark.usefixtures("impatient")
    async def test_of_a_view_is_left_alone(
        self, run: Run, auth: BetterAuth, caplog: pytest.LogCaptureFixture
    ) -> None:
        await auth.connection.execute("CREATE VIEW \"user\" AS SELECT 'bob' AS id")
        async with run() as users:
            await users("alice").add()
            await look_in_vain(users("alice"), auth)
        assert complaints(caplog) == []

    @pytest.mark.usefixtures("impatient")
    async def test_may_become_suitable(self, run: Run, auth: BetterAuth) -> None:
        await auth.migrate("id text NOT NULL")
        await auth.sign_up("alice")
        async with run() as users:
            await look_in_vain(users("alice"), auth)
            await auth.connection.execute('ALTER TABLE "user" ADD PRIMARY KEY (id)')
            await until(auth.is_linked, asking=users("alice"))
            await users("alice").add()


# --- A table that comes later -----------------------------------------------------------------


class TestMigrationLater:
    @pytest.mark.usefixtures("impatient")
    async def test_needs_no_restart(
        self, run: Run, auth: BetterAuth, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with run() as users:
            alice = users("alice")
            await alice.add()
            await look_in_vain(alice, auth)
            async with auth.connection.transaction():
                await auth.migrate()
                await auth.sign_up("alice")
            await until(auth.is_linked, asking=alice)
            assert_error(await users("bob").post({"title": "x"}), 401, "Invalid token")
            await alice.add()
            await auth.delete("alice")
            assert await auth.owners() == []
        assert complaints(caplog) == []

    @pytest.mark.usefixtures("impatient")
    async def test_is_noticed_amid_many_requests(
        self, run: Run, auth: BetterAuth, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with run() as users:
            everyone = [users(f"user{number}") for number in range(20)]
            await auth.migrate()
            await auth.sign_up(*(user.user for user in everyone))

            async def ask_all() -> bool:
                for answer in await asyncio.gather(*(user.get() for user in everyone)):
                    assert answer.status_code == 200
                return await auth.is_linked()

            await until(ask_all)
        assert complaints(caplog) == []

    @pytest.mark.usefixtures("impatient")
    async def test_is_noticed_though_another_process_was_at_it_first(
        self, run: Run, auth: BetterAuth, emptied: asyncpg.Connection
    ) -> None:
        async with run() as users:
            async with emptied.transaction():
                await emptied.execute(f"SELECT pg_advisory_xact_lock({TABLES_LOCK})")
                await auth.migrate()
                await look_in_vain(users("alice"), auth)
            await until(auth.is_linked, asking=users("alice"))

    async def test_is_noticed_at_the_next_start(self, run: Run, auth: BetterAuth) -> None:
        async with run() as users:
            await users("alice").add()
        await auth.migrate()
        await auth.sign_up("alice")
        async with run():
            await until(auth.is_linked)

    @pytest.mark.usefixtures("impatient")
    async def test_is_noticed_with_a_database_that_comes_later_too(
        self,
        run: Run,
        auth: BetterAuth,
        postgresql_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("kit.database.tables.START_RETRY_INTERVAL", 0.05)
        await auth.connection.execute('DROP DATABASE IF EXISTS "later"')
        url = postgresql_url.rpartition("/")[0] + "/later"
        async with run(url) as users:
            alice = users("alice")
            assert_error(await alice.get(), 503, "Service temporarily unavailable")
            await auth.connection.execute('CREATE DATABASE "later"')
            connection = await asyncpg.connect(url)
            later = BetterAuth(connection)
            await later.migrate()
            await later.sign_up("alice")

            async def serves() -> bool:
                return (await alice.get()).status_code == 200

            await until(serves)
            await until(later.is_linked, asking=alice)
            await alice.add()
            await connection.close()
        await auth.connection.execute('DROP DATABASE "later"')


class TestOrphans:
    async def make(self, run: Run) -> dict[str, int]:
        """Tasks of three users, from before there were any; the id of the last one of each."""
        async with run() as users:
            added = [
                await users(user).add() for user in ("alice", "bob", "carol", "carol", "alice")
            ]
        return {task["user_id"]: task["id"] for task in added}

    async def test_do_not_stop_the_start_and_are_counted(
        self, run: Run, auth: BetterAuth, caplog: pytest.LogCaptureFixture
    ) -> None:
        await self.make(run)
        await auth.migrate()
        await auth.sign_up("alice")
        caplog.clear()
        async with run():
            await until(auth.is_linked)
            await until(self.logged(caplog))
        [line] = complaints(caplog)
        assert re.findall(r"\d+", line) == ["3"]
        assert await auth.owners() == ["alice", "alice", "bob", "carol", "carol"]

    async def test_stay_usable_but_get_no_company(self, run: Run, auth: BetterAuth) -> None:
        ids = await self.make(run)
        await auth.migrate()
        async with run() as users:
            await until(auth.is_linked)
            bob = users("bob")
            path = f"/{ids['bob']}"
            assert (await bob.put(path, {"title": "Still mine"})).status_code == 200
            assert (await bob.complete(ids["bob"])).json()["completed"] is True
            assert_error(await bob.post({"title": "One more"}), 401, "Invalid token")
            assert (await bob.delete(path)).status_code == 204
            assert await auth.owners() == ["alice", "alice", "carol", "carol"]

    async def test_are_no_orphans_once_their_user_signs_up(
        self, run: Run, auth: BetterAuth
    ) -> None:
        await self.make(run)
        await auth.migrate()
        async with run() as users:
            await until(auth.is_linked)
            await auth.sign_up("carol")
            await users("carol").add()
            await auth.delete("carol")
            assert await auth.owners() == ["alice", "alice", "bob"]

    async def test_are_not_mentioned_when_there_are_none(
        self, run: Run, auth: BetterAuth, caplog: pytest.LogCaptureFixture
    ) -> None:
        await self.make(run)
        await auth.migrate()
        await auth.sign_up("alice", "bob", "carol")
        async with run():
            await until(auth.is_linked)
        assert complaints(caplog) == []

    @pytest.mark.usefixtures("impatient")
    async def test_are_counted_when_the_migration_comes_later(
        self, run: Run, auth: BetterAuth, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with run() as users:
            for user in ("alice", "bob"):
                await users(user).add()
            await auth.migrate()
            await until(auth.is_linked, asking=users("alice"))
            await until(self.logged(caplog))
        [line] = complaints(caplog)
        assert re.findall(r"\d+", line) == ["2"]

    def logged(self, caplog: pytest.LogCaptureFixture) -> Callable[[], Awaitable[bool]]:
        async def is_logged() -> bool:
            return complaints(caplog) != []

        return is_logged


# --- What is in the way -----------------------------------------------------------------------


OLDER_KEYS: Final = {
    "no action": ["ADD CONSTRAINT task_user_id_fkey FOREIGN KEY (user_id) REFERENCES %s"],
    "restrict": ["ADD FOREIGN KEY (user_id) REFERENCES %s ON DELETE RESTRICT"],
    "set null": ["ADD FOREIGN KEY (user_id) REFERENCES %s ON DELETE SET NULL"],
    "deferred": ["ADD FOREIGN KEY (user_id) REFERENCES %s DEFERRABLE INITIALLY DEFERRED"],
    "the name of ours": [
        "ADD CONSTRAINT fk_task_user_id_user FOREIGN KEY (user_id) REFERENCES %s",
    ],
    "an odd name": ['ADD CONSTRAINT "Tasks ""Owner"" %%" FOREIGN KEY (user_id) REFERENCES %s'],
    "two": [
        "ADD CONSTRAINT one FOREIGN KEY (user_id) REFERENCES %s",
        "ADD CONSTRAINT two FOREIGN KEY (user_id) REFERENCES %s ON DELETE RESTRICT",
    ],
    "beside one that cascades": [
        "ADD CONSTRAINT one FOREIGN KEY (user_id) REFERENCES %s",
        "ADD CONSTRAINT two FOREIGN KEY (user_id) REFERENCES %s ON DELETE CASCADE",
    ],
}


class TestOlderKey:
    @pytest.mark.parametrize("clauses", OLDER_KEYS.values(), ids=OLDER_KEYS)
    async def test_that_would_hinder_a_deletion_is_replaced(
        self,
        run: Run,
        auth: BetterAuth,
        caplog: pytest.LogCaptureFixture,
        clauses: list[str],
    ) -> None:
        await auth.migrate()
        await auth.sign_up("alice", "bob")
        async with run() as users:
            await until(auth.is_linked)
            for user in ("alice", "bob"):
                await users(user).add()
        [(name, _, _)] = await auth.keys()
        await auth.connection.execute(f"ALTER TABLE task DROP CONSTRAINT {name}")
        for clause in clauses:
            await auth.connection.execute("ALTER TABLE task " + clause % '"user" (id)')
        async with run() as users:
            await until(auth.is_linked)
            await auth.delete("alice")
            assert await auth.owners() == ["bob"]
            await users("bob").add()
            assert_error(await users("alice").post({"title": "x"}), 401, "Invalid token")
        assert complaints(caplog) == []

    async def test_that_cascades_is_kept(self, run: Run, auth: BetterAuth) -> None:
        await auth.migrate()
        async with run():
            await until(auth.is_linked)
        await auth.connection.execute(
            "ALTER TABLE task RENAME CONSTRAINT fk_task_user_id_user TO somebody_s_own"
        )
        async with run() as users:
            assert (await users("alice").get()).status_code == 200
            assert await auth.keys() == [("somebody_s_own", '"user"', CASCADE)]


class TestLockedUsers:
    @pytest.mark.usefixtures("impatient")
    async def test_do_not_stop_the_start(self, run: Run, auth: BetterAuth) -> None:
        await auth.migrate()
        async with auth.connection.transaction():
            await auth.connection.execute('LOCK TABLE "user" IN ACCESS EXCLUSIVE MODE')
            async with asyncio.timeout(10), run() as users:
                alice = users("alice")
                await alice.add()
                assert await auth.keys() == []
                await auth.sign_up("alice")
        async with run() as users:
            await until(auth.is_linked, asking=users("alice"))
            assert await auth.owners() == ["alice"]

    async def test_are_tied_once_they_are_free(
        self, run: Run, auth: BetterAuth, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kit.database.tables.OWNERS_LOOK_INTERVAL", 0.7)
        await auth.migrate()
        transaction = auth.connection.transaction()
        await transaction.start()
        await auth.sign_up("alice")  # A row's lock is enough to be in the way.
        async with run() as users:
            assert await auth.keys() == []
            await transaction.commit()
            await until(auth.is_linked, asking=users("alice"))

    async def test_are_not_kept_from_their_own_transaction(
        self, run: Run, auth: BetterAuth, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It goes on to the tasks, which the start may hold while it waits for the users."""
        monkeypatch.setattr("kit.database.tables.OWNERS_LOOK_INTERVAL", 0.7)
        await auth.migrate()
        await auth.sign_up("alice", "bob")
        async with run() as users:
            await until(auth.is_linked)
            await users("alice").add()
        await auth.connection.execute(
            "ALTER TABLE task DROP CONSTRAINT fk_task_user_id_user, "
            'ADD CONSTRAINT older FOREIGN KEY (user_id) REFERENCES "user" (id)'
        )
        onlooker = await asyncpg.connect(postgresql_url)

        async def start_is_waiting() -> bool:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            return bool(await onlooker.fetchval(waiting))

        go_on = asyncio.Event()

        async def start() -> None:
            async with run() as users:
                await go_on.wait()
                await until(auth.is_linked, asking=users("bob"))

        async with auth.connection.transaction():
            await auth.connection.execute("UPDATE \"user\" SET name = 'A' WHERE id = 'alice'")
            starting = asyncio.create_task(start())
            await until(start_is_waiting)
            async with asyncio.timeout(5):
                assert await onlooker.fetchval('SELECT count(*) FROM "user"') == 2
                await auth.connection.execute("DELETE FROM task WHERE user_id = 'alice'")
                await auth.delete("alice")
        go_on.set()
        await starting
        await onlooker.close()
        assert await auth.owners() == []


class TestUsersOfAnotherRole:
    """The service's role may not refer to them unless it is granted that."""

    @pytest.fixture
    async def url(self, auth: BetterAuth, postgresql_url: str) -> AsyncIterator[str]:
        with suppress(asyncpg.DuplicateObjectError):
            await auth.connection.execute("CREATE ROLE task_service LOGIN")
        await auth.connection.execute("GRANT ALL ON SCHEMA public TO task_service")
        yield postgresql_url.replace("postgres@", "task_service@")
        await auth.connection.execute("DROP OWNED BY task_service; DROP ROLE task_service")

    async def test_do_not_stop_the_start(self, run: Run, auth: BetterAuth, url: str) -> None:
        await auth.migrate()
        async with run(url) as users:
            await users("alice").add()
            assert await auth.keys() == []
            assert await auth.owners() == ["alice"]

    @pytest.mark.usefixtures("impatient")
    async def test_are_asked_for_once_and_then_rarely(
        self,
        run: Run,
        auth: BetterAuth,
        url: str,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        looks = []
        look = tables.link_owners

        async def noting(database: Database) -> bool:
            looks.append(time.monotonic())
            return await look(database)

        monkeypatch.setattr(tables, "link_owners", noting)
        await auth.migrate()
        async with run(url) as users:
            async with asyncio.timeout(30):
                while len(looks) < 5:
                    assert (await users("alice").get()).status_code == 200
        [line] = complaints(caplog)
        assert 'GRANT REFERENCES ON "user"' in line
        assert "the table task" not in line
        between = [later - earlier for earlier, later in pairwise(looks)]
        assert all(wait >= LOOK_INTERVAL * 2**n for n, wait in enumerate(between, 1))

    @pytest.mark.usefixtures("impatient")
    async def test_are_tied_once_that_is_granted(
        self, run: Run, auth: BetterAuth, url: str
    ) -> None:
        await auth.migrate()
        await auth.sign_up("alice")
        async with run(url) as users:
            await look_in_vain(users("alice"), auth)
            await auth.connection.execute('GRANT SELECT, REFERENCES ON "user" TO task_service')
            await until(auth.is_linked, asking=users("alice"))
            await users("alice").add()
            await auth.delete("alice")
            assert await auth.owners() == []


class TestGate:
    """What is done in the background takes its turn, and its connection, like a request."""

    @pytest.fixture(autouse=True)
    def one_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_POOL_SIZE", "1")

    @pytest.mark.usefixtures("impatient")
    async def test_is_never_passed_by_a_look(self, run: Run, auth: BetterAuth) -> None:
        peak = 0
        async with run() as users:
            end = time.monotonic() + 10 * LOOK_INTERVAL
            while time.monotonic() < end:
                answers = await asyncio.gather(*(users("alice").get() for _ in range(5)))
                assert {answer.status_code for answer in answers} == {200}
                peak = max(peak, await self.connections(auth))
            await auth.migrate()
            while not await auth.is_linked():
                assert (await users("alice").get()).status_code == 200
                peak = max(peak, await self.connections(auth))
        assert peak == 1

    async def connections(self, auth: BetterAuth) -> int:
        count: int = await auth.connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'task-api'"
        )
        return count

    async def test_is_not_held_for_long_to_count_orphans(
        self, run: Run, auth: BetterAuth, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tables, "_COUNT_ORPHANS", "SELECT 1 FROM pg_sleep(60)")
        async with run() as users:
            await users("alice").add()
        await auth.migrate()
        async with run() as users:
            await until(auth.is_linked)
            assert (await users("alice").get()).status_code == 200


# --- SQLite -----------------------------------------------------------------------------------


class TestSQLite:
    @pytest.mark.usefixtures("impatient")
    async def test_does_not_mind_a_table_of_users(
        self, run: Run, sqlite_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as database:
            database.execute('CREATE TABLE "user" (id text PRIMARY KEY, name text NOT NULL)')
            database.execute("INSERT INTO \"user\" VALUES ('alice', 'Alice')")
            database.commit()
            for _ in range(2):
                async with run(sqlite_url) as users:
                    for user in ("alice", "bob"):
                        await users(user).add()
                        assert (await users(user).get()).status_code == 200
            assert database.execute("PRAGMA foreign_key_list(task)").fetchall() == []
            database.execute("DELETE FROM \"user\" WHERE id = 'alice'")
            database.commit()
            async with run(sqlite_url) as users:
                assert len((await users("alice").get()).json()) == 2
                await users("alice").add()
            columns = database.execute('PRAGMA table_info("user")').fetchall()
            assert [name for _, name, *_ in columns] == ["id", "name"]
        assert complaints(caplog) == []
