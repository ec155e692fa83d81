"""Which test examples a regularizer gets right that the baseline got wrong."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from study.results import Result, same_everywhere

SHOWN = 12


@dataclass(frozen=True)
class Example:
    """A test example, and how often it was taken for which class.

    Args:
        index: Its place in the test split.
        label: Its class.
        before: Number of seeds of the baseline by the class predicted.
        after: The same of the variant.
    """

    index: int
    label: int
    before: dict[int, int]
    after: dict[int, int]


@dataclass(frozen=True)
class Fixed:
    """The worst mistakes that a variant fixed.

    Args:
        of: A run whose test split holds them.
        examples: The worst ones.
        total: Number of test examples that more seeds of the variant get right.
        reverse: Number of those that fewer do.
    """

    of: Result
    examples: list[Example]
    total: int
    reverse: int


def fixed_mistakes(baseline: Mapping[int, Result], variant: Mapping[int, Result]) -> Fixed | None:
    """Find the test examples that most seeds of a variant get right and of the baseline wrong.

    Ties are ordered by how sure the baseline was. Where each seed has its own test examples, only
    those of the first seed are looked at.

    Returns:
        None if there are none.
    """
    seeds = sorted(set(baseline) & set(variant))
    if seeds and not same_everywhere([*baseline.values(), *variant.values()]):
        seeds = seeds[:1]
    if not seeds:
        return None
    before = np.stack([baseline[seed].hits for seed in seeds])
    after = np.stack([variant[seed].hits for seed in seeds])
    fixed = after.sum(axis=0) - before.sum(axis=0)
    sure = np.stack([baseline[s].record["predictions"]["confidence"] for s in seeds])
    confidence = np.where(before, 0.0, sure).mean(axis=0)
    order = np.lexsort((-confidence, -fixed))
    chosen = [int(place) for place in order[:SHOWN] if fixed[place] > 0]
    if not chosen:
        return None

    def counts(results: Mapping[int, Result], place: int) -> dict[int, int]:
        taken = (results[seed].record["predictions"]["predicted"][place] for seed in seeds)
        return dict(Counter(taken))

    first = baseline[seeds[0]]
    labels = first.record["predictions"]["label"]
    return Fixed(
        first,
        [
            Example(place, labels[place], counts(baseline, place), counts(variant, place))
            for place in chosen
        ],
        int((fixed > 0).sum()),
        int((fixed < 0).sum()),
    )
