"""Write docs/published.md from the studies in results/effects; `make docs` runs it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blocks import table
from effects import RESULTS, Place, accuracy, changes, places, read

from study.page import provenance
from study.results import Result
from study.statistics import Estimate, paired_estimate

DOCS = Path(__file__).parent
CONTRADICTED = "**contradicted**"
HEADS = ["effect", "paper", "theirs", "ours", "measure", "seeds", "effect here", "verdict"]


def last_training_accuracy(run: Result) -> float:
    """Return the accuracy on the training labels, wrong ones included, at the end, in points."""
    return 100 * float(run.record["last"]["train_eval/acc"])


def steps_to_target(run: Result) -> float:
    """Return the steps to a validation accuracy of 90 %; all steps if it was not reached."""
    return run.steps_to(0.9) or float(run.record["steps"])


def calibration_error(run: Result) -> float:
    """Return the expected calibration error on the test split in points."""
    return 100 * run.calibration_error


def calibrated_error(run: Result) -> float:
    """Return the same after temperature scaling on the validation split."""
    return 100 * float(run.record["test"]["ece_calibrated"])


@dataclass(frozen=True)
class Effect:
    """A published effect and the study that repeats it.

    Args:
        title: What is claimed.
        paper: Authors, year and arXiv id or journal; the place in it.
        theirs: Their setting and figures.
        size: Their effect, in the unit of the measure; None if they give no figure that compares.
        sign: 1 if they find the measure to be higher, -1 if lower.
        study: Name of the study, or of a file of measurements with each seed.
        ours: Our setting.
        arm: Short name of the variant that has it, and the value of the axis, if there is one.
        against: The same of the variant without it.
        measure: The measure, in points.
        before: The measure of the variant without it, if it is another one.
        unit: What it is.
        less: A second pair of variants whose effect is subtracted.
    """

    title: str
    paper: str
    theirs: str
    size: float | None
    sign: int
    study: str
    ours: str
    arm: Place
    against: Place
    measure: Callable[[Result], float] = accuracy
    unit: str = "test accuracy, points"
    before: Callable[[Result], float] | None = None
    less: tuple[Place, Place] | None = None


def at(point: str, arm: str, against: str = "none") -> tuple[Place, Place]:
    """Name two variants at a value of the axis."""
    return (arm, point), (against, point)


MNIST = "MNIST perceptron, error 1.60 % (another paper's network) and 1.25 % with dropout"
DIGITS = "perceptron, 3 x 500, digits"
EFFECTS = [
    Effect(
        "dropout in a perceptron",
        "Srivastava et al. 2014, JMLR 15, table 2",
        MNIST,
        0.35,
        1,
        "digits-size",
        f"{DIGITS}, all 719",
        *at("1.0", "half"),
    ),
    Effect(
        "dropout gains more with more data than with very few",
        "Srivastava et al. 2014, JMLR 15, figure 10",
        "MNIST perceptron: no gain with 100 and 500 examples, a gain with more",
        None,
        1,
        "digits-size",
        f"{DIGITS}, gain with all minus gain with 10 %",
        *at("1.0", "half"),
        less=at("0.1", "half"),
    ),
    Effect(
        "dropout hinders the memorization of wrong labels",
        "Arpit et al. 2017, arXiv 1706.05394, section 5",
        "CIFAR-10 with random labels: dropout hinders memorizing best (curves)",
        None,
        -1,
        "perceptron-noise",
        f"{DIGITS}, 40 % wrong labels",
        *at("", "half"),
        measure=last_training_accuracy,
        unit="training accuracy, wrong labels included, points",
    ),
    Effect(
        "dropout before batch norm costs accuracy",
        "Li et al. 2019, arXiv 1801.05134, figure 1",
        "DenseNet-BC, CIFAR-100: 77.42 %, and 68.55 % with dropout 0.5 in each bottleneck",
        -8.87,
        -1,
        "dropout-before-norm",
        "CNN with batch norm, digits, dropout 0.5 after each stage",
        *at("", "hidden", "batchnorm"),
    ),
    Effect(
        "dropout after the last batch norm gains",
        "Li et al. 2019, arXiv 1801.05134, table 4",
        "CIFAR-10: 0.05 to 0.13 points at the best rate, a loss in several cells",
        0.1,
        1,
        "dropout-before-norm",
        "CNN with batch norm, digits, dropout 0.5 before the last layer",
        *at("", "head", "batchnorm"),
    ),
    Effect(
        "dropout costs accuracy where the network underfits",
        "Liu et al. 2023, arXiv 2303.01500, code",
        "ViT-T, ImageNet: 73.9 %, and 67.9 % with dropout",
        -6.0,
        -1,
        "underfit",
        "CNN of width 4, digits, dropout 0.5 before the last layer",
        *at("", "constant"),
    ),
    Effect(
        "dropout early in the training gains where the network underfits",
        "Liu et al. 2023, arXiv 2303.01500, code",
        "ViT-T, ImageNet: 73.9 %, and 74.3 % with early dropout",
        0.4,
        1,
        "underfit",
        "the same, dropout 0.5 in the first half of the steps alone",
        *at("", "early"),
    ),
    Effect(
        "passes with dropout recognize inputs of unknown classes",
        "Gal & Ghahramani 2016, arXiv 1506.02142, figure 4",
        "MNIST: uncertain on a rotated digit of which one pass without dropout is certain",
        None,
        1,
        "out-of-distribution",
        "perceptron, digits 0 to 4, entropy on the digits 5 to 9, 50 passes and one",
        *at("", "passes"),
        unit="area under the ROC curve, points",
    ),
    Effect(
        "batch norm tolerates higher learning rates",
        "Ioffe & Szegedy 2015, arXiv 1502.03167, section 4.2",
        "Inception, ImageNet: five times the rate diverges; with batch norm 30 times trains",
        None,
        1,
        "digits-rate",
        f"{DIGITS}, gain at rate 0.1 minus gain at 0.003",
        *at("0.1", "batchnorm"),
        less=at("0.003", "batchnorm"),
    ),
    Effect(
        "the same at a third of that rate",
        "Ioffe & Szegedy 2015, arXiv 1502.03167, section 4.2",
        "the same",
        None,
        1,
        "digits-rate",
        f"{DIGITS}, gain at rate 0.03 minus gain at 0.003",
        *at("0.03", "batchnorm"),
        less=at("0.003", "batchnorm"),
    ),
    Effect(
        "precise batch norm",
        "Wu & Johnson 2021, arXiv 2105.07576, section 3",
        "ResNet-50, ImageNet: moving averages lag in early training; recomputed statistics gain",
        None,
        1,
        "short",
        "CNN, digits, three epochs",
        *at("", "norm-precise", "batchnorm"),
    ),
    Effect(
        "batch norm needs fewer steps",
        "Ioffe & Szegedy 2015, arXiv 1502.03167, figure 3",
        "Inception, ImageNet, 72.2 %: 31.0 million steps, and 13.3 million with batch norm",
        None,
        -1,
        "digits-size",
        f"{DIGITS}, all 719",
        *at("1.0", "batchnorm"),
        measure=steps_to_target,
        unit="steps to 90 % validation accuracy",
    ),
    Effect(
        "group norm gains over batch norm with batches of 2",
        "Wu & He 2018, arXiv 1803.08494, table 2",
        "ResNet-50, ImageNet: error 34.7 % with batch norm, 24.1 % with group norm",
        10.6,
        1,
        "batch-size",
        "CNN, digits, batches of 2",
        *at("2", "norm-group", "batchnorm"),
    ),
    Effect(
        "batch norm loses against group norm as batches shrink",
        "Wu & He 2018, arXiv 1803.08494, table 2",
        "the same: group norm gains 10.6 points at 2 and loses 0.5 at 32",
        11.1,
        1,
        "batch-size",
        "CNN, digits, gain of group norm at 2 minus at 32",
        *at("2", "norm-group", "batchnorm"),
        less=at("32", "norm-group", "batchnorm"),
    ),
    Effect(
        "batch norm in a network without augmentation",
        "Zhang et al. 2017, arXiv 1611.03530, table 1",
        "small Inception, CIFAR-10: 82.00 %, and 85.75 % with batch norm",
        3.75,
        1,
        "cnn-digits",
        "CNN, digits",
        *at("", "batchnorm"),
    ),
    Effect(
        "random crops",
        "Zhang et al. 2017, arXiv 1611.03530, table 1",
        "small Inception, CIFAR-10: 85.75 %, and 89.31 % with crops",
        3.56,
        1,
        "cnn-digits",
        "CNN, digits",
        *at("", "crop"),
    ),
    Effect(
        "mixup",
        "Zhang et al. 2018, arXiv 1710.09412",
        "PreAct ResNet-18, CIFAR-10: error 5.6 and 4.2 %",
        1.4,
        1,
        "cnn-digits",
        "CNN, digits, alpha 0.2",
        *at("", "mixup"),
    ),
    Effect(
        "cutout",
        "DeVries & Taylor 2017, arXiv 1708.04552, code",
        "ResNet-18, CIFAR-10: error 4.72 and 3.99 %",
        0.73,
        1,
        "cnn-digits",
        "CNN, digits, half the side",
        *at("", "cutout"),
    ),
    Effect(
        "DropBlock",
        "Ghiasi et al. 2018, arXiv 1810.12890",
        "ResNet-50, ImageNet: a gain over dropout and over none",
        None,
        1,
        "cnn-digits",
        "CNN with batch norm, digits, 0.1, blocks of 3",
        *at("", "block", "batchnorm"),
    ),
    Effect(
        "temperature scaling calibrates",
        "Guo et al. 2017, arXiv 1706.04599, table 1",
        "ResNet-110, CIFAR-10: expected calibration error 4.6 and 0.83 %",
        -3.77,
        -1,
        "dan-mr",
        "averaging network, MR",
        *at("", "none"),
        measure=calibrated_error,
        before=calibration_error,
        unit="expected calibration error, points",
    ),
    Effect(
        "label smoothing calibrates",
        "Müller et al. 2019, arXiv 1906.02629, table 3",
        "ResNet-56, CIFAR-100: expected calibration error 15.0 and 2.4 %",
        -12.6,
        -1,
        "dan-mr",
        "averaging network, MR, smoothing 0.1",
        *at("", "label-smoothing"),
        measure=calibration_error,
        unit="expected calibration error, points",
    ),
    Effect(
        "word dropout in an averaging network",
        "Iyyer et al. 2015, ACL P15-1162",
        "quiz bowl and sentiment: dropping 30 % of the words gains",
        None,
        1,
        "dan-mr",
        "averaging network, MR, 30 % of the words",
        *at("", "words"),
    ),
    Effect(
        "R-Drop",
        "Liang et al. 2021, arXiv 2106.14448",
        "GLUE, translation and others: a gain in 18 data sets",
        None,
        1,
        "dan-mr",
        "averaging network, MR, dropout 0.5 before the last layer",
        *at("", "r-drop", "dropout"),
    ),
    Effect(
        "group norm over batch norm in a perceptron with batches of 2",
        "Wu & He 2018, arXiv 1803.08494, table 2",
        "ResNet-50, ImageNet: error 34.7 % with batch norm, 24.1 % with group norm",
        10.6,
        1,
        "perceptron-batch-size",
        "perceptron, 3 x 500, digits, batches of 2",
        *at("2", "norm-group", "batchnorm"),
    ),
    Effect(
        "batch norm loses against group norm in a perceptron as batches shrink",
        "Wu & He 2018, arXiv 1803.08494, table 2",
        "the same: group norm gains 10.6 points at 2 and loses 0.5 at 32",
        11.1,
        1,
        "perceptron-batch-size",
        "perceptron, 3 x 500, digits, gain of group norm at 2 minus at 32",
        *at("2", "norm-group", "batchnorm"),
        less=at("32", "norm-group", "batchnorm"),
    ),
]


def differences(effect: Effect) -> list[float]:
    """Return the effect with each seed, in points."""
    file = RESULTS / f"{effect.study}.json"
    if file.exists():
        rows = json.loads(file.read_text())["rows"]
        return [row[effect.arm[0]] - row[effect.against[0]] for row in rows]
    runs = places(read(effect.study))
    if effect.before is not None:
        before, after = runs[effect.against], runs[effect.arm]
        return [effect.measure(after[seed]) - effect.before(before[seed]) for seed in after]
    found = changes(runs, effect.arm, effect.against, effect.measure)
    if effect.less is None:
        return list(found.values())
    others = changes(runs, *effect.less, effect.measure)
    return [found[seed] - others[seed] for seed in found if seed in others]


def verdict(effect: Effect, found: Estimate) -> str:
    """Compare an effect with the published one."""
    assert found.low is not None
    assert found.high is not None
    low, high = sorted((effect.sign * found.low, effect.sign * found.high))
    if low > 0:
        same = effect.size is not None and found.low <= effect.size <= found.high
        return "reproduced in sign and size" if same else "reproduced in sign"
    return CONTRADICTED if high < 0 else "not shown"


def effects_table() -> list[str]:
    """Return how many effects were reproduced, and the table of all."""
    rows, verdicts = [], []
    for effect in EFFECTS:
        values = differences(effect)
        found = paired_estimate(values)
        verdicts.append(verdict(effect, found))
        cells = [
            *(effect.title, effect.paper, effect.theirs, f"{effect.ours} (`{effect.study}`)"),
            *(effect.unit, str(len(values))),
            f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})",
            verdicts[-1],
        ]
        rows.append(cells)
    reproduced = sum(one.startswith("reproduced") for one in verdicts)
    contradicted = verdicts.count(CONTRADICTED)
    return [
        f"Of {len(verdicts)} effects, {reproduced} are reproduced in sign, {contradicted} are "
        f"contradicted, and {len(verdicts) - reproduced - contradicted} are not shown.",
        "",
        *table(HEADS, rows),
    ]


def main() -> None:
    """Write the page."""
    lines = [
        "# Published effects, repeated",
        "",
        "What papers report of regularizers, and what small trainings on two cores show of it. The",
        "networks and data are far smaller than those of the papers, so that the sizes need not",
        "agree; the sign should. Intervals are 95 % t intervals over paired seeds, not corrected",
        "for the number of effects. `reproduced in sign`: the interval excludes zero on their",
        "side; `and size`: it contains their figure; `contradicted`: it excludes zero on the other",
        "side; `not shown`: it contains zero. All effects that were tried are in the table. `make",
        "docs` writes this page from [results](../results/effects).",
        "",
        *effects_table(),
    ]
    lines += ["", "## Commands", "", "```sh"]
    studies = dict.fromkeys(effect.study for effect in EFFECTS)
    made = [provenance(read(name)) for name in studies if (RESULTS / name).is_dir()]
    lines += [one["command"] for one in made]
    measured = [RESULTS / f"{name}.json" for name in studies if not (RESULTS / name).is_dir()]
    lines += [json.loads(file.read_text())["command"] for file in measured]
    lines += ["```", ""]
    hours = sum(float(one["hours of training"]) for one in made)
    lines += [f"Machine: {made[0]['machine']}; {made[0]['versions']}. {hours:.1f} hours in all."]
    (DOCS / "published.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
