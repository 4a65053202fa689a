# [Task]: T102 [From]: specs/requirements.md
"""The commands of the example's README, as they are written, in an empty folder."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from postgresql import free_port
from service import ROOT

from .servers import EXAMPLE, Stack
from .test_client import SAID


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What git has, in a folder of its own; what `make` installs is there already."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    return tmp_path


@pytest.fixture
def shell(folder: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}
    environment["npm_config_prefer_offline"] = "true"
    with subprocess.Popen(
        ["bash", "-eu"],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        yield shell
        os.killpg(shell.pid, signal.SIGTERM)


@pytest.mark.timeout(600)  # npm installs the example's packages once more.
def test_commands_work_one_after_the_other(stack: Stack, shell: subprocess.Popen[str]) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    # In between, a reader opens the page.
    opened = "curl -s --retry 60 --retry-connrefused http://localhost:"
    script = f"{opened}3000/config.json\n{opened}8000/health\n".join(blocks)
    site, api, sample = (f"{free_port()}" for _ in range(3))
    replacements = {
        # A PostgreSQL without Docker, and ports that nobody has.
        r"docker run .*\n": "",
        r"postgresql://\S+": stack.database.url(),
        r"make run &": f"make run PORT={api} ALLOWED_ORIGINS=http://localhost:{site} &",
        r"(npm .* start)": rf"PORT={site} API_URL=http://localhost:{api} \1",
        r"localhost:3000": f"localhost:{site}",
        r"localhost:8000": f"localhost:{api}",
        r"8001": sample,
    }
    for written, replacement in replacements.items():
        script, count = re.subn(written, replacement, script)
        assert count, written
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(script + "echo; echo DONE\n")
    shell.stdin.flush()
    printed = ""
    while not printed.endswith("DONE\n"):
        line = shell.stdout.readline()
        assert line, printed
        printed += line
    # Between the lines of the services' logs, which may share a line with them.
    places = [printed.find(line) for line in SAID.splitlines()]
    assert -1 not in places, printed
    assert places == sorted(places)
    assert httpx.get(f"http://localhost:{site}/", trust_env=False).status_code == 200
    assert httpx.get(f"http://localhost:{api}/health/ready", trust_env=False).status_code == 200
