"""Presets: the configurations that the short names of the command line mean.

A file in `configs/reg` or `configs/data` holds one section a task, so that its values for vision,
speech and text can be compared. A task of one's own uses the section `vision` of `configs/reg`,
and may have presets of its own in one file, by name.

Without a norm, most networks need a smaller learning rate. The configuration of a task and each
section of `configs/data` may have a part `without_norm`, which applies on top of it to a model
without normalization.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from regain.registry import unknown
from tasks.base import ClassificationTask
from tasks.errors import InputError
from tasks.lookup import find_task, task_label
from tasks.run.given import given_value
from tasks.run.yaml_files import read_yaml_file

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Sections of a preset file.
SECTIONS = ("vision", "speech", "nlp")
# The section for tasks that have none of their own.
FOREIGN = "vision"
# Part of a configuration for models without normalization.
WITHOUT_NORM = "without_norm"


def preset_names(folder: str) -> list[str]:
    """List the presets in a folder of `configs`."""
    return sorted(file.stem for file in (CONFIGS / folder).glob("*.yaml"))


def config_stack(task: str, reg: str, data: str, arguments: Sequence[str] = ()) -> list[str]:
    """Return the configurations of a run as YAML texts or paths, later ones over earlier ones.

    Args:
        task: A task, as `find_task` takes it.
        reg: A preset of the task's own file or of `configs/reg`, or the path of a file of the form
            of those in `configs/reg`.
        data: A preset in `configs/data`, or any source; a path has the preset that is named like
            its last part.
        arguments: Further arguments of the command line, which may set the normalization.

    Raises:
        InputError: There is no such task or preset, or the preset has no section for this task.
    """
    found = find_task(task)
    for what, value in (("REG", reg), ("DATA", data)):
        parts = value.encode("utf-8", "surrogatepass").split(b"/")
        if not value or "\0" in value or len(value) > 1000 or max(map(len, parts)) > 255:
            raise InputError(f"{what}={value!r:.60} is neither a name nor a possible path")
    stack = [str(CONFIGS / "base.yaml")]
    # Positions in the stack, and what comes there if the model has no norm.
    without_norm: list[tuple[int, str]] = []

    def add(content: Any, name: str) -> None:
        config = _mapping(content, name)
        part = config.pop(WITHOUT_NORM, None)
        stack.append(yaml.safe_dump(config))
        if part is not None:
            without_norm.append((len(stack), _config(part, f"{name}: {WITHOUT_NORM}")))

    if found.config is not None:
        add(read_yaml_file(found.config), str(found.config))
    label, section = task_label(task), found.presets or FOREIGN
    name = Path(data).stem if Path(data).is_file() else Path(data).name
    # The presets of data are for the data modules of the project.
    if found.presets and name in preset_names("data"):
        add(*_section(CONFIGS / "data" / f"{name}.yaml", [label, section], f"DATA={data}"))
    own = {} if found.preset_file is None else read_yaml_file(found.preset_file)
    if not isinstance(own, dict):
        raise InputError(f"{found.preset_file} must hold presets by name, such as none: {{}}")
    if reg in own:
        stack.append(_config(own[reg], f"{found.preset_file}: {reg}"))
    elif reg in preset_names("reg"):
        file = CONFIGS / "reg" / f"{reg}.yaml"
        stack.append(_config(*_section(file, [label, section], f"REG={reg}")))
    elif Path(reg).is_file():
        stack.append(_config(*_section(Path(reg), [label, section], f"REG={reg}")))
    else:
        known = dict.fromkeys([*map(str, own), *preset_names("reg")])
        raise InputError(unknown("REG", reg, list(known)))
    if not found.presets:
        _check_keys(stack[-1], found, f"REG={reg}")
    configurations = [part for config in stack for part in ("--config", config)]
    norm = given_value([*configurations, *arguments], "model.reg.normalization")
    if norm in (None, "none"):
        for position, config in reversed(without_norm):
            stack.insert(position, config)
    return stack


def _check_keys(preset: str, task: type[ClassificationTask], argument: str) -> None:
    """Check that a preset for another task sets what this one has."""
    model = yaml.safe_load(preset).get("model", {})
    known = inspect.signature(task).parameters
    for key in model if isinstance(model, dict) else ():
        if key not in known:
            raise InputError(
                f"{argument} sets model.{key}, which {task.__name__} does not have; choose another "
                "preset, or write one for it"
            )


def _section(file: Path, wanted: list[str], argument: str) -> tuple[Any, str]:
    """Return the first section of these names that a file holds, and what errors call it."""
    content = read_yaml_file(file)
    sections = list(dict.fromkeys([*SECTIONS, *wanted]))
    if not isinstance(content, dict) or not set(content) <= set(sections):
        raise InputError(f"{file} must hold sections named {', '.join(sections)} and nothing else")
    name = next((name for name in wanted if name in content), None)
    if name is None:
        raise InputError(f"{argument} is for {', '.join(content)}, not for TASK={wanted[0]}")
    return content[name], f"{file}: {name}"


def _config(content: Any, name: str) -> str:
    return yaml.safe_dump(_mapping(content, name))


def _mapping(content: Any, name: str) -> dict[str, Any]:
    config = {} if content is None else content
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise InputError(f"{name} must hold keys and values, such as model: {{width: 32}}")
    return dict(config)
