# [Task]: T009 [From]: specs/design.md
"""What an endpoint sees of the database: a session, and the statements it runs in it.

How either works is told in kit/database/.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Annotated

from fastapi import Depends, Request
from sqlmodel.ext.asyncio.session import AsyncSession

from kit.database import database as machinery
from kit.database.database import Database, Session
from kit.database.execute import Statement
from kit.database.failures import DRIVER_ERRORS
from kit.disconnect import EndsWithClient
from kit.errors import DatabaseUnavailable
from kit.logs import Outage
from models import TASK_TABLE
from settings import Settings

__all__ = [
    "Database",
    "Session",
    "SessionDep",
    "Statement",
    "check_database_settings",
    "get_session",
    "open_database",
]

_READING = ("GET", "HEAD")
_not_set_up = Outage(logging.getLogger("tasks.db"), "the server has not set the service up")


def open_database(settings: Settings) -> AbstractAsyncContextManager[Database]:
    """The database for as long as the service runs. Raises SettingsError for a bad DATABASE_URL.

    It does not connect: a database that is away is no reason not to start.
    """
    return machinery.open_database(settings, TASK_TABLE)


def check_database_settings(settings: Settings) -> None:
    """Raises SettingsError for a bad DATABASE_URL, which a start need not wait for."""
    machinery.new_database(settings, TASK_TABLE)


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """A session that commits when the endpoint succeeds and rolls back when it fails.

    For a GET it may be one to a replica, and on SQLite it only reads: neither can be written to.
    Use it as `SessionDep`: with FastAPI's default scope the commit would come after the response.
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
    # What a client asked to be read is of no use when it has left.
    ends_with_client = EndsWithClient(request) if reads else nullcontext()
    with ends_with_client:
        async with database.line(reads=reads):
            try:
                yield session
                if session.has_begun:
                    await session.commit()
                    database.works()
            except DRIVER_ERRORS as error:
                database.note(error)
                raise
            finally:
                if session.has_begun:
                    await session.close()


SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
