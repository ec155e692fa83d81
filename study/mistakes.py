"""Test examples that the baseline misclassified and a variant classifies correctly."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from study.results import Result, same_test_examples

MOST_EXAMPLES = 12


@dataclass(frozen=True)
class Example:
    """A test example and how often each class was predicted for it.

    Args:
        index: Its index in the test split.
        label: Its class.
        before: For each predicted class, the number of seeds of the baseline.
        after: The same for the variant.
    """

    index: int
    label: int
    before: dict[int, int]
    after: dict[int, int]


@dataclass(frozen=True)
class FixedMistakes:
    """The largest mistakes that a variant fixed.

    Args:
        of: A run whose test split holds them.
        examples: Those with the largest difference in the number of correct seeds.
        total: Number of test examples that more seeds of the variant classify correctly.
        reverse: Number of those that fewer seeds do.
    """

    run: Result
    examples: list[Example]
    total: int
    reverse: int


def fixed_mistakes(
    baseline: Mapping[int, Result], variant: Mapping[int, Result]
) -> FixedMistakes | None:
    """Find the test examples that more seeds of a variant than of the baseline get right.

    Ties are ordered by the confidence of the baseline. If each seed has its own test examples,
    only the first seed is used.

    Returns:
        None if the variant fixed no mistake.
    """
    seeds = sorted(set(baseline) & set(variant))
    if seeds and not same_test_examples([*baseline.values(), *variant.values()]):
        seeds = seeds[:1]
    if not seeds:
        return None
    before = np.stack([baseline[seed].hits for seed in seeds])
    after = np.stack([variant[seed].hits for seed in seeds])
    fixed = after.sum(axis=0) - before.sum(axis=0)
    sure = np.stack([baseline[s].record["predictions"]["confidence"] for s in seeds])
    confidence = np.where(before, 0.0, sure).mean(axis=0)
    order = np.lexsort((-confidence, -fixed))
    chosen = [int(index) for index in order[:MOST_EXAMPLES] if fixed[index] > 0]
    if not chosen:
        return None

    def counts(results: Mapping[int, Result], index: int) -> dict[int, int]:
        taken = (results[seed].record["predictions"]["predicted"][index] for seed in seeds)
        return dict(Counter(taken))

    first = baseline[seeds[0]]
    labels = first.record["predictions"]["label"]
    return FixedMistakes(
        first,
        [
            Example(index, labels[index], counts(baseline, index), counts(variant, index))
            for index in chosen
        ],
        int((fixed > 0).sum()),
        int((fixed < 0).sum()),
    )
