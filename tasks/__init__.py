"""Lightning tasks for image, speech and text classification."""

import os
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from lightning_utilities.core import imports
from lightning_utilities.core.imports import RequirementCache

if TYPE_CHECKING:
    from tasks.inference.predictor import Predictor

__all__ = ["load"]

# OpenMP threads that wait for each other spin, by default up to 300,000 times. A spinning thread
# keeps its core from other programs, and all threads wait for one that has lost its core. After
# 1,000 iterations they now sleep; docs/benchmarks.md has measurements. OpenMP reads the variable
# once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Importing torch fails without a directory for temporary files.
try:
    tempfile.gettempdir()
except FileNotFoundError as error:
    print(f"error: {error.strerror}; set TMPDIR to a folder that can be written", file=sys.stderr)
    sys.exit(2)

# Packages that torchmetrics imports if they are installed, for metrics that no task here uses.
UNUSED = ("transformers", "torchvision", "torchaudio", "scipy", "matplotlib")

_check_available = RequirementCache._check_available
_package_available = imports.package_available


def _available(package: str) -> bool:
    return not package.startswith(UNUSED) and _package_available(package)


def _hide(requirement: RequirementCache) -> None:
    if (requirement.requirement or "").startswith(UNUSED):
        requirement.available = False
        requirement.message = "not imported: regain uses no metric that needs it"
    else:
        _check_available(requirement)


# Lightning imports torchmetrics. Without these packages the import is seconds faster.
with (
    patch.object(RequirementCache, "_check_available", _hide),
    patch.object(imports, "package_available", _available),
):
    import torchmetrics  # noqa: F401


def load(path: str | Path, device: Any = "cpu", trusted: Collection[str] = ()) -> "Predictor":
    """Load a checkpoint for predictions on raw inputs; no code in it is executed.

    Args:
        path: A checkpoint, such as `best.ckpt`; the folder of a run, or one of runs of one name, of
            which the newest is loaded; or an http(s) address.
        device: Where the model goes, as in `torch.device`.
        trusted: Import paths, such as `my_task.py:Task`, that may be imported where the checkpoint
            names them.

    Raises:
        InputError: It cannot be read, lacks what a prediction needs, or names an import path that
            is not trusted.
    """
    # Not at the top: importing the tasks takes seconds.
    from tasks.inference.predictor import load as load_predictor

    return load_predictor(path, device, trusted)
