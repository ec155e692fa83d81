"""What is trained: Lightning tasks for vision, speech and text classification."""

import os
import sys
import tempfile
from unittest.mock import patch

from lightning_utilities.core.imports import RequirementCache

# OpenMP threads that wait for each other spin, by default up to 300,000 times, which takes the core
# from others and, when a thread has lost its own, stops all of them. After 1,000 they sleep:
# docs/benchmarks.md has what that costs and gains. It is read once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Torch cannot be imported without a folder for temporary files.
try:
    tempfile.gettempdir()
except FileNotFoundError as error:
    print(f"error: {error.strerror}; set TMPDIR to a folder that can be written", file=sys.stderr)
    sys.exit(2)

# What torchmetrics imports wherever it is installed, for metrics that no task here uses.
UNUSED = ("transformers", "torchvision", "torchaudio", "scipy", "matplotlib")

_check_available = RequirementCache._check_available


def _hide(requirement: RequirementCache) -> None:
    if (requirement.requirement or "").startswith(UNUSED):
        requirement.available = False
        requirement.message = "not imported: no metric that is used here needs it"
    else:
        _check_available(requirement)


# Lightning imports torchmetrics: seconds at every start.
with patch.object(RequirementCache, "_check_available", _hide):
    import torchmetrics  # noqa: F401
