"""Checks of labels, and their conversion to class numbers."""

import logging
import math
import unicodedata
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.data.loading import Source
from tasks.errors import InputError
from tasks.run.plain_text import printable

log = logging.getLogger(__name__)


def label_ids(source: Source) -> tuple[dict[str, Tensor], list[str]]:
    """Return class numbers for the labels of each split, and the names of the classes.

    Raises:
        InputError: A split is empty, or a label is missing or does not occur among the classes.
    """
    classes = source.classes or None
    labels: dict[str, list[Any]] = {}
    for split, rows in source.splits.items():
        if not len(rows.labels):
            raise InputError(f"split {split} is empty")
        labels[split] = [_label(label, split, row) for row, label in enumerate(rows.labels)]
    training = labels["train"]
    kinds = [_kind(label) for label in training]
    if len(set(kinds)) > 1:
        row = next(row for row, kind in enumerate(kinds) if kind != kinds[0])
        raise InputError(
            f"row {row} of split train has label {training[row]!r:.60}, and row 0 has "
            f"{training[0]!r:.60}: labels are all names or all numbers, or all true or false"
        )
    # With named classes, labels are class numbers or names; otherwise their values are the names.
    values: Sequence[Any] = range(len(classes)) if classes else sorted(set(training))
    if classes is None:
        classes = [_class_name(value) for value in values]
    elif isinstance(training[0], str):
        values = classes
    numbers = {value: number for number, value in enumerate(values)}
    classes = [printable(name) for name in classes]
    ids = {}
    for split, given in labels.items():
        for row, label in enumerate(given):
            if label not in numbers:
                raise InputError(
                    f"row {row} of split {split} has label {label!r:.60}, "
                    f"out of range: the {len(classes)} classes are {_range(classes)}"
                )
        ids[split] = torch.tensor([numbers[label] for label in given], dtype=torch.int64)
    _warn_of_look_alikes(classes)
    return ids, classes


def _label(label: Any, split: str, row: int) -> str | bool | int | float:
    """Return a label as a name or a number.

    Raises:
        InputError: It is neither.
    """
    if isinstance(label, np.generic | Tensor):
        label = label.item()
    if isinstance(label, date):
        return label.isoformat()
    # NaN is not equal to itself.
    if label is None or label != label or (isinstance(label, str) and not label.strip()):
        raise InputError(
            f"row {row} of split {split} has no label; in a table, an empty cell and NA, None, "
            "null and nan are none"
        )
    if not isinstance(label, str | bool | int | float) or label in (math.inf, -math.inf):
        raise InputError(
            f"row {row} of split {split} has label {label!r:.60}: a label is a name or a number"
        )
    return label


def _kind(label: str | bool | int | float) -> type:
    return next(kind for kind in (str, bool, object) if isinstance(label, kind))


def _class_name(value: str | bool | int | float) -> str:
    """Name a class by its label; 1.0 is 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _warn_of_look_alikes(classes: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if plain in seen:
            log.warning(
                f"warning: {seen[plain]!r:.60} and {name!r:.60} are two classes; their names "
                "differ in case, spaces or the form of a letter alone"
            )
            return
        seen[plain] = name


def _range(classes: list[str]) -> str:
    if len(classes) > 5:
        return f"{classes[0]:.40} ... {classes[-1]:.40}"
    return ", ".join(f"{name:.40}" for name in classes)
