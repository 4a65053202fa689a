# [Task]: T021 [From]: specs/tasks.md
"""The documents against the code: headers, settings, commands, figures, and sessions, replayed."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from service import serving
from support import sign

from errors import ServiceError
from main import app
from scripts.dev import write_env
from settings import Settings, get_settings

ROOT = Path(__file__).parent.parent
HEADER = re.compile(r"(?:#|//|--) \[Task\]: (T\d{3}) \[From\]: (specs/[\w./-]+)")
CODE = ("*.py", "*.js", "*.ts", "*.sh", "*.lua", "Makefile", ".ci/run", ":!*.d.ts")
DOCUMENTS = sorted(
    f"{path.relative_to(ROOT)}" for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
)


def section(document: str, heading: str) -> str:
    """What stands below this heading, up to the next of its kind."""
    text = (ROOT / document).read_text()
    assert f"\n## {heading}\n" in text
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def code_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *CODE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.split()


class TestHeaders:
    @pytest.mark.parametrize("path", code_files())
    def test_name_a_task_and_a_document(self, path: str) -> None:
        first_lines = (ROOT / path).read_text().splitlines()[:2]
        # A shell script begins with its interpreter.
        header = first_lines[1 if first_lines[0].startswith("#!") else 0]
        match = HEADER.match(header)
        assert match, f"{path} has no header"
        task, document = match.groups()
        assert f"| {task} |" in (ROOT / "specs/tasks.md").read_text()
        assert (ROOT / document).is_file()

    def test_every_requirement_has_a_task(self) -> None:
        tasks = (ROOT / "specs/tasks.md").read_text()
        requirements = (ROOT / "specs/requirements.md").read_text()
        traced = set()
        for group, first, last in re.findall(r"([A-Z]+)-(\d+)(?: to [A-Z]+-(\d+))?", tasks):
            traced |= {f"{group}-{n}" for n in range(int(first), int(last or first) + 1)}
        assert traced == set(re.findall(r"^\| ([A-Z]+-\d+) \|", requirements, re.MULTILINE))


class TestSettings:
    """`.env.example`, the README's table and the class say the same."""

    NAMES = frozenset(name.upper() for name in Settings.model_fields)

    def readme_rows(self) -> dict[str, str]:
        """The default, as it is written, of each setting in the README's table."""
        section = (ROOT / "README.md").read_text().partition("\n## Settings\n")[2]
        table = section.partition("\n###")[0]
        return dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", table, re.MULTILINE))

    def test_are_all_in_the_example(self) -> None:
        example = (ROOT / ".env.example").read_text()
        assert set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)) == self.NAMES

    def test_are_all_in_the_readme(self) -> None:
        assert self.readme_rows().keys() == self.NAMES

    def test_have_the_defaults_that_are_documented(self, monkeypatch: pytest.MonkeyPatch) -> None:
        defaults = get_settings()
        example = (ROOT / ".env.example").read_text()
        for name, value in self.readme_rows().items():
            if value.startswith("`"):
                assert f"{name}={value.strip('`')}\n" in example
                monkeypatch.setenv(name, value.strip("`"))
            else:
                assert Settings.model_fields[name.lower()].default is None
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
        assert env.stat().st_mode & 0o777 == 0o600
        secret = get_settings().better_auth_secret
        assert secret is not None
        assert len(secret.get_secret_value()) >= 32


@pytest.mark.parametrize("document", ["README.md", "docs/tour.md"])
class TestSessions:
    """The sessions with curl and HTTPie, typed in again."""

    def steps(self, document: str) -> list[tuple[str, str]]:
        """Each command and what it printed."""
        blocks = re.findall(r"```console\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
        steps = re.split(r"^\$ ", "".join(blocks), flags=re.MULTILINE)[1:]
        return [(command, printed) for command, _, printed in (s.partition("\n") for s in steps)]

    def meant(self, text: str) -> object:
        """Without times, and JSON in whatever form a terminal shows it."""
        text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", "TIME", text.strip())
        try:
            return json.loads(text)
        except ValueError:
            return text

    def test_print_what_they_say(self, tmp_path: Path, document: str) -> None:
        steps = self.steps(document)
        assert len(steps) >= 8
        with serving(tmp_path) as service:
            script = "\n".join(f"{command}\necho; echo ---" for command, _ in steps)
            script = script.replace("localhost:8000", f"127.0.0.1:{service.port}")
            script = script.replace(" :8000", f" 127.0.0.1:{service.port}")
            script = script.replace("make -s token USER=alice", f"echo {sign('alice')}")
            ran = subprocess.run(
                ["bash", "-eu", "-c", script],
                capture_output=True,
                text=True,
                check=False,
                # HTTPie is among the development's packages, and writes its settings to HOME.
                env={
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "HOME": f"{tmp_path}",
                    "NO_PROXY": "*",
                },
            )
        assert ran.returncode == 0, ran.stderr
        for (command, expected), actual in zip(steps, ran.stdout.split("\n---\n"), strict=False):
            assert self.meant(actual) == self.meant(expected), command


def test_tour_has_ten_stations_and_every_endpoint() -> None:
    tour = (ROOT / "docs/tour.md").read_text()
    assert re.findall(r"^\*\*(\d+)\. ", tour, re.MULTILINE) == [f"{n}" for n in range(1, 11)]
    for method in ("-X PUT", "-X PATCH", "-X DELETE", '-d \'{"title"', "?limit=", "/health"):
        assert method in tour


def classes_below(base: type[ServiceError]) -> set[type[ServiceError]]:
    return {base}.union(*map(classes_below, base.__subclasses__()))


def test_tour_lists_every_error() -> None:
    tour = (ROOT / "docs/tour.md").read_text()
    rows = set(re.findall(r"^\| (\d{3}) \| `([^`]+)` \|", tour, re.MULTILINE))
    errors = classes_below(ServiceError) - {ServiceError}
    assert rows >= {(f"{error.status_code}", error.detail) for error in errors}


class TestReadme:
    def test_is_short(self) -> None:
        assert len((ROOT / "README.md").read_text().splitlines()) <= 200

    def test_names_every_endpoint(self) -> None:
        readme = (ROOT / "README.md").read_text()
        named = set(re.findall(r"^\| `([A-Z]+)` \| `(/api/[^`]+)` \|", readme, re.MULTILINE))
        paths = app.openapi()["paths"]
        there = {(m.upper(), p.replace("task_id", "id")) for p in paths for m in paths[p]}
        assert named == {(m, p) for m, p in there if p.startswith("/api/")}
        for method, path in there - named:
            assert f"`{method} {path}`" in readme

    def test_names_each_package_that_it_is_made_of(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        needed = [re.split(r"[^\w-]", wanted)[0] for wanted in project["dependencies"]]
        named = re.findall(r"`(\w[\w-]*)`", section("README.md", "What it is made of"))
        assert sorted(named) == sorted(needed)

    def test_names_commands_that_there_are(self) -> None:
        targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        for document in DOCUMENTS:
            text = (ROOT / document).read_text()
            used = set(re.findall(r"(?:`|^)make (?:-s )?([a-z0-9-]+)", text, re.MULTILINE))
            assert used <= targets, document


@pytest.mark.parametrize("document", [*DOCUMENTS, "examples/better-auth/README.md"])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    missing = [link for link in links if not (path.parent / link).exists()]
    assert missing == []


class TestFiguresOfCitus:
    def test_are_the_recorded_ones(self) -> None:
        table = (ROOT / "benchmarks/results/distributed.md").read_text()
        assert len(table.splitlines()) == 8
        assert table in (ROOT / "docs/scaling.md").read_text()


class TestFigures:
    """What is said of speed was measured: the tables are those of the last full runs."""

    @pytest.mark.parametrize("document", ["README.md", "docs/performance.md"])
    def test_are_the_recorded_ones(self, document: str) -> None:
        recorded = {
            line
            for results in ("bench.md", "growth.md")
            for line in (ROOT / "benchmarks/results" / results).read_text().splitlines()
        }
        told = (ROOT / document).read_text()
        if document == "README.md":
            told = told.partition("\n## How fast it is\n")[2]
        tables = [line for line in told.splitlines() if line.startswith("|")]
        assert len(tables) >= 5
        assert set(tables) <= recorded
