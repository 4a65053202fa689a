# [Task]: T021 [From]: specs/tasks.md
"""The documents against the code: headers, settings, and the README's session, replayed."""

import re
import subprocess
from pathlib import Path

import pytest
from service import serving
from support import sign

from scripts.dev import write_env
from settings import Settings, get_settings

ROOT = Path(__file__).parent.parent
HEADER = re.compile(r"(?:#|//|--) \[Task\]: (T\d{3}) \[From\]: (specs/[\w./-]+)")
CODE = ("*.py", "*.js", "*.sh", "*.lua", "Makefile", ".ci/run")


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


class TestReadme:
    """The curl session of the README, typed in again."""

    def steps(self) -> list[tuple[str, str]]:
        """Each command and what it printed."""
        readme = (ROOT / "README.md").read_text()
        [session] = [
            block
            for block in re.findall(r"```console\n(.*?)```", readme, re.DOTALL)
            if "curl" in block
        ]
        steps = re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]
        return [(command, printed) for command, _, printed in (s.partition("\n") for s in steps)]

    def without_times(self, text: str) -> str:
        return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", "TIME", text)

    def test_prints_what_it_says(self, tmp_path: Path) -> None:
        steps = self.steps()
        assert len(steps) > 10
        with serving(tmp_path) as service:
            script = "\n".join(f"{command}\necho; echo ---" for command, _ in steps)
            script = script.replace("localhost:8000", f"127.0.0.1:{service.port}")
            script = script.replace("make -s token USER=alice", f"echo {sign('alice')}")
            printed = subprocess.run(
                ["bash", "-eu", "-c", script], capture_output=True, text=True, check=True
            ).stdout
        for (command, expected), actual in zip(steps, printed.split("\n---\n"), strict=False):
            assert self.without_times(actual.strip()) == self.without_times(expected.strip()), (
                command
            )


class TestFiguresOfCitus:
    def test_are_the_recorded_ones(self) -> None:
        table = (ROOT / "benchmarks/results/distributed.md").read_text()
        assert len(table.splitlines()) == 8
        assert table in (ROOT / "docs/scaling.md").read_text()


class TestFigures:
    """What the README says of speed was measured: its tables are those of the last full run."""

    @pytest.mark.parametrize("results", ["bench.md", "growth.md"])
    def test_are_the_recorded_ones(self, results: str) -> None:
        recorded = set((ROOT / "benchmarks/results" / results).read_text().splitlines())
        section = (ROOT / "README.md").read_text().partition("\n## How fast it is\n")[2]
        before, _, after = section.partition("`make bench-growth`")
        told = before if results == "bench.md" else after.partition("\n## ")[0]
        tables = {line for line in told.splitlines() if line.startswith("|")}
        assert len(tables) >= 7
        assert tables <= recorded
