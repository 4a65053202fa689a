# [Task]: T009 [From]: specs/design.md
"""What an endpoint sees of the database: a session, and the statements it runs in it.

How either works is told in database/.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from sqlmodel.ext.asyncio.session import AsyncSession

from database.database import Database, Session, open_database
from database.execute import Statement
from database.failures import DRIVER_ERRORS
from errors import DatabaseUnavailable

__all__ = ["Database", "Session", "SessionDep", "Statement", "get_session", "open_database"]

_READING = ("GET", "HEAD")


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    """A session that commits when the endpoint succeeds and rolls back when it fails.

    For a GET it may be one to a replica, which can't be written to.
    Use it as `SessionDep`: with FastAPI's default scope the commit would come after the response.
    """
    primary: Database = request.app.state.database
    if not primary.tables_ready:
        raise DatabaseUnavailable("the tables are not up to date yet")
    database = primary.for_reading() if request.method in _READING else primary
    session = Session(database, primary)
    async with database.gate:
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
