# [Task]: T024 [From]: specs/requirements.md
"""The tie between tasks and Better Auth's users, on databases as its migrations leave them."""

import asyncio
import gc
import logging
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
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
OLDER_KEY: Final = 'ADD CONSTRAINT older FOREIGN KEY (user_id) REFERENCES "user" (id)'

type Users = Callable[[str], Caller]


class Scene:
    """Better Auth's own connection to the database, and the service beside it."""

    def __init__(
        self, connection: Any, url: str, patch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
    ) -> None:
        self.connection = connection
        self.url = url
        self.patch = patch
        self.log = log
        self.set_interval(LOOK_INTERVAL)
        patch.setenv("DATABASE_URL", url)
        for name in ("POOL", "CONNECT", "STATEMENT"):  # A busy machine is not what is tested.
            patch.setenv(f"DATABASE_{name}_TIMEOUT", "10")

    def set_interval(self, seconds: float) -> None:
        """Between looks for Better Auth's table."""
        self.patch.setattr("kit.database.tables.OWNERS_LOOK_INTERVAL", seconds)

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
        insert = (
            'INSERT INTO "user" (id, name, email, "emailVerified") VALUES ($1::text, $1, $2, true)'
        )
        for user in users:
            await self.connection.execute(insert, user, f"{user}@example.com")

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

    @asynccontextmanager
    async def running(self, url: str | None = None) -> AsyncIterator[Users]:
        """Run the app, and make its users."""
        self.patch.setenv("DATABASE_URL", url or self.url)
        transport = httpx.ASGITransport(app)
        async with (
            asyncio.timeout(30),
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield lambda user: Caller(client, user)

    @asynccontextmanager
    async def linked(self, *users: str) -> AsyncIterator[Users]:
        """Run the app where Better Auth has these users."""
        await self.migrate()
        await self.sign_up(*users)
        async with self.running() as callers:
            await until(self.is_linked)
            yield callers

    async def look_in_vain(self, user: Caller) -> None:
        """Requests for as long as several of the looks take."""
        end = time.monotonic() + 5 * LOOK_INTERVAL
        while time.monotonic() < end:
            assert (await user.get()).status_code == 200
            assert await self.keys() == []

    def complaints(self) -> list[str]:
        """What the service has logged as out of order, a lost exception of a task included."""
        gc.collect()
        return [
            record.getMessage()
            for record in self.log.records
            if record.levelno >= logging.WARNING and record.name.startswith(("tasks", "asyncio"))
        ]

    async def has_complained(self) -> bool:
        return self.complaints() != []


@pytest.fixture
async def scene(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Scene]:
    connection = await asyncpg.connect(postgresql_url)
    yield Scene(connection, postgresql_url, monkeypatch, caplog)
    await connection.close()


async def until(condition: Callable[[], Awaitable[bool]], *, asking: Caller | None = None) -> None:
    """Wait for it, 10 s at most, while someone asks for tasks."""
    async with asyncio.timeout(10):
        while not await condition():
            if asking is not None:
                assert (await asking.get()).status_code == 200
            await asyncio.sleep(0.02)


# --- A table that is there --------------------------------------------------------------------


class TestUsers:
    async def test_get_no_task_while_unknown_or_deleted_though_their_token_lasts(
        self, scene: Scene
    ) -> None:
        async with scene.linked("bob") as users:
            alice, bob = users("alice"), users("bob")
            response = await alice.post({"title": "Buy milk"})
            assert_error(response, 401, "Invalid token")
            assert response.headers["www-authenticate"] == (
                'Bearer error="invalid_token", error_description="Invalid token"'
            )
            # They are asked for after the input.
            assert (await alice.post({"title": ""})).status_code == 422
            assert (await alice.get()).json() == []
            await scene.sign_up("alice")
            task = await alice.add()
            kept = await bob.add()
            await scene.delete("alice")
            assert await scene.owners() == ["bob"]
            for _ in range(2):
                assert_error(await alice.post({"title": "Again"}), 401, "Invalid token")
            assert_error(await alice.put(f"/{task['id']}", {"title": "x"}), 404, "Task not found")
            assert_error(await alice.complete(task["id"]), 404, "Task not found")
            assert (await alice.get()).json() == []
            await bob.add()
            assert (await bob.get(f"/{kept['id']}")).json() == kept
            await scene.sign_up("alice")
            await alice.add()
            assert await scene.owners() == ["alice", "bob", "bob"]
        assert scene.complaints() == []

    async def test_are_tied_but_once(self, scene: Scene) -> None:
        async with scene.linked():
            before = await scene.keys()
        number = await scene.connection.fetchval("SELECT max(oid) FROM pg_constraint")
        for _ in range(2):
            async with scene.running() as users:
                assert (await users("alice").get()).status_code == 200
        assert await scene.keys() == before
        assert await scene.connection.fetchval("SELECT max(oid) FROM pg_constraint") == number

    @pytest.mark.parametrize("there", ["nothing", "tasks", "users", "both"])
    async def test_are_tied_but_once_by_eight_starts_at_once(
        self, scene: Scene, there: str
    ) -> None:
        if there in ("tasks", "both"):
            async with scene.running() as users:
                await users("alice").add()
        if there in ("users", "both"):
            await scene.migrate()
            await scene.sign_up("alice")
        scene.log.clear()
        starts = [lifespan(TaskAPI()) for _ in range(8)]
        await asyncio.gather(*(start.__aenter__() for start in starts))
        if there in ("users", "both"):
            await until(scene.is_linked)
        for start in reversed(starts):
            await start.__aexit__(None, None, None)
        assert scene.complaints() == []
        if there in ("nothing", "tasks"):
            assert await scene.keys() == []
        async with scene.running() as users:
            await users("alice").add()

    async def test_who_are_not_there_hinder_nobody(self, scene: Scene) -> None:
        async with scene.running() as users:
            alice = users("alice")
            task = await alice.add()
            await scene.look_in_vain(alice)
            assert (await alice.complete(task["id"])).status_code == 200
            assert (await alice.delete(f"/{task['id']}")).status_code == 204
        assert scene.complaints() == []


SUITABLE: Final = [
    *("id text PRIMARY KEY", "id varchar(255) PRIMARY KEY", "id varchar(36) PRIMARY KEY"),
    *("id varchar PRIMARY KEY", "id text UNIQUE"),
    "id text DEFAULT gen_random_uuid()::text PRIMARY KEY",
]
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
    "a view": [],
}


class TestIdColumn:
    @pytest.mark.parametrize("column", SUITABLE)
    async def test_of_text_is_referred_to(self, scene: Scene, column: str) -> None:
        await scene.migrate(column)
        await scene.sign_up("alice", "bob")
        async with scene.running() as users:
            await until(scene.is_linked)
            await users("alice").add()
            await users("bob").add()
            await scene.delete("alice")
            assert await scene.owners() == ["bob"]

    @pytest.mark.parametrize("columns", UNSUITABLE.values(), ids=UNSUITABLE)
    async def test_of_another_kind_is_left_alone(self, scene: Scene, columns: list[str]) -> None:
        if columns:
            await scene.migrate(*columns)
        else:
            await scene.connection.execute("CREATE VIEW \"user\" AS SELECT 'bob' AS id")
        async with scene.running() as users:
            await users("alice").add()
            await scene.look_in_vain(users("alice"))
            assert await scene.owners() == ["alice"]
        assert scene.complaints() == []

    async def test_may_become_suitable(self, scene: Scene) -> None:
        await scene.migrate("id text NOT NULL")
        await scene.sign_up("alice")
        async with scene.running() as users:
            await scene.look_in_vain(users("alice"))
            await scene.connection.execute('ALTER TABLE "user" ADD PRIMARY KEY (id)')
            await until(scene.is_linked, asking=users("alice"))
            await users("alice").add()


# --- A table that comes later -----------------------------------------------------------------


class TestMigrationLater:
    async def test_needs_no_restart(self, scene: Scene) -> None:
        async with scene.running() as users:
            alice = users("alice")
            await alice.add()
            await scene.look_in_vain(alice)
            async with scene.connection.transaction():
                await scene.migrate()
                await scene.sign_up("alice")
            await until(scene.is_linked, asking=alice)
            assert_error(await users("bob").post({"title": "x"}), 401, "Invalid token")
            await alice.add()
            await scene.delete("alice")
            assert await scene.owners() == []
        assert scene.complaints() == []

    async def test_is_noticed_amid_many_requests(self, scene: Scene) -> None:
        async with scene.running() as users:
            everyone = [users(f"user{number}") for number in range(20)]
            await scene.migrate()
            await scene.sign_up(*(user.user for user in everyone))

            async def ask_all() -> bool:
                for answer in await asyncio.gather(*(user.get() for user in everyone)):
                    assert answer.status_code == 200
                return await scene.is_linked()

            await until(ask_all)
        assert scene.complaints() == []

    async def test_is_noticed_though_another_process_was_at_it_first(
        self, scene: Scene, emptied: asyncpg.Connection
    ) -> None:
        async with scene.running() as users:
            async with emptied.transaction():
                await emptied.execute(f"SELECT pg_advisory_xact_lock({TABLES_LOCK})")
                await scene.migrate()
                await scene.look_in_vain(users("alice"))
            await until(scene.is_linked, asking=users("alice"))

    async def test_is_noticed_with_a_database_that_comes_later_too(self, scene: Scene) -> None:
        scene.patch.setattr("kit.database.tables.START_RETRY_INTERVAL", 0.05)
        await scene.connection.execute('DROP DATABASE IF EXISTS "later"')
        url = scene.url.rpartition("/")[0] + "/later"
        async with scene.running(url) as users:
            alice = users("alice")
            assert_error(await alice.get(), 503, "Service temporarily unavailable")
            await scene.connection.execute('CREATE DATABASE "later"')
            later = Scene(await asyncpg.connect(url), url, scene.patch, scene.log)
            await later.migrate()
            await later.sign_up("alice")

            async def serves() -> bool:
                return (await alice.get()).status_code == 200

            await until(serves)
            await until(later.is_linked, asking=alice)
            await alice.add()
            await later.connection.close()
        await scene.connection.execute('DROP DATABASE "later"')


class TestOrphans:
    async def make(self, scene: Scene) -> dict[str, int]:
        """Tasks of three users, from before there were any; the id of the last one of each."""
        owners = ("alice", "bob", "carol", "carol", "alice")
        async with scene.running() as users:
            ids = {user: (await users(user).add())["id"] for user in owners}
        scene.log.clear()
        return ids

    async def test_do_not_stop_the_start_and_are_counted(self, scene: Scene) -> None:
        await self.make(scene)
        async with scene.linked("alice"):
            await until(scene.has_complained)
        [line] = scene.complaints()
        assert re.findall(r"\d+", line) == ["3"]
        assert await scene.owners() == ["alice", "alice", "bob", "carol", "carol"]

    async def test_stay_usable_but_get_no_company(self, scene: Scene) -> None:
        ids = await self.make(scene)
        async with scene.linked() as users:
            bob = users("bob")
            path = f"/{ids['bob']}"
            assert (await bob.put(path, {"title": "Still mine"})).status_code == 200
            assert (await bob.complete(ids["bob"])).json()["completed"] is True
            assert_error(await bob.post({"title": "One more"}), 401, "Invalid token")
            assert (await bob.delete(path)).status_code == 204
            # They are no orphans once their user signs up.
            await scene.sign_up("carol")
            await users("carol").add()
            await scene.delete("carol")
            assert await scene.owners() == ["alice", "alice"]

    async def test_are_not_mentioned_when_there_are_none(self, scene: Scene) -> None:
        await self.make(scene)
        async with scene.linked("alice", "bob", "carol"):
            pass
        assert scene.complaints() == []

    async def test_are_counted_when_the_migration_comes_later(self, scene: Scene) -> None:
        async with scene.running() as users:
            for user in ("alice", "bob"):
                await users(user).add()
            await scene.migrate()
            await until(scene.is_linked, asking=users("alice"))
            await until(scene.has_complained)
        [line] = scene.complaints()
        assert re.findall(r"\d+", line) == ["2"]


# --- What is in the way -----------------------------------------------------------------------

# Foreign keys from before, as `ADD …`.
OLDER_KEYS: Final = {
    "no action": ["CONSTRAINT task_user_id_fkey %s"],
    "restrict": ["%s ON DELETE RESTRICT"],
    "set null": ["%s ON DELETE SET NULL"],
    "deferred": ["%s DEFERRABLE INITIALLY DEFERRED"],
    "the name of ours": ["CONSTRAINT fk_task_user_id_user %s"],
    "an odd name": ['CONSTRAINT "Tasks ""Owner"" %%" %s'],
    "two": ["CONSTRAINT one %s", "CONSTRAINT two %s ON DELETE RESTRICT"],
    "beside one that cascades": ["CONSTRAINT one %s", "CONSTRAINT two %s ON DELETE CASCADE"],
}


class TestOlderKey:
    @pytest.mark.parametrize("older", OLDER_KEYS.values(), ids=OLDER_KEYS)
    async def test_that_would_hinder_a_deletion_is_replaced(
        self, scene: Scene, older: list[str]
    ) -> None:
        async with scene.linked("alice", "bob") as users:
            for user in ("alice", "bob"):
                await users(user).add()
        [(name, _, _)] = await scene.keys()
        await scene.connection.execute(f"ALTER TABLE task DROP CONSTRAINT {name}")
        reference = 'FOREIGN KEY (user_id) REFERENCES "user" (id)'
        for clause in older:
            await scene.connection.execute("ALTER TABLE task ADD " + clause % reference)
        async with scene.running() as users:
            await until(scene.is_linked)
            await scene.delete("alice")
            assert await scene.owners() == ["bob"]
            await users("bob").add()
            assert_error(await users("alice").post({"title": "x"}), 401, "Invalid token")
        assert scene.complaints() == []

    async def test_that_cascades_is_kept(self, scene: Scene) -> None:
        async with scene.linked():
            pass
        await scene.connection.execute(
            "ALTER TABLE task RENAME CONSTRAINT fk_task_user_id_user TO somebody_s_own"
        )
        async with scene.running() as users:
            assert (await users("alice").get()).status_code == 200
            assert await scene.keys() == [("somebody_s_own", '"user"', CASCADE)]


class TestLockedUsers:
    async def test_do_not_stop_the_start(self, scene: Scene) -> None:
        await scene.migrate()
        async with scene.connection.transaction():
            await scene.connection.execute('LOCK TABLE "user" IN ACCESS EXCLUSIVE MODE')
            async with asyncio.timeout(10), scene.running() as users:
                await users("alice").add()
                assert await scene.keys() == []
                await scene.sign_up("alice")
        async with scene.running() as users:
            await until(scene.is_linked, asking=users("alice"))
            assert await scene.owners() == ["alice"]

    async def test_are_tied_once_they_are_free(self, scene: Scene) -> None:
        scene.set_interval(0.7)
        await scene.migrate()
        transaction = scene.connection.transaction()
        await transaction.start()
        await scene.sign_up("alice")  # A row's lock is enough to be in the way.
        async with scene.running() as users:
            assert await scene.keys() == []
            await transaction.commit()
            await until(scene.is_linked, asking=users("alice"))

    async def test_are_not_kept_from_their_own_transaction(self, scene: Scene) -> None:
        """It goes on to the tasks, which the start may hold while it waits for the users."""
        scene.set_interval(0.7)
        async with scene.linked("alice", "bob") as users:
            await users("alice").add()
        await scene.connection.execute(
            f"ALTER TABLE task DROP CONSTRAINT fk_task_user_id_user, {OLDER_KEY}"
        )
        onlooker = await asyncpg.connect(scene.url)

        async def start_is_waiting() -> bool:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            return bool(await onlooker.fetchval(waiting))

        go_on = asyncio.Event()

        async def start() -> None:
            async with scene.running() as users:
                await go_on.wait()
                await until(scene.is_linked, asking=users("bob"))

        async with scene.connection.transaction():
            await scene.connection.execute("UPDATE \"user\" SET name = 'A' WHERE id = 'alice'")
            starting = asyncio.create_task(start())
            await until(start_is_waiting)
            async with asyncio.timeout(5):
                assert await onlooker.fetchval('SELECT count(*) FROM "user"') == 2
                await scene.connection.execute("DELETE FROM task WHERE user_id = 'alice'")
                await scene.delete("alice")
        go_on.set()
        await starting
        await onlooker.close()
        assert await scene.owners() == []


class TestUsersOfAnotherRole:
    """The service's role may not refer to them unless it is granted that."""

    @pytest.fixture
    async def url(self, scene: Scene) -> AsyncIterator[str]:
        with suppress(asyncpg.DuplicateObjectError):
            await scene.connection.execute("CREATE ROLE task_service LOGIN")
        await scene.connection.execute("GRANT ALL ON SCHEMA public TO task_service")
        yield scene.url.replace("postgres@", "task_service@")
        await scene.connection.execute("DROP OWNED BY task_service; DROP ROLE task_service")

    async def test_are_asked_for_once_and_then_rarely(self, scene: Scene, url: str) -> None:
        looks = []
        look = tables.link_owners

        async def noting(database: Database) -> bool:
            looks.append(time.monotonic())
            return await look(database)

        scene.patch.setattr(tables, "link_owners", noting)
        await scene.migrate()
        async with scene.running(url) as users, asyncio.timeout(30):
            while len(looks) < 5:
                assert (await users("alice").get()).status_code == 200
        [line] = scene.complaints()
        assert 'GRANT REFERENCES ON "user"' in line
        assert "the table task" not in line
        between = [later - earlier for earlier, later in pairwise(looks)]
        assert all(wait >= LOOK_INTERVAL * 2**n for n, wait in enumerate(between, 1))

    async def test_are_tied_once_that_is_granted(self, scene: Scene, url: str) -> None:
        await scene.migrate()
        await scene.sign_up("alice")
        async with scene.running(url) as users:
            await users("alice").add()
            await scene.look_in_vain(users("alice"))
            await scene.connection.execute('GRANT SELECT, REFERENCES ON "user" TO task_service')
            await until(scene.is_linked, asking=users("alice"))
            await users("alice").add()
            await scene.delete("alice")
            assert await scene.owners() == []


class TestGate:
    """What is done in the background takes its turn, and its connection, like a request."""

    @pytest.fixture(autouse=True)
    def one_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_POOL_SIZE", "1")

    async def test_is_never_passed_by_a_look(self, scene: Scene) -> None:
        connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'task-api'"
        async with scene.running() as users:

            async def ask() -> None:
                answers = await asyncio.gather(*(users("alice").get() for _ in range(5)))
                assert {answer.status_code for answer in answers} == {200}
                assert await scene.connection.fetchval(connections) == 1

            end = time.monotonic() + 10 * LOOK_INTERVAL
            while time.monotonic() < end:
                await ask()
            await scene.migrate()
            while not await scene.is_linked():
                await ask()

    async def test_is_not_held_for_long_to_count_orphans(self, scene: Scene) -> None:
        scene.patch.setattr(tables, "_COUNT_ORPHANS", "SELECT 1 FROM pg_sleep(60)")
        async with scene.running() as users:
            await users("alice").add()
        async with scene.linked() as users:
            assert (await users("alice").get()).status_code == 200


# --- SQLite -----------------------------------------------------------------------------------


async def test_sqlite_does_not_mind_a_table_of_users(scene: Scene, sqlite_url: str) -> None:
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as database:
        database.execute('CREATE TABLE "user" (id text PRIMARY KEY, name text NOT NULL)')
        database.execute("INSERT INTO \"user\" VALUES ('alice', 'Alice')")
        database.commit()
        for _ in range(2):
            async with scene.running(sqlite_url) as users:
                for user in ("alice", "bob"):
                    await users(user).add()
                    assert (await users(user).get()).status_code == 200
        assert database.execute("PRAGMA foreign_key_list(task)").fetchall() == []
        database.execute("DELETE FROM \"user\" WHERE id = 'alice'")
        database.commit()
        async with scene.running(sqlite_url) as users:
            assert len((await users("alice").get()).json()) == 2
            await users("alice").add()
        columns = database.execute('PRAGMA table_info("user")').fetchall()
        assert [name for _, name, *_ in columns] == ["id", "name"]
    assert scene.complaints() == []
