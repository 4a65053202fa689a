# [Task]: T015 [From]: specs/requirements.md
"""`python -m MODULE` in a process of its own that need not import the libraries first.

They take most of a start of the service, and the suite starts it more than a hundred times. So one
process imports them, and forks; what it forks imports this project's modules by itself, with the
environment, folder and log that it was given.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

# What a start imports, when it finds tables to make.
_LIBRARIES = (
    "aiosqlite",
    "alembic.command",
    "alembic.context",
    "asyncpg",
    "dotenv",
    "fastapi.openapi.utils",
    "jwt",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "sqlmodel.ext.asyncio.session",
    "granian",
    "uvicorn.lifespan.on",
    "uvicorn.main",
    "uvicorn.protocols.http.h11_impl",
    "uvloop",
)


class Process:
    """A forked process, with what the suite needs of subprocess.Popen."""

    def __init__(self, pid: int, server: "_Server") -> None:
        self.pid = pid
        self._server = server

    @property
    def returncode(self) -> int | None:
        """As poll's."""
        return self.poll()

    def poll(self) -> int | None:
        """Its status, negative for the signal that ended it, or None while it runs."""
        return self._server.statuses.get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired after so many seconds."""
        with self._server.told:
            if not self._server.told.wait_for(lambda: self.poll() is not None, timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return self._server.statuses[self.pid]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(command: list[str], folder: Path, environment: Mapping[str, str], log: Path) -> Process:
    """A module and its arguments, in a process group of its own; what it prints goes to `log`."""
    log.touch()
    return _server().start(
        {"command": command, "folder": str(folder), "environment": {**environment}, "log": str(log)}
    )


def run(
    command: list[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """The same, to its end; `stdout` is all that it prints."""
    with NamedTemporaryFile() as log:
        status = start(command, folder, environment, Path(log.name)).wait()
        return subprocess.CompletedProcess(command, status, log.read().decode())


class _Server:
    """The process that forks, as the suite sees it."""

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        # Of the fork that was asked for, or the end of one.
        self.told = threading.Condition()
        self._forked: list[int] = []
        self._one_at_a_time = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A Ctrl-C is for the suite, which then waits for what it has started.
            process_group=0,
        )
        threading.Thread(target=self._listen, daemon=True).start()
        atexit.register(self._process.terminate)

    def start(self, request: dict[str, Any]) -> Process:
        assert self._process.stdin is not None
        with self._one_at_a_time, self.told:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            assert self.told.wait_for(lambda: self._forked, 60), "nothing was forked"
            return Process(self._forked.pop(), self)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            pid, status = json.loads(line)
            with self.told:
                if status is None:
                    # The system may have given it the number of one that has ended.
                    self.statuses.pop(pid, None)
                    self._forked.append(pid)
                else:
                    self.statuses[pid] = status
                self.told.notify_all()


@cache
def _server() -> _Server:
    return _Server()


def _tell(pid: int, status: int | None) -> None:
    os.write(1, f"{json.dumps([pid, status])}\n".encode())


def _reap(*_: object) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _tell(pid, os.waitstatus_to_exitcode(status))


def _forked_request() -> dict[str, Any] | None:
    """In each process that was forked, what it is to be; at the end, None in the one that forks."""
    for line in sys.stdin:
        # Its end is told after its beginning.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if not pid:
            request: dict[str, Any] = json.loads(line)
            return request
        # Before anybody else knows of it.
        os.setpgid(pid, pid)
        _tell(pid, None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    return None


def _become(request: dict[str, Any]) -> None:
    """Be as if the command had just been started."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for standard, file in enumerate((nothing, log, log)):
        os.dup2(file, standard)
    os.closerange(3, 256)
    module, *arguments = request["command"]
    sys.argv = [module, *arguments]
    # As `-m` has it: the folder, and what the environment adds.
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [request["folder"], *filter(None, added)]
    with suppress(ImportError):
        import_module("sitecustomize")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for library in _LIBRARIES:
        import_module(library)
    # They stay: what is forked need not look through them for garbage, which would copy them, too.
    gc.freeze()
    signal.signal(signal.SIGCHLD, _reap)
    if (found := _forked_request()) is not None:
        _become(found)
