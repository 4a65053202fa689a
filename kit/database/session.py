# [Task]: T108 [From]: specs/design.md
"""The session of an endpoint, initialised on first use, and its read-only type."""

import time
from typing import Any, Protocol, overload

from sqlalchemy import Select as CoreSelect
from sqlalchemy.engine.result import Result, ScalarResult, TupleResult
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import Select, SelectOfScalar

from kit.database.database import Database

type AnySelect = CoreSelect[*tuple[Any, ...]]


class ReadSession(Protocol):
    """A session that only reads, perhaps from a replica. A write through it is a type error."""

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
    """An AsyncSession that calls `AsyncSession.__init__` on first use.

    That call costs a tenth of a GET, and most requests only run Statements, which need just the
    database. For ORM work, transactions and connections it is an ordinary session.
    """

    def __init__(
        self, database: Database, primary: Database | None = None, *, reads: bool = False
    ) -> None:
        self.database = database
        self._reads = reads
        # The fallback of Statements if `database` is a replica that fails.
        self.primary = primary or database
        # When the request began to wait for the database.
        self.waiting_since = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        """Initialises the AsyncSession at the first access to one of its attributes.

        Python calls this for missing attributes only. `sync_session` exists once initialised.
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
