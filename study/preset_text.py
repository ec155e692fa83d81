"""Presets that are written by studies and searches, in the form of those in `configs/reg`."""

from collections.abc import Mapping
from typing import Any

import yaml

from tasks.lookup import task_label
from tasks.run.presets import config_stack


def preset_text(task: str, reg: str, data: str, values: dict[str, Any], comment: list[str]) -> str:
    """Return a preset with other values, as YAML.

    Args:
        task: A task, as `find_task` takes it.
        reg: The preset.
        data: A data source.
        values: Values of dotted keys.
        comment: Lines of the comment at its top.
    """
    config: dict[str, Any] = {}
    # The preset is the last file of the stack.
    merge(config, yaml.safe_load(config_stack(task, reg, data)[-1]))
    for key, value in values.items():
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        merge(config, nested)
    return section_text(task, config, comment)


def section_text(task: str, config: Mapping[str, Any], comment: list[str]) -> str:
    """Return a preset with one section, as YAML.

    Args:
        task: A task, as `find_task` takes it.
        config: The section.
        comment: Lines of the comment at its top.
    """
    lines = "".join(f"# {line}\n" for line in comment)
    return lines + yaml.safe_dump({task_label(task): dict(config)}, sort_keys=False)


def merge(config: dict[str, Any], further: dict[str, Any]) -> None:
    """Merge a nested configuration into another one."""
    for key, value in further.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            merge(config[key], value)
        else:
            config[key] = value
