"""Timing two ways of doing the same, turn by turn."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

# Pairs that a median is of, at least.
ROUNDS = 9
# Seconds that a turn takes, at least: shorter work is done several times.
TURN = 0.05


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        what: What is done.
        peer: The other way to do it.
        ours: Seconds, the median.
        theirs: Seconds of the peer, the median.
        ratio: Median over the rounds of ours over the peer's.
        low: Smallest of the ratios.
        high: Largest of them.
        aim: Largest ratio that was aimed at; None if there is no aim.
        note: What else there is to say.
    """

    what: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    aim: float | None = None
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the ratio is within the aim."""
        return self.aim is None or self.ratio <= self.aim


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def row(
    what: str,
    peer: str,
    ours: list[float],
    theirs: list[float],
    aim: float | None = None,
    note: str = "",
) -> Row:
    """Make a row of the seconds of each turn, ours and the peer's."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Row(
        *(what, peer, statistics.median(ours), statistics.median(theirs)),
        *(statistics.median(ratios), min(ratios), max(ratios), aim, note),
    )


def compare(
    what: str,
    peer: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    aim: float | None = None,
    note: str = "",
    rounds: int = ROUNDS,
) -> Row:
    """Time ours and a peer's way in turns, the order swapped each time, after a turn unmeasured.

    Args:
        what: What is done.
        peer: The name of the other way.
        ours: Does it our way.
        theirs: Does it the other way.
        aim: Largest ratio aimed at.
        note: Kept with the result.
        rounds: Number of turns.

    Example:
        >>> compare("nothing", "the same", lambda: None, lambda: None).what
        'nothing'
    """
    seconds(theirs), seconds(ours)
    times = max(1, math.ceil(TURN / max(seconds(theirs), seconds(ours), 1e-9)))

    def turn_of(work: Callable[[], object]) -> float:
        return sum(seconds(work) for _ in range(times)) / times

    mine, other = [], []
    for turn in range(rounds):
        if turn % 2:
            other.append(turn_of(theirs))
            mine.append(turn_of(ours))
        else:
            mine.append(turn_of(ours))
            other.append(turn_of(theirs))
    return row(what, peer, mine, other, aim, note)
