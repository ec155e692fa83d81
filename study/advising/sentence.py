"""The sentence of an advice: what to do, and what it gains."""

from math import ceil
from pathlib import Path
from typing import Any

from study.advising.choice import is_confirmed, last_contrasts, preset_of
from study.advising.records import Advice, Contrast
from study.advising.standing import never_trained, trained_arms, tuned, validation_accuracy
from study.advising.words import in_words, preset_in_words
from study.gain_table import join
from study.parts import Part, parts_of

# Other arms that are named in the sentence.
MOST_NAMED = 2


def points(fraction: float) -> str:
    """Format a difference of fractions in points, with its sign.

    Example:
        >>> points(0.0192), points(-0.00001)
        ('+1.9', '0.0')
    """
    text = f"{100 * fraction:+.1f}"
    return "0.0" if float(text) == 0 else text


def interval(one: Contrast) -> str:
    """Format the interval of a contrast; without one, say so.

    Example:
        >>> interval(Contrast("dropout", "none", 5, 0.02, 0.008, 0.03))
        '0.8 to 3.0'
        >>> interval(Contrast("dropout", "none", 5, 0.01, -0.002, 0.02))
        '-0.2 to +2.0'
    """
    if one.low is None or one.high is None:
        return "no interval"
    if one.low > 0:
        return f"{100 * one.low:.1f} to {100 * one.high:.1f}"
    return f"{points(one.low)} to {points(one.high)}"


class Speaker:
    """Describes the arms of an advice.

    Args:
        advice: The advice.
        folder: Its folder.
    """

    def __init__(self, advice: Advice, folder: Path) -> None:
        self.advice = advice
        self.task = advice.question.task
        self.folder = folder

    def config(self, arm: str) -> dict[str, Any]:
        """Return the tuned configuration of an arm."""
        return preset_of(self.folder, arm)

    def parts(self, arm: str) -> list[Part]:
        """Return what an arm turns on."""
        return parts_of(self.config(arm), self.task)

    def name(self, arm: str) -> str:
        """Return what an arm turns on, in words; its name if nothing."""
        if not tuned(self.advice, arm).preset:
            return f"the arm {arm}"
        return preset_in_words(self.config(arm), self.task) or f"the arm {arm}"

    def subject(self, arm: str, verb: str) -> str:
        """Return what an arm turns on, with a verb; `together` if that is more than one part."""
        if len(self.parts(arm)) < 2:
            return f"{self.name(arm)} {verb}"
        return f"{self.name(arm)} together {'are' if verb == 'is' else verb.removesuffix('s')}"

    def baseline(self, arm: str) -> str:
        """Name the tuned baseline, with what it turns on; what an arm turns on in its place."""
        if arm != self.advice.tuning[0].arm:
            return self.name(arm)
        words = preset_in_words(self.config(arm), self.task)
        return f"the tuned baseline ({words})" if words else "the tuned baseline"

    def change(self, arm: str, baseline: str) -> str:
        """Say what to do to get from the baseline to an arm."""
        before = {part.name for part in self.parts(baseline)}
        own = self.parts(arm)
        kept = [part for part in own if part.name in before]
        added = [part for part in own if part.name not in before]
        lost = [part for part in self.parts(baseline) if part.name not in {p.name for p in own}]
        config = self.config(arm)
        said = []
        if added:
            said.append(f"{'add' if kept else 'use'} {in_words(added, config)}")
        if kept:
            said.append(f"keep {in_words(kept, config)}")
        if lost:
            said.append(f"leave {in_words(lost, self.config(baseline))} out")
        text = join(said) or f"train as the arm {arm} does, with its learning rate and length"
        return text[0].upper() + text[1:]


def sentence(advice: Advice, folder: Path, arm: str) -> str:
    """Return the sentence.

    Args:
        advice: The advice.
        folder: Its folder.
        arm: The recommended arm.
    """
    speaker = Speaker(advice, folder)
    trained = trained_arms(advice)
    if not trained:
        return (
            "No arm trained: accuracy stayed at chance in all trials of the tuning. Check the "
            "labels, give more steps with a larger BUDGET, or set a lower learning rate."
        )
    if len(trained) < 2:
        return _only_one(advice, speaker, arm)
    if not is_confirmed(advice):
        return _not_confirmed(advice, speaker, arm)
    primary, *others = last_contrasts(advice)
    first = advice.tuning[0].arm
    if first in never_trained(advice):
        start = f"The baseline {first} never left chance accuracy in the tuning. "
        return start + _confirmed(advice, speaker, arm, primary, others)
    return _confirmed(advice, speaker, arm, primary, others)


def _confirmed(
    advice: Advice, speaker: Speaker, arm: str, primary: Contrast, others: list[Contrast]
) -> str:
    baseline = speaker.baseline(primary.against)
    if arm != primary.against:
        one = next(one for one in (primary, *others) if one.arm == arm)
        start = f"{speaker.change(arm, one.against)}: {points(one.gain)} points ({interval(one)}) "
        rest = [start + f"over {baseline}"]
        rest += _others(speaker, [other for other in (primary, *others) if other is not one])
        if _more_data_helps_more(advice, one.gain):
            rest.append("more data would help more")
        return "; ".join(rest) + "."
    if primary.significant and primary.gain < 0:
        start = (
            f"Leave {speaker.name(primary.arm)} out: it costs {-100 * primary.gain:.1f} points "
            f"({_cost_interval(primary)}) against {baseline}"
        )
        rest = [start, *_others(speaker, others)]
    else:
        rest = [_nothing_shown(advice, speaker, primary, others)]
    if _more_data_helps_more(advice, 0.0):
        rest.append("more data would help")
    return "; ".join(rest) + "."


def _nothing_shown(
    advice: Advice, speaker: Speaker, primary: Contrast, others: list[Contrast]
) -> str:
    """Say which effects the intervals exclude."""
    baseline = speaker.baseline(primary.against)
    smallest = advice.question.precision / 100
    contrasts = [primary, *others]
    ends = [end for one in contrasts for end in (one.low, one.high)]
    if all(end is not None and abs(end) <= smallest for end in ends):
        names = join([speaker.name(one.arm) for one in contrasts])
        return (
            f"Stay with {baseline}: {names} {'is' if len(contrasts) == 1 else 'are'} practically "
            f"equal to it, within {100 * smallest:g} points"
        )
    if primary.low is None:
        return (
            f"Nothing is shown: all {primary.seeds} pairs of {speaker.name(primary.arm)} differ by "
            f"the same {points(primary.gain)} points from {baseline}, which gives no interval: "
            "test on more examples"
        )
    parts = [
        f"{speaker.subject(primary.arm, 'is')} within {interval(primary)} points of {baseline}",
        *_others(speaker, others),
    ]
    return f"No gain is shown, so stay with the baseline: {'; '.join(parts)}"


def _others(speaker: Speaker, contrasts: list[Contrast]) -> list[str]:
    """Name further arms with a significant effect, the largest first."""
    shown = sorted((one for one in contrasts if one.significant), key=lambda one: -abs(one.gain))
    return [
        f"{speaker.subject(one.arm, 'gains' if one.gain > 0 else 'costs')} "
        f"{abs(100 * one.gain):.1f}"
        for one in shown[:MOST_NAMED]
    ]


def _cost_interval(one: Contrast) -> str:
    assert one.low is not None
    assert one.high is not None
    return f"{-100 * one.high:.1f} to {-100 * one.low:.1f}"


def _more_data_helps_more(advice: Advice, than: float) -> bool:
    """Whether the second half of the training examples gained more."""
    half = advice.confirmation.half_data if advice.confirmation else None
    return half is not None and half.significant and half.gain > max(0.0, than)


def _only_one(advice: Advice, speaker: Speaker, arm: str) -> str:
    accuracy = f"{100 * validation_accuracy(tuned(advice, arm)):.1f} % on validation data"
    failed = never_trained(advice)
    if not failed:
        return (
            f"There is one arm, {arm}, which reaches {accuracy}: give a second one in ARMS to "
            "compare it with."
        )
    use = f"Use {speaker.name(arm)}"
    if arm == advice.tuning[0].arm:
        use = f"Stay with {speaker.baseline(arm)}"
    return (
        f"{use}: it reaches {accuracy}, and the training of {join(failed)} never left chance "
        "accuracy in the tuning."
    )


def _not_confirmed(advice: Advice, speaker: Speaker, arm: str) -> str:
    best = validation_accuracy(tuned(advice, arm))
    first = trained_arms(advice)[0]
    contrasts = last_contrasts(advice)
    pairs = contrasts[0].seeds if contrasts else 0
    missing = f"the budget sufficed for {pairs} of the 3 pairs that an interval needs"
    if arm == first.arm:
        return (
            f"No gain is shown: no arm is better than {speaker.baseline(arm)} on validation data, "
            f"and {missing}."
        )
    other = 100 * validation_accuracy(first)
    return (
        f"Not confirmed: {speaker.name(arm)} is best on validation data ({100 * best:.1f} %, "
        f"{speaker.baseline(first.arm)} {other:.1f} %), but {missing}."
    )


def pairs_for_precision(advice: Advice) -> int | None:
    """Estimate the number of pairs at which all intervals are narrow enough; None if unknown."""
    smallest = advice.question.precision / 100
    widths = []
    for one in last_contrasts(advice):
        if one.low is None or one.high is None:
            return None
        widths.append((one.high - one.low) / 2)
    if not widths:
        return None
    return ceil(last_contrasts(advice)[0].seeds * max(1.0, (max(widths) / smallest) ** 2))
