"""Simulate studies that look repeatedly; write the figures and tables of docs/statistics.md.

PYTHONPATH=. .venv/bin/python docs/simulations.py
"""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from repeated_looks import (
    PLANNED,
    STUDIES,
    Ended,
    Naive,
    differences,
    look_repeatedly,
    naive,
    statistics_of,
)
from scipy import optimize, stats

from study.equivalence import classify
from study.sequential import ALPHA, Boundary, adjust, next_boundary
from study.statistics import holm

# Fixed ids: the same numbers give the same file.
matplotlib.rcParams["svg.hashsalt"] = "regain"

PAGE = Path(__file__).with_name("statistics.md")
FIGURES = PAGE.parent / "figures"
SEED = 0
# Pairs of a study that is continued.
CONTINUED = 40
# Half width at which a study stops, in standard deviations of a difference.
PRECISION = 0.8
LIGHT, BLUE, RED = "#9a9a9a", "#0072b2", "#d55e00"
RATIOS = {0.5: "#cc79a7", 0.75: "#d55e00", 1.0: "#0072b2", 1.5: "#009e73"}


def percent(fraction: float) -> str:
    """Return a percentage with one digit."""
    return f"{100 * fraction:.1f}"


def row(name: str, *cells: object) -> str:
    """Return a row of a table."""
    return " | ".join(["", name, *map(str, cells), ""]).strip()


def ends_of(rng: np.random.Generator) -> np.ndarray:
    """Draw when time runs out: after 5 to 20 pairs."""
    return rng.integers(PLANNED[0], PLANNED[-1] + 1, STUDIES)


def errors() -> list[str]:
    """Return the table of errors without an effect."""
    rng = np.random.default_rng(SEED)
    drawn, ends = differences(rng, [0.0] * 3, CONTINUED), ends_of(rng)
    full = np.full(STUDIES, PLANNED[-1])
    looking = look_repeatedly(drawn, ends, precision=PRECISION)
    # Continued if nothing was found: a decision that depends on the data.
    first = look_repeatedly(drawn, full)
    again = look_repeatedly(
        drawn, np.full(STUDIES, CONTINUED), continued_boundary, [*PLANNED, CONTINUED]
    )
    found = first.claims()[:, :1]
    tried = np.where(found, first.p_values, again.p_values)
    continued = Ended(
        again.pairs,
        np.where(found, first.means, again.means),
        np.where(found, first.halves, again.halves),
        tried,
    )
    cases = {
        "t interval after 20 pairs, one look": look_repeatedly(drawn, full, naive, [20]),
        "t interval at every look, stop at a claim": look_repeatedly(
            drawn, ends, naive, precision=PRECISION, settled=True
        ),
        "alpha spending, stop at precision or time": looking,
        "alpha spending, stop at a claim": look_repeatedly(drawn, ends, settled=True),
        "alpha spending, continued to 40 pairs if nothing was found": continued,
    }
    return [
        "| method | primary contrast, % | any of three, % | intervals with the true mean, % |",
        "| --- | --- | --- | --- |",
        *(
            row(name, percent(c[:, 0].mean()), percent(c.any(axis=1).mean()), percent(e.coverage()))
            for name, e in cases.items()
            for c in [e.claims()]
        ),
    ]


def continued_boundary(pairs: int, most: int, earlier: Sequence[tuple[int, float]]) -> Boundary:
    """Return the boundary of a study that was planned to end at 20 pairs and is continued."""
    return next_boundary(pairs, PLANNED[-1] if pairs <= PLANNED[-1] else CONTINUED, earlier)


def accuracies(rng: np.random.Generator, examples: int) -> np.ndarray:
    """Draw differences in accuracy on test examples of several difficulties, in points.

    Probabilities of a correct answer are those of an example, shifted by a run's random logit.
    """
    logits = np.array([-1.0, 0.5, 1.5, 3.0, 5.0])
    run = 0.3 * rng.standard_normal((STUDIES, 4, PLANNED[-1], 1))
    hits = rng.binomial(examples // len(logits), 1 / (1 + np.exp(-logits - run))).sum(axis=-1)
    return 100 * (hits[:, 1:] - hits[:, :1]) / examples


def collapsed(rng: np.random.Generator, arms: Sequence[int]) -> np.ndarray:
    """Draw accuracies with deviation 1 point; 5 % of the runs of some arms lose 60 points."""
    drawn = rng.standard_normal((STUDIES, 4, PLANNED[-1]))
    lost = rng.random(drawn.shape) < 0.05
    drawn[:, arms] -= 60 * lost[:, arms]
    return drawn[:, 1:] - drawn[:, :1]


def robustness() -> list[str]:
    """Return the table of errors for differences that are not normal."""
    rng = np.random.default_rng(SEED + 1)
    cases = {
        "accuracy on 1,000 test examples": (accuracies(rng, 1000), 0.0),
        "accuracy on 100 test examples": (accuracies(rng, 100), 0.0),
        "5 % of the runs of every arm collapse": (collapsed(rng, [0, 1, 2, 3]), 0.0),
        "5 % of the runs of the three arms collapse, never the baseline": (
            collapsed(rng, [1, 2, 3]),
            -3.0,
        ),
    }
    lines = [
        "| differences | false claims, any of three, % | intervals with the true mean, % |",
        "| --- | --- | --- |",
    ]
    for name, (drawn, mean) in cases.items():
        ended = look_repeatedly(drawn, ends_of(rng), precision=PRECISION)
        # With a true loss, a claim of a gain is false.
        wrong = ended.claims() & ((mean == 0) | (ended.means > 0))
        lines.append(row(name, percent(wrong.any(axis=1).mean()), percent(ended.coverage(mean))))
    return lines


def mixture(pairs: int, scale: float = 1.0) -> float:
    """Return the critical value of a confidence sequence for t, valid after every pair.

    It is a mixture over effects, normal with variance `scale` (Lai 1976; Wang & Ramdas 2023).
    """
    ratio = 1 + pairs * scale

    def evidence(t: float) -> float:
        square = t**2 / (pairs - 1)
        gain = np.log1p(square) - np.log1p(square / ratio)
        return float((pairs * gain - np.log(ratio)) / 2 - np.log(1 / ALPHA))

    return float(optimize.brentq(evidence, 0.0, 1e6))


def spending() -> list[str]:
    """Return the table of critical values of other spending functions."""
    way = np.array(PLANNED) / PLANNED[-1]
    ours: tuple[tuple[int, float], ...] = ()
    for look in PLANNED:
        ours = next_boundary(look, PLANNED[-1], ours).looks
    spent = {
        "**used here**": np.array([one for _, one in ours]),
        "like Pocock": ALPHA * np.log(1 + (np.e - 1) * way),
        "quadratic": ALPHA * way**2,
        "like O'Brien & Fleming": 2 * stats.norm.sf(stats.norm.isf(ALPHA / 2) / np.sqrt(way)),
    }
    one_look = stats.t.isf(ALPHA / 2, np.array(PLANNED) - 1)
    rows = {"one look: Student's t": one_look}
    for name, total in spent.items():
        looks = tuple(zip(PLANNED, map(float, total), strict=True))
        rows[name] = [Boundary(looks[: k + 1]).critical for k in range(len(looks))]
    rows["confidence sequence"] = [mixture(n) for n in PLANNED]
    header = " | ".join(f"{n} pairs" for n in PLANNED)
    return [
        f"| spending | {header} | width after 20 pairs / one look |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            row(name, *(f"{c:.2f}" for c in values), f"{values[-1] / one_look[-1]:.2f}")
            for name, values in rows.items()
        ),
    ]


def families() -> list[str]:
    """Return the table of corrections for three contrasts."""
    rng = np.random.default_rng(SEED + 2)
    lines = [
        "| correction | true gains | primary | second | third | any false |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    corrections = {
        "primary first, then Holm": adjust,
        "Holm for all three": lambda first, rest: holm([first, *rest]),
    }
    for gains in ([0.8, 0.8, 0.0], [0.0, 0.8, 0.0]):
        ended = look_repeatedly(differences(rng, gains, PLANNED[-1]), np.full(STUDIES, PLANNED[-1]))
        for name, correct in corrections.items():
            claims = ended.claims(correct)
            false = claims[:, np.array(gains) == 0].any(axis=1)
            shown = ", ".join(f"{gain:g}" for gain in gains)
            lines.append(
                row(name, shown, *(percent(c) for c in claims.mean(axis=0)), percent(false.mean()))
            )
    return lines


def precisions() -> list[str]:
    """Return the table of pairs until all three intervals are narrow."""
    rng = np.random.default_rng(SEED + 3)
    drawn = differences(rng, [0.0] * 3, CONTINUED)
    looks = [*PLANNED, 30, CONTINUED]
    lines = [
        "| precision / spread | pairs of one look, spread known | pairs on average "
        "| 90 % of studies need at most | intervals with the true mean, % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for precision in (0.5, 0.7, 1.0, 1.5):
        ended = look_repeatedly(
            drawn, np.full(STUDIES, CONTINUED), planned=looks, precision=precision
        )
        fixed = next(
            n for n in range(3, 100) if stats.t.isf(ALPHA / 2, n - 1) / np.sqrt(n) < precision
        )
        most = int(np.quantile(ended.pairs, 0.9, method="higher"))
        lines.append(
            row(f"{precision}", fixed, f"{ended.pairs.mean():.1f}", most, percent(ended.coverage()))
        )
    return lines


def equivalence() -> list[str]:
    """Return the table of verdicts with a smallest effect of interest of 1 point."""
    rng = np.random.default_rng(SEED + 4)
    verdicts = ["gains", "loses", "practically equal", "not known yet"]
    lines = [
        f"| true gain | spread | pairs | {', % | '.join(verdicts)}, % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    studies = STUDIES // 10
    for pairs, spread in ((5, 1.5), (20, 1.5)):
        for gain in (0.0, 0.5, 1.0):
            drawn = rng.normal(gain, spread, (studies, pairs))
            found = [classify(one, 1.0) for one in drawn]
            shares = [percent(found.count(verdict) / studies) for verdict in verdicts]
            lines.append(row(f"{gain:g}", f"{spread:g}", pairs, *shares))
    return lines


def draw_errors() -> list[str]:
    """Draw the false claims against the number of looks, one after each pair from the third on."""
    rng = np.random.default_rng(SEED + 5)
    drawn = differences(rng, [0.0], PLANNED[-1])
    looks = list(range(3, PLANNED[-1] + 1))
    figure, axes = empty("looks, one after each pair from the third on", "false claims, %")
    last = []
    for method, name, colour in (
        (naive, "t interval at every look", RED),
        (next_boundary, "alpha spending", BLUE),
    ):
        claimed, share = np.zeros(STUDIES, bool), []
        earlier: tuple[tuple[int, float], ...] = ()
        for look in looks:
            boundary = method(look, looks[-1], earlier)
            earlier = boundary.looks
            _, _, statistic = statistics_of(drawn[:, 0, :look])
            claimed |= np.abs(statistic) >= boundary.critical
            share.append(100 * claimed.mean())
        axes.plot(range(1, len(looks) + 1), share, "o-", color=colour, label=name, markersize=4)
        last.append(f"{share[-1]:.1f}")
    axes.axhline(100 * ALPHA, color=LIGHT, linestyle=":", label="5 %")
    axes.set_ylim(0, None)
    save(figure, "error")
    return [
        "Looking after every pair from 3 to 20, and stopping at the first claim, the t interval",
        f"claims a gain or a loss in {last[0]} % of studies without one, and alpha spending in "
        f"{last[1]} %.",
    ]


def draw_power() -> list[str]:
    """Draw the power against the number of pairs at which time runs out."""
    rng = np.random.default_rng(SEED + 6)
    ends = [3, 4, 5, 6, 8, 10, 12, 15, 20]
    figure, axes = empty("pairs at the last look", "gain found, % of studies")
    costs = []
    for ratio, colour in RATIOS.items():
        drawn = differences(rng, [ratio], PLANNED[-1])
        looking = [look_repeatedly(drawn, np.full(STUDIES, end)) for end in ends]
        power = [100 * float((one.p_values < ALPHA).mean()) for one in looking]
        exact = [100 * stats.nct.sf(Naive(n).critical, n - 1, ratio * np.sqrt(n)) for n in ends]
        axes.plot(ends, exact, ":", color=colour)
        name = f"gain / spread {ratio:g}"
        axes.plot(ends, power, "o-", color=colour, label=name, markersize=4)
        costs += [one - many for one, many in zip(exact, power, strict=True)]
    axes.plot([], [], ":", color="black", label="one look (t test)")
    axes.set_ylim(0, 102)
    save(figure, "power")
    return [
        "The solid lines have looks at 5, 8 and 12 pairs before the last one, and are up to "
        f"{max(costs):.0f} points",
        "below the dotted lines, which have one look, as a study with `SEEDS=20`.",
    ]


def draw_pairs() -> list[str]:
    """Draw the average number of pairs of studies that stop once the sign is settled."""
    rng = np.random.default_rng(SEED + 7)
    ratios = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0]
    pairs, said = [], []
    for ratio in ratios:
        drawn, ends = differences(rng, [ratio], PLANNED[-1]), np.full(STUDIES, PLANNED[-1])
        ended = look_repeatedly(drawn, ends, settled=True)
        pairs.append(ended.pairs.mean())
        if ratio in (0.5, 1.0, 2.0):
            found = (ended.p_values[:, 0] < ALPHA).mean()
            one_look = look_repeatedly(drawn, ends, naive, [PLANNED[-1]])
            fixed = (one_look.p_values[:, 0] < ALPHA).mean()
            said.append(row(f"{ratio:g}", f"{pairs[-1]:.1f}", percent(found), percent(fixed)))
    figure, axes = empty("gain / spread of the differences", "pairs on average")
    axes.axhline(PLANNED[-1], color=LIGHT, linestyle=":", label="one look after 20 pairs")
    axes.plot(ratios, pairs, "o-", color=BLUE, label="looks after 5, 8, 12 and 20", markersize=4)
    axes.set_ylim(0, PLANNED[-1] + 2)
    axes.set_yticks(range(0, PLANNED[-1] + 1, 5))
    save(figure, "pairs")
    return [
        "| gain / spread | pairs on average | gain found, % | by one look after 20 pairs, % |",
        "| --- | --- | --- | --- |",
        *said,
    ]


def empty(across: str, up: str) -> tuple[Figure, matplotlib.axes.Axes]:
    """Return a figure that is readable on a phone, and its axes."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=across, ylabel=up)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    return figure, axes


def save(figure: Figure, name: str) -> None:
    """Write a figure of the page."""
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(FIGURES / f"statistics-{name}.svg", metadata={"Date": None})


def main() -> None:
    """Write the figures, and the tables between the markers of the page."""
    tables = {
        "looking": draw_errors(),
        "errors": errors(),
        "robustness": robustness(),
        "spending": spending(),
        "families": families(),
        "precisions": precisions(),
        "equivalence": equivalence(),
        "pairs": draw_pairs(),
        "power": draw_power(),
    }
    text = PAGE.read_text()
    for name, lines in tables.items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        filled = "\n".join([start, *lines, end])
        text = re.sub(f"{start}.*?{end}", lambda _, new=filled: new, text, flags=re.DOTALL)
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
