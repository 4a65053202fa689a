# [Task]: T057 [From]: specs/requirements.md
"""The OpenAPI document, linted; and the clients that are generated from it, compiled and run."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from service import ROOT, serving
from support import sign

from e2e.servers import EXAMPLE

CLIENTS = Path(__file__).parent / "clients"
DOCUMENT = ROOT / "specs/openapi.json"
USER = "a/b|日本"

SAID = """\
health 200, ready 200
POST 201, replayed null
POST 201, replayed true
page: Buy milk, Buy oats
page: Buy tea
found: Buy milk
GET 200, then 304
PUT: Buy milk today
PATCH 412: "Task has changed"
PATCH: true
POST 422: String should have at least 1 character
DELETE 204, then 404
"""


# What both clients in clients/ print.
GENERATED_SAID = """\
created 201 200
pages 1 1 true
updated 200 Buy oats
stale 412 {"detail":"Task has changed"}
refused 422 {"detail":[{"type":"string_too_short","loc":["body","title"],\
"msg":"String should have at least 1 character"}]}
deleted 204 404
"""

RECIPES_SAID = """\
token: GET 200,GET 200,GET 401,GET 401, fetched 2
queue: Buy milk, POST 201,POST 201
pages: 50,1, more false
optimistic: pending true
rolled back: 502, completed true
saved after TypeError: Renamed
conflict: Renamed
deleted: 404
on focus: GET 304, still 50
"""


def run(*command: str | Path, folder: Path = EXAMPLE, **variables: str) -> str:
    # With the development's own ruff, by which a generator formats what it has made.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": f"{folder}", **variables}
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def npm(*arguments: str, folder: Path = EXAMPLE) -> str:
    return run("npx", "--no-install", *arguments, folder=folder)


def test_document_passes_the_linter() -> None:
    npm("spectral", "lint", f"{DOCUMENT}", folder=CLIENTS)


def generate_typescript(folder: Path) -> list[str | Path]:
    """The command that runs the client of @hey-api/openapi-ts, which checks with zod."""
    for name in ("generated.ts", "tsconfig.json", "package.json", "openapi-ts.config.js"):
        shutil.copy(CLIENTS / name, folder)
    (folder / "node_modules").symlink_to(CLIENTS / "node_modules")
    npm("openapi-ts", "--silent", "--no-log-file", "--input", f"{DOCUMENT}", folder=folder)
    npm("tsc", folder=folder)
    return ["node", "dist/generated.js"]


def generate_python(folder: Path) -> list[str | Path]:
    """The command that runs the client of openapi-python-client."""
    command = ["openapi-python-client", "generate", "--meta=none", "--fail-on-warning"]
    run(*command, f"--path={DOCUMENT}", "--output-path=task_api_client", folder=folder)
    return [sys.executable, CLIENTS / "generated.py"]


def test_recipes_do_what_they_say(tmp_path: Path) -> None:
    """The code in docs/frontend.md, by clients/recipes.ts."""
    (tmp_path / "lib").mkdir()
    text = (ROOT / "docs/frontend.md").read_text()
    blocks = re.findall(r"^```ts\n// (lib/\w+\.ts)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    for name in ("recipes.ts", "tsconfig.json"):
        shutil.copy(CLIENTS / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    npm("tsc", folder=tmp_path)
    with serving(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db") as service:
        api = {"NEXT_PUBLIC_API_URL": f"http://127.0.0.1:{service.port}"}
        command = ["node", "dist/recipes.js", USER, sign(USER)]
        assert run(*command, folder=tmp_path, **api) == RECIPES_SAID


@pytest.mark.parametrize("generate", [generate_typescript, generate_python])
def test_generated_clients_do_what_they_say(
    tmp_path: Path, generate: Callable[[Path], list[str | Path]]
) -> None:
    command = generate(tmp_path)
    with serving(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db") as service:
        base = f"http://127.0.0.1:{service.port}"
        assert run(*command, base, USER, sign(USER), folder=tmp_path) == GENERATED_SAID


def test_types_are_those_of_the_document(tmp_path: Path) -> None:
    """`make client` writes them."""
    made = tmp_path / "api.d.ts"
    command = json.loads((EXAMPLE / "package.json").read_text())["scripts"]["client"].split()
    assert command[-1] == "client/api.d.ts"
    npm(*command[:-1], str(made))
    assert made.read_text() == (EXAMPLE / "client/api.d.ts").read_text()


def test_sample_compiles_and_does_what_it_says(tmp_path: Path) -> None:
    npm("tsc", "--project", "client", "--strict")
    with serving(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db") as service:
        base = f"http://127.0.0.1:{service.port}"
        assert run("node", "client/dist/sample.js", base, USER, sign(USER)) == SAID


def test_types_refuse_what_the_api_does(tmp_path: Path) -> None:
    """So that the compiler is known to look at them."""
    for name in ("client.ts", "api.d.ts", "tsconfig.json", "sample.ts"):
        shutil.copy(EXAMPLE / "client" / name, tmp_path)
    source = (tmp_path / "sample.ts").read_text()
    wrong = source.replace('sort: "title"', 'sort: "id"')
    assert wrong != source
    (tmp_path / "sample.ts").write_text(wrong)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(EXAMPLE / "node_modules")
    with pytest.raises(AssertionError, match='"id"'):
        npm("tsc", "--project", f"{tmp_path}", "--noEmit")
