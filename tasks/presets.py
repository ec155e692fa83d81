"""From the short names of the command line to the stack of configurations behind them.

A file in `configs/reg` or `configs/data` holds one section a task, so that its values for vision,
speech and text stand side by side.
"""

from difflib import get_close_matches
from pathlib import Path

import yaml

from tasks.configs import read_yaml_file
from tasks.errors import InputError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TASKS = ("vision", "speech", "nlp")


def preset_names(folder: str) -> list[str]:
    """List the presets in a folder of `configs`."""
    return sorted(file.stem for file in (CONFIGS / folder).glob("*.yaml"))


def config_stack(task: str, reg: str, data: str) -> list[str]:
    """Return the configurations of a run as YAML texts or paths, later ones over earlier ones.

    Args:
        task: One of `TASKS`.
        reg: A preset in `configs/reg`, or the path of a file of the same form.
        data: A preset in `configs/data`, or any source; the preset of a path is the one that bears
            the name of its last part.

    Raises:
        InputError: There is no such task or preset, or it holds nothing for this task.
    """
    if task not in TASKS:
        raise InputError(unknown("TASK", task, list(TASKS)))
    for what, value in (("REG", reg), ("DATA", data)):
        parts = value.encode("utf-8", "surrogatepass").split(b"/")
        if not value or "\0" in value or len(value) > 1000 or max(map(len, parts)) > 255:
            raise InputError(f"{what}={value!r:.60} is no name, and no path that there could be")
    stack = [str(CONFIGS / "base.yaml"), str(CONFIGS / f"{task}.yaml")]
    name = Path(data).stem if Path(data).is_file() else Path(data).name
    if name in preset_names("data"):
        stack.append(_section(CONFIGS / "data" / f"{name}.yaml", task, f"DATA={data}"))
    if reg in preset_names("reg"):
        stack.append(_section(CONFIGS / "reg" / f"{reg}.yaml", task, f"REG={reg}"))
    elif Path(reg).is_file():
        stack.append(_section(Path(reg), task, f"REG={reg}"))
    else:
        raise InputError(unknown("REG", reg, preset_names("reg")))
    return stack


def unknown(what: str, value: str, known: list[str]) -> str:
    """Say that a name is not known, and which one may have been meant."""
    close = get_close_matches(value, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
    return f"{what}={value} is not known{hint}"


def _section(file: Path, task: str, argument: str) -> str:
    content = read_yaml_file(file)
    if not isinstance(content, dict) or not set(content) <= set(TASKS):
        raise InputError(f"{file} must hold sections named {', '.join(TASKS)} and nothing else")
    if task not in content:
        raise InputError(f"{argument} is for {', '.join(content)}, not for TASK={task}")
    section = {} if content[task] is None else content[task]
    if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
        raise InputError(f"{file}: {task} must hold keys and values, such as model: {{width: 32}}")
    return yaml.safe_dump(section)
