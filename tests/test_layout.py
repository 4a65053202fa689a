# [Task]: T105 [From]: specs/design.md
"""The layout: which module may import which (specs/design.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What is the service, from the top down: each may import what comes after it.
LAYERS = (
    ("main", "serve"),
    ("routes",),
    ("tasks", "middleware", "db"),
    ("schemas", "errors", "models"),
    ("kit",),
    ("settings",),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(
    path.relative_to(ROOT)
    for name in LEVELS
    for path in ([ROOT / f"{name}.py"] if (ROOT / f"{name}.py").exists() else [])
    + list((ROOT / name).rglob("*.py"))
)


def imports(path: Path) -> list[str]:
    """The dotted name of each module, or of each member of one, that a file imports."""
    names = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def imported(path: Path) -> set[str]:
    """The packages and modules of this repository that a file imports."""
    # kit.values knows of text alone, and so settings.py may use it.
    names = [name for name in imports(path) if not name.startswith("kit.values.")]
    return {name.partition(".")[0] for name in names} & LEVELS.keys()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_run_one_way(path: Path) -> None:
    level = LEVELS[path.parts[0].removesuffix(".py")]
    assert {name for name in imported(path) if LEVELS[name] < level} == set()


def test_kit_knows_nothing_of_the_service() -> None:
    kit = [path for path in MODULES if path.parts[0] == "kit"]
    assert len(kit) > 20
    assert set().union(*map(imported, kit)) <= {"kit", "settings"}


def test_top_level_is_what_a_developer_changes() -> None:
    there = {path.stem for path in ROOT.glob("*.py")}
    assert there == {"main", "settings", "models", "schemas", "db", "errors", "serve"}


def test_db_is_the_only_door() -> None:
    service = [path for path in MODULES if path.parts[0] in ("routes", "tasks", "main.py")]
    assert len(service) > 5
    for path in service:
        assert not [name for name in imports(path) if name.startswith("kit.database")], path


# Their modules and members that begin with an underscore; kit/ names each in specs/reliance.md.
LIBRARIES = ("fastapi", "starlette", "sqlalchemy", "sqlmodel", "asyncpg", "granian", "uvicorn")


def test_only_kit_uses_what_is_private_to_a_library() -> None:
    for path in MODULES:
        if path.parts[0] != "kit":
            theirs = [name for name in imports(path) if name.startswith(LIBRARIES)]
            assert not [name for name in theirs if "._" in name], path
