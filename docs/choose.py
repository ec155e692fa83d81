"""Write docs/choose.md, the guide, with the measurement behind each rule; `make docs` runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from effects import Place, accuracy, changes, places
from effects import read as read_effect

from study.advising.records import load_advice
from study.results import Result
from study.statistics import paired_estimate

DOCS = Path(__file__).parent
ADVICES = DOCS.parent / "results" / "advise"


@dataclass(frozen=True)
class Rule:
    """A rule of the guide.

    Args:
        when: The situation: data, model or symptom.
        use: What to do, where, and how much.
        evidence: What was measured, with links.
    """

    when: str
    use: str
    evidence: tuple[str, ...]


def interval(mean: float, low: float | None, high: float | None, decimals: int = 1) -> str:
    """Return a gain in points and its interval."""
    assert low is not None
    assert high is not None
    return f"{mean:+.{decimals}f} ({low:+.{decimals}f} to {high:+.{decimals}f})"


def advised(name: str, arm: str, what: str) -> str:
    """Return the gain of a tuned arm over the tuned baseline."""
    advice = load_advice(ADVICES / name)
    assert advice.confirmation is not None
    found = {one.arm: one for one in advice.confirmation.looks[-1].contrasts}[arm]
    low, high = ((one if one is None else 100 * one) for one in (found.low, found.high))
    where = "advise.md#checked" if "planted" in name else f"advised.md#{name}"
    return f"[{what}]({where}): {interval(100 * found.gain, low, high)}"


def effect(
    study: str,
    what: str,
    place: Place,
    against: Place,
    measure: Callable[[Result], float] = accuracy,
    page: str = "published.md",
) -> str:
    """Return the gain of one variant over another in a study of results/effects."""
    found = paired_estimate(
        list(changes(places(read_effect(study)), place, against, measure).values())
    )
    return f"[{what}]({page}): {interval(found.mean, found.low, found.high)}"


def table(rules: list[Rule]) -> list[str]:
    """Return the table of some rules."""
    lines = ["| if | then | measured, points of test accuracy |", "| --- | --- | --- |"]
    return [
        *lines,
        *(f"| {rule.when} | {rule.use} | {'; '.join(rule.evidence)} |" for rule in rules),
    ]
