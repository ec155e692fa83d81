"""What is trained: Lightning tasks for vision, speech and text classification."""

from unittest.mock import patch

from lightning_utilities.core.imports import RequirementCache

_check_available = RequirementCache._check_available


def _hide_transformers(requirement: RequirementCache) -> None:
    if (requirement.requirement or "").startswith("transformers"):
        requirement.available = False
        requirement.message = "not imported: text metrics are not used here"
    else:
        _check_available(requirement)


# Lightning imports torchmetrics, whose text metrics import transformers wherever it is installed:
# seconds at every start, for metrics that no task here uses.
with patch.object(RequirementCache, "_check_available", _hide_transformers):
    import torchmetrics  # noqa: F401
