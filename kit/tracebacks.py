# [Task]: T086 [From]: specs/requirements.md
"""Tracebacks for logs and telemetry, with all classes and frames but without user data.

The texts of many exceptions quote values, for example of a row or of a failed conversion.
"""

import traceback
from collections.abc import Iterator

from fastapi import HTTPException
from sqlalchemy.exc import SQLAlchemyError

from kit.database.failures import DRIVER_ERRORS, describe

# The texts of these name types, attributes and modules, or are fixed.
_PLAIN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    HTTPException,
    ImportError,
    NameError,
    NotImplementedError,
    RuntimeError,
    TypeError,
)
# Modules that convert values for a database. There, a TypeError may quote a value, too.
_CONVERTING = ("aiosqlite", "asyncpg", "kit.database", "sqlalchemy", "sqlmodel")
_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def safe_traceback(error: BaseException) -> str:
    """The traceback as Python formats it, with chained exceptions, but only with safe texts."""
    return "".join(_parts(error, set())).rstrip("\n")


def safe_text(error: BaseException) -> str:
    """The text of an exception if it is safe, else a text without values."""
    if isinstance(error, (SQLAlchemyError, *DRIVER_ERRORS)):
        return describe(error)
    if isinstance(error, _PLAIN) and not any(
        frame.f_globals.get("__name__", "").startswith(_CONVERTING)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ):
        return str(error)
    return "(the text is left out, since it may hold data of users)" if str(error) else ""


def _parts(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before, words = error.__cause__, _CAUSE
    if before is None and not error.__suppress_context__:
        before, words = error.__context__, _CONTEXT
    if before is not None and id(before) not in seen:
        yield from _parts(before, seen)
        yield words
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    kind, text = type(error), safe_text(error)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    yield f"{name}: {text}\n" if text else f"{name}\n"
    if isinstance(error, BaseExceptionGroup):
        for number, part in enumerate(error.exceptions, 1):
            yield f"Exception {number} of {len(error.exceptions)} in the group:\n"
            yield from _parts(part, seen)
