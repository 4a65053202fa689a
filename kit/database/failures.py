# [Task]: T009 [From]: specs/design.md
"""What drivers raise, told apart: the database does not serve, or there is a bug of ours.

What becomes of either is in errors.py.
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

# Not all of SQLAlchemyError: most of those are bugs.
DRIVER_ERRORS = (
    DBAPIError,
    PoolTimeoutError,
    EmulatedDBAPIException,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    sqlite3.Error,
    OSError,  # Refused, unknown host, TLS; TimeoutError is one.
)
_POOLER_HINT = "the pooler in front of the database loses prepared statements"
# What a SQLSTATE that begins so means to an operator; with any other, the database does serve.
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
}
# These tell of one statement, and nothing of the database.
_OF_ONE_STATEMENT = ("42P10", "55P03")
# Two transactions could not both be done; the database rolled this one back. SQLite's is by code.
_CONFLICTS = ("40001", "40P01", sqlite3.SQLITE_BUSY_SNAPSHOT)
# SQLite's codes for a file that it can't read.
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# Classes of SQLSTATEs whose texts name tables, columns, constraints, roles and hosts at most, and
# those of them that quote the statement. Class 22, for one, quotes values.
_SAFE_CLASSES = ("08", "0A", "23", "25", "26", "28", "3D", "3F", "40", "42", "53", "55", "57")
_QUOTING = ("42601", "42602", "42622")
# SQLAlchemy's own, of which others quote statements or values.
_SAFE_ERRORS = (
    ArgumentError,
    InvalidRequestError,
    MissingGreenlet,
    MultipleResultsFound,
    NoResultFound,
)
# The one foreign key is the owner's: tables.py.
_FOREIGN_KEY_VIOLATION = "23503"


@contextmanager
def database_errors(setting: str = "DATABASE_URL") -> Iterator[None]:
    """Raise what `service_error` makes of a driver's error; `setting` is where its URL stands."""
    try:
        yield
    except DRIVER_ERRORS as error:
        if (meant := service_error(error, setting)) is None:
            raise
        raise meant from error


def service_error(error: BaseException, setting: str) -> ServiceError | None:
    """What a driver's error means to a client; None for a bug of ours.

    DatabaseUnavailable, as StatementTimeout where it is one statement that can't be done in time.
    InvalidToken for a task of a user who is no longer there: the token has outlived its user.
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
    elif state in _OF_ONE_STATEMENT or is_conflict(cause):
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
            return None  # A call that the driver refuses.
        case NoTLS():
            return "it refuses TLS: if it has none, add sslmode=disable to {setting}"
        case ssl.SSLCertVerificationError():
            return "the server's certificate does not verify, as the sslmode of {setting} asks"
        case TimeoutError():
            return "it did not answer in time"
        case _:
            return "it can't be reached"


def describe(error: BaseException) -> str:
    """A database's error for the log: class, SQLSTATE, constraint, and the text if it is safe.

    It is safe where it can quote no value of a row or a parameter.
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
            if code is None:  # Python's own, which may quote a text that is no UTF-8.
                return isinstance(error, sqlite3.ProgrammingError)
            if code == sqlite3.SQLITE_ERROR:
                return str(error).startswith("no such ")
            return code != sqlite3.SQLITE_CONSTRAINT_TRIGGER
        case asyncpg.InterfaceError():
            return not isinstance(error, ValueError)  # DataError, which quotes a parameter.
        case OSError() | PoolTimeoutError() | asyncpg.InternalClientError():
            return True
        case _:
            # Not those that are derived of them: PendingRollbackError quotes another error.
            return type(error) in _SAFE_ERRORS


def _is_raised_in_sql(error: BaseException) -> bool:
    """Whether a trigger or function raised it, whose text and fields may say anything."""
    return bool(getattr(error, "context", None))


def is_conflict(error: BaseException) -> bool:
    """Whether the database rolled it back in favour of another transaction: it can be repeated."""
    error = driver_error(error)
    return getattr(error, "sqlstate", None) in _CONFLICTS or (
        isinstance(error, sqlite3.Error) and sqlite_code(error) in _CONFLICTS
    )


def driver_error(error: BaseException) -> BaseException:
    """The driver's own error, without what SQLAlchemy puts around it."""
    while (inner := getattr(error, "orig", None)) is not None:
        error = inner
    return error


def nothing_sent(error: BaseException) -> bool:
    """Whether the driver failed before it sent anything, since the connection was at its end."""
    match error:
        case asyncpg.InterfaceError():
            return "closed" in str(error)
        case asyncpg.InternalClientError():
            # The server's last word has been read, its end of the connection not yet.
            return "cannot switch to state" in str(error)
        case _:
            return False


def shard_has_moved(error: BaseException | None) -> bool:
    """Whether Citus has moved a shard, or made the first, since the statement was planned."""
    return isinstance(error, asyncpg.InternalServerError) and "entry for shard" in str(error)


def sqlite_code(error: sqlite3.Error) -> int | None:
    """SQLite's own code; None for an error that Python raises by itself."""
    return getattr(error, "sqlite_errorcode", None)


def is_sqlite(error: BaseException | None, *codes: int) -> bool:
    """Whether SQLite says one of these primary codes."""
    return isinstance(error, sqlite3.Error) and (sqlite_code(error) or 0) & 0xFF in codes
