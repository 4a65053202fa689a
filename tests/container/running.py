# [Task]: T062 [From]: specs/requirements.md
"""A container: the image's command as a process, and what an engine does with it."""

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from postgresql import free_port
from service import PATIENCE, until
from support import sign

from .image import Image


class Container:
    """Runs until it is stopped, on a port of this machine: it has no network of its own."""

    def __init__(
        self,
        image: Image,
        folder: Path,
        environment: Mapping[str, str],
        *,
        volume: Path | None = None,
        read_only: bool = False,
    ) -> None:
        self._image = image
        self._environment = {**environment, "PORT": str(free_port())}
        self._log = folder / f"container-{secrets.token_hex(4)}.log"
        with self._log.open("wb") as log:
            self._around = subprocess.Popen(
                image.entering(image.command, volume=volume, read_only=read_only),
                env={**image.environment, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        return self._log.read_text()

    def is_healthy(self) -> bool:
        """As an engine asks, by the command's status: 0 or 1."""
        status = self._image.run(self._image.health_check, self._environment).returncode
        assert status in (0, 1)
        return status == 0

    def wait_for_health(self) -> None:
        def healthy() -> bool:
            assert self._around.poll() is None, self.log()
            return self.is_healthy()

        until(healthy)

    def client(self, user: str) -> httpx.Client:
        """For what is below a user's path."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self._environment['PORT']}/api/{user}",
            headers={"Authorization": f"Bearer {sign(user)}"},
            timeout=PATIENCE,
            trust_env=False,
        )

    def status_file(self) -> dict[str, list[str]]:
        """What Linux says of the service's process."""
        lines = Path(f"/proc/{self._service()}/status").read_text().splitlines()
        return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}

    def stop(self, seconds: float) -> int:
        """The status with which it has ended by then, after SIGTERM."""
        os.kill(self._service(), signal.SIGTERM)
        return self._around.wait(seconds)

    def kill(self) -> None:
        # Its command goes with it.
        self._around.kill()
        self._around.wait()

    def _service(self) -> int:
        """Its process, by the number that it has outside."""
        around = self._around.pid
        return int(Path(f"/proc/{around}/task/{around}/children").read_text())


@contextmanager
def running(container: Container) -> Iterator[Container]:
    try:
        container.wait_for_health()
        yield container
    finally:
        container.kill()
