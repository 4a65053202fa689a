# [Task]: T057 [From]: specs/requirements.md
"""The typed client of the example: generated, checked by the compiler, and run."""

import json
import subprocess
from pathlib import Path

from service import serving
from support import sign

from e2e.servers import EXAMPLE

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
DELETE 204, then 404
"""


def npm(*arguments: str) -> str:
    run = subprocess.run(
        ["npx", "--no-install", *arguments],
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


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
        command = ["node", "client/dist/sample.js", base, "a/b|日本", sign("a/b|日本")]
        run = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, check=False)
    assert run.stdout == SAID, run.stderr


def test_types_refuse_what_the_api_does(tmp_path: Path) -> None:
    """So that the compiler is known to look at them."""
    source = (EXAMPLE / "client/sample.ts").read_text()
    wrong = source.replace('sort: "title"', 'sort: "id"')
    assert wrong != source
    (tmp_path / "sample.ts").write_text(wrong)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for name in ("client.ts", "api.d.ts", "tsconfig.json"):
        (tmp_path / name).write_text((EXAMPLE / "client" / name).read_text())
    (tmp_path / "node_modules").symlink_to(EXAMPLE / "node_modules")
    checked = subprocess.run(
        ["npx", "--no-install", "tsc", "--project", str(tmp_path), "--noEmit"],
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode != 0
    assert '"id"' in checked.stdout
