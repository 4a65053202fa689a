# [Task]: T009 [From]: specs/design.md
"""The only way to the database: sessions, statements, and SQL functions for statements.

The implementation is in kit/database/.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Annotated

from fastapi import Depends, Request
from sqlmodel.ext.asyncio.session import AsyncSession

from kit.access_log import USER
from kit.database import database as machinery
from kit.database.database import Database
from kit.database.execute import Record, Row, Statement
from kit.database.failures import DRIVER_ERRORS
from kit.database.search import Word, contains
from kit.database.session import ReadSession, Session
from kit.database.sql import (
    UTCDateTime,
    advance,
    code_points,
    returned_rfc3339,
    rfc3339,
    rfc3339_text,
    unless_key_is_known,
    utc_now,
)
from kit.database.sqlite import reading_user
from kit.database.tables import keep_tables
from kit.disconnect import EndsWithClient
from kit.errors import DatabaseUnavailable
from kit.logs import Outage
from kit.routing import ends_before_response
from models import TASK_TABLE
from settings import Settings

__all__ = [
    "Database",
    "ReadSession",
    "ReadSessionDep",
    "Record",
    "Row",
    "Session",
    "SessionDep",
    "Statement",
    "UTCDateTime",
    "Word",
    "advance",
    "check_database_settings",
    "code_points",
    "contains",
    "get_session",
    "keep_tables",
    "open_database",
    "returned_rfc3339",
    "rfc3339",
    "rfc3339_text",
    "unless_key_is_known",
    "utc_now",
]

_READING = ("GET", "HEAD")
_not_set_up = Outage(logging.getLogger("tasks.db"), "the server has not set the service up")


def open_database(settings: Settings) -> AbstractAsyncContextManager[Database]:
    """The database for as long as the service runs. Raises SettingsError for a bad DATABASE_URL.

    It does not connect, so the service starts while the database is down.
    """
    return machinery.open_database(settings, TASK_TABLE)


def check_database_settings(settings: Settings) -> None:
    """Raises SettingsError for a bad DATABASE_URL, without connecting."""
    machinery.new_database(settings, TASK_TABLE)


@ends_before_response
async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """A session that commits when the endpoint succeeds and rolls back when it fails.

    It ends before the response is sent, whatever scope `Depends` names. For a GET or HEAD it is
    read-only: it may use a replica, and on SQLite a read-only connection. Use `ReadSessionDep`.
    """
    primary: Database | None = getattr(request.app.state, "database", None)
    if primary is None:
        _not_set_up.begins("it has run no lifespan: start it without --lifespan off")
        raise DatabaseUnavailable("nothing is set up")
    if not primary.tables_ready:
        raise DatabaseUnavailable("the tables are not up to date yet")
    reads = request.method in _READING
    database = primary.for_reading() if reads else primary
    session = Session(database, primary, reads=reads)
    # SQLite works in this process, so a read there ends when its client disconnects.
    in_process = reads and database.file is not None
    if in_process:
        reading_user.set(request.scope.get(USER))
    ends_with_client = EndsWithClient(request) if in_process else nullcontext()
    with ends_with_client:
        async with database.admission(request.scope.get(USER), reads=reads):
            try:
                yield session
                if session.has_begun:
                    await session.commit()
                    database.mark_up()
            except DRIVER_ERRORS as error:
                database.handle_error(error)
                raise
            finally:
                if session.has_begun:
                    await session.close()


# The scope matters for test overrides that yield: FastAPI would end those after the response.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
# The same dependency for a GET. A write through it is a type error.
ReadSessionDep = Annotated[ReadSession, Depends(get_session, scope="function")]
