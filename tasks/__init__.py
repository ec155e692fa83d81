"""What is trained: Lightning tasks for vision, speech and text classification."""

from unittest.mock import patch

from lightning_utilities.core.imports import RequirementCache

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
