# [Task]: T041 [From]: specs/requirements.md
"""`python -m benchmarks`: measure, print tables, and keep them with raw figures and a chart."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import ROOT
from benchmarks.chart import chart
from benchmarks.database import open_database
from benchmarks.environment import environment
from benchmarks.measure import CONNECTIONS, FULL, QUICK, Plan, Results, measure
from benchmarks.report import NAMES, Medians, tables
from benchmarks.targets import targets, targets_table

RESULTS = ROOT / "benchmarks/results"


async def bench(plan: Plan, command: str) -> tuple[dict[str, str], Results]:
    with TemporaryDirectory(prefix="bench-") as folder:
        async with open_database() as database:
            facts = await environment(database, command)
            return facts, await measure(plan, database, Path(folder))


def save(stem: str, facts: dict[str, str], results: Results, text: str) -> None:
    """As STEM.json, STEM.md and STEM.svg."""
    medians = Medians(results.runs)
    throughput = {
        operation: {name: medians.throughput(operation, name) for name in NAMES}
        for operation in medians.operations
    }
    title = f"Requests per second, {CONNECTIONS} connections, one process each"
    RESULTS.mkdir(exist_ok=True)
    figures = json.dumps({**facts, **results.as_json()}, indent=1)
    (RESULTS / f"{stem}.json").write_text(figures + "\n")
    (RESULTS / f"{stem}.md").write_text(text)
    (RESULTS / f"{stem}.svg").write_text(chart(title, throughput))


def main() -> int:
    """The exit status: 1 if a full run misses what must be reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare speeds.")
    parser.add_argument("--quick", action="store_true", help="three operations, within a minute")
    quick: bool = parser.parse_args().quick
    plan, command, stem = (
        (QUICK, "make bench QUICK=1", "quick") if quick else (FULL, "make bench", "bench")
    )
    began = time.monotonic()
    facts, results = asyncio.run(bench(plan, command))
    facts["took"] = f"{time.monotonic() - began:.0f} s"
    text = "\n".join(f"{name}: {value}  " for name, value in facts.items())
    text += "\n\n" + tables(results)
    # A quick run measures too little for the rest, and is too short to judge by.
    reached = [] if quick else targets(results)
    if reached:
        text += "\n" + targets_table(reached)
    save(stem, facts, results, text)
    print(text, end="")
    return int(not all(target.reaches(target.must) for target in reached))


if __name__ == "__main__":
    sys.exit(main())
