"""Write docs/choose.md, the guide, with the measurement behind each rule; `make docs` runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import regimes
from blocks import table
from effects import Place, accuracy, changes, places, read
from front import contrasts, points
from intervals import Interval, cell, interval_of

from study.results import Result
from study.statistics import paired_estimate

DOCS = Path(__file__).parent
# Studies whose tables are on the page of the regimes.
REGIMES = [f"digits-{one.name}" for one in regimes.REGIMES]
CIFAR10 = ("cifar10-fifth", "a fifth of CIFAR-10, CNN, tuned")
KEYWORDS = ("speech-arabic_speech_commands_half", "Arabic keywords, TC-ResNet, tuned")
OHSUMED = ("nlp-ohsumed", "Ohsumed abstracts, TextCNN, tuned")
TREC = ("nlp-trec", "TREC questions, TextCNN, tuned")


@dataclass(frozen=True)
class Rule:
    """A rule of the guide.

    Args:
        when: The situation: data, model or symptom.
        use: What to do, where, and how much.
        evidence: What was measured, with links.
    """

    when: str
    use: str
    evidence: tuple[str, ...]


def measured(what: str, page: str, gain: Interval) -> str:
    """Return what was measured, with a link, and the gain in points with its interval."""
    return f"[{what}]({page}): {cell(gain)}"


def advised(advice: tuple[str, str], arm: str) -> str:
    """Return the gain of a tuned arm over the tuned baseline."""
    name, what = advice
    return measured(what, f"advised.md#{name}", points(contrasts(name)[arm]))


def effect(
    study: str,
    what: str,
    place: Place,
    against: Place,
    measure: Callable[[Result], float] = accuracy,
) -> str:
    """Return the gain of one variant over another in a study of results/effects."""
    runs = places(read(study))
    found = paired_estimate(list(changes(runs, place, against, measure).values()))
    page = "regimes.md" if study in REGIMES else "published.md"
    return measured(what, page, interval_of(found))


def listed(rules: list[Rule]) -> list[str]:
    """Return the table of some rules."""
    rows = ([rule.when, rule.use, "; ".join(rule.evidence)] for rule in rules)
    return table(["if", "then", "measured, points of test accuracy"], rows)


def dropout_at(study: str, what: str, value: str) -> str:
    """Return the gain of dropout 0.5 in a perceptron at a value of the axis."""
    return effect(study, what, ("half", value), ("none", value))


def cnn(what: str, variant: str) -> str:
    """Return the gain of a variant over the CNN without regularization, on the digits."""
    return effect("cnn-digits", what, (variant, ""), ("none", ""))


def first() -> list[Rule]:
    """Return the rules for networks that do not fit their training data."""
    return [
        Rule(
            "the training accuracy stays low: the network underfits",
            "no dropout; train longer, or take a wider network or another learning rate",
            (
                effect(
                    "underfit",
                    "digits, CNN of width 4, dropout 0.5 before the last layer",
                    ("constant", ""),
                    ("none", ""),
                ),
                dropout_at("digits-length", "digits, perceptron, 30 steps, dropout 0.5", "30"),
            ),
        ),
        Rule(
            "few optimizer steps can be afforded",
            "batch norm: `REG=batchnorm`",
            (
                effect(
                    "digits-length",
                    "digits, perceptron, 30 steps",
                    ("batchnorm", "30"),
                    ("none", "30"),
                ),
                effect("digits-length", "3,000 steps", ("batchnorm", "3000"), ("none", "3000")),
            ),
        ),
    ]


def norm() -> list[Rule]:
    """Return the rules for batch norm."""
    return [
        Rule(
            "several layers, trained from scratch, no norm",
            "batch norm between each layer and its activation: `REG=batchnorm`",
            (
                advised(CIFAR10, "batchnorm"),
                advised(KEYWORDS, "batchnorm"),
                cnn("digits, CNN", "batchnorm"),
            ),
        ),
        Rule(
            "training diverges at the learning rate that you want",
            "batch norm: `REG=batchnorm`",
            (
                effect(
                    "digits-rate",
                    "digits, perceptron, AdamW, 0.1 instead of 0.003",
                    ("batchnorm", "0.1"),
                    ("none", "0.1"),
                ),
            ),
        ),
        Rule(
            "a norm of fully connected layers, and batches of very few examples",
            "group norm: `REG=norm-group`; in convolutions, whose positions count too, batch norm "
            "does as well",
            (
                effect(
                    "perceptron-batch-size",
                    "digits, perceptron, batches of 2, group norm over batch norm",
                    ("norm-group", "2"),
                    ("batchnorm", "2"),
                ),
                effect("batch-size", "the same in a CNN", ("norm-group", "2"), ("batchnorm", "2")),
            ),
        ),
        Rule(
            "long texts, many classes, TextCNN",
            "batch norm after the convolutions: `REG=batchnorm`",
            (advised(OHSUMED, "batchnorm"),),
        ),
        Rule(
            "short texts, TextCNN",
            "no norm: it gains nothing",
            (advised(TREC, "batchnorm"),),
        ),
    ]


def dropout() -> list[Rule]:
    """Return the rules for dropout."""
    return [
        Rule(
            "many training labels are wrong",
            "dropout 0.5 in the hidden layers and before the last one; take the epoch that is best "
            "on validation data",
            (
                dropout_at("digits-noise", "digits, perceptron, 40 % wrong", "0.4"),
                dropout_at("digits-noise", "60 % wrong", "0.6"),
            ),
        ),
        Rule(
            "a small network with batch norm that fits its training data",
            "dropout 0.5 before the last layer: `--model.reg.head_dropout=0.5`",
            (
                effect(
                    "dropout-before-norm",
                    "digits, CNN with batch norm",
                    ("head", ""),
                    ("batchnorm", ""),
                ),
            ),
        ),
        Rule(
            "a convolutional network without a norm, short training",
            "no dropout; batch norm first",
            (
                advised(KEYWORDS, "dropout"),
                advised(OHSUMED, "dropout"),
                advised(CIFAR10, "dropout"),
            ),
        ),
    ]


def augmentation() -> list[Rule]:
    """Return the rules for augmentation."""
    return [
        Rule(
            "images whose class does not depend on the exact position",
            "random crops first: `--model.augment.crop=0.125`; then cutout or mixup",
            (
                cnn("digits, CNN, crops", "crop"),
                cnn("cutout of half the side", "cutout"),
                cnn("mixup 0.2", "mixup"),
            ),
        ),
    ]


def main() -> None:
    """Write the page."""
    lines = [
        "# Choose a regularizer",
        "",
        "Rules, each with what was measured for it: the gain of the regularizer in points of test",
        "accuracy, with the 95 % interval over paired seeds. They hold for small networks trained",
        "from scratch on small data. Where nothing was measured, there is no rule. For your own",
        "data, `make advise` ([advise.md](advise.md)) answers the same question by measurement.",
        "`make docs` writes this page from [results](../results).",
        "",
        "## First: does the network fit its training data?",
        "",
        *listed(first()),
        "",
        "## Batch norm",
        "",
        *listed(norm()),
        "",
        "## Dropout",
        "",
        *listed(dropout()),
        "",
        "## Augmentation",
        "",
        *listed(augmentation()),
    ]
    (DOCS / "choose.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
