"""Checks of arguments: each raises a `ValueError` that names the argument and its value."""

import math

import torch


def check_rate(name: str, value: float) -> float:
    """Return `value` if it is a rate in [0, 1), else raise an error that names it.

    Raises:
        ValueError: `value` is not a number, is NaN, or lies outside [0, 1).
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is a rate to drop in [0, 1), not {value!r}")
    return float(value)


def check_probability(name: str, value: float) -> float:
    """Return `value` if it is a probability in [0, 1], else raise an error that names it.

    With 1 layers drop everything, as in PyTorch. `check_rate` excludes 1.

    Raises:
        ValueError: `value` is not a number, is NaN, or lies outside [0, 1].
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a rate to drop in [0, 1], not {value!r}")
    return float(value)


def check_generator(generator: object) -> None:
    """Raise an error if `generator` is not a generator, such as an `inplace` passed by position.

    Raises:
        ValueError: `generator` is neither a `torch.Generator` nor None.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator is a torch.Generator or None, not {generator!r}; pass other arguments, "
            "such as inplace, by name"
        )


def check_flag(name: str, value: bool) -> bool:
    """Return `value` if it is True or False, else raise an error that names it.

    Raises:
        ValueError: `value` is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is True or False, not {value!r}")
    return value


def check_amount(name: str, value: float, whole: bool = False) -> None:
    """Raise an error that names `value` if it is not a finite number of at least 0.

    Raises:
        ValueError: `value` is not a number (if `whole`, an integer), is NaN, infinite or negative.
    """
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} is a {kind} of at least 0, not {value!r}")
