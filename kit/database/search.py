# [Task]: T052 [From]: specs/decisions.md
"""SQL for text that holds a word, in capitals or not: the same rows in every database.

What lower() and ILIKE make of a letter depends on a database's collation and version. So the word
alone is taken apart, here, into what each letter may look like (specs/decisions.md, D28).
"""

import re
from functools import lru_cache
from typing import Any

from sqlalchemy import Boolean, Dialect, String, TypeDecorator
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

# Letters that are another's form but that no upper() or lower() of that other leads to, such as
# the final sigma. tests/kit/database/test_search.py holds them against all of Unicode.
_FURTHER = (
    "\u00b5\u017f\u0345\u0390\u03b0\u03c2\u03d0\u03d1\u03d5\u03d6\u03f0\u03f1\u03f4\u03f5"
    "\u1c80\u1c81\u1c82\u1c83\u1c84\u1c85\u1c86\u1c87\u1c88\u1e9b\u1e9e\u1fbe\u1fd3\u1fe3"
    "\u2126\u212a\u212b\ufb05\ufb06"
)


@lru_cache(maxsize=1024)
def forms(character: str) -> str:
    """The character in each of its cases, where that is one character, too; itself at least."""
    folded = character.casefold()
    found = {character, *_FURTHER}
    for form in (character, folded):
        found |= {form.lower(), form.upper(), form.title()}
    return "".join(sorted(form for form in found if len(form) == 1 and form.casefold() == folded))


class Word(TypeDecorator[str]):
    """The type of a bind parameter that `holds` looks for, to which a pattern is sent."""

    impl = String()
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if dialect.name == "sqlite":
            return f"*{''.join(map(_glob, value))}*"
        return "".join(map(_regular_expression, value))


def _glob(character: str) -> str:
    alike = forms(character)
    return f"[{alike}]" if len(alike) > 1 or character in "*?[" else character


def _regular_expression(character: str) -> str:
    alike = forms(character)
    return f"[{alike}]" if len(alike) > 1 else re.escape(character)


class holds(FunctionElement[bool]):  # named as a SQL function would be
    """SQL: `holds(text, word)` is whether the text has the word in it; its bind has type Word."""

    type = Boolean()
    inherit_cache = True


@compiles(holds, "postgresql")
def _holds_postgresql(element: holds, compiler: SQLCompiler, **kw: Any) -> str:
    text, word = (compiler.process(clause, **kw) for clause in element.clauses)
    return f'({text} COLLATE "C" ~ {word})'


@compiles(holds, "sqlite")
def _holds_sqlite(element: holds, compiler: SQLCompiler, **kw: Any) -> str:
    text, word = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({text} GLOB {word})"
