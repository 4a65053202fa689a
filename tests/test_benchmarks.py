# [Task]: T041 [From]: specs/requirements.md
"""What of the benchmarks is arithmetic: medians, ratios, tables, the chart, /proc."""

import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from benchmarks import proc
from benchmarks.chart import LEFT, chart
from benchmarks.load import Run
from benchmarks.measure import Results
from benchmarks.operations import MIX
from benchmarks.report import NAMES, Medians, number, table, tables


def run(contestant: str, throughput: float, **figures: float) -> Run:
    others = {"p50": 2.0, "p99": 6.0, "cpu": 300.0, "database_cpu": 40.0, "others": 0.01}
    return Run("GET one", 32, contestant, throughput, **{**others, **figures})


@pytest.fixture
def results() -> Results:
    """Three rounds, in which each contestant is half as fast as the one before."""
    runs = [
        run(name, throughput / 2**n, cpu=300 * 2**n)
        for throughput in (4000, 1000, 3000)
        for n, name in enumerate(NAMES)
    ]
    return Results(runs, memory=dict.fromkeys(NAMES, 64.0))


def test_medians_are_of_the_rounds(results: Results) -> None:
    assert Medians(results.runs).throughput("GET one", NAMES[0]) == 3000
    # The tail is in terms of p50.
    assert Medians(results.runs).tail("GET one", NAMES[0]) == 3


class TestTables:
    def test_have_figures_and_ratios_of_what_was_measured(self, results: Results) -> None:
        text = tables(results)
        assert "| GET one | this service | 3,000 | 2 | 6 | 300 | 40 |" in text
        assert "| GET one | 2.00 | 4.00 | 8.00 | 0.50 | 3.0 | 3.0 |" in text
        assert "Workers" not in text

    def test_align_figures_on_the_right_in_three_digits(self) -> None:
        assert table(["", "MiB"], [["1st", "51"]]).splitlines()[1] == "| --- | ---: |"
        shown = {12345.6: "12,346", 100: "100", 12.345: "12.3", 0.5: "0.5"}
        assert {value: number(value) for value in shown} == shown


class TestChart:
    def test_has_bars_in_proportion(self) -> None:
        text = chart("Speed <s>", {"GET": dict(zip(NAMES, (400, 100, 200, 300), strict=True))})
        root = ElementTree.fromstring(text)  # noqa: S314  # our own words
        bars = [r for r in root.iterfind("{*}rect") if r.get("x") == str(LEFT)]
        widths = [float(bar.get("width", "0")) for bar in bars]
        assert [width / widths[1] for width in widths] == pytest.approx([4, 1, 2, 3], abs=0.01)


def test_figures_of_a_process_are_of_its_children_too() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= set(proc.family(os.getpid()))
        # The peak is not of its own memory alone.
        assert 1 < proc.memory(child.pid) <= proc.peak_memory(child.pid)
        child.communicate()
    assert child.pid not in proc.family(os.getpid())
    assert 0 < proc.cpu(os.getpid()) < proc.busy()


def test_mix_reads_four_times_out_of_five() -> None:
    requests = MIX.requests([1, 2], [3, 4])
    reads = [request for request in requests if request.method == "GET"]
    assert len(reads) / len(requests) == 0.8
