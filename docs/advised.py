"""Keep what `make advise` found with a check on fresh seeds, and write docs/advised.md.

With two folders, that of an advice and that of a study with its tuned presets on further seeds, it
keeps both in results/advise: `PYTHONPATH=. .venv/bin/python docs/advised.py runs/advice/NAME
runs/studies/CHECK`. Without arguments it writes the page; `make docs` does so too.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from advice_answer import answer
from scipy.stats import ttest_ind

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
    made = provenance(collect(load_study(check)))
    content = {
        **{name: made[name] for name in ("command", "machine", "versions")},
        "confirmation": accuracies(advice / "confirm"),
        "by hand": accuracies(check),
    }
    (to / CHECK).write_text(json.dumps(content, indent=1) + "\n")


def accuracies(study: Path) -> dict[str, dict[int, float]]:
    """Return the test accuracies of a study by variant and seed."""
    return {
        Path(arm.variant).stem: {seed: result.accuracy for seed, result in results.items()}
        for arm, results in collect(load_study(study)).results.items()
    }


def gains(check: dict[str, Any], source: str, one: Contrast) -> list[float]:
    """Return the gain of an arm for each seed that both of its sides have."""
    own, other = check[source][one.arm], check[source][one.against]
    return [own[seed] - other[seed] for seed in own if seed in other]


def row(name: str, one: Contrast) -> str:
    """Return a row of the table of gains."""
    return f"| {name} | {one.seeds} | {points(one.gain)} | {interval(one)} |"


def verdict(promised: Contrast, confirmed: list[float], found: list[float]) -> str:
    """Compare the gain by hand with the interval of the confirmation, and with its gains."""
    if promised.low is None or promised.high is None:
        return "The confirmation had too few pairs for an interval: it promised nothing."
    inside = promised.low <= fmean(found) <= promised.high
    # Both means are uncertain: the interval is of the first one alone.
    test = ttest_ind(found, confirmed[: promised.seeds], equal_var=False).confidence_interval()
    change = Contrast("", "", 0, fmean(found) - promised.gain, test.low, test.high)
    return (
        f"The gain by hand is {'within' if inside else '**outside**'} the interval of the "
        f"confirmation. It differs from it by {points(change.gain)} points (Welch's interval: "
        f"{interval(change)})."
    )


def section(folder: Path) -> list[str]:
    """Return the section of one advice."""
    advice, check = load_advice(folder), json.loads((folder / CHECK).read_text())
    assert advice.confirmation is not None
    promised = advice.confirmation.looks[-1].contrasts[0]
    confirmed, found = (gains(check, source, promised) for source in ("confirmation", "by hand"))
    estimate = paired_estimate(found)
    by_hand = replace(
        promised, seeds=len(found), gain=estimate.mean, low=estimate.low, high=estimate.high
    )
    seeds = list(check["by hand"][promised.arm])
    return [
        f"## {advice.question.name}",
        "",
        *answer(advice),
        f"| {promised.arm} over {promised.against} | seeds | gain, points | 95 % interval |",
        "| --- | --- | --- | --- |",
        row("confirmation", promised),
        row(f"by hand, seeds {seeds[0]} to {seeds[-1]}", by_hand),
        "",
        verdict(promised, confirmed, found),
        "",
        "```sh",
        # The same presets, where they are kept.
        check["command"].replace("runs/advice/", "results/advise/"),
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
        "All ran with `JOBS=1`, two side by side and beside other programs, so that a budget here",
        "holds fewer runs than on two free cores. Except on TREC, the trainings had fewer steps",
        "than those of the presets, which favours what learns fast, such as batch norm.",
        "",
        "The mean by hand is uncertain too. If both are of the same distribution, with n pairs",
        "each, the mean by hand is within the 95 % interval of the confirmation with the",
        "probability P(|T| < t / √2), where T has Student's t distribution with n - 1 degrees of",
        "freedom and t is its 97.5 % quantile: 88 % for 5 pairs, 86 % for 10.",
        "",
    ]
    for file in sorted(RESULTS.glob(f"*/{CHECK}")):
        lines += section(file.parent)
    (DOCS / "advised.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
