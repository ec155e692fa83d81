"""Timing of two implementations in turns."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

# Default number of rounds; a median is over their ratios.
ROUNDS = 9
# Minimum seconds of a turn: shorter work is repeated.
TURN = 0.05


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        what: The work.
        peer: The implementation that is compared with ours.
        ours: Our median seconds.
        theirs: The peer's median seconds.
        ratio: Median over the rounds of our time divided by the peer's.
        low: Smallest ratio.
        high: Largest ratio.
        aim: Target for the ratio, an upper limit; None if there is none.
        note: A remark.
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
        """Whether the ratio meets the target."""
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
    """Make a row from the seconds of each turn, ours and the peer's."""
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
    """Time our work and a peer's in turns, in alternating order, after a warmup.

    Args:
        what: The work.
        peer: The name of the peer.
        ours: Our implementation.
        theirs: The peer's implementation.
        aim: Target for the ratio, an upper limit.
        note: A remark.
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
