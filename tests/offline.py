"""Reads an offline W&B run back from its file, with wandb's own command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class OfflineRun:
    """What an offline run holds: all its records, and those of each kind.

    Args:
        folder: An `offline-run-*` folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        wandb = Path(sys.executable).parent / "wandb"
        command = [wandb, "leet", "inspect", "--json", folder]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        self.records: list[dict[str, Any]] = [json.loads(line) for line in shown.splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All records of a kind, such as `metric` or `artifact`."""
        return [one[kind] for one in self.records if one["type"] == kind]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [one["item"] for one in self.of("history")]

    @property
    def summary(self) -> dict[str, Any]:
        """The values that W&B shows in a table of runs, by their key."""
        found: dict[str, Any] = {}
        for one in self.of("summary"):
            found |= one.get("update", {})
        return found


def last_offline_run(folder: Path = Path("run")) -> OfflineRun:
    """Read the newest offline run in a run's folder."""
    return OfflineRun(sorted(folder.glob("wandb/offline-run-*"))[-1])
