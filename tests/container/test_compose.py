# [Task]: T062 [From]: specs/requirements.md
"""compose.yaml as Docker Compose reads it, and the service and a PostgreSQL with what it says."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from databases import execute, stored
from postgresql import PostgreSQL
from service import ROOT
from support import SECRET

from .debian import entering, network_variables
from .image import Image, copy
from .running import Container, running

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SECRETS = {"BETTER_AUTH_SECRET": SECRET, "POSTGRES_PASSWORD": "0123456789abcdef"}


@pytest.fixture(scope="module")
def compose(folder: Path, bare_debian: Path) -> Path:
    """A Debian with Docker Compose, which needs no engine to read a file, and the file."""
    copy(bare_debian, folder / "compose")
    install = "apt-get update && apt-get install --yes --no-install-recommends docker-compose"
    installed = subprocess.run(
        entering(folder / "compose", ["/bin/sh", "-c", install]),
        env={"PATH": PATH, "DEBIAN_FRONTEND": "noninteractive", **network_variables()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stdout
    copy(ROOT / "compose.yaml", folder / "compose/srv/compose.yaml")
    return folder / "compose"


def read(compose: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        entering(compose, ["docker-compose", "config", "--format", "json"], folder="/srv"),
        env={"PATH": PATH, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def services(compose: Path) -> dict[str, Any]:
    done = read(compose, SECRETS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


@pytest.fixture
def postgresql(services: dict[str, Any]) -> Iterator[PostgreSQL]:
    """A server as the image postgres sets one up by that environment."""
    asked = services["postgres"]["environment"]
    user, password = asked["POSTGRES_USER"], asked["POSTGRES_PASSWORD"]
    with TemporaryDirectory(prefix="task-api-") as folder:
        server = PostgreSQL(Path(folder))
        server.require_password(user)
        server.start()
        url = server.url()
        asyncio.run(execute(url, f"CREATE ROLE {user} LOGIN PASSWORD '{password}'"))
        asyncio.run(execute(url, f"CREATE DATABASE {asked['POSTGRES_DB']} OWNER {user}"))
        yield server
        server.stop("immediate")


class TestFile:
    @pytest.mark.parametrize("name", SECRETS)
    def test_is_refused_without_a_secret(self, compose: Path, name: str) -> None:
        done = read(compose, {**SECRETS, name: ""})
        assert done.returncode != 0
        assert f"required variable {name} is missing a value: set it to" in done.stderr

    def test_gives_no_more_than_is_needed(self, services: dict[str, Any]) -> None:
        api, postgres = services["api"], services["postgres"]
        assert api["build"] == {"context": "/srv", "dockerfile": "Dockerfile"}
        assert api["read_only"] is api["init"] is True
        assert api["security_opt"] == ["no-new-privileges:true"]
        assert [(port["host_ip"], port["target"]) for port in api["ports"]] == [("127.0.0.1", 8000)]
        assert "ports" not in postgres
        for service in services.values():
            assert service["cap_drop"] == ["ALL"]
            assert int(service["mem_limit"]) > 0
            assert service["pids_limit"] > 0

    def test_waits_for_the_database_and_begins_again(self, services: dict[str, Any]) -> None:
        waited_for = services["api"]["depends_on"]["postgres"]
        assert waited_for == {"condition": "service_healthy", "required": True}
        assert {service["restart"] for service in services.values()} == {"unless-stopped"}

    def test_keeps_the_database_in_a_volume(self, services: dict[str, Any]) -> None:
        postgres = services["postgres"]
        [volume] = postgres["volumes"]
        # Where the image keeps its data since version 18.
        assert postgres["image"].startswith("postgres:18")
        assert (volume["type"], volume["target"]) == ("volume", "/var/lib/postgresql")


class TestTogether:
    def test_the_service_keeps_tasks_in_postgresql(
        self, image: Image, services: dict[str, Any], postgresql: PostgreSQL, tmp_path: Path
    ) -> None:
        """With what compose.yaml says, a port excepted, on a root that is read-only."""
        environment = dict(services["api"]["environment"])
        # So called in compose's network; another name than this machine's, for which TLS is asked.
        hosts = image.path("/etc/hosts")
        hosts.write_text("127.0.0.1 localhost postgres\n")
        url = environment["DATABASE_URL"]
        environment["DATABASE_URL"] = url.replace("@postgres/", f"@postgres:{postgresql.port}/")
        container = Container(image, tmp_path, environment, read_only=True)
        with running(container), container.client("alice") as alice:
            task = alice.post("tasks", json={"title": "Buy milk"}).json()
            assert alice.get("tasks").json() == [task]
            assert container.stop(10) == 0
        assert "Read-only" not in container.log()
        assert asyncio.run(stored(postgresql.url("tasks"))) == ["Buy milk"]

    def test_the_database_is_asked_how_it_is(
        self, services: dict[str, Any], postgresql: PostgreSQL
    ) -> None:
        kind, program, *arguments = services["postgres"]["healthcheck"]["test"]
        assert kind == "CMD"

        def status() -> int:
            return subprocess.run(
                [postgresql.program(program), *arguments],
                env={"PGPORT": str(postgresql.port), "PATH": os.environ["PATH"]},
                capture_output=True,
                check=False,
            ).returncode

        assert status() == 0
        postgresql.stop()
        assert status() != 0
        postgresql.start()
