"""The verdict on a gain table, which claims no more than the statistics support."""

from collections.abc import Sequence

from study.factorial import effects_sentence
from study.gain_table import (
    ALL_PARTS,
    NOT_KNOWN,
    GainTable,
    count,
    format_interval,
    format_points,
    join,
)
from study.statistics import FEWEST_SEEDS, MOST_SEEDS, Comparison


def verdict(table: GainTable) -> str:
    """Summarize a table in one sentence; "best" means significantly better than all others.

    In a factorial study, a sentence on the effects of the factors comes first.

    A variant with runs at chance accuracy is not reported as having no significant effect: its
    training failed, which says nothing about its effect when training works.
    """
    at_chance = [index for index, one in enumerate(table.comparisons) if one.at_chance]
    parts = [effects_sentence(table), _summary(table, at_chance)]
    if not table.effect:
        parts.append(_not_after_correction(table, at_chance))
    parts += [_at_chance(table, at_chance)] if at_chance else []
    return " ".join(filter(None, parts))


def _summary(table: GainTable, at_chance: Sequence[int]) -> str:
    """Summarize the gains, unless there are too few runs."""
    if len(table.arms) < 2:
        return "Nothing to compare yet: only one variant has results."
    common = set.intersection(*(set(results) for results in table.results))
    if len(common) < FEWEST_SEEDS:
        return (
            f"{count(len(common), 'seed')} for all variants: a confidence interval needs at least "
            f"{FEWEST_SEEDS}, so no claim is made."
        )
    if table.effect:
        parts = _outcomes(table)
    else:
        parts = (_contributions if table.ablation else _effects)(table, at_chance)
    said = "; ".join(parts)
    if said.startswith(ALL_PARTS):
        # Not a name, unlike those of variants and parts.
        said = said[0].upper() + said[1:]
    return said + f" ({count(len(common), 'paired seed')})."


def _effects(table: GainTable, at_chance: Sequence[int]) -> list[str]:
    """Name the variants that gain, that lose, and that do not differ significantly."""
    labels, baseline = table.labels, table.labels[0]
    gains = [p for p, one in enumerate(table.comparisons) if one.significant and _gain(one) > 0]
    losses = [p for p, one in enumerate(table.comparisons) if one.significant and _gain(one) < 0]
    trained = [p for p in range(1, len(labels)) if p not in at_chance and 0 not in at_chance]
    undecided = [labels[p] for p in trained if p not in gains and p not in losses]
    near = table.best
    parts = []
    if not gains and len(trained) == len(labels) - 1:
        parts.append(f"No variant is significantly better than {baseline}")
    elif not gains:
        names = [labels[p] for p in trained]
        not_better = f"{_subject(names, 'is', 'are')} not significantly better than {baseline}"
        parts.append(not_better if names else "No gain can be measured")
    elif len(near) == 1:
        parts.append(f"Best is {labels[near[0]]}: {_gain_text(table, near[0])} over {baseline}")
    else:
        top = max(gains, key=lambda index: table.comparisons[index].mean)
        parts.append(f"{labels[top]} gains {_gain_text(table, top)} over {baseline}")
        others = [index for index in gains if index != top]
        if others:
            subject = _subject([labels[index] for index in others], "is", "are")
            parts.append(f"{subject} significantly better too")
        # The baseline is significantly worse than at least one of them.
        tied = [labels[index] for index in near if index != 0]
        if len(tied) > 1:
            parts.append(f"{join(tied)} are statistically tied for best")
    if losses:
        names = [labels[index] for index in losses]
        parts.append(f"{_subject(names, 'is', 'are')} significantly worse")
    if undecided and (gains or losses):
        subject = _subject(undecided, "does", "do")
        parts.append(f"{subject} not differ significantly from {baseline}")
    return parts


def _contributions(table: GainTable, at_chance: Sequence[int]) -> list[str]:
    """Say what each part of a recipe contributes."""
    shown = [i for i, one in enumerate(table.comparisons) if one.significant]
    parts = _shown(table, shown)
    open_ones = [
        name
        for index, name in enumerate(table.subjects)
        if index and index not in shown and index not in at_chance and 0 not in at_chance
    ]
    if open_ones:
        parts.append(f"no significant contribution of {join(open_ones)}")
    if not parts:
        return ["No contribution can be measured"]
    return [parts[0][0].upper() + parts[0][1:] if not shown else parts[0], *parts[1:]]


def _shown(table: GainTable, shown: Sequence[int]) -> list[str]:
    """Name gains and losses with their intervals, the largest gain first."""
    ordered = sorted(shown, key=lambda index: -_gain(table.comparisons[index]))
    over, baseline = " over", table.labels[0]
    parts = []
    for index in ordered:
        gains = _gain(table.comparisons[index]) > 0
        text = _gain_text(table, index) if gains else _loss_text(table, index)
        if table.ablation:
            does = "contributes" if gains else "costs"
            if table.subjects[index] == ALL_PARTS:
                does = "together contribute" if gains else "together cost"
            parts.append(f"{table.subjects[index]} {does} {text}")
        else:
            parts.append(f"{table.labels[index]} {'gains' if gains else 'loses'} {text}")
            if over:
                parts[-1] += f"{over} {baseline}"
                over = ""
    return parts


def _outcomes(table: GainTable) -> list[str]:
    """Say what is known of each gain, given the smallest effect of interest."""
    by_outcome = {
        wanted: [i for i, one in enumerate(table.comparisons) if one.outcome == wanted]
        for wanted in ("gains", "loses", "practically equal", NOT_KNOWN)
    }
    parts = _shown(table, [*by_outcome["gains"], *by_outcome["loses"]])
    points = 100 * table.effect
    zone = f"within {points:g} point{'' if points == 1 else 's'}"
    if equal := [table.subjects[index] for index in by_outcome["practically equal"]]:
        if table.ablation:
            subject = f"the contribution of {join(equal)} is practically zero"
        else:
            subject = f"{_subject(equal, 'is', 'are')} practically equal to {table.labels[0]}"
        parts.append(f"{subject} ({zone})")
    for index in by_outcome[NOT_KNOWN]:
        parts.append(f"{table.subjects[index]}: {not_known(table.comparisons[index])}")
    return parts or ["No gain can be measured"]


def not_known(one: Comparison) -> str:
    """Say that a gain is not known yet, and how many seeds would tell."""
    if one.more_seeds is None:
        return f"{NOT_KNOWN}; {MOST_SEEDS} seeds would not be enough to tell"
    seeds = count(one.more_seeds, "more seed")
    return f"{NOT_KNOWN}; about {seeds} would tell"


def _not_after_correction(table: GainTable, at_chance: Sequence[int]) -> str:
    """Name the variants whose interval excludes 0 although the corrected p does not."""
    names = [
        label
        for index, (label, one) in enumerate(zip(table.subjects, table.comparisons, strict=True))
        if one.only_uncorrected and index not in at_chance and 0 not in at_chance
    ]
    if not names:
        return ""
    return (
        f"The interval{'s' * (len(names) > 1)} of {_subject(names, 'excludes', 'exclude')} 0, but "
        f"the {table.quantity}{' is' if len(names) == 1 else 's are'} not significant after Holm's "
        "correction."
    )


def _at_chance(table: GainTable, at_chance: Sequence[int]) -> str:
    """Name the runs whose training stayed at chance accuracy."""
    parts = []
    for index in at_chance:
        one = table.comparisons[index]
        seeds = join([str(seed) for seed in one.at_chance])
        which = f"seed{'s' if len(one.at_chance) > 1 else ''} {seeds}"
        total = count(len(one.accuracies), "run")
        parts.append(f"{len(one.at_chance)} of {total} of {table.labels[index]} ({which})")
    return f"Training stayed at chance accuracy in {join(parts)}: see the logs for the fix."


def _gain(one: Comparison) -> float:
    return one.gain.mean if one.gain else 0.0


def _gain_text(table: GainTable, index: int) -> str:
    gain = table.comparisons[index].gain
    return f"{format_points(gain)} points ({format_interval(gain)})"


def _loss_text(table: GainTable, index: int) -> str:
    """Write a loss, which its verb names, without a sign."""
    gain = table.comparisons[index].gain
    if gain is None or gain.low is None or gain.high is None:
        return _gain_text(table, index)
    return f"{-100 * gain.mean:.2f} points ({-100 * gain.high:.2f} to {-100 * gain.low:.2f})"


def _subject(names: Sequence[str], singular: str, plural: str) -> str:
    return f"{join(names)} {singular if len(names) == 1 else plural}"
