"""Versions, git commit and hardware of a run."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("lightning", "torch", "torchvision", "torchaudio", "transformers", "wandb")


def environment() -> dict[str, Any]:
    """Return the package versions, the git commit and the hardware of this machine."""
    versions = {"python": platform.python_version()}
    for package in ("regain", *PACKAGES):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run([*git, "--abbrev=40", "--exclude=*"], capture_output=True, text=True)
    return {
        "versions": versions,
        "git_commit": commit.stdout.strip() or None,
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }
