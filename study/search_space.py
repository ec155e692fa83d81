"""Search spaces: the same file serves Optuna and W&B sweeps."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from regain.registry import unknown
from tasks.errors import InputError
from tasks.run.moved_keys import moved_key
from tasks.run.yaml_files import read_yaml_file

# W&B's names; `min` and `max` alone mean uniform or int_uniform.
DISTRIBUTIONS = [
    *("uniform", "int_uniform", "q_uniform", "log_uniform_values", "q_log_uniform_values"),
    "categorical",
]


@dataclass(frozen=True)
class Space:
    """The parameters to search.

    Args:
        parameters: The distribution of each configuration key.
        fixed: Keys with the same value in all trials.
        steps: For keys drawn on a logarithmic scale and then rounded to multiples of a step; values
            below half a step become zero.
    """

    parameters: dict[str, BaseDistribution]
    fixed: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw a value of each parameter for a trial."""
        drawn: dict[str, Any] = {}
        for key, kind in self.parameters.items():
            if isinstance(kind, CategoricalDistribution):
                drawn[key] = trial.suggest_categorical(key, kind.choices)
            elif isinstance(kind, IntDistribution):
                drawn[key] = trial.suggest_int(key, kind.low, kind.high)
            elif isinstance(kind, FloatDistribution):
                drawn[key] = trial.suggest_float(
                    key, kind.low, kind.high, step=kind.step, log=kind.log
                )
        return self.fixed | self.values(drawn)

    def values(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """Round drawn values to what is trained with, to nine significant digits at most."""
        values = {}
        for key, value in drawn.items():
            step = self.steps.get(key)
            if step is not None:
                value = round(value / step) * step
            # Removes binary rounding errors: 0.35000000000000003.
            values[key] = float(f"{value:.9g}") if isinstance(value, float) else value
        return values

    def lowest(self) -> dict[str, Any]:
        """Return the lowest value of each range, and the first of each list of choices."""
        return {
            key: kind.choices[0] if isinstance(kind, CategoricalDistribution) else kind.low
            for key, kind in self.parameters.items()
            if isinstance(kind, CategoricalDistribution | IntDistribution | FloatDistribution)
        }


def read_space(file: Path) -> Space:
    """Read the `parameters` of a W&B sweep file.

    Raises:
        InputError: The file does not exist or is not a valid search space.
    """
    content = read_yaml_file(file, f"SPACE={file}")
    parameters = content.get("parameters") if isinstance(content, dict) else None
    if not isinstance(parameters, dict) or not parameters:
        raise InputError(f"SPACE={file} has no parameters to search")
    space = space_of(parameters, f"SPACE={file}")
    if not space.parameters:
        raise InputError(f"SPACE={file} has only fixed values")
    return space


def space_of(parameters: dict[str, Any], source: str) -> Space:
    """Read the entries of a W&B sweep file.

    Args:
        parameters: Entry of each key.
        source: Where they are from, for error messages.

    Raises:
        InputError: An entry is not valid.
    """
    space = Space({})
    for given, entry in parameters.items():
        key = moved_key(str(given))
        if isinstance(entry, dict) and set(entry) == {"value"}:
            space.fixed[key] = entry["value"]
            continue
        try:
            space.parameters[key] = distribution(entry)
            if entry.get("distribution") == "q_log_uniform_values":
                space.steps[key] = step_of(entry)
        except (TypeError, ValueError, KeyError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"{source}: {key}: {reason}") from error
    return space


def distribution(entry: Any) -> BaseDistribution:
    """Convert one entry of a W&B sweep file to an Optuna distribution.

    Raises:
        TypeError: It is not a mapping.
        ValueError: The distribution is unknown or the range is invalid.
        KeyError: An end of its range is missing.

    Example:
        >>> distribution({"min": 0.0, "max": 0.8})
        FloatDistribution(high=0.8, log=False, low=0.0, step=None)
    """
    if not isinstance(entry, dict):
        raise TypeError(f"{entry!r} must be a mapping with min and max, values or value")
    if "values" in entry:
        return CategoricalDistribution(tuple(entry["values"]))
    low, high = entry["min"], entry["max"]
    whole = isinstance(low, int) and isinstance(high, int)
    kind = entry.get("distribution", "int_uniform" if whole else "uniform")
    if kind == "int_uniform":
        return IntDistribution(low, high)
    if kind == "uniform":
        return FloatDistribution(low, high)
    if kind == "q_uniform":
        return FloatDistribution(low, high, step=entry["q"])
    if kind in ("log_uniform_values", "q_log_uniform_values"):
        return FloatDistribution(low, high, log=True)
    raise ValueError(unknown("distribution", str(kind), DISTRIBUTIONS))


def step_of(entry: dict[str, Any]) -> float:
    """Return the step of a quantized entry.

    Raises:
        ValueError: It is not positive.
        KeyError: It is missing.
    """
    step: float = entry["q"]
    if not step > 0:
        raise ValueError(f"q must be positive, not {step!r}")
    return step
