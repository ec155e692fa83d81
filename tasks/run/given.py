"""The value of a key among configurations and arguments, before LightningCLI parses them."""

from collections.abc import Sequence
from typing import Any

from tasks.run.yaml_files import read_configuration, read_yaml


def given_value(arguments: Sequence[str], key: str) -> Any:
    """Return the last value that arguments give to a key; None if there is none.

    A mapping on the command line replaces a whole section, and its other keys with it.

    Args:
        arguments: Arguments of the command line, among them configurations.
        key: Dotted key.

    Raises:
        InputError: A configuration cannot be read.

    Example:
        >>> given_value(["--config={model: {width: 8}}", "--model.reg={}"], "model.width")
        8
        >>> given_value(["--config={model: {width: 8}}", "--model={}"], "model.width")
    """
    value = None
    for index, argument in enumerate(arguments):
        name, equals, text = argument.partition("=")
        text = text if equals else "".join(arguments[index + 1 : index + 2])
        if name in ("--config", "-c") and text.strip():
            value = _nested(read_configuration(text)[1], key.split("."), value)
        elif name == f"--{key}":
            value = text
        elif name.startswith("--") and key.startswith(f"{name[2:]}."):
            rest = key.removeprefix(f"{name[2:]}.").split(".")
            value = _nested(read_yaml(text, name), rest, None)
    return value


def _nested(content: Any, path: Sequence[str], default: Any) -> Any:
    for name in path:
        if not isinstance(content, dict) or name not in content:
            return default
        content = content[name]
    return content
