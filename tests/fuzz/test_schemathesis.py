# [Task]: T058 [From]: specs/requirements.md
"""schemathesis, with all its checks and phases, against the running service on both databases."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from service import ROOT, serving
from support import sign

FOLDER = Path(__file__).parent
QUICK = bool(os.environ.get("QUICK"))
# For each operation and phase: some 4,000 cases in all, or a tenth of that.
EXAMPLES = 40 if QUICK else 400
CASES = EXAMPLES * 5


@pytest.mark.parametrize("seed", [1] if QUICK else [1, 2, 3])
def test_finds_nothing(tmp_path: Path, database_url: str, seed: int) -> None:
    with serving(tmp_path, DATABASE_URL=database_url) as service:
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "schemathesis.cli",
                f"--config-file={FOLDER / 'schemathesis.toml'}",
                "run",
                f"http://127.0.0.1:{service.port}/openapi.json",
                f"--header=Authorization: Bearer {sign('alice', exp=int(time.time()) + 3600)}",
                f"--seed={seed}",
                f"--max-examples={EXAMPLES}",
                "--continue-on-failure",
                "--no-color",
            ],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'tests'}", "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            check=False,
        )
        said = run.stdout + run.stderr
        assert run.returncode == 0, said
        counted = re.search(r"(\d+) generated, (\d+) passed", said)
        assert counted, said
        assert int(counted[1]) == int(counted[2]) >= CASES
        assert "Tested: 8" in said
        assert "Traceback" not in service.log()
