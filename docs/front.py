"""Fill the tables of README.md from results/; `make docs` runs it."""

from pathlib import Path

from blocks import fill

from study.gain_table import gain_tables
from study.plan import load_study
from study.results import collect

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"
TASKS = ("vision", "speech", "nlp")


def builtin_gains() -> list[str]:
    """Return the table of `both` over `none` on the builtin data."""
    lines = [
        "| task | `none` | `both` | gain, points, 95 % interval |",
        "| --- | --- | --- | --- |",
    ]
    for task in TASKS:
        collection = collect(load_study(RESULTS / "studies" / f"{task}-builtin"))
        (table,) = gain_tables(collection)
        none, both = (table.comparisons[table.labels.index(name)] for name in ("none", "both"))
        assert both.gain is not None
        assert both.gain.low is not None
        assert both.gain.high is not None
        gain, low, high = (100 * one for one in (both.gain.mean, both.gain.low, both.gain.high))
        cells = [task, f"{100 * none.mean:.1f} %", f"{100 * both.mean:.1f} %"]
        lines.append(f"| {' | '.join(cells)} | {gain:+.1f} ({low:+.1f} to {high:+.1f}) |")
    return lines


def main() -> None:
    """Write the tables."""
    fill(DOCS.parent / "README.md", {"builtin": builtin_gains()})


if __name__ == "__main__":
    main()
