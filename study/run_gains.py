"""The gain of each run, in the summary of its own W&B run.

W&B can then sort, group, filter and plot runs by their gain. A gain is the run's value minus that
of the baseline with the same seed, at the same point of the axes. It is 0 for the baseline itself,
so that plots show it.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from study.gain_table import GainTable
from study.plan import Study
from study.results import Result
from study.saved_views import bounded
from tasks.errors import first_line
from tasks.run.tracking import ID_FILE, PROJECT, api, wandb_mode
from tasks.run.wandb_file_internals import set_summary

log = logging.getLogger(__name__)

PREFIX = "gain/"
FEW = 4
Gains = dict[Path, dict[str, float]]


def gains_of_runs(study: Study, tables: Iterable[GainTable]) -> Gains:
    """Compute the gains of all runs whose baseline is complete.

    Args:
        study: The study.
        tables: Its gain tables.

    Returns:
        For the folder of each run, `gain/test_acc` and `gain/val_acc` (positive is better),
        `gain/test_loss`, `gain/ece` and `gain/gap` (negative is better), in the units of
        `test/acc`, `val/acc`, `test/loss`, `test/ece` and `reg/gap_acc`: fractions and nats.
    """
    found = {}
    for table in tables:
        baseline = table.results[0]
        for arm, results in zip(table.arms, table.results, strict=True):
            for seed in sorted(set(results) & set(baseline)):
                before, after = _figures(baseline[seed]), _figures(results[seed])
                found[study.run_folder(arm, seed)] = {
                    PREFIX + name: after[name] - before[name] for name in after
                }
    return found


def _figures(result: Result) -> dict[str, float]:
    return {
        "test_acc": result.accuracy,
        "val_acc": result.best_validation,
        "test_loss": result.loss,
        "ece": result.calibration_error,
        "gap": result.gap,
    }


def wandb_id(folder: Path) -> str | None:
    """Return the id of a run's W&B run; None if it has none."""
    file = folder / ID_FILE
    return file.read_text().strip() if file.exists() else None


def write_offline(gains: Gains) -> None:
    """Write the gains into the files of the offline runs; `wandb sync` then publishes them.

    Files that are already published stay as they are: the server's copy is updated by
    `update_online`.
    """
    for folder, values in gains.items():
        # A resumed run has several: the last one is complete.
        for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))[-1:]:
            if file.with_name(f"{file.name}.synced").exists():
                continue
            try:
                set_summary(file, PREFIX, values)
            except (OSError, ValueError) as error:
                log.warning("the gain cannot be written to a W&B run (%s)", error)


def update_online(study: Study, gains: Gains, entity: str) -> int:
    """Set the gains in the summaries of the runs that are on the server.

    Args:
        study: The study.
        gains: As returned by `gains_of_runs`.
        entity: W&B team or user.

    Returns:
        Number of runs that are not on the server.

    Raises:
        Exception: The server does not respond, or rejects the request.
    """
    missing: dict[str, Mapping[str, float]] = {}
    for folder, values in gains.items():
        run_id = wandb_id(folder)
        if run_id is not None:
            missing[run_id] = values
    if not missing:
        return 0
    filters = {"group": study.group or study.name, "jobType": "train"}
    # The summaries of few runs are read one by one, those of many with the list.
    lazy = len(missing) <= FEW
    for run in api().runs(f"{entity}/{PROJECT}", filters=filters, lazy=lazy):
        new = missing.pop(run.id, None)
        if new is not None and any(run.summary.get(name) != new[name] for name in new):
            run.summary.update(dict(new))
    return len(missing)


class LiveGains:
    """Records gains while a study is in progress, each as soon as its pair of runs is complete.

    Args:
        study: The study.
        entity: W&B team or user; None is the default entity.
    """

    def __init__(self, study: Study, entity: str | None) -> None:
        self.study = study
        self.entity = entity or os.environ.get("WANDB_ENTITY") or None
        self.known: Gains = {}
        # Whether the server takes gains; None as long as there are none.
        self.online: bool | None = None

    def update(self, tables: Iterable[GainTable]) -> None:
        """Record the gains that are new, in the files of offline runs or on the server."""
        gains = gains_of_runs(self.study, tables)
        new = {folder: one for folder, one in gains.items() if self.known.get(folder) != one}
        if not new:
            return
        self.known |= new
        write_offline(new)
        if self.online is None:
            self.online = wandb_mode() == "online"
        if self.online:
            try:
                bounded(lambda: self._publish(new))
            except Exception as error:
                self.online = False
                log.warning(
                    "W&B did not take the gain (%s); the report repeats it", first_line(error)
                )

    def _publish(self, gains: Gains) -> None:
        self.entity = self.entity or api().default_entity
        if self.entity is not None:
            update_online(self.study, gains, self.entity)
