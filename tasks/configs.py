"""Reading of the YAML files and texts that users write, before anything else takes them apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import InputError

# More than any configuration holds, and less than what a parser chokes on.
DEPTH = 40
PARTS = 50_000


class _Loader(yaml.SafeLoader):
    """Loads plain data; a key that stands twice in a mapping is an error, not the last of both."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, name: str) -> Any:
    """Read a YAML text of plain data.

    Args:
        text: The text.
        name: What it is called in an error.

    Raises:
        InputError: It is not YAML, holds a key twice, or refers to itself.

    Example:
        >>> read_yaml("reg: {dropout: 0.2}", "mine.yaml")
        {'reg': {'dropout': 0.2}}
    """
    try:
        content = yaml.load(text, _Loader)
        _measure(content, DEPTH, PARTS)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        # A number or date that is none is an error of Python's own.
        raise InputError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{name} is nested too deeply, or refers to itself") from error
    return content


def _measure(content: Any, depth: int, left: int) -> int:
    """Count down for each part, those behind an alias each time; return what is left."""
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
        InputError: It cannot be read, or `read_yaml` refuses its text.
    """
    name = name or str(file)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not YAML: {error}; save it as UTF-8") from error
    return read_yaml(text, name)


def check_configurations(arguments: Sequence[str]) -> None:
    """Check the configurations among arguments of the command line.

    Raises:
        InputError: One is not YAML, or does not hold sections.
    """
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            value = value if equals else "".join(arguments[place + 1 : place + 2])
            _check_configuration(value)
        elif "*" in value and "&" in value:
            # Only what has a name in it can refer to itself.
            read_yaml(value, name)


def _check_configuration(value: str) -> None:
    if not value.strip():
        raise InputError("--config needs the name of a file")
    if "\n" in value or "{" in value:
        name, content = "--config", read_yaml(value, "--config")
    else:
        name, content = value, read_yaml_file(Path(value))
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{name} must hold keys and values, such as model: {{width: 32}}")
    for section in ("model", "data", "trainer"):
        if section in content and not isinstance(content[section], dict):
            raise InputError(
                f"{name}: {section} must hold keys and values, not {content[section]!r:.60}"
            )
