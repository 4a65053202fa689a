# [Task]: T052 [From]: specs/decisions.md
"""SQL for case-insensitive search. It finds the same rows in every database.

lower() and ILIKE depend on the collation and version of a database. So this module decides which
letters are cases of each other (specs/decisions.md, D28).
"""

import itertools
import re
from functools import lru_cache
from typing import Any

from sqlalchemy import ARRAY, Boolean, Dialect, String, Text, TypeDecorator
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

# Letters that upper() and lower() never produce from their other forms, such as the final sigma.
# tests/kit/database/test_search.py compares the list with all of Unicode.
_FURTHER = (
    "\u00b5\u017f\u0345\u0390\u03b0\u03c2\u03d0\u03d1\u03d5\u03d6\u03f0\u03f1\u03f4\u03f5"
    "\u1c80\u1c81\u1c82\u1c83\u1c84\u1c85\u1c86\u1c87\u1c88\u1e9b\u1e9e\u1fbe\u1fd3\u1fe3"
    "\u2126\u212a\u212b\ufb05\ufb06"
)


@lru_cache(maxsize=1024)
def forms(character: str) -> str:
    """The character and each of its cases that is a single character."""
    folded = character.casefold()
    found = {character, *_FURTHER}
    for form in (character, folded):
        found |= {form.lower(), form.upper(), form.title()}
    return "".join(sorted(form for form in found if len(form) == 1 and form.casefold() == folded))


def fold(text: str) -> str:
    """The text with each character in one case. Its length does not change."""
    folded = text.casefold()
    if len(folded) == len(text):
        return folded
    # Surrogates, which no text contains, protect characters that fold to several, such as \xdf.
    long = [character for character in set(text) if len(character.casefold()) > 1]
    for number, character in enumerate(long, 0xD800):
        text = text.replace(character, chr(number))
    text = text.casefold()
    for number, character in enumerate(long, 0xD800):
        text = text.replace(chr(number), forms(character)[0])
    return text


def sqlite_contains(text: str | None, word: str) -> bool | None:
    """The function behind `contains` on SQLite. sqlite.py registers it on every connection."""
    return None if text is None else word in fold(text)


# PostgreSQL replaces at most so many letter forms that lower() does not know. With more of them, a
# regular expression is faster (specs/decisions.md, D28).
REPLACED = 4


class Word(TypeDecorator[str]):
    """The type of a bind parameter that `contains` looks for.

    SQLite gets the folded word. PostgreSQL gets an array: the folded word, a regular expression to
    use instead or NULL, and pairs of a letter's other form and its folded form.
    """

    impl = String()
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String() if dialect.name == "sqlite" else ARRAY(Text()))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        word = fold(value)
        if dialect.name == "sqlite":
            return word
        pairs = [pair for letter in dict.fromkeys(word) for pair in _pairs(letter)]
        if len(pairs) > REPLACED:
            return [word, "".join(map(_regular_expression, value))]
        pairs += [("", "")] * (REPLACED - len(pairs))
        return [word, None, *itertools.chain(*pairs)]


def _pairs(letter: str) -> list[tuple[str, str]]:
    return [(form, letter) for form in forms(letter) if form != letter and not "A" <= form <= "Z"]


def _regular_expression(character: str) -> str:
    alike = forms(character)
    return f"[{alike}]" if len(alike) > 1 else re.escape(character)


class contains(FunctionElement[bool]):  # named as a SQL function would be
    """SQL: `contains(text, word)` is true if the text contains the word (type Word)."""

    type = Boolean()
    inherit_cache = True


@compiles(contains, "postgresql")
def _contains_postgresql(element: contains, compiler: SQLCompiler, **kw: Any) -> str:
    text, word = (compiler.process(clause, **kw) for clause in element.clauses)
    # With COLLATE "C", lower() changes the letters of ASCII only.
    folded = f'lower({text} COLLATE "C")'
    for place in range(3, 3 + 2 * REPLACED, 2):
        folded = f"replace({folded}, ({word})[{place}], ({word})[{place + 1}])"
    return (
        f"(CASE WHEN ({word})[2] IS NULL THEN strpos({folded}, ({word})[1]) > 0 "
        f'ELSE {text} COLLATE "C" ~ ({word})[2] END)'
    )


@compiles(contains, "sqlite")
def _contains_sqlite(element: contains, compiler: SQLCompiler, **kw: Any) -> str:
    text, word = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"contains({text}, {word})"
