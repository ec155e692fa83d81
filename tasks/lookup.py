"""Tasks by name: the folders of `tasks`, or a class of one's own by its import path."""

import importlib
import inspect
from pathlib import Path
from typing import Any, get_type_hints

from regain.registry import import_object, is_import_path, unknown
from tasks.base import ClassificationTask
from tasks.data import ClassificationData, DataSpec
from tasks.errors import InputError


def task_names() -> list[str]:
    """Return the names of the tasks that come with the project: folders with a `task.py`."""
    return sorted(file.parent.name for file in Path(__file__).parent.glob("*/task.py"))


def find_task(name: str) -> type[ClassificationTask]:
    """Return the class of a task.

    Args:
        name: One of `task_names()`, `package.module:Task` or `path/to/file.py:Task`.

    Raises:
        InputError: There is no such task, it cannot be imported, or it is not a complete subclass
            of `ClassificationTask`.
    """
    if name in task_names():
        found: type[ClassificationTask] = importlib.import_module(f"tasks.{name}").Task
        return found
    if not is_import_path(name):
        raise InputError(unknown("TASK", name, task_names()))
    try:
        task = import_object(name, "TASK")
    except ValueError as error:
        raise InputError(str(error)) from error
    if not (isinstance(task, type) and issubclass(task, ClassificationTask)):
        raise InputError(f"TASK={name} is no subclass of tasks.base.ClassificationTask")
    _check_complete(task, f"TASK={name}")
    return task


def _check_complete(task: type[ClassificationTask], argument: str) -> None:
    data: Any = getattr(task, "data_class", None)
    if data is None:
        raise InputError(
            f"{argument} has no data_class; set it to the class of its data, a subclass of "
            "tasks.data.ClassificationData"
        )
    if not (isinstance(data, type) and issubclass(data, ClassificationData)):
        raise InputError(
            f"{argument}: data_class={data!r:.60} is no subclass of tasks.data.ClassificationData"
        )
    for attribute in ("config", "preset_file"):
        file = getattr(task, attribute)
        if file is not None and not Path(file).is_file():
            raise InputError(
                f"{argument}: there is no file {file}; correct the {attribute} of {task.__name__}"
            )
    missing = {"spec", "reg", "training", "optim"} - inspect.signature(task).parameters.keys()
    if missing:
        raise InputError(
            f"{argument}: the constructor has no parameter {', '.join(sorted(missing))}; "
            "see docs/extend.md"
        )


def check_spec(task: type[ClassificationTask], spec: Any, data: ClassificationData) -> None:
    """Check that what the data tell the model is what the task's constructor takes.

    Raises:
        InputError: It is of another class.
    """
    kind = get_type_hints(task.__init__).get("spec", DataSpec)
    if isinstance(kind, type) and not isinstance(spec, kind):
        raise InputError(
            f"{type(data).__name__}.spec() returns {type(spec).__name__}, and "
            f"{task.__name__} takes {kind.__name__}"
        )


def task_label(name: str) -> str:
    """Return a task's name for folders, charts and W&B.

    Example:
        >>> task_label("vision"), task_label("my/tables.py:TableTask")
        ('vision', 'TableTask')
    """
    return name.rpartition(":")[2]
