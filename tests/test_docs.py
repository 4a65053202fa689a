# [Task]: T021 [From]: specs/tasks.md
"""The documents against the code: headers, settings, commands, figures, and sessions, replayed."""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import uvicorn.main
from service import serving
from support import sign
from test_errors import ERRORS

from kit.access_log import _json, _text
from main import app
from scripts.dev import first_steps, write_env
from settings import Settings, get_settings

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEADER = re.compile(r"(?:#|//|--) \[Task\]: (T\d{3}) \[From\]: (specs/[\w./-]+)")
CODE = ("*.py", "*.js", "*.ts", "*.sh", "*.lua", "Makefile", ".ci/run", ":!*.d.ts")
DOCUMENTS = sorted(
    f"{path.relative_to(ROOT)}"
    for folder in (ROOT, ROOT / "docs", ROOT / "specs", ROOT / "examples/better-auth")
    for path in folder.glob("*.md")
)


def section(document: str, heading: str) -> str:
    """What stands below this heading, up to the next of its kind."""
    text = (ROOT / document).read_text()
    assert f"\n## {heading}\n" in text
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of its tables, without their heads."""
    tables = re.findall(r"^\|[-:| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    lines = "".join(tables).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code_files(*patterns: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *(patterns or CODE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.split()


def test_headers_name_a_task_and_a_document() -> None:
    tasks = (ROOT / "specs/tasks.md").read_text()
    for path in code_files():
        first_lines = (ROOT / path).read_text().splitlines()[:2]
        # A shell script begins with its interpreter.
        match = HEADER.match(first_lines[1 if first_lines[0].startswith("#!") else 0])
        assert match, f"{path} has no header"
        assert f"| {match[1]} |" in tasks, path
        assert (ROOT / match[2]).is_file(), path


def test_every_requirement_has_a_task() -> None:
    tasks = (ROOT / "specs/tasks.md").read_text()
    requirements = (ROOT / "specs/requirements.md").read_text()
    traced = set()
    for group, first, last in re.findall(r"([A-Z]+)-(\d+)(?: to [A-Z]+-(\d+))?", tasks):
        traced |= {f"{group}-{n}" for n in range(int(first), int(last or first) + 1)}
    assert traced == set(re.findall(r"^\| ([A-Z]+-\d+) \|", requirements, re.MULTILINE))


class TestSettings:
    """`.env.example`, docs/settings.md and the class say the same."""

    def test_have_the_names_and_defaults_that_are_documented(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = {name.upper() for name in Settings.model_fields}
        example = (ROOT / ".env.example").read_text()
        assert set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)) == names
        readme = section("README.md", "Settings")
        assert set(re.findall(r"^\| `([A-Z_]+)` \|", readme, re.MULTILINE)) <= names
        table = section("docs/settings.md", "All settings")
        documented = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", table, re.MULTILINE))
        assert documented.keys() == names
        defaults = get_settings()
        for name, value in documented.items():
            if value.startswith("`"):
                assert f"{name}={value.strip('`')}\n" in example
                monkeypatch.setenv(name, value.strip("`"))
            else:
                assert not Settings.model_fields[name.lower()].default
        assert get_settings() == defaults

    def test_of_the_example_are_refused_until_the_secret_is_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        env = tmp_path / ".env"
        env.write_text((ROOT / ".env.example").read_text())
        with pytest.raises(Exception, match="BETTER_AUTH_SECRET is too short"):
            get_settings()
        env.unlink()
        monkeypatch.setenv("DATABASE_POOL_SIZE", "10")
        write_env(ROOT / ".env.example", env)
        secret = get_settings().better_auth_secret
        assert secret is not None
        assert len(secret.get_secret_value()) >= 32


def steps_of(document: str) -> list[tuple[str, str]]:
    """Each command of a document's sessions and what it printed."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    steps = re.split(r"^\$ ", "".join(blocks), flags=re.MULTILINE)[1:]
    return [(command, printed) for command, _, printed in (step.partition("\n") for step in steps)]


def meant(text: str) -> object:
    """Without times, and JSON in whatever form a terminal shows it."""
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", "TIME", text.strip())
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_sessions_print_what_they_say(tmp_path: Path) -> None:
    """What `make run` prints, the README and the tour, typed in one after the other."""
    steps = [*steps_of("README.md"), *steps_of("docs/tour.md")]
    with serving(tmp_path) as service:
        lines = first_steps("127.0.0.1", service.port).splitlines()
        steps.insert(0, (next(line for line in lines if line.startswith("curl ")), ""))
        script = "\n".join(f"{command}\necho; echo ---" for command, _ in steps)
        script = script.replace("localhost:8000", f"127.0.0.1:{service.port}")
        script = script.replace("make -s token USER=alice", f"echo {sign('alice')}")
        # HTTPie writes its settings to HOME.
        environment = {"PATH": os.environ["PATH"], "HOME": f"{tmp_path}", "NO_PROXY": "*"}
        ran = subprocess.run(
            ["bash", "-eu", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=environment,
        )
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout.split("\n---\n")
    assert json.loads(printed[0])["id"] == 1
    for (command, expected), actual in zip(steps[1:], printed[1:], strict=False):
        assert meant(actual) == meant(expected), command


def test_tour_has_every_error() -> None:
    tour = (ROOT / "docs/tour.md").read_text()
    told = re.findall(r"^\| (\d{3}) \| `([^`]+)` \|", tour, re.MULTILINE)
    assert {*told} >= {(f"{status}", detail) for status, detail, _, _ in ERRORS.values()}
    # Those of the OpenAPI document, and the one that no operation declares.
    paths = app.openapi()["paths"].values()
    declared = {s for path in paths for operation in path.values() for s in operation["responses"]}
    statuses = set(re.findall(r"^\| (\d{3}) \|", tour, re.MULTILINE))
    assert statuses == {status for status in declared if status >= "400"} | {"405"}


def test_readme_is_short_and_names_endpoints_and_packages() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    named = set(re.findall(r"^\| `([A-Z]+)` \| `(/api/[^`]+)` \|", readme, re.MULTILINE))
    paths = app.openapi()["paths"]
    there = {(m.upper(), p.replace("task_id", "id")) for p in paths for m in paths[p]}
    assert named == {(m, p) for m, p in there if p.startswith("/api/")}
    for method, path in there - named:
        assert f"`{method} {path}`" in readme
    packages = [re.split(r"[^\w-]", wanted)[0] for wanted in PROJECT["dependencies"]]
    made_of = re.findall(r"`(\w[\w-]*)`", section("README.md", "What it is made of"))
    assert sorted(made_of) == sorted(packages)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_what_there_is(document: str) -> None:
    path = ROOT / document
    text = path.read_text()
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)", text):
        target = path.parent / link if link else path
        assert target.exists(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
        assert not anchor or anchor in anchors, f"{link}#{anchor}"
    folders = "|".join(folder.name for folder in ROOT.iterdir() if folder.is_dir())
    named = re.findall(rf"(?<![\w./-])((?:{folders})/[\w./-]*\w)", text)
    kept = [name for name in named if "/dist/" not in name]  # A build makes those.
    beside = (ROOT, path.parent, ROOT / "tests")
    assert [n for n in kept if not any((folder / n).exists() for folder in beside)] == []
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make (?:-s )?([a-z0-9-]+)", text, re.MULTILINE)) <= targets
    used = re.findall(r"uvicorn main:app((?: +[^\s`]+)*)", text)
    options = {option for parameter in uvicorn.main.params for option in parameter.opts}
    assert {word for words in used for word in words.split() if word[0] == "-"} <= options


def test_the_version_is_the_newest_of_the_changelog() -> None:
    released = re.findall(r"^## \[([\d.]+)\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert PROJECT["version"] == app.version == released[0]


@pytest.mark.parametrize("write", [_json, _text])
def test_log_lines_are_those_of_a_service(write: Callable[..., str]) -> None:
    """But for times, addresses and hashes."""

    def form(line: str) -> str:
        return re.sub(r"\d+", "0", re.sub(r"\b[0-9a-f]{16}\b", "HASH", line))

    route = "/api/{user_id}/tasks/{task_id}"
    line = write("mine", "GET", route, 200, 1.9, "192.0.2.7:50312", "0" * 16)
    shown = (ROOT / "docs/production.md").read_text().splitlines(keepends=True)
    assert form(line) in map(form, shown)


def test_reliability_names_tests_of_each_failure() -> None:
    table = rows(section("docs/reliability.md", "When something fails"))
    assert len(table) >= 14
    for what, *_, tests in table:
        named = re.findall(r"`([^`]+)`", tests)
        files = [ROOT / "tests/faults" / name for name in named if name.endswith(".py")]
        there = "".join(path.read_text() for path in files)
        assert files, what
        for name in (name for name in named if not name.endswith(".py")):
            assert re.search(rf"^(class|async def|def) {name}\b", there, re.MULTILINE), name
