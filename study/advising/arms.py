"""The arms of an advice: what each one tunes, and around which values."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from study.advising.records import Question
from study.advising.resolving import has_key, resolved_config, value_at
from study.search_space import Space, space_of
from tasks.errors import InputError
from tasks.lookup import find_task, task_label
from tasks.run.folder_names import check_folder_name
from tasks.run.given import given_value
from tasks.run.presets import CONFIGS, FOREIGN, SECTIONS, config_stack
from tasks.run.yaml_files import read_yaml_file

SPACES = CONFIGS / "advise"
RATE, LENGTH = "model.optim.lr", "model.optim.min_steps"
EPOCHS = "model.optim.epochs"
MOST_EPOCHS = "trainer.max_epochs"
# Each of these, given as an argument, fixes the length of all trainings.
EXACT_LENGTHS = (MOST_EPOCHS, "trainer.max_steps", "trainer.max_time", LENGTH, EPOCHS)


@dataclass(frozen=True)
class Arm:
    """One arm: a preset, and what is tuned on top of it.

    Args:
        name: Short name, that of the preset.
        preset: Preset in `configs/reg`, or a file of that form.
        own: Its own parameters.
        literature: Values from the literature, of some of its own parameters.
        config: The resolved configuration of its preset.
    """

    name: str
    preset: str
    own: Space
    literature: list[dict[str, Any]]
    config: dict[str, Any]

    @property
    def rate(self) -> float:
        """Learning rate of the preset."""
        return float(value_at(self.config, RATE))

    def settings(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values of a trial with those that let the steps alone give the length."""
        if LENGTH not in values:
            return values
        # A number of epochs would be exact.
        exact = value_at(self.config, MOST_EPOCHS) is not None
        return {EPOCHS: 1, **({MOST_EPOCHS: None} if exact else {}), **values}

    def own_values(self, changed: dict[str, Any]) -> dict[str, Any]:
        """Return the values of the preset for its own parameters, with changes."""
        values = {key: value_at(self.config, key) for key in self.own.parameters}
        return self.own.fixed | values | changed


@dataclass(frozen=True)
class Ranges:
    """The ranges that all arms share; a parameter that the arguments fix has none.

    Args:
        rate: Distribution of the learning rate.
        length: Factors of the reference length in optimizer steps.
    """

    rate: FloatDistribution | None
    length: FloatDistribution | None

    def space(self, arm: Arm, steps: int) -> Space:
        """Return everything that an arm tunes.

        Args:
            arm: The arm.
            steps: Reference length.
        """
        parameters: dict[str, BaseDistribution] = {}
        if self.rate is not None:
            parameters[RATE] = self.rate
        rounding = {}
        if self.length is not None:
            low, high = (round(factor * steps) for factor in (self.length.low, self.length.high))
            parameters[LENGTH] = FloatDistribution(max(1, low), max(2, high), log=True)
            rounding[LENGTH] = 1
        own = arm.own
        return replace(own, parameters=parameters | own.parameters, steps=rounding | own.steps)


def read_arms(question: Question) -> list[Arm]:
    """Read the presets and the search spaces of all arms.

    The arguments of the question are not tuned. An arm of a design tunes those parameters of the
    recipe that its preset still has.

    Raises:
        InputError: A name, key or value is not valid.
    """
    task, data, names = question.task, question.data, question.arms
    arguments = question.arguments
    titles = [Path(name).stem for name in names]
    if not names or len(set(titles)) < len(titles):
        problem = "contains a duplicate" if names else "is empty; the first arm is the baseline"
        raise InputError(f"ARMS={' '.join(names)} {problem}")
    arms = []
    for title, name in zip(titles, names, strict=True):
        check_folder_name(title, "the name of an arm")
        try:
            config = resolved_config(task, name, data, arguments)
        except InputError as error:
            # The preset of an arm is called REG elsewhere.
            raise InputError(str(error).replace(f"REG={name}", f"ARMS: {name}", 1)) from error
        own, literature = _own_space(task, question.recipe or name)
        # The parameters of what a design has removed are not tuned.
        left = yaml.safe_load(config_stack(task, name, data)[-1]) if question.design else config
        # A task of one's own need not have all options.
        free = {
            key: kind
            for key, kind in own.parameters.items()
            if has_key(config, key) and has_key(left, key) and given_value(arguments, key) is None
        }
        entries = [
            {key: value for key, value in entry.items() if key in free} for entry in literature
        ]
        arms.append(Arm(title, name, replace(own, parameters=free), entries, config))
    return arms


def shared_ranges(arms: list[Arm], arguments: list[str]) -> Ranges:
    """Return the ranges of learning rate and length: the same ones for all arms.

    They reach from below the lowest to above the highest learning rate of the presets.
    """
    file = SPACES / "training.yaml"
    factors = space_of(read_yaml_file(file)["parameters"], str(file)).parameters
    rate, length = factors[RATE], factors[LENGTH]
    assert isinstance(rate, FloatDistribution)
    assert isinstance(length, FloatDistribution)
    rates = [arm.rate for arm in arms]
    # A preset with a lower rate was set apart already; a third below it suffices.
    low = min(min(rates) / 3, max(rates) * rate.low)
    tuned = FloatDistribution(_short(low), _short(max(rates) * rate.high), log=True)
    exact = any(given_value(arguments, key) is not None for key in EXACT_LENGTHS)
    free = given_value(arguments, RATE) is None
    return Ranges(tuned if free else None, None if exact else length)


def _own_space(task: str, preset: str) -> tuple[Space, list[dict[str, Any]]]:
    """Read what is tuned of a preset; nothing if it has no file in `configs/advise`."""
    file = SPACES / f"{preset}.yaml"
    if Path(preset).name != preset or not file.is_file():
        return Space({}), []
    content = read_yaml_file(file)
    found = find_task(task)
    sections = dict.fromkeys([task_label(task), found.presets or FOREIGN])
    known = {*SECTIONS, *sections}
    if not isinstance(content, dict) or not set(content) <= known:
        raise InputError(f"{file} must hold sections named {', '.join(sorted(known))}")
    section: dict[str, Any] = next((content[name] for name in sections if name in content), {})
    space = space_of(section.get("parameters") or {}, str(file))
    literature: list[dict[str, Any]] = section.get("literature") or []
    for key in {key for entry in literature for key in entry} - set(space.parameters):
        raise InputError(f"{file}: literature sets {key}, which is not among the parameters")
    return space, literature


def raw_values(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """Return values as Optuna knows them: those outside of a range become its nearest end.

    A rate of 0, say, is drawn as a value that is rounded to 0.
    """
    raw = {}
    for key, kind in space.parameters.items():
        value = values[key]
        if isinstance(kind, CategoricalDistribution):
            raw[key] = value if value in kind.choices else kind.choices[0]
        else:
            low, high = getattr(kind, "low"), getattr(kind, "high")  # noqa: B009
            raw[key] = min(max(value, low), high)
    return raw


def _short(value: float) -> float:
    return float(f"{value:.3g}")
