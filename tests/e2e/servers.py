# [Task]: T031 [From]: specs/requirements.md
"""The suite's processes, the Better Auth example and this service, stopped and started at will."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from postgresql import PostgreSQL
from service import PATIENCE, ROOT

EXAMPLE = ROOT / "examples/better-auth"


class Server:
    """A command that serves `url`, which is up when `ready` answers 200. Its log is `log`."""

    def __init__(
        self,
        url: str,
        ready: str,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self.url = url
        self.log = log
        self._ready = url + ready
        self._command = command
        self._folder = folder
        # Nothing of the developer's own settings.
        self._environment = {"PATH": os.environ["PATH"], **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._is_up():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{self.url} is not up\n{self.log.read_text()}"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            finally:
                self._process.kill()
                self._process.wait()
                self._process = None

    def _is_up(self) -> bool:
        try:
            return httpx.get(self._ready, trust_env=False, timeout=PATIENCE).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def down(server: Server | PostgreSQL) -> Iterator[None]:
    """An outage."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def better_auth(
    port: int, arguments: list[str], folder: Path, *, base: str = "/api/auth", **variables: str
) -> Server:
    """Node with these arguments, to be started: the example, or what is configured like it."""
    assert (EXAMPLE / "node_modules").is_dir(), "npm has not run: tests/e2e/install.sh does it"
    return Server(
        f"http://localhost:{port}",
        f"{base}/ok",
        ["node", *arguments],
        EXAMPLE,
        {"PORT": str(port), **variables},
        folder / "better-auth.log",
    )


def task_api(port: int, origin: str, folder: Path, **settings: str) -> Server:
    """The service for the pages of an origin, to be started."""
    return Server(
        f"http://127.0.0.1:{port}",
        "/health",
        [sys.executable, "-m", "serve"],
        folder,
        {"ALLOWED_ORIGINS": origin, "PYTHONPATH": str(ROOT), "PORT": str(port), **settings},
        folder / "api.log",
    )


class Stack(NamedTuple):
    """Everything but the browser. Who stops a part of it starts it again."""

    database: PostgreSQL
    site: Server
    api: Server
    secret: str


def foreign_tokens(stack: Stack, email: str, password: str) -> dict[str, str]:
    """What tokens.js prints for this user, by name."""
    environment = {
        "PATH": os.environ["PATH"],
        "ORIGIN": stack.site.url,
        "DATABASE_URL": stack.database.url(),
        "BETTER_AUTH_SECRET": stack.secret,
        "EMAIL": email,
        "PASSWORD": password,
    }
    printed = subprocess.run(
        ["node", "--input-type=module"],
        input=(Path(__file__).parent / "tokens.js").read_bytes(),
        cwd=EXAMPLE,
        env=environment,
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=True,
    ).stdout
    tokens: dict[str, str] = json.loads(printed.splitlines()[-1])
    return tokens
