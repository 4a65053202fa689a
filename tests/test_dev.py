# [Task]: T020 [From]: specs/requirements.md
"""The commands for development."""

import json
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forkserver
import jwt
import pytest
from service import PATIENCE, ROOT, until
from support import SECRET

from scripts.dev import TOKEN_LIFETIME, main, make_token, write_env

type Command = Callable[..., tuple[object, str, str]]


@pytest.fixture
def dev(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `python -m scripts.dev` with these arguments: its status, and what it wrote."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["dev", *arguments])
        with pytest.raises(SystemExit) as ended:
            sys.exit(main())
        return ended.value.code, *capsys.readouterr()

    return run


class TestToken:
    def test_is_signed_for_the_user_with_the_secret_of_the_settings(self) -> None:
        claims = jwt.decode(make_token("alice"), SECRET, algorithms=["HS256"])
        assert claims["sub"] == "alice"
        assert claims["exp"] - claims["iat"] == TOKEN_LIFETIME

    def test_needs_a_secret(self, dev: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        monkeypatch.setenv("BETTER_AUTH_URL", "http://localhost:3000")
        status, printed, error = dev("token", "alice")
        assert (status, printed) == (3, "")
        assert error.startswith("BETTER_AUTH_SECRET is not set")

    @pytest.mark.parametrize("user", ["", "x" * 256, "a\nb"])
    def test_is_for_a_user_that_the_service_takes(self, user: str, dev: Command) -> None:
        assert dev("token", "alice")[0] == 0
        status, printed, error = dev("token", user)
        assert (status, printed) == (2, "")
        assert "a user id has 1 to 255 characters" in error


def test_help_is_aligned() -> None:
    command = ["make", "--no-print-directory", "help"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    columns = re.findall(r"^  make [a-z0-9-]+ +", listed.stdout, re.MULTILINE)
    assert len(columns) == len(listed.stdout.splitlines())
    assert len({len(column) for column in columns}) == 1


class TestEnv:
    def test_has_a_secret_of_its_own_and_one_reader(self, tmp_path: Path) -> None:
        example = tmp_path / "example"
        example.write_text("# A comment\nBETTER_AUTH_SECRET=change-me\nOTHER=1\n")
        write_env(example, tmp_path / "one")
        write_env(example, tmp_path / "two")
        one, two = (tmp_path / "one").read_text(), (tmp_path / "two").read_text()
        assert one != two
        assert "change-me" not in one
        assert one.splitlines()[::2] == ["# A comment", "OTHER=1"]
        assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600

    def test_is_never_overwritten(self, tmp_path: Path) -> None:
        example, env = tmp_path / "example", tmp_path / ".env"
        example.write_text("BETTER_AUTH_SECRET=change-me\n")
        env.write_text("in use")
        with pytest.raises(FileExistsError):
            write_env(example, env)
        assert env.read_text() == "in use"


class TestRun:
    def test_prints_a_line_that_adds_a_task_and_ends_by_ctrl_c(self, tmp_path: Path) -> None:
        environment = {"PYTHONPATH": f"{ROOT}", "BETTER_AUTH_SECRET": SECRET, "LOG_FORMAT": "text"}
        log = tmp_path / "log"
        service = forkserver.start(
            ["scripts.dev", "run", "--port", "0"], tmp_path, environment, log
        )
        try:
            line = until(lambda: re.search("^curl .*\n", log.read_text(), re.MULTILINE))[0]
            assert re.search(r"http://localhost:\d+/docs\n", log.read_text())
            ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
            assert json.loads(ran.stdout)["title"] == "Buy milk"
            service.send_signal(signal.SIGINT)
            assert service.wait(PATIENCE) == 0
            assert "Traceback" not in log.read_text()
        finally:
            service.kill()

    def test_says_in_one_sentence_that_the_port_is_taken(self, dev: Command) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert dev("run", "--port", f"{port}") == (
                3,
                f"Starting the service on port {port}.\n",
                f"PORT {port} is in use on 127.0.0.1: stop what listens there, or set another"
                " PORT\n",
            )


# What makes an environment whose pip reaches no network.
PYTHON = """#!/bin/sh
mkdir -p .uv/bin
printf '#!/bin/sh\\nexit 1\\n' > .uv/bin/pip
chmod +x .uv/bin/pip
"""


@pytest.mark.parametrize(
    ("has_venv", "said"),
    [(True, "uv can't be fetched"), (False, "Neither uv nor a Python 3 with venv")],
)
def test_make_that_can_not_install_uv_ends_in_one_sentence(
    has_venv: bool, said: str, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    if has_venv:
        (tmp_path / "python3").write_text(PYTHON)
        (tmp_path / "python3").chmod(0o755)
    else:
        # Each Python that make tries makes its environment where there may be none.
        (tmp_path / ".uv").write_text("")
    made = subprocess.run(
        ["/usr/bin/make", ".uv/bin/uv"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": f"{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode != 0
    assert "Installing uv" in made.stdout
    [line] = [line for line in made.stderr.splitlines() if not line.startswith("make: ")]
    assert said in line
