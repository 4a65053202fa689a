# [Task]: T066 [From]: specs/requirements.md
"""What `make mutants` makes of a module."""

import ast
from collections import Counter

import pytest

from scripts.mutants import ROOT, mutants


@pytest.mark.parametrize("module", ["tasks/queries.py", "kit/database/gate.py", "kit/tokens.py"])
def test_mutants_are_the_module_with_one_place_changed(module: str) -> None:
    source = ast.unparse(ast.parse((ROOT / module).read_text())).splitlines()
    made = list(mutants(ROOT / module))
    assert len(made) >= 5
    for mutant in made:
        changed = ast.unparse(ast.parse(mutant.source)).splitlines()
        assert mutant.module == module
        assert (Counter(changed) - Counter(source)).total() == 1, mutant.change


def test_mutants_of_a_gate_are_those_that_a_reader_would_name() -> None:
    changes = {mutant.change for mutant in mutants(ROOT / "kit/database/gate.py")}
    assert "1 -> 2" in changes
    assert "held >= self._share -> (held > self._share)" in changes
