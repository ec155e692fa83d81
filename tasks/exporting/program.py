"""Export as a PyTorch program: one `.pt2` file, which PyTorch runs without this project."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = "model.pt2"
METADATA = "metadata.json"


def write_program(program: Any, metadata: Mapping[str, Any], file: Path) -> None:
    """Write a recorded graph with its weights, and metadata as an extra file of the archive.

    Args:
        program: A `torch.export.ExportedProgram`.
        metadata: Plain data.
        file: The file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extra_files = {METADATA: json.dumps(metadata, ensure_ascii=False)}
        torch.export.save(program, file, extra_files=extra_files)


class Program:
    """A `.pt2` file, run by PyTorch.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        self.module = torch.export.load(file).module()

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Return the logits (batch, classes)."""
        with torch.no_grad():
            logits: Tensor = self.module(*arguments)[0]
        return logits
