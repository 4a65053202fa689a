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
from benchmarks.sqlite import OnSQLite, measure_sqlite

# Where contestants are judged.
CONNECTIONS = 32

# Seconds, for the progress only: a run with its preparation, processes that start and are warmed,
# and further sections.
_RUN, _PROCESSES, _WORKERS, _LINK, _STARTS, _SQLITE = 1.2, 8.0, 25.0, 25.0, 20.0, 30.0


@dataclass(frozen=True)
class Plan:
    """How much is measured: `groups` has the numbers of connections of rounds.

    For each group all processes start anew, since two of one state differ by 5 % and more. After
    `last_round` seconds no further round begins, so that a slow machine is done in time, too.
    """

    groups: Sequence[Sequence[int]]
    operations: Sequence[Operation]
    last_round: float
    worker_rounds: int = 0
    link: bool = False
    starts: int = 0
    sqlite_rounds: int = 0

    @property
    def seconds(self) -> float:
        """What it takes, roughly."""
        runs = sum(map(len, self.groups)) * len(self.operations) * len(CONTESTANTS)
        sections = (
            self.worker_rounds and _WORKERS,
            self.link and _LINK,
            self.starts and _STARTS,
            self.sqlite_rounds and _SQLITE,
        )
        return runs * _RUN + len(self.groups) * _PROCESSES + sum(sections)


FULL = Plan(
    [[CONNECTIONS]] * 5 + [[1, 8, 128] * 3],
    OPERATIONS,
    490,
    worker_rounds=3,
    link=True,
    starts=5,
    sqlite_rounds=3,
)
QUICK = Plan([[CONNECTIONS] * 3], (GET, LIST, POST), 42)


@dataclass
class Results:
    """All figures; `memory` is the most that a process of each contestant had, in MiB.

    `bare` are the runs of bare uvicorn, beside those of GET one.
    """

    runs: list[Run] = field(default_factory=list)
    bare: list[Run] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    workers: Workers | None = None
    link: dict[str, Link] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)
    sqlite: OnSQLite = field(default_factory=dict)

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
            "sqlite": self.sqlite,
        }


async def measure(plan: Plan, database: Database, folder: Path) -> Results:
    results = Results()
    load = Load(database, folder)
    progress = Progress(plan.seconds)
    await _Comparison(plan, load, database, folder, progress, results).measure()
    if plan.worker_rounds:
        results.workers = await measure_workers(load, database, folder, plan.worker_rounds)
        progress.did(_WORKERS, "two workers")
    if plan.link:
        results.link = await measure_link(database, folder)
        progress.did(_LINK, "a slow link")
    if plan.starts:
        results.starts = measure_starts(database, folder, plan.starts)
        progress.did(_STARTS, "starts")
    if plan.sqlite_rounds:
        results.sqlite = await measure_sqlite(
            load, database, folder, CONNECTIONS, plan.sqlite_rounds
        )
        progress.did(_SQLITE, "SQLite")
    return results


@dataclass
class _Comparison:
    """All contestants beside each other, in rounds of one run of each operation."""

    plan: Plan
    load: Load
    database: Database
    folder: Path
    progress: Progress
    results: Results
    rounds: int = 0

    async def measure(self) -> None:
        for group in self.plan.groups:
            if self._has_time():
                await self._measure_group(group)
        if self.rounds < sum(map(len, self.plan.groups)):
            self.progress.did(0, f"there was time for {self.rounds} rounds only")

    async def _measure_group(self, group: Sequence[int]) -> None:
        with (
            running([BARE], self.folder, self.database.url) as [bare],
            running(CONTESTANTS, self.folder, self.database.url) as servers,
        ):
            await check_answers(self.database, servers)
            for server in servers:
                await self.load.run(server, MIX, CONNECTIONS)
            self.progress.did(_PROCESSES, "new processes are warm")
            for connections in group:
                if self._has_time():
                    await self._round(connections, servers, bare)
            memory = self.results.memory
            for server in servers:
                peak = proc.peak_memory(server.pid)
                memory[server.name] = max(peak, memory.get(server.name, 0))

    def _has_time(self) -> bool:
        return self.progress.elapsed <= self.plan.last_round

    async def _round(self, connections: int, servers: Sequence[Running], bare: Running) -> None:
        await self.database.tidy()
        # All in a row, and each first in its turn: a noisy minute hits them alike.
        first = self.rounds % len(servers)
        turn = (*servers[first:], *servers[:first])
        self.rounds += 1
        for operation in self.plan.operations:
            cell = [await self.load.run(server, operation, connections) for server in turn]
            self.results.runs += cell
            if operation is GET and connections == CONNECTIONS:
                self.results.bare.append(await self.load.run(bare, operation, connections))
            self.progress.did(
                _RUN * len(cell),
                f"round {self.rounds}, {connections} connections, {operation.name}: "
                + ", ".join(f"{run.contestant} {run.throughput:,.0f}/s" for run in cell),
            )
