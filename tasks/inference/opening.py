"""Opens a checkpoint for predictions: its model, and the data module that decodes inputs."""

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regain.registry import is_import_path
from tasks.base import ClassificationTask
from tasks.calibration import Calibration
from tasks.data import ClassificationData, DataSpec
from tasks.data.files import with_home
from tasks.errors import InputError, first_line
from tasks.exporting.weights import is_weights_folder, read_weights_folder
from tasks.inference.runs import find_checkpoint
from tasks.lookup import find_task, task_names
from tasks.run.checkpoints import FORMAT
from tasks.run.moved_keys import with_moved_keys
from tasks.run.safe_loading import constructor_arguments, read_checkpoint, refuse_imports

# In the folder of a checkpoint whose weights are sharded over devices.
SHARDS = ".metadata"


@dataclass
class Opened:
    """The content of a checkpoint.

    Args:
        task: The task with the model, in evaluation mode.
        data: The data module, without its data.
        facts: Information on the run from the checkpoint.
        mc_calibration: Calibration for Monte Carlo dropout; that of the task if there is none.
    """

    task: ClassificationTask
    data: ClassificationData
    facts: dict[str, Any]
    mc_calibration: Calibration


def open_checkpoint(path: str | Path, device: Any = "cpu", trusted: Collection[str] = ()) -> Opened:
    """Open a checkpoint; no code in it is executed.

    Args:
        path: A checkpoint, the folder of a run, or an http(s) address.
        device: Where the model goes.
        trusted: Import paths, such as `my_task.py:Task`, that may be imported where the checkpoint
            names them.

    Raises:
        InputError: It cannot be read, lacks what a prediction needs, or names an import path that
            is not trusted; or there is no such device.
    """
    check_device(device)
    file = checkpoint_file(path)
    checkpoint = read_content(file)
    run = checkpoint.get("run")
    if not isinstance(run, dict) or "format" not in run:
        raise InputError(
            f"{file} lacks what decoding an input needs: it is older than make predict or not "
            "from make train; train it again, or load its weights with Task.load_from_checkpoint"
        )
    if run["format"] != FORMAT:
        raise InputError(
            f"{file} has format {run['format']!r:.60}, and this version reads {FORMAT}; update it"
        )
    facts, config = run.get("facts"), run.get("config")
    if not isinstance(facts, dict) or not isinstance(config, dict):
        raise InputError(f"{file} is not a checkpoint of a run (it lacks facts or configuration)")
    kind = task_class(str(file), facts.get("task"), trusted)
    task = kind.from_checkpoint(checkpoint, str(file), trusted=trusted)
    data = data_module(str(file), task, config, checkpoint, trusted)
    facts = facts | {"config": config, "validation": validation_metrics(checkpoint)}
    saved = checkpoint.get("calibration")
    mc = saved.get("mc") if isinstance(saved, dict) else None
    try:
        mc_calibration = task.calibration if mc is None else Calibration.of(mc)
    except ValueError as error:
        raise InputError(f"{file} is not a checkpoint of a run ({error})") from error
    return Opened(task.eval().to(device), data, facts, mc_calibration)


def check_device(device: Any) -> None:
    """Check that a device can be used.

    Raises:
        InputError: It cannot.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise InputError(
            f"device {device} cannot be used ({first_line(error)}); devices are cpu, cuda, cuda:1"
        ) from error


def checkpoint_file(path: str | Path) -> str | Path:
    """Return the file of a checkpoint; in the folder of a run or of runs, see `find_checkpoint`.

    The folder of an export to safetensors is returned as it is.

    Raises:
        InputError: There is none, or its weights are sharded.
    """
    if "://" in str(path):
        return str(path)
    if is_weights_folder(path):
        return Path(path)
    file = find_checkpoint(with_home(path))
    if (file / SHARDS).exists():
        raise InputError(
            f"{file} is a folder of shards, as STRATEGY=fsdp writes it; make one file of it: "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {file}"
        )
    return file


def read_content(file: str | Path) -> dict[str, Any]:
    """Read a checkpoint, or the folder of an export to safetensors.

    Raises:
        InputError: It cannot be read.
    """
    return read_weights_folder(Path(file)) if is_weights_folder(file) else read_checkpoint(file)


def task_class(origin: str, name: Any, trusted: Collection[str]) -> type[ClassificationTask]:
    """Return the class of the task that a checkpoint names.

    Raises:
        InputError: There is no such task, or its import path is not trusted.
    """
    if not isinstance(name, str):
        raise InputError(f"{origin} does not name its task")
    if name not in task_names() and is_import_path(name):
        refuse_imports(origin, {"task": name}, trusted)
    try:
        return find_task(name)
    except InputError as error:
        raise InputError(f"{origin} cannot be opened: {error}") from error


def data_module(
    origin: str,
    task: ClassificationTask,
    config: dict[str, Any],
    checkpoint: dict[str, Any],
    trusted: Collection[str],
) -> ClassificationData:
    """Build the data module that decodes inputs as in the training; it reads no data.

    Raises:
        InputError: The checkpoint lacks the options or the state of such a module, or names an
            import path that is not trusted.
    """
    kind = task.data_class
    options = with_moved_keys(config)[0].get("data")
    state = checkpoint.get(kind.__qualname__)
    if not isinstance(options, dict) or not isinstance(state, dict):
        raise InputError(f"{origin} lacks the options or the state of {kind.__name__}")
    # New inputs need no options for the source and its split.
    of_source = inspect.signature(ClassificationData).parameters
    options = {name: value for name, value in options.items() if name not in of_source}
    refuse_imports(origin, options, trusted)
    try:
        data = kind(**constructor_arguments(kind, options))
        data.restore(state, getattr(task, "spec", DataSpec(task.classes)))
    except (AttributeError, InputError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"{origin}: {kind.__name__} cannot be restored: {reason}") from error
    return data


def validation_metrics(checkpoint: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of the last validation before the checkpoint; empty if there are none."""
    results = checkpoint.get("results")
    history = results.get("history") if isinstance(results, dict) else None
    last = history[-1] if isinstance(history, list) and history else None
    return dict(last) if isinstance(last, dict) else {}
