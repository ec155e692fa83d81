"""Search spaces: one file for Optuna here and for W&B's sweeps."""

from dataclasses import dataclass
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
KINDS = ["uniform", "int_uniform", "q_uniform", "log_uniform_values", "categorical"]


@dataclass(frozen=True)
class Space:
    """What is searched: a distribution for each key of the configuration."""

    parameters: dict[str, BaseDistribution]
    fixed: dict[str, Any]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Ask a trial for a value of each parameter, of nine significant digits at most."""
        values = dict(self.fixed)
        for key, kind in self.parameters.items():
            if isinstance(kind, CategoricalDistribution):
                values[key] = trial.suggest_categorical(key, kind.choices)
            elif isinstance(kind, IntDistribution):
                values[key] = trial.suggest_int(key, kind.low, kind.high)
            elif isinstance(kind, FloatDistribution):
                value = trial.suggest_float(key, kind.low, kind.high, step=kind.step, log=kind.log)
                # Steps are summed up in binary: 0.35000000000000003.
                values[key] = float(f"{value:.9g}")
        return values

    def least(self) -> dict[str, Any]:
        """Return the lowest value of each parameter, and of several choices the first."""
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
    space = Space({}, {})
    for key, entry in parameters.items():
        if isinstance(entry, dict) and set(entry) == {"value"}:
            space.fixed[key] = entry["value"]
            continue
        try:
            space.parameters[key] = distribution(entry)
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
    if kind == "log_uniform_values":
        return FloatDistribution(low, high, log=True)
    raise ValueError(unknown("distribution", str(kind), KINDS))
