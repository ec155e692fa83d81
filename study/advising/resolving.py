"""The configuration of a training before it starts, to search around its values."""

import logging
import warnings
from typing import Any

import yaml

from tasks.building import without_sizes
from tasks.lookup import find_task
from tasks.run.build import build
from tasks.run.command_line import parse
from tasks.run.presets import config_stack


def resolved_config(task: str, reg: str, data: str, arguments: list[str]) -> dict[str, Any]:
    """Return the whole configuration of a training; no data are read.

    Args:
        task: A task, as `find_task` takes it.
        reg: A preset, or a file of that form.
        data: A data source.
        arguments: Arguments of `python -m tasks.train`.

    Raises:
        InputError: A name, key or value is not valid.
    """
    for package in ("lightning.pytorch", "lightning.fabric"):
        # Its notices concern trainings.
        logging.getLogger(package).setLevel(logging.WARNING)
    options, further = parse(["--task", task, "--reg", reg, "--data", data, *arguments])
    found = find_task(options.task)
    stack = config_stack(options.task, options.reg, options.data, further)
    with warnings.catch_warnings():
        # The arguments are not those of this process.
        warnings.filterwarnings("ignore", message=".*args parameter is intended to run.*")
        cli = build(
            found,
            [
                *(part for config in stack for part in ("--config", config)),
                f"--data.source={options.data}",
                *without_sizes(found, further),
                *further,
            ],
            [],
        )
    config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))
    return config


def value_at(config: dict[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None if it is not there.

    Example:
        >>> value_at({"model": {"optim": {"lr": 0.1}}}, "model.optim.lr")
        0.1
    """
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def has_key(config: dict[str, Any], key: str) -> bool:
    """Whether a configuration has a dotted key, whatever its value.

    Example:
        >>> has_key({"model": {"lr": None}}, "model.lr"), has_key({"model": {}}, "model.lr")
        (True, False)
    """
    parent, _, name = key.rpartition(".")
    section = value_at(config, parent) if parent else config
    return isinstance(section, dict) and name in section
