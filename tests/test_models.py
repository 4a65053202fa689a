# [Task]: T020 [From]: specs/requirements.md
"""The two tables through SQLModel's own async session, the clock, and what statements may touch."""

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import asyncpg
import pytest
from databases import new, opened
from pydantic import TypeAdapter
from sqlalchemy import String, bindparam, cast, literal, literal_column, make_url, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import aliased
from sqlmodel import SQLModel, col, delete, union, update
from sqlmodel import select as select_entities
from sqlmodel.ext.asyncio.session import AsyncSession
from statements import STATEMENTS, VALUES

from kit.database.session import Session
from kit.database.sql import UTCDateTime, advance, rfc3339, utc_now
from models import DESCRIPTION_LENGTH, IDEMPOTENCY_KEY_LENGTH, TASK_TABLE, TITLE_LENGTH, Task, User
from schemas import TaskPublic, tasks_json
from tasks.queries import COMPLETE, CREATE

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 1, 1, tzinfo=UTC)

BETTER_AUTH_DDL = """
    CREATE TABLE "user" (
        id text PRIMARY KEY, name text NOT NULL, email text NOT NULL UNIQUE,
        "emailVerified" boolean NOT NULL, image text,
        "createdAt" timestamptz NOT NULL, "updatedAt" timestamptz NOT NULL)
"""
BETTER_AUTH_ROW = """
    INSERT INTO "user" VALUES ('Kq3vZ8yW1nB5tR7uX0aC2dE4fG6hJ9kL', 'Alice', 'a@b.co', true, NULL,
        '2026-01-02 03:04:05.678901', '2026-01-02 03:04:05.678902')
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database; SQLite's is in memory."""
    if request.param == "sqlite":
        return "sqlite://"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine as someone else's test would make it."""
    scheme, _, rest = database_url.partition(":")
    driver = {"sqlite": "aiosqlite", "postgresql": "asyncpg"}[scheme]
    engine = create_async_engine(f"{scheme}+{driver}:{rest}")
    yield engine
    await engine.dispose()


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A session with the tables that the models describe."""
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    async with AsyncSession(engine) as session:
        yield session


on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def values_of(session: AsyncSession, sql: str, **values: object) -> list[Any]:
    """The rows of raw SQL: a value each, or a tuple."""
    connection = await session.connection()
    rows = [tuple(row) for row in await connection.execute(text(sql), values)]
    return [row[0] if len(row) == 1 else row for row in rows]


async def saved[T: SQLModel](session: AsyncSession, entity: T) -> T:
    """The entity, committed and read back."""
    session.add(entity)
    await session.commit()
    await session.refresh(entity)
    return entity


class TestTask:
    async def test_is_kept_with_its_defaults(self, session: AsyncSession) -> None:
        before = utc_now()
        task = await saved(session, Task(user_id="alice", title="Buy milk"))
        assert (task.id, task.user_id, task.title) == (1, "alice", "Buy milk")
        assert (task.description, task.completed) == (None, False)
        assert before <= task.created_at == task.updated_at <= utc_now()

    async def test_is_kept_with_every_value(self, session: AsyncSession) -> None:
        instant = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
        values: dict[str, Any] = {
            "id": 2**63 - 1,
            "user_id": "auth0|123",
            "title": "é" * TITLE_LENGTH,
            "description": "日" * DESCRIPTION_LENGTH,
            "completed": True,
            "created_at": instant,
            "updated_at": instant + timedelta(microseconds=1),
            "idempotency_key": "~" * IDEMPOTENCY_KEY_LENGTH,
            "idempotency_mark": bytes(range(24)),
            "deleted_at": None,
        }
        await saved(session, Task(**values))
        session.expunge_all()
        [task] = (await session.exec(select_entities(Task))).all()
        assert {name: getattr(task, name) for name in values} == values

    @pytest.mark.parametrize("missing", ["user_id", "title"])
    async def test_needs_an_owner_and_a_title(self, session: AsyncSession, missing: str) -> None:
        values: dict[str, Any] = {"user_id": "alice", "title": "Buy milk", missing: None}
        session.add(Task(**values))
        with pytest.raises(IntegrityError):
            await session.commit()

    async def test_is_completed_never_unless_said(self, session: AsyncSession) -> None:
        """A row that another program inserts without it."""
        await values_of(
            session,
            "INSERT INTO task (user_id, title, created_at, updated_at) VALUES ('alice', 'raw',"
            " '2026-01-02 03:04:05.000000', '2026-01-02 03:04:05.000000') RETURNING id",
        )
        [task] = (await session.exec(select_entities(Task))).all()
        assert task.completed is False

    async def test_instants_keep_their_microseconds_are_utc_and_compare_in_order(
        self, session: AsyncSession
    ) -> None:
        instants = [
            datetime(2026, 1, 2, 3, 4, 5, microsecond, tzinfo=timezone(timedelta(hours=hours)))
            for hours in (14, 5.5, 0, -11)
            for microsecond in (0, 1, 678000, 999999)
        ]
        for instant in reversed(instants):
            task = await saved(session, Task(user_id="alice", title="t", created_at=instant))
            assert task.created_at == instant
            assert task.created_at.utcoffset() == timedelta(0)
            found = await session.exec(select_entities(Task).where(Task.created_at == instant))
            assert found.all() == [task]
        ids = await values_of(session, "SELECT id FROM task ORDER BY created_at")
        assert ids == sorted(ids, reverse=True)

    async def test_id_of_a_deleted_task_is_not_used_again(self, session: AsyncSession) -> None:
        last = await saved(session, Task(user_id="alice", title="last"))
        await session.delete(last)
        await session.commit()
        assert (await saved(session, Task(user_id="alice", title="next"))).id == 2

    @on_postgresql
    async def test_columns_of_postgresql(self, session: AsyncSession) -> None:
        found = await values_of(
            session,
            "SELECT concat_ws(' ', column_name, data_type, character_maximum_length, is_nullable)"
            " FROM information_schema.columns WHERE table_name = 'task' ORDER BY ordinal_position",
        )
        assert found == [
            "id bigint NO",
            "user_id text NO",
            f"title character varying {TITLE_LENGTH} NO",
            f"description character varying {DESCRIPTION_LENGTH} YES",
            "completed boolean NO",
            "created_at timestamp with time zone NO",
            "updated_at timestamp with time zone NO",
            f"idempotency_key character varying {IDEMPOTENCY_KEY_LENGTH} YES",
            "idempotency_mark bytea YES",
            "deleted_at timestamp with time zone YES",
        ]

    def test_refers_to_no_other_table(self) -> None:
        assert SQLModel.metadata.tables["task"].foreign_keys == set()


async def by_attribute(_session: AsyncSession, task: Task, title: str) -> None:
    task.title = title


async def by_entity(session: AsyncSession, task: Task, title: str) -> None:
    await session.exec(update(Task).where(col(Task.id) == task.id).values(title=title))


async def by_table(session: AsyncSession, task: Task, title: str) -> None:
    change = update(TASK_TABLE).where(TASK_TABLE.c.id == task.id).values(title=title)
    await (await session.connection()).execute(change)


# Each finds the titles of tasks.
SELECTS: dict[str, Any] = {
    "entities": select(Task).with_only_columns(col(Task.title)),
    "an alias": select(col(aliased(Task).title)),
    "a subquery": select(select(Task).subquery().c.title),
    "a column": select(col(Task.title)).where(col(Task.id).in_(select(col(Task.id)))),
    "a union": union(select(col(Task.title)), select(col(Task.title))),
    "the table": select(TASK_TABLE.c.title),
    "a join": select(TASK_TABLE.c.title).select_from(
        TASK_TABLE.join(User, col(User.id) == TASK_TABLE.c.user_id, isouter=True)
    ),
}


class TestORM:
    """What the table promises holds for whoever writes it."""

    @pytest.mark.parametrize("change", [by_attribute, by_entity, by_table])
    async def test_every_change_moves_updated_at(self, session: AsyncSession, change: Any) -> None:
        ahead = utc_now() + timedelta(days=1)
        for created_at in (utc_now(), ahead):  # Written by a clock that is ahead of this one, too.
            task = await saved(session, Task(user_id="alice", title="0", created_at=created_at))
            for title in "123":
                before = task.updated_at
                await change(session, task, title)
                await session.commit()
                await session.refresh(task)
                assert task.title == title
                assert task.updated_at > before

    async def test_a_change_needs_no_refresh_and_one_to_the_same_value_is_none(
        self, session: AsyncSession
    ) -> None:
        session.sync_session.expire_on_commit = False
        task = await saved(session, Task(user_id="alice", title="first"))
        before = task.updated_at
        task.title = "second"
        await session.commit()
        assert (after := task.updated_at) > before
        task.title = "second"
        await session.commit()
        await session.refresh(task)
        assert task.updated_at == after

    @pytest.mark.parametrize("find", SELECTS.values(), ids=SELECTS)
    async def test_finds_no_tombstones(self, session: AsyncSession, find: Any) -> None:
        dead = Task(id=1, user_id="alice", title="dead", deleted_at=utc_now())
        session.add_all([dead, Task(id=2, user_id="alice", title="alive")])
        await session.commit()
        session.expunge_all()
        assert (await session.exec(find)).scalars().all() == ["alive"]
        assert await session.get(Task, 1) is None
        for change in (update(Task).values(title="changed"), delete(Task)):
            assert (await session.exec(change)).rowcount == 1
        assert await values_of(session, "SELECT title FROM task") == ["dead"]

    async def test_json_has_what_clients_see(self, session: AsyncSession) -> None:
        new = Task(user_id="alice", title="t", created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
        new.idempotency_key, new.idempotency_mark = "k", b"\xff"
        task = await saved(session, new)
        seen = [(task.id, "alice", "t", None, False, *["2026-01-02T03:04:05.000000Z"] * 2)]
        expected = json.loads(tasks_json(seen))
        assert json.loads(TypeAdapter(list[Task]).dump_json([task])) == expected
        public = TaskPublic.model_validate(task, from_attributes=True)
        assert [json.loads(public.model_dump_json())] == expected


class TestUser:
    async def test_is_kept_with_its_defaults(self, session: AsyncSession) -> None:
        before = utc_now()
        user = await saved(session, User(id="u1", email="a@b.co", name="Alice"))
        assert (user.email_verified, user.image) == (False, None)
        for instant in (user.created_at, user.updated_at):
            assert before <= instant <= utc_now()

    async def test_is_read_from_better_auths_own_table(self, engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(text(BETTER_AUTH_DDL))
            zone = "+00" if connection.dialect.name == "postgresql" else ""
            row = re.sub(r"(\.6789\d\d)", rf"\1{zone}", BETTER_AUTH_ROW)
            await connection.execute(text(row))
        async with AsyncSession(engine) as session:
            [user] = (await session.exec(select_entities(User))).all()
        created_at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
        assert user.model_dump() == {
            "id": "Kq3vZ8yW1nB5tR7uX0aC2dE4fG6hJ9kL",
            "name": "Alice",
            "email": "a@b.co",
            "email_verified": True,
            "image": None,
            "created_at": created_at,
            "updated_at": created_at + timedelta(microseconds=1),
        }

    @on_postgresql
    async def test_table_is_as_better_auth_makes_it(self, session: AsyncSession) -> None:
        columns_and_keys = """
            SELECT column_name, data_type, is_nullable FROM information_schema.columns
            WHERE table_name = 'user' UNION
            SELECT contype::text, conkey::text, '' FROM pg_constraint
            WHERE conrelid = '"user"'::regclass AND contype IN ('p', 'u') ORDER BY 1
        """
        ours = await values_of(session, columns_and_keys)
        connection = await session.connection()
        await connection.execute(text('DROP TABLE "user"'))
        await connection.execute(text(BETTER_AUTH_DDL))
        assert ours == await values_of(session, columns_and_keys)
        assert len(ours) == 7 + 2


# What a clock that knows milliseconds, or a rounding one, would get wrong.
INSTANTS = [
    datetime(2026, 1, 2, 3, 4, 59, microsecond, tzinfo=UTC)
    for microsecond in (0, 1, 499, 500, 501, 999, 1000, 123456, 499999, 999000, 999500, 999999)
] + [
    datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2028, 2, 28, 23, 59, 59, 999500, tzinfo=UTC),
    EPOCH,
    datetime(2106, 2, 7, 6, 28, 16, 1, tzinfo=UTC),
]
NOW = bindparam("now", type_=UTCDateTime())
ADVANCED = advance(NOW, bindparam("before", type_=UTCDateTime()))


class TestRfc3339:
    @pytest.mark.parametrize(
        ("instant", "written"),
        [
            ("2026-01-31T09:00:00Z", "2026-01-31T09:00:00.000000Z"),
            ("2026-01-31T09:00:00.000001Z", "2026-01-31T09:00:00.000001Z"),
            ("2026-01-31T09:00:00.12Z", "2026-01-31T09:00:00.120000Z"),
            ("2026-01-01T01:30:00+02:00", "2025-12-31T23:30:00.000000Z"),
            ("0987-01-01T00:00:00Z", "0987-01-01T00:00:00.000000Z"),
            ("9999-12-31T23:00:00Z", "9999-12-31T23:00:00.000000Z"),
        ],
    )
    async def test_is_utc_with_six_digits(
        self, session: AsyncSession, instant: str, written: str
    ) -> None:
        connection = await session.connection()
        if connection.dialect.name == "postgresql":  # Which else would write its own zone's time.
            await connection.execute(text("SET TIME ZONE 'Asia/Tokyo'"))
        values = {"now": datetime.fromisoformat(instant)}
        assert await connection.scalar(select(rfc3339(NOW)), values) == written

    @pytest.mark.parametrize(
        ("kept", "written"),
        [
            ("2024-01-02 03:04:05.678901", "2024-01-02T03:04:05.678901Z"),
            ("2024-01-02T03:04:05.678901", "2024-01-02T03:04:05.678901Z"),
            ("2024-01-02 03:04:05", "2024-01-02T03:04:05.000000Z"),  # CURRENT_TIMESTAMP
            ("2024-01-02T03:04:05.678Z", "2024-01-02T03:04:05.678000Z"),  # JavaScript
            ("2024-01-02 03:04:05+02:00", "2024-01-02T01:04:05.000000Z"),
            ("2024-01-02 03:04", "2024-01-02T03:04:00.000000Z"),
            ("2024-01-02", "2024-01-02T00:00:00.000000Z"),
            # No instants: nothing is ever to be escaped in JSON.
            ('2024-01-"2 03:04:05.678901', ""),
            ("2024-0\n-02T03:04:05.678901", ""),
        ],
    )
    @on_sqlite
    async def test_is_the_same_for_every_form_that_sqlite_understands(
        self, session: AsyncSession, kept: str, written: str
    ) -> None:
        connection = await session.connection()
        assert await connection.scalar(select(rfc3339(literal(kept)))) == written

    @pytest.mark.parametrize("kept", ["infinity", "-infinity"])
    async def test_is_empty_for_infinity(
        self, ready_postgresql_url: str, emptied: asyncpg.Connection, kept: str
    ) -> None:
        query = select(rfc3339(literal_column(f"timestamptz '{kept}'")))
        dialect = make_url("postgresql+asyncpg://").get_dialect()()
        assert await emptied.fetchval(str(query.compile(dialect=dialect))) == ""
        # And in a row that is returned.
        values = {"owner": "alice", "task_id": 1, "new_completed": None, "now": utc_now()}
        async with opened(ready_postgresql_url) as database:
            await CREATE.rows(Session(database), **new("Buy milk"))
            await emptied.execute(f"UPDATE public.task SET created_at = '{kept}'")  # noqa: S608
            row = await COMPLETE.any_version.row(Session(database), **values)
        assert row is not None
        assert row["created_at"] == ""


class TestAdvance:
    async def test_is_now_or_just_after_before(self, session: AsyncSession) -> None:
        connection = await session.connection()

        async def advanced(now: datetime, before: datetime) -> datetime:
            values = {"now": now, "before": before}
            instant: datetime | None = await connection.scalar(select(ADVANCED), values)
            assert instant is not None
            if connection.dialect.name == "sqlite":  # Its form is that of every instant.
                kept = await connection.scalar(select(cast(ADVANCED, String)), values)
                assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", f"{kept}")
            return instant

        for before in INSTANTS:
            for step in (timedelta(milliseconds=2), timedelta(days=400)):
                assert await advanced(before + step, before) == before + step
            for behind in (timedelta(0), timedelta(microseconds=1), timedelta(hours=1)):
                moved = await advanced(before - behind, before)
                assert before < moved <= before + timedelta(milliseconds=2)
                assert moved.utcoffset() == timedelta(0)
            hardly = before + timedelta(microseconds=1)
            assert await advanced(hardly, before) >= hardly


def sql_of(name: str, dialect: str) -> str:
    """A statement in one line, its binds by name and without the casts of PostgreSQL."""
    dialect_class: Any = make_url(f"{dialect}://").get_dialect()
    sql = str(STATEMENTS[name].core.compile(dialect=dialect_class(paramstyle="named")))
    return re.sub(r"::\w+", "", " ".join(sql.split()))


def flat(sql: str) -> str:
    """SQL without what is in parentheses."""
    while sql != (shorter := re.sub(r"\([^()]*\)", "_", sql)):
        sql = shorter
    return sql


class TestStatements:
    @pytest.mark.parametrize("dialect", ["sqlite+aiosqlite", "postgresql+asyncpg"])
    @pytest.mark.parametrize("name", STATEMENTS)
    def test_touch_tasks_of_the_owner_only(self, name: str, dialect: str) -> None:
        sql = sql_of(name, dialect)
        if "INSERT INTO task" in sql:
            counted, _, inserted = sql.rpartition("INSERT INTO task ")
            found = re.match(r"\((.*?)\) (?:VALUES \((.*?)\)|SELECT (.*?) FROM room)", inserted)
            assert found
            columns, given = found[1].split(", "), (found[2] or found[3]).split(", ")
            assert dict(zip(columns, given, strict=True))["user_id"].startswith(":owner")
            owned = "FROM task WHERE task.user_id = :owner AND "
            assert counted.count("FROM task") == counted.count(owned)
            return
        assert not re.search(r" (UNION|JOIN) ", sql)
        where, *nested = re.split(r"(?:FROM|UPDATE) task ", sql)[1:]
        if nested:
            for part in (where, *nested):
                assert part.startswith("WHERE task.user_id = :owner AND ")
            _, where = re.split(r"(?:FROM|UPDATE) task ", flat(sql))
        [condition] = re.findall(r"(?:^| )WHERE (.*?)(?: ORDER BY .*| RETURNING .*|$)", where)
        assert "task.user_id = :owner" in flat(condition).split(" AND ")
        assert " OR " not in flat(condition)

    async def test_leave_the_task_of_another_user_alone(
        self, session: AsyncSession, subtests: pytest.Subtests
    ) -> None:
        assert STATEMENTS.keys() >= {"LIST", "CREATE", "GET", "UPDATE", "COMPLETE", "DELETE"}
        bobs = await saved(session, Task(user_id="bob", title="Bob's"))
        kept = bobs.model_dump()
        for name, statement in STATEMENTS.items():
            # Bob's would come next in each list that goes on.
            instant, title = (LAST, "~") if " desc" in name else (EPOCH, "")
            next_ones = {"created_at": instant, "updated_at": instant, "title": title}
            filters = {"search": "bob", "completed": False, "task_limit": 1}
            values = VALUES | next_ones | filters | {"task_id": kept["id"]}
            expected = ["alice"] if "CREATE" in name else []
            with subtests.test(name):
                rows = await statement.rows(session, **values)
                if name == "COUNT":
                    assert rows == [{"tasks": 0}]
                else:
                    assert [row["user_id"] for row in rows] == expected
                await session.refresh(bobs)
                assert bobs.model_dump() == kept
            await session.rollback()
            await session.exec(delete(Task).where(col(Task.user_id) == "alice"))
            await session.commit()

    async def test_list_is_read_off_its_index(self, session: AsyncSession) -> None:
        session.add_all(
            Task(user_id=user, title=f"{number}")
            for user in ("alice", "bob", "carol")
            for number in range(60)
        )
        await session.commit()
        connection = await session.connection()
        explain = "EXPLAIN QUERY PLAN"
        if connection.dialect.name == "postgresql":
            explain = "EXPLAIN"
            await connection.execute(text("ANALYZE task"))
            # So few rows are sorted more cheaply; the question is whether they need to be.
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            await connection.execute(text("SET LOCAL enable_sort = off"))
        sql = f"{explain} {sql_of('LIST', connection.engine.url.drivername)}"
        sql = sql.replace(":part", "9")
        # SQLite's LIMIT comes with an OFFSET, which SQLAlchemy binds.
        plan = f"{await values_of(session, sql, owner='alice', param_1=0)}"
        assert "ix_task_user_id_created_at_id" in plan
        assert "Sort" not in plan
        assert "TEMP B-TREE" not in plan
