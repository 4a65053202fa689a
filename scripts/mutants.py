# [Task]: T066 [From]: specs/requirements.md
"""Change one place of the sources at a time, and see whether a test tells: `make mutants`.

A mutant is judged by the tests that mirror its module, in a copy of the repository. It prints
those that no test noticed.
"""

import argparse
import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from random import Random
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# Not kit/telemetry/ and those whose tests start a process for each case.
SOURCES = ("*.py", "kit/*.py", "kit/database/*.py", "middleware/*.py", "routes/*.py", "tasks/*.py")
SLOW = ("main.py", "serve.py", "kit/server.py")
# Tests that tell of a module, beside those that mirror it.
ALSO = {
    "tasks/queries.py": ["tests/test_models.py", "tests/tasks/test_lists.py"],
    "models.py": ["tests/test_routes.py"],
    "schemas.py": ["tests/test_routes.py", "tests/kit/test_body.py"],
    "kit/database/search.py": ["tests/tasks/test_lists.py"],
    "errors.py": ["tests/test_routes.py"],
    "kit/access_log.py": ["tests/test_auth.py"],
    "kit/cors.py": ["tests/kit/test_middleware.py"],
    "kit/middleware.py": ["tests/kit/test_middleware.py"],
    "kit/paths.py": ["tests/kit/test_middleware.py", "tests/test_routes.py"],
    "routes/tasks.py": ["tests/tasks/test_lists.py", "tests/tasks/test_conditional.py"],
    "kit/tokens.py": ["tests/test_auth.py"],
    "kit/database/pool.py": ["tests/kit/database/test_execute.py"],
    "kit/database/execute.py": ["tests/test_db.py"],
    "kit/database/tables.py": ["tests/kit/database/test_owners.py"],
}
WORKERS = 3
# Seconds, after which a mutant that waits for ever counts as noticed.
TIMEOUT = 240

OPPOSITES: dict[str, str] = {
    "Lt": "<=",
    "LtE": "<",
    "Gt": ">=",
    "GtE": ">",
    "Eq": "!=",
    "NotEq": "==",
    "Is": "is not",
    "IsNot": "is",
    "In": "not in",
    "NotIn": "in",
    "Add": "-",
    "Sub": "+",
    "Mult": "+",
}


class Mutant(NamedTuple):
    """A module with one place changed."""

    module: str
    line: int
    change: str
    source: bytes


def other(node: ast.AST) -> tuple[ast.expr, str] | None:
    """The part to write otherwise, and how; None where a mutant has nothing to change."""
    match node:
        case ast.Compare(ops=[operator], comparators=[right]):
            sign = OPPOSITES[type(operator).__name__]
            return node, f"({ast.unparse(node.left)} {sign} {ast.unparse(right)})"
        case ast.BoolOp(op=operator, values=values):
            word = " or " if isinstance(operator, ast.And) else " and "
            return node, f"({word.join(f'({ast.unparse(value)})' for value in values)})"
        case ast.UnaryOp(op=ast.Not()):
            return node, f"({ast.unparse(node.operand)})"
        case ast.BinOp(op=operator) if type(operator).__name__ in OPPOSITES:
            sign = OPPOSITES[type(operator).__name__]
            return node, f"({ast.unparse(node.left)} {sign} {ast.unparse(node.right)})"
        case ast.Constant(value=bool(value)):
            return node, f"{not value}"
        case ast.Constant(value=int(value)):
            return node, f"{value + 1}"
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            return value, "None"
        case ast.If(test=ast.Name() | ast.Call() | ast.Attribute() as test):
            return test, f"not ({ast.unparse(test)})"
    return None


def mutants(path: Path) -> Iterator[Mutant]:
    """All that are made of a module."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in ast.walk(ast.parse(source)):
        if (found := other(node)) is None:
            continue
        part, text = found
        assert part.end_lineno is not None  # noqa: S101  # a parsed node has its place
        assert part.end_col_offset is not None  # noqa: S101
        begin = starts[part.lineno - 1] + part.col_offset
        end = starts[part.end_lineno - 1] + part.end_col_offset
        yield Mutant(
            str(path.relative_to(ROOT)),
            part.lineno,
            f"{' '.join(source[begin:end].decode().split())} -> {text}",
            source[:begin] + text.encode() + source[end:],
        )


def tests_of(module: str) -> list[str]:
    """The file that mirrors a module, and what else tells of it."""
    folder, name = os.path.split(module)
    mirror = Path("tests", folder, f"test_{name}")
    return [*([str(mirror)] if (ROOT / mirror).exists() else []), *ALSO.get(module, [])]


def passes(folder: Path, tests: list[str], *options: str) -> bool:
    """Whether the tests of a copy notice nothing."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        return not subprocess.run(  # noqa: S603  # this repository's own tests
            [*command, *options, *tests], cwd=folder, capture_output=True, timeout=TIMEOUT
        ).returncode
    except subprocess.TimeoutExpired:
        return False


def survives(mutant: Mutant, folder: Path) -> bool:
    """Whether no test of its module notices it."""
    path = folder / mutant.module
    original = path.read_bytes()
    path.write_bytes(mutant.source)
    try:
        tests = tests_of(mutant.module)
        # Most are noticed without waiting for a PostgreSQL.
        return passes(folder, tests, "-k", "not postgresql") and passes(folder, tests)
    finally:
        path.write_bytes(original)


def main() -> int:
    """The exit status: 0, since what survives is for people to judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=120, help="how many of all that there are")
    parser.add_argument("--seed", type=int, default=1, help="which of them")
    given = parser.parse_args()
    paths = [path for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]
    every = [
        mutant
        for path in paths
        if (name := str(path.relative_to(ROOT))) not in SLOW and tests_of(name)
        for mutant in mutants(path)
    ]
    chosen = Random(given.seed).sample(every, min(given.count, len(every)))  # noqa: S311  # to repeat
    folders: SimpleQueue[Path] = SimpleQueue()

    def judge(mutant: Mutant) -> bool:
        folder = folders.get()
        try:
            survived = survives(mutant, folder)
        finally:
            folders.put(folder)
        place = f"{mutant.module}:{mutant.line}"
        print("SURVIVED" if survived else "noticed ", place, mutant.change, flush=True)
        return survived

    with TemporaryDirectory() as name, ThreadPoolExecutor(WORKERS) as threads:
        for number in range(WORKERS):
            folder = Path(name, str(number))
            copytree(ROOT, folder, ignore=ignore_patterns(".git", ".venv", ".uv", "node_modules"))
            folders.put(folder)
        survivors = sum(threads.map(judge, chosen))
    print(f"{survivors} of {len(chosen)} survived; there are {len(every)} places")
    return 0


if __name__ == "__main__":
    sys.exit(main())
