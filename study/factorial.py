"""Main effects and the interaction of dropout and normalization."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from study.designs import (
    BOTH,
    DROPOUT,
    FACTORIAL,
    KINDS,
    NONE,
    NORMALIZATION,
    WITHOUT,
    WITHOUT_BOTH,
)
from study.gain_table import GainTable, format_interval, format_points
from study.results import Result
from study.statistics import LEVEL, Estimate, holm, p_value, paired_estimate, split_overlap

INTERACTION = "interaction"
# Weights of the four variants in each effect. The effect of a factor is averaged over the other
# one; the interaction is the effect of dropout with a norm minus that without.
WEIGHTS = {
    DROPOUT: {NONE: -0.5, DROPOUT: 0.5, NORMALIZATION: -0.5, BOTH: 0.5},
    NORMALIZATION: {NONE: -0.5, DROPOUT: -0.5, NORMALIZATION: 0.5, BOTH: 0.5},
    INTERACTION: {NONE: 1.0, DROPOUT: -1.0, NORMALIZATION: -1.0, BOTH: 1.0},
}
COLUMNS = ["effect", "seeds", "points", "95 % interval", "p (Holm)"]


@dataclass(frozen=True)
class Effect:
    """One effect on the test accuracy, a fraction.

    Args:
        name: `dropout`, `normalization` or `interaction`.
        seeds: Number of seeds that all four variants have.
        estimate: Mean over seeds with its t interval.
        p: p-value of a paired t test for no effect, with Holm's correction for the three effects.
    """

    name: str
    seeds: int
    estimate: Estimate
    p: float | None

    @property
    def significant(self) -> bool:
        """Whether the effect differs from zero at the 5 % level, after Holm's correction."""
        return self.p is not None and self.p < 1 - LEVEL

    @property
    def cells(self) -> list[str]:
        """The cells of its row in a table with the columns `COLUMNS`."""
        return [
            self.name,
            f"{self.seeds}",
            format_points(self.estimate),
            format_interval(self.estimate),
            "" if self.p is None else f"{self.p:.2g}",
        ]


def factorial_results(table: GainTable) -> dict[str, Mapping[int, Result]]:
    """Return the results of the four variants: `none`, `dropout`, `normalization` and `both`.

    With the design `kinds`, all four have the rest of the recipe.

    Returns:
        Empty if the study has no such variants, or one of them has no results.
    """
    results = dict(zip(table.labels, table.results, strict=True))
    if table.design == KINDS:
        labels = {
            BOTH: table.labels[0],
            DROPOUT: f"{WITHOUT}{NORMALIZATION}",
            NORMALIZATION: f"{WITHOUT}{DROPOUT}",
            NONE: NONE,
        }
        # A recipe with further kinds has a variant that keeps them; it may have no results yet.
        if set(results) - set(labels.values()):
            labels[NONE] = WITHOUT_BOTH
    elif table.design == FACTORIAL:
        labels = {name: name for name in (NONE, DROPOUT, NORMALIZATION, BOTH)}
    else:
        return {}
    if not set(labels.values()) <= set(results):
        return {}
    return {name: results[label] for name, label in labels.items()}


def effects(table: GainTable) -> list[Effect]:
    """Estimate the effects of dropout and normalization from seeds that all four variants have.

    Returns:
        The three effects; none if the study has no such variants, or one has no results.
    """
    results = factorial_results(table)
    if not results:
        return []
    seeds = sorted(set.intersection(*(set(found) for found in results.values())))
    if not seeds:
        return []
    overlap = max(split_overlap(results[NONE], found, seeds) for found in results.values())
    values = {
        name: [sum(w * results[arm][s].accuracy for arm, w in weights.items()) for s in seeds]
        for name, weights in WEIGHTS.items()
    }
    corrected = holm([p_value(one, overlap) for one in values.values()])
    return [
        Effect(name, len(seeds), paired_estimate(one, overlap), p)
        for (name, one), p in zip(values.items(), corrected, strict=True)
    ]


def effects_sentence(table: GainTable) -> str:
    """Summarize the effects; empty if there are none, no intervals, or runs at chance accuracy.

    A training that failed says nothing about the effect of a factor when training works.
    """
    found = effects(table)
    runs = (run for variant in factorial_results(table).values() for run in variant.values())
    failed = any(run.at_chance for run in runs)
    if not found or failed or any(one.estimate.low is None for one in found):
        return ""
    dropout, norm, interaction = found
    said = (
        f"Main effect of dropout: {_figures(dropout)}, of normalization: {_figures(norm)}. "
        f"Interaction: {_figures(interaction)}"
    )
    if not interaction.significant:
        return f"{said}."
    change = "larger" if interaction.estimate.mean > 0 else "smaller"
    return f"{said}: the gain of dropout is {change} with normalization than without it."


def effects_markdown(found: Sequence[Effect]) -> str:
    """Return the table of effects in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(one.cells for one in found)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _figures(one: Effect) -> str:
    note = "" if one.significant else ", not significant"
    return f"{format_points(one.estimate)} points ({format_interval(one.estimate)}{note})"
