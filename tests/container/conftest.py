# [Task]: T062 [From]: specs/requirements.md
"""The suite's fixtures: a bare Debian, and the image made in a copy of it.

What the machine lacks is a failure, never a skip; install.sh brings it.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from service import ROOT

from .debian import add_python, make_debian
from .image import Build, Image, copy

# The image that the Dockerfile begins with, and the Debian release in it; the image with uv.
BASE = re.compile(r"^FROM (python:[\d.]+-slim-(\w+)) AS base$", re.MULTILINE)
UV = re.compile(r"^COPY --from=(\S+/uv:([\d.]+)) ", re.MULTILINE)
# What lies in many a working folder and belongs in no image.
STRAY = (
    ".env",
    ".git/config",
    ".venv/bin/python",
    "tasks.db",
    "notes.txt",
    "database/.env",
    "routes/__pycache__/tasks.cpython-313.pyc",
    "examples/better-auth/node_modules/jose/index.js",
)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """For folders of hundreds of megabytes, which pytest's own would keep."""
    with TemporaryDirectory(prefix="task-api-container-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def context(folder: Path) -> Path:
    """The sources as in a working folder, with strays; one file is its owner's alone to read."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    context = folder / "context"
    for name in listed.stdout.splitlines():
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, context / name)
    for name in STRAY:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text("stray")
    (context / "tasks/queries.py").chmod(0o600)
    return context


@pytest.fixture(scope="session")
def bare_debian(folder: Path) -> Path:
    match = BASE.search((ROOT / "Dockerfile").read_text())
    assert match is not None
    make_debian(folder / "debian", match[2])
    return folder / "debian"


@pytest.fixture(scope="session")
def images(folder: Path, bare_debian: Path) -> dict[str, Path]:
    """Folders that stand in for the images which the Dockerfile begins with."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    base, uv = BASE.search(dockerfile), UV.search(dockerfile)
    assert base is not None
    assert uv is not None
    copy(bare_debian, folder / "python")
    add_python(folder / "python")
    (folder / "uv").mkdir()
    shutil.copy2(Path(sys.executable).with_name("uv"), folder / "uv")
    return {base[1]: folder / "python", uv[1]: folder / "uv"}


@pytest.fixture(scope="session")
def image(folder: Path, context: Path, images: dict[str, Path]) -> Image:
    (folder / "build").mkdir()
    return Build(context, folder / "build", images).last_stage()
