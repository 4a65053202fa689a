# [Task]: T041 [From]: specs/requirements.md
"""What is measured, in which order, and how often."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import proc
from benchmarks.checks import check_answers
from benchmarks.contestants import BARE, CONTESTANTS, Running, running
from benchmarks.database import Database
from benchmarks.load import Load, Run
from benchmarks.operations import GET, LIST, MIX, OPERATIONS, POST, Operation
from benchmarks.progress import Progress
from benchmarks.sections import (
    Link,
    Start,
    Workers,
    measure_link,
    measure_starts,
    measure_workers,
)

# Where contestants are judged.
CONNECTIONS = 32

# Seconds, for the progress only: a run with its preparation, and further sections.
_RUN, _WORKERS, _LINK, _STARTS = 1.2, 25.0, 25.0, 20.0


@dataclass(frozen=True)
class Plan:
    """How much is measured: `rounds` is the number of connections of each round.

    After `last_round` seconds no further one begins, so that a slow machine is done in time, too.
    """

    rounds: Sequence[int]
    operations: Sequence[Operation]
    last_round: float
    worker_rounds: int = 0
    link: bool = False
    starts: int = 0

    @property
    def seconds(self) -> float:
        """What it takes, roughly."""
        runs = (len(self.rounds) * len(self.operations) + 1) * len(CONTESTANTS)
        sections = (self.worker_rounds and _WORKERS, self.link and _LINK, self.starts and _STARTS)
        return runs * _RUN + sum(sections)


FULL = Plan(
    [CONNECTIONS] * 5 + [1, 8, 128] * 3, OPERATIONS, 470, worker_rounds=3, link=True, starts=5
)
QUICK = Plan([CONNECTIONS] * 3, (GET, LIST, POST), 34)


@dataclass
class Results:
    """All figures; `memory` is the most that each contestant's process had in memory, in MiB.

    `bare` are the runs of bare uvicorn, beside those of GET one.
    """

    runs: list[Run] = field(default_factory=list)
    bare: list[Run] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    workers: Workers | None = None
    link: dict[str, Link] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """With the names of all figures."""
        workers = self.workers and {
            **self.workers._asdict(),
            "runs": {n: [run._asdict() for run in runs] for n, runs in self.workers.runs.items()},
        }
        return {
            "runs": [run._asdict() for run in self.runs],
            "bare": [run._asdict() for run in self.bare],
            "memory": self.memory,
            "workers": workers,
            "link": {name: link._asdict() for name, link in self.link.items()},
            "starts": {name: start._asdict() for name, start in self.starts.items()},
        }


async def measure(plan: Plan, database: Database, folder: Path) -> Results:
    results = Results()
    load = Load(database, folder)
    with (
        running([BARE], folder, database.url) as [bare],
        running(CONTESTANTS, folder, database.url) as servers,
    ):
        await check_answers(database, servers)
        progress = Progress(plan.seconds)
        for server in servers:
            await load.run(server, MIX, CONNECTIONS)
            progress.did(_RUN, f"{server.name} is warm")
        await _measure_throughput(plan, load, database, servers, bare, progress, results)
        results.memory = {server.name: proc.peak_memory(server.pid) for server in servers}
    if plan.worker_rounds:
        results.workers = await measure_workers(load, database, folder, plan.worker_rounds)
        progress.did(_WORKERS, "two workers")
    if plan.link:
        results.link = await measure_link(database, folder)
        progress.did(_LINK, "a slow link")
    if plan.starts:
        results.starts = measure_starts(database, folder, plan.starts)
        progress.did(_STARTS, "starts")
    return results


async def _measure_throughput(
    plan: Plan,
    load: Load,
    database: Database,
    servers: Sequence[Running],
    bare: Running,
    progress: Progress,
    results: Results,
) -> None:
    for number, connections in enumerate(plan.rounds):
        if progress.elapsed > plan.last_round:
            progress.did(0, f"no time for the last {len(plan.rounds) - number} rounds")
            break
        await database.tidy()
        # All in a row, and each first in its turn: a noisy minute hits them alike.
        first = number % len(servers)
        turn = (*servers[first:], *servers[:first])
        for operation in plan.operations:
            cell = [await load.run(server, operation, connections) for server in turn]
            results.runs += cell
            if operation is GET and connections == CONNECTIONS:
                results.bare.append(await load.run(bare, operation, connections))
            progress.did(
                _RUN * len(cell),
                f"round {number + 1} of {len(plan.rounds)}, {connections} connections, "
                f"{operation.name}: "
                + ", ".join(f"{run.contestant} {run.throughput:,.0f}/s" for run in cell),
            )
