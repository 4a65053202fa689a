# [Task]: T041 [From]: specs/requirements.md
"""Where the figures come from: the day, the machine, and the versions of all that took part."""

import json
import os
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version

from benchmarks import ROOT
from benchmarks.database import Database


async def environment(database: Database, command: str) -> dict[str, str]:
    fastify = ROOT / "benchmarks/fastify/node_modules/fastify/package.json"
    versions = {
        "Python": python_version(),
        "PostgreSQL": await database.value("SHOW server_version"),
        **{name: version(name.lower()) for name in ("FastAPI", "SQLModel", "asyncpg", "Granian")},
        "wrk": _said("wrk", "--version").split()[1].removeprefix("debian/"),
    }
    if fastify.exists():
        versions["Fastify"] = json.loads(fastify.read_text())["version"]
        versions["Node"] = _said("node", "--version").removeprefix("v")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} cores of {_processor()}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "command": command,
    }


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "an unnamed processor"


def _said(*command: str) -> str:
    # wrk tells its version with status 1.
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
