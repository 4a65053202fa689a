# [Task]: T052 [From]: specs/decisions.md
"""What a word is found in: the same in every database, in capitals or not, in any script."""

import itertools
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Caller

from kit.database.search import forms

CHARACTERS = [
    chr(number) for number in range(1, sys.maxunicode + 1) if not 0xD800 <= number <= 0xDFFF
]
# As they are where case makes something of them, and as what means something in a pattern.
LETTERS = "aAiI\u0131\u0130\xdf\u1e9esS\u017fkK\u212a\u03c3\u03c2\u03a3\xb5\u03bc\u01c6\u01c5\u01c4"
LETTERS += "\xe4\xc4a\u0308\u0430\u0301\u044f\u042f日%_*?[]^-!\\.+(){}|$#&~ \n\t'\"0"


def is_in(word: str, text: str) -> bool:
    """The plain model: place by place, letters that are forms of each other."""
    return any(
        all(a.casefold() == b.casefold() for a, b in zip(word, text[start:], strict=False))
        for start in range(len(text) - len(word) + 1)
    )


def test_forms_are_all_characters_of_unicode_with_the_same_case_folding() -> None:
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for character in CHARACTERS:
        if (folded := character.casefold()) != character:
            alike[folded] |= {character, folded} if len(folded) == 1 else {character}
    for those in alike.values():
        for character in those:
            assert set(forms(character)) == those, unicodedata.name(character)
    have_case = set().union(*alike.values())
    for character in {*CHARACTERS[::101]} - have_case:
        assert set(forms(character)) == {character}


texts = st.text(LETTERS, min_size=1, max_size=12) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufffd"), min_size=1, max_size=12
)
_examples = itertools.count()


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
async def test_finds_what_the_plain_model_does(
    caller: Callable[[str], Caller], data: st.DataObject
) -> None:
    who = caller(f"user {next(_examples)}")
    found_in = data.draw(st.lists(texts, min_size=1, max_size=5))
    added = [await who.add("-", description=text) for text in found_in]
    some = data.draw(st.sampled_from(found_in))
    start = data.draw(st.integers(0, len(some) - 1))
    part = some[start : data.draw(st.integers(start + 1, len(some)))]
    for word in (part, part.swapcase(), data.draw(texts)):
        response = await who.get(params={"search": word, "order": "asc"})
        assert response.status_code == 200, response.text
        expected = [task for task in added if is_in(word, f"-\0{task['description']}")]
        assert response.json() == expected
