# [Task]: T071 [From]: specs/requirements.md
"""`python -m benchmarks.before COMMIT`: this service, and what it was at an earlier commit.

Both by `python -m serve`; and `uvicorn main:app`, which is slower, by turns within one run.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import ROOT, proc
from benchmarks.contestants import BASELINES, OURS, Contestant, running
from benchmarks.database import Database, open_database
from benchmarks.environment import environment
from benchmarks.load import Load, Run
from benchmarks.operations import MIX, OPERATIONS
from benchmarks.report import Medians, number, table

CONNECTIONS = 32
H11 = Contestant(
    "uvicorn main:app (h11)", (sys.executable, "-m", "uvicorn", "main:app", "--port", "{port}")
)


def sources_of(commit: str, folder: Path) -> Path:
    """The files of a commit, below the folder."""
    archive = subprocess.check_output(["git", "archive", commit], cwd=ROOT)
    sources = folder / "before"
    sources.mkdir()
    subprocess.run(["tar", "-x", "-C", str(sources)], input=archive, check=True)
    return sources


async def measure(
    contestants: Sequence[Contestant], database: Database, folder: Path, rounds: int
) -> tuple[list[Run], dict[str, float]]:
    """Runs, and the MiB of all processes of each, what they share counted once."""
    runs: list[Run] = []
    memory: dict[str, float] = {}
    load = Load(database, folder)
    for number_ in range(rounds):
        with running(contestants, folder, database.url) as servers:
            for server in servers:
                await load.run(server, MIX, CONNECTIONS)
            await database.tidy()
            turn = number_ % len(servers)
            for operation in OPERATIONS:
                for server in (*servers[turn:], *servers[:turn]):
                    runs.append(await load.run(server, operation, CONNECTIONS))
            memory = {server.name: proc.memory(server.pid) for server in servers}
    return runs, memory


def report(runs: list[Run], memory: dict[str, float], names: Sequence[str]) -> str:
    medians = Medians(runs)
    rows = []
    for operation in medians.operations:
        speed = [medians.throughput(operation, name) for name in names]
        cpu = [medians.of(lambda run: run.cpu, operation, name, CONNECTIONS) for name in names]
        first, *others = speed
        rows.append(
            [operation, *map(number, speed)]
            + [f"{other / first:.2f}" for other in others]
            + [*map(number, cpu), f"{cpu[1] / cpu[0]:.2f}"]
        )
    head = ["", *names, *(f"{name}, times before" for name in names[1:])]
    head += [*(f"CPU µs, {name}" for name in names), "CPU, times before"]
    sizes = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in memory.items())
    busy = median(run.others for run in runs)
    return (
        f"{table(head, rows)}\n\nRequests per second on {CONNECTIONS} connections, medians; "
        f"{busy:.1f} cores were busy with something else.\nMemory of all processes: {sizes}.\n"
    )


async def bench(commit: str, rounds: int) -> str:
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        sources = sources_of(commit, folder)
        before = Contestant(f"before ({commit[:7]})", (BASELINES, "-m", "serve"), sources)
        contestants = (before, OURS, H11)
        began = time.monotonic()
        async with open_database() as database:
            facts = await environment(database, f"python -m benchmarks.before {commit}")
            runs, memory = await measure(contestants, database, folder, rounds)
        facts["took"] = f"{time.monotonic() - began:.0f} s"
    text = "\n".join(f"{name}: {value}  " for name, value in facts.items())
    return f"{text}\n\n{report(runs, memory, [one.name for one in contestants])}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before", description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    text = asyncio.run(bench(arguments.commit, arguments.rounds))
    (ROOT / "benchmarks/results/before.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
