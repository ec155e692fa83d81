"""The benchmarks themselves; what they measure is in docs/benchmarks.md."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import measure
from benchmarks.__main__ import BENCHMARKS, cells
from benchmarks.measure import Row, compare, row

ROOT = Path(__file__).parent.parent


def test_each_benchmark_is_there_and_has_its_section():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for name, (module, title) in BENCHMARKS.items():
        assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), name))
        assert f"## {title}\n\n`make bench BENCH={name}`" in page


def test_the_page_is_that_of_the_results(tmp_path, monkeypatch):
    """A number that was edited by hand is found."""
    (tmp_path / "figures").mkdir()
    monkeypatch.setattr(command, "DOCS", tmp_path)
    command.write_page()
    made = (tmp_path / "benchmarks.md").read_text()
    assert made == (ROOT / "docs" / "benchmarks.md").read_text()


def test_ratios_are_taken_turn_by_turn():
    # A machine that is twice as slow in one turn is so for both.
    found = row("work", "peer", [1.0, 2.0, 1.1], [2.0, 4.0, 2.0], aim=0.6)
    assert (found.ratio, found.low, found.high) == (0.5, 0.5, pytest.approx(0.55))
    assert (found.ours, found.theirs) == (1.1, 2.0)
    assert found.met


def test_a_missed_aim_is_said():
    found = Row("work", "peer", 1.0, 1.0, 1.31, 1.2, 1.4, aim=1.3)
    assert "missed" in cells(found)[4]
    assert "missed" not in cells(Row("work", "peer", 1.0, 1.0, 1.3, 1.2, 1.4, aim=1.3))[4]


def test_both_take_as_many_turns_and_swap_their_order(monkeypatch):
    monkeypatch.setattr(measure, "TURN", 0.0)
    called = []
    compare("work", "peer", lambda: called.append(0), lambda: called.append(1), rounds=4)
    # Twice each to warm up and to see how long it takes; then the turns.
    assert called[-8:] == [0, 1, 1, 0, 0, 1, 1, 0]
    assert len(called) == 4 + 8


def test_an_unknown_benchmark_is_named():
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", "droput"], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 2
    assert "droput is not a benchmark; choose from dropout, " in ended.stderr
