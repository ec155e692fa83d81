"""Safe loading of YAML from users: plain data of limited size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import InputError

# Limits above the size of any configuration; below them, parsing is fast.
DEPTH = 40
PARTS = 50_000


class _Loader(yaml.SafeLoader):
    """Loads plain data, and rejects duplicate keys; PyYAML would use the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, name: str) -> Any:
    """Read a YAML text of plain data.

    Args:
        text: The text.
        name: What it is called in an error.

    Raises:
        InputError: It is not YAML, has a duplicate key, or refers to itself.

    Example:
        >>> read_yaml("reg: {dropout: 0.2}", "mine.yaml")
        {'reg': {'dropout': 0.2}}
    """
    try:
        content = yaml.load(text, _Loader)
        _measure(content, DEPTH, PARTS)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        # An invalid number or date raises a Python exception.
        raise InputError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{name} is nested too deeply, or refers to itself") from error
    return content


def _measure(content: Any, depth: int, left: int) -> int:
    """Subtract the number of parts, counting each use of an alias; return the rest."""
    if not depth:
        raise RecursionError
    if left <= 0:
        raise ValueError(f"it has more than {PARTS} parts")
    if isinstance(content, dict):
        parts: Sequence[Any] = list(content.values())
    else:
        parts = content if isinstance(content, list) else []
    for part in parts:
        left = _measure(part, depth - 1, left - 1)
    return left


def read_yaml_file(file: Path, name: str = "") -> Any:
    """Read a YAML file of plain data.

    Args:
        file: The file.
        name: What it is called in an error; its path if not given.

    Raises:
        InputError: It cannot be read, or `read_yaml` rejects its text.
    """
    name = name or str(file)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not YAML: {error}; save it as UTF-8") from error
    return read_yaml(text, name)


def read_configuration(value: str) -> tuple[str, Any]:
    """Read a value of `--config`, a file or a YAML text.

    Returns:
        What it is called in errors, and its content.

    Raises:
        InputError: It cannot be read, or is not YAML.

    Example:
        >>> read_configuration("{model: {width: 8}}")
        ('--config', {'model': {'width': 8}})
    """
    if "\n" in value or "{" in value:
        return "--config", read_yaml(value, "--config")
    return value, read_yaml_file(Path(value))


def check_configurations(arguments: Sequence[str]) -> None:
    """Check the configurations among arguments of the command line.

    Raises:
        InputError: One is not YAML, or does not contain sections.
    """
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            value = value if equals else "".join(arguments[index + 1 : index + 2])
            _check_configuration(value)
        elif "*" in value and "&" in value:
            # Only text with an anchor can refer to itself.
            read_yaml(value, name)


def _check_configuration(value: str) -> None:
    if not value.strip():
        raise InputError("--config needs the name of a file")
    name, content = read_configuration(value)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{name} must hold keys and values, such as model: {{width: 32}}")
    for section in ("model", "data", "trainer"):
        if section in content and not isinstance(content[section], dict):
            raise InputError(
                f"{name}: {section} must hold keys and values, not {content[section]!r:.60}"
            )
