"""Renamed configuration keys: the old names are accepted, with a notice."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from tasks.errors import InputError
from tasks.run.yaml_files import read_configuration, read_yaml

log = logging.getLogger(__name__)

TO_TRAINING = """dropout_schedule weight_decay l1 l2 max_norm adaptive_clip r_drop sam sam_adaptive
    label_smoothing early_stopping norm_recompute""".split()
# Accepted for one release after 0.1.
MOVED = {
    **{f"model.reg.{name}": f"model.training.{name}" for name in TO_TRAINING},
    "model.reg.dropout_schedule_share": "model.training.dropout_schedule_fraction",
    "model.reg.sync": "model.reg.sync_bn",
    "data.mirror": "data.allow_flip",
    "model.spec.mirror": "model.spec.allow_flip",
}


def with_moved_keys(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rename the old keys of a nested configuration.

    Returns:
        The configuration with current keys, and the old keys that it had.

    Raises:
        InputError: A value is given under its old and its current key.

    Example:
        >>> with_moved_keys({"model": {"reg": {"dropout": 0.1, "l2": 0.01}}})
        ({'model': {'reg': {'dropout': 0.1}, 'training': {'l2': 0.01}}}, ['model.reg.l2'])
    """
    config, found = _copied(config), []
    for old, new in MOVED.items():
        *above, name = old.split(".")
        section = _section(config, above)
        if section is None or name not in section:
            continue
        found.append(old)
        *target, new_name = new.split(".")
        new_section = config
        for part in target:
            new_section = new_section.setdefault(part, {})
        if new_name in new_section:
            raise InputError(f"{old} is now {new}, and both are given; remove {old}")
        new_section[new_name] = section.pop(name)
    return config, found


def _copied(value: Any) -> Any:
    return {key: _copied(one) for key, one in value.items()} if isinstance(value, dict) else value


def _section(config: Any, path: list[str]) -> dict[str, Any] | None:
    for name in path:
        config = config.get(name) if isinstance(config, dict) else None
    return config if isinstance(config, dict) else None


def moved_key(key: str) -> str:
    """Return the current name of a dotted key.

    Example:
        >>> moved_key("model.reg.weight_decay"), moved_key("model.reg.dropout")
        ('model.training.weight_decay', 'model.reg.dropout')
    """
    return MOVED.get(key, key)


def moved_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line with current keys.

    Old keys are renamed in the text or file of `--config`, in `--model.reg.KEY` and in
    `--model.reg={...}`.

    Raises:
        InputError: A configuration is not YAML, or has a value under its old and its current key.
    """
    result: list[str] = []
    found: dict[str, None] = {}
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            result.append(argument)
            continue
        key = name.removeprefix("--").removesuffix("+")
        if key in MOVED:
            found[key] = None
            result.append(f"--{MOVED[key]}{equals}{value}")
        elif key in ("config", "model", "model.reg", "data") and (equals or left):
            text = value if equals else left.pop(0)
            result += _moved_text(key, text, found)
        else:
            result.append(argument)
    for old in found:
        log.warning(f"notice: {old} is now {MOVED[old]}; the old key is accepted until 0.3")
    return result


def _moved_text(key: str, text: str, found: dict[str, None]) -> Iterator[str]:
    content = read_configuration(text)[1] if key == "config" else read_yaml(text, f"--{key}")
    above = [] if key == "config" else key.split(".")
    nested = content
    for part in reversed(above):
        nested = {part: nested}
    config, old = with_moved_keys(nested) if isinstance(nested, dict) else (nested, [])
    if not old:
        yield f"--{key}={text}"
        return
    found |= dict.fromkeys(old)
    if key == "config":
        yield f"--config={yaml.safe_dump(config)}"
        return
    # A mapping on the command line replaces the whole section. Values that have moved to another
    # section become arguments of their own.
    section: Any = _section(config, above)
    yield f"--{key}={yaml.safe_dump(section, default_flow_style=True).strip()}"
    for one in old:
        if not MOVED[one].startswith(f"{key}."):
            value: Any = config
            for part in MOVED[one].split("."):
                value = value[part]
            yield f"--{MOVED[one]}={value}"


def present_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a `metrics.json` with the current names of keys and metrics.

    Example:
        >>> present_record({"best": {"train/eval_acc": 0.9}})
        {'best': {'train_eval/acc': 0.9}}
    """
    record = dict(record)
    if "config" in record:
        record["config"] = with_moved_keys(record["config"])[0]
    for part in ("best", "last"):
        if record.get(part):
            record[part] = _present_metrics(record[part])
    if "history" in record:
        record["history"] = [_present_metrics(epoch) for epoch in record["history"]]
    return record


def _present_metrics(epoch: dict[str, float]) -> dict[str, float]:
    return {name.replace("train/eval_", "train_eval/"): value for name, value in epoch.items()}
