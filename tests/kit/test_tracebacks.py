# [Task]: T086 [From]: specs/requirements.md
"""No user data in logs: every kind of failure with a marker in each value, and the log searched."""

import asyncio
import gc
import io
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
from collector import Collector, attributes, collecting
from databases import execute, new
from pydantic import BaseModel
from service import serving, until
from sqlalchemy import text
from support import Caller

from kit.database.database import Database
from kit.database.session import Session
from kit.logs import LineFormatter, service_logs
from kit.tracebacks import safe_traceback
from models import Task
from tasks.queries import CREATE, GET

MARKER = "marker1f3d"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BLRP_SCHEDULE_DELAY": "50"}

_FUNCTION = """
    CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN {}; RETURN NEW; END $$;
    CREATE TRIGGER fail BEFORE INSERT ON task FOR EACH ROW EXECUTE FUNCTION fail();
"""
_RAISE = """RAISE '% said', NEW USING ERRCODE = '{}', DETAIL = NEW, HINT = NEW.title,
    CONSTRAINT = NEW.title, COLUMN = NEW.title, TABLE = NEW.title, DATATYPE = NEW.title"""
_RESET = """
    DELETE FROM task WHERE id > 1; DROP TRIGGER IF EXISTS fail ON task;
    ALTER TABLE task DROP CONSTRAINT IF EXISTS c;
    ALTER TABLE task DROP COLUMN IF EXISTS x; ALTER TABLE task ALTER title TYPE varchar(200);
"""
_STATES = ("22000", "23505", "23514", "25006", "40001", "42501", "53100", "57014", "P0001", "XX000")
_EXPRESSIONS = (
    "NEW.title::int",
    "NEW.title::date",
    "(NEW.title || '2025-99-99')::timestamp",
    "NEW.title::jsonb",
    "NEW.title::uuid",
    "NEW.title::bytea::text::xml",
    "to_number(NEW.title, NEW.title)",
    "convert_from(('\\xff' || NEW.title)::bytea, NEW.title)",
    "set_config(NEW.title, NEW.title, false)",
    "regexp_replace(NEW.title, '(' || NEW.title, '')",
    "current_setting(NEW.title)",
    "(NEW.title || '.' || NEW.title)::regclass",
)
# What is done to the table; then a POST, a PUT and a list.
BREAKAGES = {
    "postgresql": [
        "ALTER TABLE task ADD CONSTRAINT c CHECK (title = '') NOT VALID",
        "ALTER TABLE task ADD x int NOT NULL DEFAULT 0; ALTER TABLE task ALTER x DROP DEFAULT",
        "ALTER TABLE task ADD CONSTRAINT c UNIQUE (user_id)",
        "ALTER TABLE task ADD CONSTRAINT c EXCLUDE USING btree (user_id WITH =)",
        "ALTER TABLE task ALTER title TYPE varchar(15) USING left(title, 15)",
        *(_FUNCTION.format(_RAISE.format(state)) for state in _STATES),
        *(_FUNCTION.format(f"PERFORM {expression}") for expression in _EXPRESSIONS),
        _FUNCTION.format("EXECUTE 'SELECT ' || NEW.title"),
        _FUNCTION.format("EXECUTE 'SELECT FROM ' || NEW.title"),
        _FUNCTION.format("EXECUTE NEW.title"),
    ],
    "sqlite": [
        "CREATE UNIQUE INDEX fail ON task (user_id)",
        *(
            f"CREATE TRIGGER fail BEFORE INSERT ON task BEGIN SELECT {expression}; END"
            for expression in (
                "RAISE(ABORT, 'refused')",
                "json_extract(NEW.title, '$')",
                "json_extract('{}', NEW.title)",
                "abs(-9223372036854775807 - 1)",
                "NEW.title MATCH NEW.title",
                "(SELECT title FROM nowhere)",
            )
        ),
        "UPDATE task SET title = CAST(X'ff' || title AS text)",
    ],
}
RESET = {
    "postgresql": _RESET,
    "sqlite": """
        DELETE FROM task WHERE id > 1; DROP TRIGGER IF EXISTS fail; DROP INDEX IF EXISTS fail;
    """,
}


async def test_service_logs_and_exports_none(tmp_path: Path, database_url: str) -> None:
    kind = database_url.partition(":")[0]
    form = "text" if kind == "sqlite" else "json"
    with collecting() as collector:
        telemetry = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON}
        with serving(tmp_path, DATABASE_URL=database_url, LOG_FORMAT=form, **telemetry) as service:
            async with service.client() as http:
                user = Caller(http, MARKER)
                kept = await user.add(f"{MARKER} 1")
                answers = []
                for breakage in BREAKAGES[kind]:
                    await execute(database_url, breakage)
                    values = {"title": f"{MARKER} 1", "description": MARKER}
                    key = {"Idempotency-Key": MARKER}
                    answers += [
                        await user.post(values, headers=key),
                        await user.put(f"/{kept['id']}", {"title": f"{MARKER} is too long"}),
                        await user.get(),
                    ]
                    await execute(database_url, RESET[kind])
            failures = [answer for answer in answers if answer.status_code >= 500]
            assert len(failures) >= len(BREAKAGES[kind]), answers
            assert not [answer for answer in failures if MARKER in answer.text]
            ids = [answer.headers["X-Request-ID"] for answer in failures]
            until(lambda: all(each in service.log() for each in ids))
            bugs = sum(answer.status_code == 500 for answer in failures)
            until(lambda: service.log().count("Traceback (most") >= bugs)
            until(lambda: len(traces(collector)) >= bugs)
            assert MARKER not in service.log()
            assert not [body for body in collector.raw if MARKER.encode() in body]


def traces(collector: Collector) -> list[str]:
    said = [attributes(record) for record in collector.records("tasks.errors")]
    return [each["exception.stacktrace"] for each in said if "exception.stacktrace" in each]


class _Body(BaseModel):
    title: int


_NO_TITLE: dict[str, Any] = {"title": None}


async def _orm(database: Database, **values: Any) -> None:
    async with Session(database) as session:
        session.add(Task(**{"user_id": MARKER, "title": MARKER, **values}))
        await session.commit()


async def _again(database: Database) -> None:
    """A session that is used on after its flush has failed quotes that failure."""
    async with Session(database) as session:
        session.add(Task(**{"user_id": MARKER, **_NO_TITLE}))
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            await session.flush()
        await session.execute(text("SELECT 1"))


async def _group(database: Database) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_orm(database, title=None))
        group.create_task(_chained(database))


async def _chained(database: Database) -> None:
    try:
        await _orm(database, title=None)
    except Exception as error:
        raise LookupError(MARKER) from error


async def _validated(_database: Database) -> None:
    _Body.model_validate({"title": MARKER})


FAILURES: list[Callable[[Database], Awaitable[Any]]] = [
    lambda database: _orm(database, title=None),
    lambda database: _orm(database, id=MARKER),
    lambda database: _orm(database, completed=MARKER),
    lambda database: _orm(database, created_at=MARKER),
    lambda database: _orm(database, description=[MARKER]),
    lambda database: GET.rows(Session(database), owner=[MARKER], task_id=MARKER),
    lambda database: CREATE.rows(Session(database), **new(MARKER, new_completed=MARKER)),
    lambda database: CREATE.rows(Session(database), **new(MARKER, now=MARKER)),
    _again,
    _chained,
    _group,
    _validated,
]


async def test_tracebacks_have_all_frames_and_none(database: Database) -> None:
    stream = io.StringIO()
    handlers = [logging.StreamHandler(stream), logging.StreamHandler(stream)]
    handlers[0].setFormatter(LineFormatter(stream))
    loggers = [logging.getLogger(name) for name in ("tasks", "asyncio")]
    with ExitStack() as stack:
        stack.enter_context(service_logs(database.settings))
        for logger, handler in product(loggers, handlers):
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
        for fail in FAILURES:
            stream.truncate(0)
            with pytest.raises(Exception) as raised:  # noqa: PT011  # of any kind
                await fail(database)
            logging.getLogger("tasks").error("failed", exc_info=raised.value)
            await asyncio.wait([database.in_background(_raising(raised.value))])
            asyncio.get_running_loop().create_task(_raising(raised.value))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            gc.collect()
            said = stream.getvalue()
            assert said.count("Traceback (most recent call last)") >= 6, said
            assert "work in the background failed" in said
            assert "Task exception was never retrieved" in said
            assert f"{type(raised.value).__qualname__}" in said
            assert "await fail(database)" in said
            assert MARKER not in said


async def _raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "last_line"),
    [
        (RuntimeError("why"), "RuntimeError: why"),
        (KeyError(), "KeyError"),
        (KeyError("x"), "KeyError: (the text is left out, since it may hold data of users)"),
        (
            ConnectionRefusedError(111, "refused"),
            "ConnectionRefusedError: ConnectionRefusedError: [Errno 111] refused",
        ),
    ],
)
def test_traceback_tells_what_it_may(error: Exception, last_line: str) -> None:
    assert safe_traceback(error).splitlines()[-1] == last_line
