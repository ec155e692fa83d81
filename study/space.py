"""Search spaces: one file for Optuna here and for W&B's sweeps."""

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

from tasks.configs import read_yaml_file
from tasks.errors import InputError
from tasks.presets import unknown

# W&B's names; a plain `min` and `max` mean one of the first two.
KINDS = [
    *("uniform", "int_uniform", "q_uniform", "log_uniform_values", "q_log_uniform_values"),
    "categorical",
]


@dataclass(frozen=True)
class Space:
    """What is searched.

    Args:
        parameters: The distribution that is drawn from for each key of the configuration.
        fixed: Keys with the same value in all trials.
        steps: Of keys drawn on a logarithmic scale and then rounded to multiples of a step. What is
            below half a step is zero.
    """

    parameters: dict[str, BaseDistribution]
    fixed: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Ask a trial for a value of each parameter."""
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
        """Turn what a trial has drawn into what it trains with, nine significant digits at most."""
        values = {}
        for key, value in drawn.items():
            step = self.steps.get(key)
            if step is not None:
                value = round(value / step) * step
            # Steps are summed up in binary: 0.35000000000000003.
            values[key] = float(f"{value:.9g}") if isinstance(value, float) else value
        return values

    def least(self) -> dict[str, Any]:
        """Return the lowest draw of each parameter, and of several choices the first."""
        return {
            key: kind.choices[0] if isinstance(kind, CategoricalDistribution) else kind.low
            for key, kind in self.parameters.items()
            if isinstance(kind, CategoricalDistribution | IntDistribution | FloatDistribution)
        }


def read_space(file: Path) -> Space:
    """Read the `parameters` of a W&B sweep file.

    Raises:
        InputError: There is no such file, or it holds what cannot be searched.
    """
    content = read_yaml_file(file, f"SPACE={file}")
    parameters = content.get("parameters") if isinstance(content, dict) else None
    if not isinstance(parameters, dict) or not parameters:
        raise InputError(f"SPACE={file} holds no parameters to search")
    space = Space({})
    for key, entry in parameters.items():
        if isinstance(entry, dict) and set(entry) == {"value"}:
            space.fixed[key] = entry["value"]
            continue
        try:
            space.parameters[key] = distribution(entry)
            if entry.get("distribution") == "q_log_uniform_values":
                space.steps[key] = step_of(entry)
        except (TypeError, ValueError, KeyError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"SPACE={file}: {key}: {reason}") from error
    if not space.parameters:
        raise InputError(f"SPACE={file} holds fixed values only")
    return space


def distribution(entry: Any) -> BaseDistribution:
    """Turn one entry of a W&B sweep file into Optuna's distribution.

    Raises:
        TypeError: It is no mapping.
        ValueError: Its kind or range is none that can be searched.
        KeyError: An end of its range is missing.

    Example:
        >>> distribution({"min": 0.0, "max": 0.8})
        FloatDistribution(high=0.8, log=False, low=0.0, step=None)
    """
    if not isinstance(entry, dict):
        raise TypeError(f"{entry!r} is no mapping with min and max, values or value")
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
    raise ValueError(unknown("distribution", str(kind), KINDS))


def step_of(entry: dict[str, Any]) -> float:
    """Return the step of a quantized entry.

    Raises:
        ValueError: It is not above zero.
        KeyError: There is none.
    """
    step: float = entry["q"]
    if not step > 0:
        raise ValueError(f"q is above 0, not {step!r}")
    return step
