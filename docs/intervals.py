"""Gains with their intervals, as cells of a table and as lines of a figure; all in points."""

from matplotlib.axes import Axes

from study.statistics import Estimate

# Colours of a significant gain, a significant loss, and neither.
GAINS, LOSES, OPEN = "#009e73", "#d55e00", "#777777"
# Mean, lower and upper end.
Interval = tuple[float, float, float]


def in_points(mean: float, low: float | None, high: float | None) -> Interval:
    """Return a gain that has an interval in points; the arguments are fractions."""
    assert low is not None
    assert high is not None
    return 100 * mean, 100 * low, 100 * high


def interval_of(found: Estimate) -> Interval:
    """Return an estimate in points that has an interval."""
    assert found.low is not None
    assert found.high is not None
    return found.mean, found.low, found.high


def cell(gain: Interval, bold: bool = False) -> str:
    """Return a gain as text."""
    mean, low, high = gain
    text = f"{mean:+.1f}"
    return f"{f'**{text}**' if bold else text} ({low:+.1f} to {high:+.1f})"


def mark(axes: Axes, height: int, gain: Interval, significant: bool) -> None:
    """Draw a gain as a diamond on its interval."""
    mean, low, high = gain
    colour = (GAINS if mean > 0 else LOSES) if significant else OPEN
    axes.plot([low, high], [height, height], color=colour, linewidth=2.5)
    axes.plot(mean, height, "D", color=colour, markersize=6)


def name_rows(axes: Axes, names: list[str]) -> None:
    """Name the rows, from below, and mark zero."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.axvline(0, color="#888888", linewidth=1, linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)
