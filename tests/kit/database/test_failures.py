# [Task]: T020 [From]: specs/requirements.md
"""What drivers raise, and what it is taken for."""

import socket
import sqlite3
import ssl

import asyncpg
import pytest
import sqlalchemy.exc
from databases import in_use, opened
from fastapi import HTTPException

from kit.database.failures import database_errors, describe
from kit.database.session import Session
from kit.errors import DatabaseUnavailable, InvalidToken
from tasks.queries import GET


def named(error: Exception) -> str:
    return f"{type(error).__module__} {error!r}"


def wrapped(cause: BaseException) -> sqlalchemy.exc.DBAPIError:
    return sqlalchemy.exc.DBAPIError("SELECT 1", {}, cause)


UNAVAILABLE: list[type[asyncpg.PostgresError]] = [
    *(asyncpg.PostgresConnectionError, asyncpg.ProtocolViolationError),
    *(asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError),
    *(asyncpg.InvalidCatalogNameError, asyncpg.TooManyConnectionsError, asyncpg.DiskFullError),
    *(asyncpg.QueryCanceledError, asyncpg.AdminShutdownError, asyncpg.LockNotAvailableError),
    *(asyncpg.SerializationError, asyncpg.DeadlockDetectedError),
    *(asyncpg.ReadOnlySQLTransactionError, asyncpg.UndefinedTableError),
    *(asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSQLStatementNameError),
    asyncpg.DuplicatePreparedStatementError,
]
BUGS: list[type[asyncpg.PostgresError]] = [
    *(asyncpg.UniqueViolationError, asyncpg.NumericValueOutOfRangeError),
    *(asyncpg.PostgresSyntaxError, asyncpg.UndefinedColumnError),
]


class TestDatabaseErrors:
    @pytest.mark.parametrize(
        "error",
        [
            *(kind(kind.sqlstate) for kind in UNAVAILABLE),
            asyncpg.InternalServerError("could not find valid entry for shard 102008"),
            asyncpg.InternalServerError("of another kind"),
            asyncpg.PostgresIOError("58030"),
            asyncpg.InterfaceError("connection is closed"),
            ConnectionRefusedError(),
            ConnectionResetError(),
            socket.gaierror(),
            TimeoutError(),
            ssl.SSLCertVerificationError(),
            sqlalchemy.exc.TimeoutError(),
            sqlite3.OperationalError("database is locked"),
            wrapped(asyncpg.CannotConnectNowError("57P03")),
            wrapped(sqlite3.OperationalError("database is locked")),
        ],
        ids=named,
    )
    def test_failure_to_serve_is_unavailable(self, error: Exception) -> None:
        with pytest.raises(DatabaseUnavailable) as raised, database_errors():
            raise error
        assert raised.value.__cause__ is error
        assert str(raised.value).endswith(f" ({describe(error)})")

    @pytest.mark.parametrize(
        "error",
        [
            *(kind(kind.sqlstate) for kind in BUGS),
            sqlite3.IntegrityError("UNIQUE constraint failed"),
            sqlite3.ProgrammingError("Incorrect number of bindings"),
            wrapped(asyncpg.UniqueViolationError("23505")),
            wrapped(sqlite3.IntegrityError("UNIQUE constraint failed")),
            sqlalchemy.exc.NoResultFound(),
            sqlalchemy.exc.StatementError("a bind is missing", "SELECT 1", {}, ValueError()),
            HTTPException(404),
            ValueError(),
        ],
        ids=named,
    )
    def test_bug_of_ours_stays_what_it_is(self, error: Exception) -> None:
        with pytest.raises(type(error)) as raised, database_errors():
            raise error
        assert raised.value is error

    @pytest.mark.parametrize("wrap", [False, True], ids=["raw", "wrapped"])
    def test_missing_user_is_a_token_that_outlived_its_user(self, wrap: bool) -> None:
        error = asyncpg.ForeignKeyViolationError("23503")
        with pytest.raises(InvalidToken), database_errors():
            raise wrapped(error) if wrap else error

    async def test_bad_argument_of_a_statement_is_a_bug(self, postgresql_url: str) -> None:
        async with opened(postgresql_url) as database:
            with pytest.raises(asyncpg.DataError):
                await GET.row(Session(database), owner="alice", task_id="one")
            assert in_use(database) == 0
