# [Task]: T024 [From]: specs/requirements.md
"""The tie between tasks and Better Auth's users, on databases as its migrations leave them."""

import asyncio
import gc
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import pairwise
from typing import Any, Final

import asyncpg
import httpx
import pytest
from databases import execute, opened, stored
from sqlalchemy import event
from sqlalchemy.util import await_only
from support import Caller, assert_error

from kit.database import tables
from kit.database.database import TABLES_LOCK, Database
from kit.database.tables import link_owners
from kit.routing import TaskAPI
from main import app, lifespan

# Seconds, in place of the service's own interval.
LOOK_INTERVAL: Final = 0.05

type Users = Callable[[str], Caller]


class Scene:
    """Better Auth's own connection to the database, and the service beside it."""

    def __init__(
        self, connection: Any, url: str, patch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
    ) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.url = url
        self.patch = patch
        self.log = log
        patch.setattr(tables, "OWNERS_LOOK_INTERVAL", LOOK_INTERVAL)
        for name in ("POOL", "CONNECT", "STATEMENT"):  # A busy machine is not what is tested.
            patch.setenv(f"DATABASE_{name}_TIMEOUT", "10")

    async def migrate(self, id_column: str = "id text PRIMARY KEY") -> None:
        await self.execute(
            f"""
            CREATE TABLE "user" (
                {id_column}, name text NOT NULL, email text NOT NULL UNIQUE,
                "emailVerified" boolean NOT NULL, image text,
                "createdAt" timestamptz DEFAULT CURRENT_TIMESTAMP NOT NULL,
                "updatedAt" timestamptz DEFAULT CURRENT_TIMESTAMP NOT NULL)
            """
        )

    async def sign_up(self, *users: str) -> None:
        columns = 'id, name, email, "emailVerified"'
        for user in users:
            await self.execute(
                f'INSERT INTO "user" ({columns}) VALUES ($1::text, $1, $2, true)',  # noqa: S608
                user,
                f"{user}@example.com",
            )

    async def delete(self, user: str) -> None:
        assert await self.execute('DELETE FROM "user" WHERE id = $1', user) == "DELETE 1"

    async def owners(self) -> list[Any]:
        """Of each task there is, in order."""
        return await stored(self.url, "SELECT user_id FROM task ORDER BY user_id")

    async def keys(self) -> list[Any]:
        """The foreign keys of the task table, by name."""
        return await stored(
            self.url,
            "SELECT conname FROM pg_constraint WHERE conrelid = to_regclass('task')"
            " AND contype = 'f' ORDER BY conname",
        )

    async def is_linked(self) -> bool:
        """Whether there is one foreign key, to the users, and it cascades."""
        return await stored(
            self.url,
            "SELECT concat(confrelid::regclass, confdeltype) FROM pg_constraint"
            " WHERE conrelid = to_regclass('task') AND contype = 'f'",
        ) == ['"user"c']

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
    ready_postgresql_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Scene]:
    connection = await asyncpg.connect(ready_postgresql_url)
    yield Scene(connection, ready_postgresql_url, monkeypatch, caplog)
    await connection.close()


async def until(condition: Callable[[], Awaitable[bool]], *, asking: Caller | None = None) -> None:
    """Wait for it, 10 s at most, while someone asks for tasks."""
    async with asyncio.timeout(10):
        while not await condition():
            if asking is not None:
                assert (await asking.get()).status_code == 200
            await asyncio.sleep(0.02)


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
        """Whatever the name of the key is."""
        newest_constraint = "SELECT max(oid) FROM pg_constraint"
        async with scene.linked():
            pass
        await scene.execute("ALTER TABLE task RENAME CONSTRAINT fk_task_user_id_user TO own")
        before = await stored(scene.url, newest_constraint)
        for _ in range(2):
            async with scene.running() as users:
                assert (await users("alice").get()).status_code == 200
        assert await scene.keys() == ["own"]
        assert await stored(scene.url, newest_constraint) == before

    @pytest.mark.parametrize("tables_exist", [True, False])
    async def test_are_tied_but_once_by_eight_starts_at_once(
        self, scene: Scene, tables_exist: bool
    ) -> None:
        if not tables_exist:
            await scene.execute("DROP TABLE task, task_schema")
        await scene.migrate()
        scene.patch.setenv("DATABASE_URL", scene.url)
        async with AsyncExitStack() as stack:
            starts = [lifespan(TaskAPI()) for _ in range(8)]
            await asyncio.gather(*map(stack.enter_async_context, starts))
            await until(scene.is_linked)
        assert scene.complaints() == []


class TestIdColumn:
    @pytest.mark.parametrize(
        ("linked", "columns"),
        [
            (True, ["id varchar(36) PRIMARY KEY", "id text UNIQUE"]),
            (False, ["id uuid PRIMARY KEY", "id serial PRIMARY KEY", "id bigint PRIMARY KEY"]),
            (False, ["id text NOT NULL", "id text, UNIQUE (id, email)", "uid text PRIMARY KEY"]),
            (False, ["id text PRIMARY KEY DEFERRABLE INITIALLY DEFERRED"]),
        ],
    )
    async def test_must_be_text_and_unique(
        self, scene: Scene, linked: bool, columns: list[str]
    ) -> None:
        async with opened(scene.url) as database:
            for column in columns:
                await scene.migrate(column)
                assert await link_owners(database) is linked, column
                assert await scene.is_linked() is linked
                await scene.execute('DROP TABLE "user" CASCADE')
            await scene.execute("CREATE VIEW \"user\" AS SELECT 'bob' AS id")
            assert not await link_owners(database)
        assert scene.complaints() == []


class TestMigrationLater:
    async def test_needs_no_restart(self, scene: Scene) -> None:
        async with scene.running() as users:
            alice = users("alice")
            await alice.add()
            await scene.look_in_vain(alice)
            async with scene.connection.transaction():
                await scene.migrate("id text NOT NULL")
                await scene.sign_up("alice")
            await scene.look_in_vain(alice)
            await scene.execute('ALTER TABLE "user" ADD PRIMARY KEY (id)')
            await until(scene.is_linked, asking=alice)
            assert_error(await users("bob").post({"title": "x"}), 401, "Invalid token")
            await alice.add()
            await scene.delete("alice")
            assert await scene.owners() == []
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

    async def test_that_another_process_has_seen_just_before_is_no_error(
        self, scene: Scene
    ) -> None:
        async with opened(scene.url) as database, opened(scene.url) as other:

            def be_late(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
                if "pg_try_advisory_xact_lock" in sql:
                    assert await_only(link_owners(other))

            await scene.migrate()
            event.listen(database.engine.sync_engine, "before_cursor_execute", be_late)
            assert await link_owners(database)
        assert await scene.is_linked()


class TestOrphans:
    async def test_are_counted_and_stay_usable_but_get_no_company(self, scene: Scene) -> None:
        owners = ("alice", "bob", "carol", "carol", "alice")
        async with scene.running() as users:
            ids = {user: (await users(user).add())["id"] for user in owners}
        async with scene.linked("alice") as users:
            await until(scene.has_complained)
            [line] = scene.complaints()
            assert re.findall(r"\d+", line) == ["3"]
            assert await scene.owners() == sorted(owners)
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


REFERENCE: Final = 'FOREIGN KEY (user_id) REFERENCES "user" (id)'
# Foreign keys from before.
OLDER_KEYS: Final = [
    f"ADD CONSTRAINT task_user_id_fkey {REFERENCE}",
    f"ADD {REFERENCE} ON DELETE RESTRICT",
    f"ADD {REFERENCE} ON DELETE SET NULL",
    f"ADD {REFERENCE} DEFERRABLE INITIALLY DEFERRED",
    f"ADD CONSTRAINT fk_task_user_id_user {REFERENCE}",
    f'ADD CONSTRAINT "Tasks ""Owner"" %" {REFERENCE}',
    f"ADD CONSTRAINT one {REFERENCE}, ADD CONSTRAINT two {REFERENCE} ON DELETE RESTRICT",
    f"ADD CONSTRAINT one {REFERENCE}, ADD CONSTRAINT two {REFERENCE} ON DELETE CASCADE",
]


async def test_older_key_that_would_hinder_a_deletion_is_replaced(scene: Scene) -> None:
    async with scene.linked("alice", "bob") as users:
        await users("alice").add()
        await users("bob").add()
    async with opened(scene.url) as database:
        for older in OLDER_KEYS:
            [name] = await scene.keys()
            await scene.execute(f"ALTER TABLE task DROP CONSTRAINT {name}, {older}")
            assert await link_owners(database)
            assert await scene.is_linked(), older
    await scene.delete("alice")
    assert await scene.owners() == ["bob"]
    assert scene.complaints() == []


class TestLockedUsers:
    async def test_do_not_stop_the_start_and_are_tied_once_they_are_free(
        self, scene: Scene
    ) -> None:
        await scene.migrate()
        transaction = scene.connection.transaction()
        await transaction.start()
        await scene.execute('LOCK TABLE "user" IN ACCESS EXCLUSIVE MODE')
        async with scene.running() as users:
            await users("alice").add()
            assert await scene.keys() == []
            await scene.sign_up("alice")
            await transaction.commit()
            await until(scene.is_linked, asking=users("alice"))
            assert await scene.owners() == ["alice"]

    async def test_are_not_kept_from_their_own_transaction(self, scene: Scene) -> None:
        """It goes on to the tasks, which the start may hold while it waits for the users."""
        scene.patch.setattr(tables, "OWNERS_LOOK_INTERVAL", 0.7)
        async with scene.linked("alice", "bob") as users:
            await users("alice").add()
        older = f"ADD CONSTRAINT older {REFERENCE}"
        await scene.execute(f"ALTER TABLE task DROP CONSTRAINT fk_task_user_id_user, {older}")

        async def start_is_waiting() -> bool:
            return await stored(scene.url, "SELECT 1 FROM pg_locks WHERE NOT granted") != []

        go_on = asyncio.Event()

        async def start() -> None:
            async with scene.running() as users:
                await go_on.wait()
                await until(scene.is_linked, asking=users("bob"))

        async with scene.connection.transaction():
            await scene.execute("UPDATE \"user\" SET name = 'A' WHERE id = 'alice'")
            starting = asyncio.create_task(start())
            await until(start_is_waiting)
            async with asyncio.timeout(5):
                assert await stored(scene.url, 'SELECT count(*) FROM "user"') == [2]
                await scene.execute("DELETE FROM task WHERE user_id = 'alice'")
                await scene.delete("alice")
        go_on.set()
        await starting
        assert await scene.owners() == []


class TestUsersOfAnotherRole:
    """The service's role may not refer to them unless it is granted that."""

    @pytest.fixture
    async def url(self, scene: Scene) -> AsyncIterator[str]:
        with suppress(asyncpg.DuplicateObjectError):
            await scene.execute("CREATE ROLE task_service LOGIN")
        await scene.execute(
            """
            GRANT ALL ON SCHEMA public TO task_service;
            ALTER TABLE task OWNER TO task_service;
            ALTER TABLE task_schema OWNER TO task_service;
            """
        )
        yield scene.url.replace("postgres@", "task_service@")
        await scene.execute("DROP OWNED BY task_service; DROP ROLE task_service")

    async def test_are_asked_for_once_and_then_rarely_until_that_is_granted(
        self, scene: Scene, url: str
    ) -> None:
        looks = []
        look = tables.link_owners

        async def noting(database: Database) -> bool:
            looks.append(time.monotonic())
            return await look(database)

        scene.patch.setattr(tables, "link_owners", noting)
        await scene.migrate()
        await scene.sign_up("alice")
        async with scene.running(url) as users:
            alice = users("alice")
            await alice.add()
            while len(looks) < 4:
                assert (await alice.get()).status_code == 200
            [line] = scene.complaints()
            assert 'GRANT REFERENCES ON "user"' in line
            assert "the table task" not in line
            between = [later - earlier for earlier, later in pairwise(looks)]
            assert all(wait >= LOOK_INTERVAL * 2**n for n, wait in enumerate(between, 1))
            await scene.execute('GRANT SELECT, REFERENCES ON "user" TO task_service')
            await until(scene.is_linked, asking=alice)
            await alice.add()
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
                assert await stored(scene.url, connections) == [1]

            end = time.monotonic() + 5 * LOOK_INTERVAL
            while time.monotonic() < end:
                await ask()
            await scene.migrate()
            while not await scene.is_linked():
                await ask()

    async def test_is_not_held_for_long_to_count_orphans(self, scene: Scene) -> None:
        scene.patch.setattr(tables, "_COUNT_ORPHANS", "SELECT 1 FROM pg_sleep(60)")
        async with scene.linked() as users, asyncio.timeout(5):
            assert (await users("alice").get()).status_code == 200


async def test_sqlite_does_not_mind_a_table_of_users(scene: Scene, ready_sqlite_url: str) -> None:
    await execute(
        ready_sqlite_url,
        """
        CREATE TABLE "user" (id text PRIMARY KEY, name text NOT NULL);
        INSERT INTO "user" VALUES ('alice', 'Alice');
        """,
    )
    async with scene.running(ready_sqlite_url) as users:
        for user in ("alice", "bob"):
            await users(user).add()
    await execute(ready_sqlite_url, "DELETE FROM \"user\" WHERE id = 'alice'")
    async with scene.running(ready_sqlite_url) as users:
        assert len((await users("alice").get()).json()) == 1
        await users("alice").add()
    columns = await stored(ready_sqlite_url, "SELECT name FROM pragma_table_info('user')")
    assert columns == ["id", "name"]
    assert scene.complaints() == []
