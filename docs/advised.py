"""Keep what `make advise` found with a check on fresh seeds, and write docs/advised.md.

With two folders, that of an advice and that of a study with its tuned presets on further seeds, it
keeps both in results/advise: `PYTHONPATH=. .venv/bin/python docs/advised.py runs/advice/NAME
runs/studies/CHECK`. Without arguments it writes the page; `make docs` does so too.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from study.advising.commands import advise_command
from study.advising.records import ADVICE, Contrast, load_advice
from study.advising.sentence import interval, points
from study.page import provenance
from study.plan import load_study
from study.results import collect
from study.statistics import paired_estimate

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results" / "advise"
CHECK = "check.json"


def keep(advice: Path, check: Path) -> None:
    """Copy the results of an advice, and the test accuracies of a study that checks it."""
    to = RESULTS / advice.name
    to.mkdir(parents=True, exist_ok=True)
    for name in (ADVICE, "recommended.yaml"):
        shutil.copy(advice / name, to)
    shutil.copytree(advice / "tuned", to / "tuned", dirs_exist_ok=True)
    collection = collect(load_study(check))
    made = provenance(collection)
    accuracies = {
        Path(arm.variant).stem: {seed: result.accuracy for seed, result in results.items()}
        for arm, results in collection.results.items()
    }
    content = {
        **{name: made[name] for name in ("command", "machine", "versions")},
        "accuracies": accuracies,
    }
    (to / CHECK).write_text(json.dumps(content, indent=1) + "\n")


def by_hand(check: dict[str, Any], arm: str, baseline: str) -> Contrast:
    """Return the gain of an arm over the baseline on the seeds of a check, with a t interval."""
    own, other = check["accuracies"][arm], check["accuracies"][baseline]
    gain = paired_estimate([own[seed] - other[seed] for seed in own])
    return Contrast(arm, baseline, len(own), gain.mean, gain.low, gain.high)


def row(name: str, one: Contrast) -> str:
    """Return a row of the table of gains."""
    return f"| {name} | {one.seeds} | {points(one.gain)} | {interval(one)} |"


def verdict(promised: Contrast, found: Contrast) -> str:
    """Say whether a gain by hand is in the interval of the confirmation."""
    if promised.low is None or promised.high is None:
        return "The confirmation had too few pairs for an interval: it promised nothing."
    inside = promised.low <= found.gain <= promised.high
    return f"The gain by hand is {'within' if inside else 'OUTSIDE'} the interval."


def section(folder: Path) -> list[str]:
    """Return the section of one advice."""
    advice, check = load_advice(folder), json.loads((folder / CHECK).read_text())
    assert advice.confirmation is not None
    assert advice.recommendation is not None
    promised = advice.confirmation.looks[-1].contrasts[0]
    found = by_hand(check, promised.arm, promised.against)
    seeds = list(check["accuracies"][promised.arm])
    return [
        f"## {advice.question.name}",
        "",
        "```sh",
        advise_command(advice.question),
        "```",
        "",
        f"> {advice.recommendation.sentence}",
        "",
        *(f"- {note}" for note in advice.recommendation.notes),
        "",
        f"| {promised.arm} over {promised.against} | seeds | gain, points | 95 % interval |",
        "| --- | --- | --- | --- |",
        row("confirmation", promised),
        row(f"by hand, seeds {seeds[0]} to {seeds[-1]}", found),
        "",
        verdict(promised, found),
        "",
        "```sh",
        check["command"],
        "```",
        "",
        f"Machine: {check['machine']}; {check['versions']}. "
        f"Results: [{folder.name}](../results/advise/{folder.name}).",
        "",
    ]


def main() -> None:
    """Keep an advice and its check, or write the page."""
    if sys.argv[1:]:
        keep(*map(Path, sys.argv[1:]))
        return
    lines = [
        "# Advice, checked",
        "",
        "What `make advise` ([advise.md](advise.md)) recommended, and the same comparison made by",
        "hand: the tuned presets of the advice on further seeds, which neither the tuning nor the",
        "confirmation used. `make docs` writes this page from [results](../results/advise).",
        "",
    ]
    for folder in sorted(RESULTS.iterdir()):
        lines += section(folder)
    (DOCS / "advised.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
