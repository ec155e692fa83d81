"""The parts of a recipe: what regularizes in a preset, split so that each part can be removed.

The split follows the definitions of `Regularization`, `TrainingRegularization` and the task's
augmentation. A field that is off by default, such as `head_dropout`, is a part if the preset turns
it on. The fields defined after it that are details of it, such as `dropout_kind` after `dropout`,
belong to it.
"""

import copy
import dataclasses
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tasks.lookup import find_task
from tasks.optimization import Optimization

# Defaults that mean "off", beside 0, false and null.
OFF = ("none", "constant")
# Options in `training` that fail or do nothing without an option in `reg` whose name contains this.
NEEDS = {"norm_recompute": "normalization", "dropout_schedule": "drop", "r_drop": "drop"}


@dataclass(frozen=True)
class Part:
    """One part of a recipe.

    Args:
        name: Name of the option that turns it on, such as `head_dropout`; with its section, such
            as `augment.dropout`, if two sections have an option of this name.
        keys: Its configuration keys, such as `model.reg.head_dropout`, the first one turns it on.
    """

    name: str
    keys: tuple[str, ...]

    @property
    def section(self) -> str:
        """Section of the model that the option is in, such as `reg`."""
        return self.keys[0].split(".")[1]

    @property
    def option(self) -> str:
        """The option that turns it on, without its section."""
        return self.keys[0].split(".")[2]


def parts_of(config: dict[str, Any], task: str) -> list[Part]:
    """Return the parts that a preset turns on, in the order of their definitions.

    Args:
        config: Section of the preset, such as `{"model": {"reg": {"dropout": 0.1}}}`.
        task: A task, as `find_task` takes it.

    Example:
        >>> config = {"model": {"reg": {"dropout": 0.1, "dropout_kind": "channel"}}}
        >>> parts_of(config, "vision")
        [Part(name='dropout', keys=('model.reg.dropout', 'model.reg.dropout_kind'))]
    """
    model = config.get("model")
    found: dict[tuple[str, str], list[str]] = {}
    for section, values, defaults in _sections(model if isinstance(model, dict) else {}, task):
        option = ""
        for field in dataclasses.fields(defaults):
            default = getattr(defaults, field.name)
            if (not default or default in OFF) and not _details(field.name, option):
                option = field.name
                on = bool(values.get(option)) and values[option] != default
                if on:
                    found[section, option] = []
            if (section, option) in found and field.name in values:
                found[section, option].append(f"model.{section}.{field.name}")
    _add_dependents(found)
    names = [name for _, name in found]
    return [
        Part(name if names.count(name) == 1 else f"{section}.{name}", tuple(keys))
        for (section, name), keys in found.items()
    ]


def without(config: dict[str, Any], part: Part) -> dict[str, Any]:
    """Return a preset without one of its parts; the given one is unchanged.

    Example:
        >>> config = {"model": {"reg": {"dropout": 0.1, "normalization": "batch"}}}
        >>> without(config, Part("dropout", ("model.reg.dropout",)))
        {'model': {'reg': {'normalization': 'batch'}}}
    """
    made = copy.deepcopy(config)
    for key in part.keys:
        *sections, name = key.split(".")
        inner = made
        for section in sections:
            inner = inner[section]
        inner.pop(name, None)
    return made


def _sections(model: dict[str, Any], task: str) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield name, values and defaults of each section of a model that regularizes."""
    for name, parameter in inspect.signature(find_task(task)).parameters.items():
        defaults, values = parameter.default, model.get(name)
        known = dataclasses.is_dataclass(defaults) and not isinstance(defaults, Optimization)
        if known and isinstance(values, dict):
            yield name, values, defaults


def _details(name: str, option: str) -> bool:
    """Whether a field that is off by default is a detail of the option before it."""
    return bool(option) and name.startswith(f"{option}_")


def _add_dependents(found: dict[tuple[str, str], list[str]]) -> None:
    """Add to a part the keys of what cannot remain without it."""
    for name, kind in NEEDS.items():
        needed = [part for part in found if part[0] == "reg" and kind in part[1]]
        if len(needed) == 1:
            found[needed[0]] += found.get(("training", name), [])
