# [Task]: T041 [From]: specs/requirements.md
"""The figures as Markdown tables, ready to be quoted."""

import re
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from benchmarks.contestants import CONTESTANTS, FASTIFY, FLOOR, OURS, USUAL
from benchmarks.load import Run
from benchmarks.measure import CONNECTIONS, Results
from benchmarks.sections import LINK, WORKER_CONNECTIONS, Workers
from benchmarks.sqlite import OnSQLite

_FIGURE = re.compile(r"[\d.,]*")

NAMES = [contestant.name for contestant in CONTESTANTS]


class Medians:
    """The medians of the rounds of each contestant's runs, by operation and connections."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs: dict[tuple[str, int, str], list[Run]] = {}
        for run in runs:
            key = run.operation, run.connections, run.contestant
            self._runs.setdefault(key, []).append(run)
        self.operations = list(dict.fromkeys(operation for operation, _, _ in self._runs))
        self.connections = sorted({connections for _, connections, _ in self._runs})

    def of(
        self, figure: Callable[[Run], float], operation: str, contestant: str, connections: int
    ) -> float:
        return median(map(figure, self._runs[operation, connections, contestant]))

    def throughput(self, operation: str, contestant: str, connections: int = CONNECTIONS) -> float:
        return self.of(lambda run: run.throughput, operation, contestant, connections)

    def tail(self, operation: str, contestant: str) -> float:
        """p99 as a multiple of p50."""
        p99 = self.of(lambda run: run.p99, operation, contestant, CONNECTIONS)
        return p99 / self.of(lambda run: run.p50, operation, contestant, CONNECTIONS)


def tables(results: Results) -> str:
    medians = Medians(results.runs)
    parts = [_other_load(results.runs), _main_table(medians), _ratios(medians)]
    if len(medians.connections) > 1:
        parts.append(_by_connections(medians))
    parts.append(_memory(results.memory))
    if results.workers:
        parts.append(_workers(results.workers))
    if results.link:
        parts.append(_link(results))
    if results.starts:
        parts.append(_starts(results))
    if results.sqlite:
        parts.append(_sqlite(results.sqlite))
    return "\n\n".join(parts) + "\n"


def _other_load(runs: Sequence[Run]) -> str:
    others = [run.others for run in runs]
    return (
        f"Meanwhile {median(others):.2f} cores were busy with something else, "
        f"{max(others):.2f} at worst."
    )


def _main_table(medians: Medians) -> str:
    figures: dict[str, Callable[[Run], float]] = {
        "requests/s": lambda run: run.throughput,
        "p50 ms": lambda run: run.p50,
        "p99 ms": lambda run: run.p99,
        "CPU µs/request": lambda run: run.cpu,
        "PostgreSQL's": lambda run: run.database_cpu,
    }
    rows = [
        [operation if name == NAMES[0] else "", name]
        + [number(medians.of(f, operation, name, CONNECTIONS)) for f in figures.values()]
        for operation in medians.operations
        for name in NAMES
    ]
    return _titled(
        f"{CONNECTIONS} connections, one process each",
        table(["", "", *figures], rows),
    )


def _ratios(medians: Medians) -> str:
    others = (USUAL.name, FASTIFY.name, FLOOR.name)
    rows = []
    for operation in medians.operations:
        ours = medians.throughput(operation, OURS.name)
        cpu, usual_cpu = (
            medians.of(lambda run: run.cpu, operation, name, CONNECTIONS)
            for name in (OURS.name, USUAL.name)
        )
        rows.append(
            [operation]
            + [f"{ours / medians.throughput(operation, other):.2f}" for other in others]
            + [f"{cpu / usual_cpu:.2f}"]
            + [f"{medians.tail(operation, name):.1f}" for name in (OURS.name, FASTIFY.name)]
        )
    head = ["", *(f"times {other}" for other in others), f"CPU, times {USUAL.name}"]
    head += ["p99/p50", f"p99/p50 of {FASTIFY.name}"]
    return _titled("This service in terms of the others", table(head, rows))


def _by_connections(medians: Medians) -> str:
    rows = [
        [operation if name == NAMES[0] else "", name]
        + [number(medians.throughput(operation, name, n)) for n in medians.connections]
        for operation in medians.operations
        for name in NAMES
    ]
    head = ["", "", *map(str, medians.connections)]
    return _titled("Requests per second by connections", table(head, rows))


def _memory(memory: dict[str, float]) -> str:
    rows = [[name, number(mib)] for name, mib in memory.items()]
    return _titled("Memory of one process, at most", table(["", "MiB"], rows))


def _workers(workers: Workers) -> str:
    medians = {count: Medians(runs) for count, runs in workers.runs.items()}
    [one, several] = medians.values()
    rows = []
    for operation in one.operations:
        before, after = (
            m.throughput(operation, OURS.name, WORKER_CONNECTIONS) for m in (one, several)
        )
        rows.append(
            [f"{operation}, requests/s", number(before), number(after), f"{after / before:.2f}"]
        )
    rows.append(
        ["memory in use, shared pages counted once, MiB", *map(number, workers.memory.values()), ""]
    )
    rows.append(["connections to PostgreSQL", *map(str, workers.connections.values()), ""])
    head = ["", *(f"workers: {n}" for n in medians), "ratio"]
    return _titled(f"Workers, {WORKER_CONNECTIONS} connections", table(head, rows))


def _link(results: Results) -> str:
    milliseconds = 2 * LINK * 1e3
    head = [""]
    for name in results.link:
        head += [f"{name}, ms", "÷ link", "database round trips"]
    rows = []
    for operation in next(iter(results.link.values())).latency:
        row = [operation]
        for link in results.link.values():
            latency = link.latency[operation]
            row += [f"{latency:.1f}", f"{latency / milliseconds:.2f}"]
            row.append(f"{link.round_trips[operation]:g}")
        rows.append(row)
    return _titled(
        f"One request at a time, the database {milliseconds:.0f} ms away", table(head, rows)
    )


def _starts(results: Results) -> str:
    rows = [
        [name, number(median(start.imports)), number(median(start.starts))]
        for name, start in results.starts.items()
    ]
    return _titled("Start", table(["", "import, ms", "until the first answer, ms"], rows))


def number(value: float) -> str:
    """With three digits that count, and thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _sqlite(figures: OnSQLite) -> str:
    rows = [
        [operation, number(on_postgresql), number(on_sqlite), f"{on_sqlite / on_postgresql:.2f}"]
        for operation, (on_postgresql, on_sqlite) in figures.items()
    ]
    head = ["requests/s", "on PostgreSQL", "on SQLite", "ratio"]
    return _titled("This service on SQLite", table(head, rows))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; figures stand on the right."""
    rows = list(rows)
    rules = [
        "---:" if all(_FIGURE.fullmatch(cell) for cell in column) else "---"
        for column in zip(*rows, strict=True)
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rules, *rows))


def _titled(title: str, text: str) -> str:
    return f"### {title}\n\n{text}"
