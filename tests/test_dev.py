# [Task]: T020 [From]: specs/requirements.md
"""The commands for development."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import jwt
import pytest
from service import PATIENCE, ROOT
from support import SECRET

from scripts.dev import TOKEN_LIFETIME, first_steps, make_token, write_env
from settings import SettingsError


class TestToken:
    def test_is_signed_for_the_user_with_the_secret_of_the_settings(self) -> None:
        claims = jwt.decode(make_token("alice"), SECRET, algorithms=["HS256"])
        assert claims["sub"] == "alice"
        assert claims["exp"] - claims["iat"] == TOKEN_LIFETIME

    def test_needs_a_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BETTER_AUTH_SECRET")
        monkeypatch.setenv("BETTER_AUTH_URL", "http://localhost:3000")
        with pytest.raises(SettingsError, match="BETTER_AUTH_SECRET is not set"):
            make_token("alice")

    @pytest.mark.parametrize("user", ["", "x" * 256, "a\nb"])
    def test_is_for_a_user_that_the_service_takes(self, user: str) -> None:
        command = [sys.executable, "-m", "scripts.dev", "token", user]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert "a user id has 1 to 255 characters" in ran.stderr


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


class TestFirstSteps:
    def test_name_the_documentation_and_a_line_with_a_working_token(self) -> None:
        text = first_steps("127.0.0.1", 8123)
        assert "http://localhost:8123/docs" in text
        [line] = [line for line in text.splitlines() if line.startswith("curl ")]
        token = line.partition("Bearer ")[2].partition("'")[0]
        assert jwt.decode(token, SECRET, algorithms=["HS256"])["sub"] == "demo"
        assert "http://localhost:8123/api/demo/tasks" in line


class TestRun:
    def started(self, folder: Path, port: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "scripts.dev", "run", "--port", f"{port}"],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": f"{ROOT}",
                "BETTER_AUTH_SECRET": SECRET,
                "LOG_FORMAT": "text",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def test_prints_a_line_that_adds_a_task_and_ends_by_ctrl_c(self, tmp_path: Path) -> None:
        with self.started(tmp_path, 0) as service:
            assert service.stdout is not None
            line = ""
            while not line.startswith("curl "):
                line = service.stdout.readline()
            ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
            assert json.loads(ran.stdout)["title"] == "Buy milk"
            service.send_signal(signal.SIGINT)
            rest, _ = service.communicate(timeout=PATIENCE)
        assert service.returncode == 0
        assert "Traceback" not in rest

    def test_says_in_one_sentence_that_the_port_is_taken(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            service = self.started(tmp_path, port)
            said, _ = service.communicate(timeout=PATIENCE)
        assert service.returncode == 3
        assert said.splitlines() == [
            f"Starting the service on port {port}.",
            f"PORT {port} is in use on 127.0.0.1: stop what listens there, or set another PORT",
        ]


class TestInstallation:
    """`make` where uv is to be installed, and can't be: it ends in one sentence."""

    def make(self, folder: Path, **environment: str) -> list[str]:
        shutil.copy(ROOT / "Makefile", folder)
        made = subprocess.run(
            ["/usr/bin/make", ".uv/bin/uv"],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": f"{folder}", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode != 0
        assert "Installing uv" in made.stdout
        return [line for line in made.stderr.splitlines() if not line.startswith("make: ")]

    def test_tells_of_a_missing_network(self, tmp_path: Path) -> None:
        nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
        nowhere["PIP_RETRIES"] = "0"
        assert "uv can't be fetched" in self.make(tmp_path, **nowhere)[-1]

    def test_tells_of_a_python_without_venv(self, tmp_path: Path) -> None:
        # Each Python that make tries makes its environment where there may be none.
        (tmp_path / ".uv").write_text("")
        assert "Neither uv nor a Python 3 with venv" in self.make(tmp_path)[-1]
