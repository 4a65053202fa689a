# [Task]: T009 [From]: specs/design.md
"""Translates driver errors: the database does not serve, or the service has a bug.

kit/errors.py answers both.
"""

import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    EmulatedDBAPIException,
    InvalidRequestError,
    MissingGreenlet,
    MultipleResultsFound,
    NoResultFound,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from kit.database.tls import NoTLS
from kit.errors import (
    DatabaseUnavailable,
    InvalidToken,
    ServiceError,
    StatementTimeout,
    StatementTooSlow,
)

# Most other subclasses of SQLAlchemyError are bugs.
DRIVER_ERRORS = (
    DBAPIError,
    PoolTimeoutError,
    EmulatedDBAPIException,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    sqlite3.Error,
    OSError,  # Connection refused, unknown host, TLS, TimeoutError.
)
_POOLER_HINT = "the pooler in front of the database loses prepared statements"
# Reasons for operators by SQLSTATE or its class. With any other SQLSTATE, the database serves.
_REASONS = {
    "0A000": "its tables are being changed",
    "08P01": "the server, or a pooler in front of it, refuses what the service asks for at log-in",
    "08": "the connection is broken",
    "25006": "the database is read-only",
    "26000": _POOLER_HINT,
    "28P01": "the password in {setting} is wrong",
    "28": "the server refuses the user of {setting}",
    "40": "the statement had to give way to another transaction",
    "3D000": "{setting} names a database that does not exist",
    "3F000": "the user of {setting} may use no schema to keep the table task in",
    "42501": "the user of {setting} lacks a privilege on the table task or its schema",
    "42P01": "there is no table task yet",
    "42P10": "an index of the table task is still being made",
    "42P05": _POOLER_HINT,
    "53300": "the server is out of connections",
    "53": "the server is out of resources",
    "55P03": "the row or table is locked",
    "57014": "the statement took too long",
    "57": "the server is starting or stopping",
    "58": "the server has failed",
    "XX": "the server has failed",
}
# Errors of one statement, which say nothing about the database, by SQLSTATE or its class.
_OF_ONE_STATEMENT = ("42P10", "55P03", "58", "XX")
# The database rolled this transaction back because of a conflict. SQLite has a code for that.
_CONFLICTS = ("40001", "40P01", sqlite3.SQLITE_BUSY_SNAPSHOT)
# SQLite's codes for a file that it can't read.
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# Classes of SQLSTATEs whose texts contain no values, and the exceptions that quote the statement.
# Class 22, for example, quotes values.
_SAFE_CLASSES = ("08", "0A", "23", "25", "26", "28", "3D", "3F", "40", "42", "53", "55", "57")
_QUOTING = ("42601", "42602", "42622")
# SQLAlchemy errors whose texts are safe. Others quote statements or values.
_SAFE_ERRORS = (
    ArgumentError,
    InvalidRequestError,
    MissingGreenlet,
    MultipleResultsFound,
    NoResultFound,
)
# The only foreign key is user_id (tables.py).
_FOREIGN_KEY_VIOLATION = "23503"


@contextmanager
def database_errors(setting: str = "DATABASE_URL") -> Iterator[None]:
    """Inside, driver errors are raised as ServiceErrors. `setting` names the database's URL."""
    try:
        yield
    except DRIVER_ERRORS as error:
        if (meant := service_error(error, setting)) is None:
            raise
        raise meant from error


def service_error(error: BaseException, setting: str) -> ServiceError | None:
    """The ServiceError for a driver's error; None if it is a bug of the service.

    DatabaseUnavailable in general, StatementTimeout if only this statement failed, InvalidToken if
    the user of the token has been deleted.
    """
    cause = driver_error(error)
    state = getattr(cause, "sqlstate", None)
    if state == _FOREIGN_KEY_VIOLATION:
        return InvalidToken("its user has been deleted")
    reason = _reason(cause, state)
    if reason is None:
        return None
    kind = DatabaseUnavailable
    if (
        type(cause) is TimeoutError
        or state == "57014"
        or is_sqlite(cause, sqlite3.SQLITE_INTERRUPT)
    ):
        kind = StatementTooSlow
    elif (
        ((state or "").startswith(_OF_ONE_STATEMENT) and not shard_has_moved(cause))
        or is_conflict(cause)
        or is_sqlite(cause, sqlite3.SQLITE_BUSY)  # Another process holds the lock.
    ):
        kind = StatementTimeout
    return kind(f"{reason.format(setting=setting)} ({describe(cause)})")


def _reason(cause: BaseException | None, state: str | None) -> str | None:
    if shard_has_moved(cause):
        return "its shards are being moved"
    if state is not None:
        return next((_REASONS[key] for key in (state, state[:2]) if key in _REASONS), None)
    match cause:
        case sqlite3.OperationalError() if "no such table" in str(cause):
            return _REASONS["42P01"]
        case sqlite3.Error() if is_sqlite(cause, sqlite3.SQLITE_INTERRUPT):
            return _REASONS["57014"]
        case sqlite3.Error() if is_sqlite(cause, *BROKEN):
            return "the file of {setting} is damaged, or is no SQLite database"
        case sqlite3.OperationalError() if sqlite_code(cause) != sqlite3.SQLITE_ERROR:
            return "SQLite can't open, lock or write its file"
        case sqlite3.Error():
            return None
        case asyncpg.TargetServerAttributeNotMatched():
            return "no host of {setting} is what its target_session_attrs asks for"
        case asyncpg.InterfaceError() | asyncpg.InternalClientError() if not nothing_sent(cause):
            return None  # A wrong use of the driver.
        case NoTLS():
            return "it refuses TLS: if it has none, add sslmode=disable to {setting}"
        case ssl.SSLCertVerificationError():
            return "the server's certificate does not verify, as the sslmode of {setting} asks"
        case TimeoutError():
            return "it did not answer in time"
        case _:
            return "it can't be reached"


def describe(error: BaseException) -> str:
    """A database error for the log: class, SQLSTATE, constraint, and the text if it is safe.

    A text is safe if it can't quote a value of a row or a parameter.
    """
    error = driver_error(error)
    parts = [type(error).__name__]
    if state := getattr(error, "sqlstate", None):
        parts.append(f"({state})")
    text = str(error).partition("\n")[0] if _is_safe(error) else ""
    constraint = getattr(error, "constraint_name", None)
    if not text and constraint and not _is_raised_in_sql(error):
        text = f"constraint {constraint}"
    return " ".join(parts) + (f": {text}" if text else "")


def _is_safe(error: BaseException) -> bool:
    match error:
        case asyncpg.PostgresError():
            state = error.sqlstate or ""
            is_known = (state[:2] in _SAFE_CLASSES and state not in _QUOTING) or shard_has_moved(
                error
            )
            return is_known and not _is_raised_in_sql(error)
        case sqlite3.Error():
            code = sqlite_code(error)
            if code is None:  # Raised by Python, which may quote text that is not UTF-8.
                return isinstance(error, sqlite3.ProgrammingError)
            if code == sqlite3.SQLITE_ERROR:
                return str(error).startswith("no such ")
            return code != sqlite3.SQLITE_CONSTRAINT_TRIGGER
        case asyncpg.InterfaceError():
            return not isinstance(error, ValueError)  # DataError quotes a parameter.
        case OSError() | PoolTimeoutError() | asyncpg.InternalClientError():
            return True
        case _:
            # Not their subclasses: PendingRollbackError quotes another error.
            return type(error) in _SAFE_ERRORS


def _is_raised_in_sql(error: BaseException) -> bool:
    """Whether a trigger or function raised it. Then its text and fields may contain anything."""
    return bool(getattr(error, "context", None))


def is_conflict(error: BaseException) -> bool:
    """Whether the database rolled it back because of a conflict, so that it can be repeated."""
    error = driver_error(error)
    return getattr(error, "sqlstate", None) in _CONFLICTS or (
        isinstance(error, sqlite3.Error) and sqlite_code(error) in _CONFLICTS
    )


def driver_error(error: BaseException) -> BaseException:
    """The driver's own error, without SQLAlchemy's wrappers."""
    while (inner := getattr(error, "orig", None)) is not None:
        error = inner
    return error


def nothing_sent(error: BaseException) -> bool:
    """Whether the driver sent nothing, because the connection was already closed."""
    match error:
        case asyncpg.InterfaceError():
            return "closed" in str(error)
        case asyncpg.InternalClientError():
            # The server's last message has been read, but not yet the end of the connection.
            return "cannot switch to state" in str(error)
        case _:
            return False


def shard_has_moved(error: BaseException | None) -> bool:
    """Whether Citus has moved or created a shard since the statement was planned."""
    return isinstance(error, asyncpg.InternalServerError) and "entry for shard" in str(error)


def sqlite_code(error: sqlite3.Error) -> int | None:
    """SQLite's error code; None for an error that Python itself raises."""
    return getattr(error, "sqlite_errorcode", None)


def is_sqlite(error: BaseException | None, *codes: int) -> bool:
    """Whether it is an SQLite error with one of these primary codes."""
    return isinstance(error, sqlite3.Error) and (sqlite_code(error) or 0) & 0xFF in codes
