# [Task]: T108 [From]: specs/design.md
"""The session of an endpoint, made only when it is used, and its type for reading."""

import time
from typing import Any, Protocol, overload

from sqlalchemy import Select as CoreSelect
from sqlalchemy.engine.result import Result, ScalarResult, TupleResult
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import Select, SelectOfScalar

from kit.database.database import Database

type AnySelect = CoreSelect[*tuple[Any, ...]]


class ReadSession(Protocol):
    """What may be done with a session that may be on a read replica: a write is a type error."""

    @overload
    async def exec[*Ts](self, statement: Select[*Ts]) -> TupleResult[tuple[*Ts]]: ...
    @overload
    async def exec[T](self, statement: SelectOfScalar[T]) -> ScalarResult[T]: ...

    async def execute(self, statement: AnySelect) -> Result[Any]: ...
    async def scalar(self, statement: AnySelect) -> Any: ...
    async def scalars(self, statement: AnySelect) -> ScalarResult[Any]: ...
    async def get[T](self, entity: type[T], ident: Any) -> T | None: ...
    async def refresh(self, instance: object) -> None: ...


class Session(AsyncSession):
    """An AsyncSession whose `__init__` waits until something uses it; a Statement never does.

    To make an AsyncSession takes a tenth of a GET, and most requests only run Statements, which
    need the database alone. ORM work, a transaction or a connection finds an ordinary session.
    """

    def __init__(
        self, database: Database, primary: Database | None = None, *, reads: bool = False
    ) -> None:
        self.database = database
        self._reads = reads
        # Where a Statement goes when the database, as a replica, fails it at once.
        self.primary = primary or database
        # When its request began to wait for the database.
        self.waiting_since = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        """Called for an attribute that is missing: all of SQLAlchemy's, until this calls its
        `__init__`. `sync_session` is what that sets.
        """
        if "sync_session" in vars(self) or "database" not in vars(self):
            raise AttributeError(name)
        engine = self.database.engine_for(reads=self._reads)
        super().__init__(engine, expire_on_commit=False)
        return getattr(self, name)

    @property
    def has_begun(self) -> bool:
        """Whether it is in a transaction."""
        return "sync_session" in vars(self) and self.in_transaction()
