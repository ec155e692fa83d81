"""Publish an advice in W&B: report run, report, workspace, and the gains of the confirmation."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from study.advising.commands import advise_command
from study.advising.page import read_confirmed
from study.advising.records import Advice
from study.advising.report_run import forest_points, log_report_run
from study.advising.views import advice_views
from study.forest import filled_spec
from study.plan import uses_wandb
from study.publish import UNKNOWN_ENTITY, save_views
from study.run_gains import gains_of_runs, update_online, write_offline
from study.saved_views import SavedViews, bounded
from study.wandb_views import write_specs
from tasks.errors import first_line
from tasks.run.tracking import wandb_mode

log = logging.getLogger(__name__)


def publish(advice: Advice, folder: Path, entity: str | None, say: Callable[..., Any]) -> None:
    """Log the report run; if W&B is online, save report and workspace there.

    Offline, their specs are written, with instructions to publish them later. Without W&B among
    the loggers, nothing is done.

    Args:
        advice: The advice.
        folder: Its folder.
        entity: W&B team or user; None is the default entity.
        say: Prints a line.
    """
    if not uses_wandb(advice.question.arguments):
        return
    mode = wandb_mode()
    entity = entity or os.environ.get("WANDB_ENTITY") or None
    confirmed = read_confirmed(advice, folder)
    gains = {}
    if confirmed is not None and confirmed.table is not None:
        gains = gains_of_runs(confirmed.collection.study, [confirmed.table])
        write_offline(gains)
    report = log_report_run(
        advice, folder, confirmed, entity, lambda team: SavedViews(folder, team).save_preset()
    )
    owner = report.entity or UNKNOWN_ENTITY
    views = advice_views(advice, confirmed, owner, report.preset)
    files = write_specs(folder, views)
    forest_file = folder / "wandb-forest.json"
    spec = filled_spec(forest_points(advice, confirmed))
    forest_file.write_text(json.dumps(spec, indent=1) + "\n")
    if mode != "online" or not report.entity:
        say(f"W&B is offline: the report run is in {report.folder}")
        say(f"specs of the W&B report and workspace: {' and '.join(map(str, files))}")
        runs = f"$(find {folder} -name 'offline-run-*')"
        say(f"to publish them: wandb login, wandb sync {runs}, {advise_command(advice.question)}")
        return
    save_views(folder, views, owner, say)
    if confirmed is not None:
        try:
            bounded(lambda: update_online(confirmed.collection.study, gains, owner))
        except Exception as error:
            log.warning("W&B did not take the gains of the runs (%s)", first_line(error))
