# [Task]: T041 [From]: specs/requirements.md
"""What is to be reached (specs/requirements.md, PERF-1 and PERF-3), and whether it was."""

from statistics import median
from typing import NamedTuple

from benchmarks.contestants import BARE, FASTIFY, OURS, USUAL
from benchmarks.measure import CONNECTIONS, Results
from benchmarks.operations import COMPLETE, DELETE, GET, LIST, POST, PUT, SINGLE_OPERATIONS
from benchmarks.report import Medians, table
from benchmarks.sections import LINK


class Target(NamedTuple):
    """`must` and `aim` are bounds from below where more is better, else from above."""

    name: str
    measured: float
    must: float
    aim: float

    def reaches(self, bound: float) -> bool:
        more_is_better = self.aim > self.must
        return self.measured >= bound if more_is_better else self.measured <= bound

    @property
    def verdict(self) -> str:
        if not self.reaches(self.must):
            return "**missed**"
        return "aim reached" if self.reaches(self.aim) else "reached"


def targets(results: Results) -> list[Target]:
    """All of them; the results must be those of a full run."""
    medians = Medians(results.runs)

    def times(operation: str, other: str) -> float:
        return medians.throughput(operation, OURS.name) / medians.throughput(operation, other)

    link = results.link[OURS.name]
    return [
        *(
            Target(f"{operation.name}, times {USUAL.name}", times(operation.name, USUAL.name), 4, 8)
            for operation in (GET, POST, PUT, COMPLETE)
        ),
        Target(f"{LIST.name}, times {USUAL.name}", times(LIST.name, USUAL.name), 4, 6),
        *(
            Target(
                f"{operation.name}, times {FASTIFY.name}",
                times(operation.name, FASTIFY.name),
                0.7,
                1,
            )
            for operation in (GET, POST, PUT, COMPLETE, DELETE)
        ),
        Target(f"{LIST.name}, times {FASTIFY.name}", times(LIST.name, FASTIFY.name), 1, 1.3),
        Target(
            f"CPU of {GET.name}, times {BARE.name}",
            medians.of(lambda run: run.cpu, GET.name, OURS.name, CONNECTIONS)
            / median(run.cpu for run in results.bare),
            2.2,
            1.6,
        ),
        Target(
            "p99 in terms of p50, at most",
            max(medians.tail(operation.name, OURS.name) for operation in SINGLE_OPERATIONS),
            3,
            2,
        ),
        Target("database round trips a request, at most", max(link.round_trips.values()), 1, 1),
        Target(
            "latency in terms of the link's, at most",
            max(link.latency.values()) / (2 * LINK * 1e3),
            1.3,
            1.1,
        ),
        Target("memory of one process under load, MiB", results.memory[OURS.name], 90, 80),
        Target("start, s", median(results.starts[OURS.name].starts) / 1e3, 1.5, 0.7),
    ]


def targets_table(reached: list[Target]) -> str:
    rows = [[t.name, f"{t.measured:.2f}", f"{t.must:g}", f"{t.aim:g}", t.verdict] for t in reached]
    return f"### Targets\n\n{table(['', 'measured', 'must', 'aim', ''], rows)}\n"
