"""Publish a study or a search in W&B: gains of runs, report run, report and workspace."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from study.forest import filled_spec, forest_rows
from study.gain_table import GainTable
from study.report_run import log_report_run
from study.results import Collection
from study.run_gains import gains_of_runs, update_online, write_offline
from study.saved_views import SavedViews, bounded
from study.search_space import Space
from study.wandb_views import Views, search_views, study_views, write_specs
from tasks.errors import first_line
from tasks.run.tracking import api, wandb_mode

log = logging.getLogger(__name__)

Say = Callable[..., Any]
# Placeholder while the team or user is unknown.
UNKNOWN_ENTITY = "ENTITY"


def publish(
    collection: Collection, tables: Sequence[GainTable], entity: str | None, say: Say
) -> None:
    """Log the gains and the report run; if W&B is online, save report and workspace there.

    Offline, their specs are written, with instructions to publish them later.
    """
    study = collection.study
    mode = wandb_mode()
    entity = entity or os.environ.get("WANDB_ENTITY") or None
    gains = gains_of_runs(study, tables)
    write_offline(gains)
    if mode == "online":
        say("uploading the report run to W&B")
    report = log_report_run(
        collection, tables, entity, lambda team: SavedViews(study.folder, team).save_preset()
    )
    owner = report.entity or UNKNOWN_ENTITY
    views = study_views(study, tables, owner, report.preset)
    files = write_specs(study.folder, views)
    forest_file = study.folder / "wandb-forest.json"
    forest_file.write_text(json.dumps(filled_spec(forest_rows(tables)), indent=1) + "\n")
    again = f"make report STUDY={study.name} ENTITY="
    runs = f"{study.folder}/*/wandb/offline-run-*"
    if mode == "online" and report.entity:
        save_views(study.folder, views, owner, say)
        try:
            missing = bounded(lambda: update_online(study, gains, owner))
        except Exception as error:
            log.warning("W&B did not take the gains of the runs (%s)", first_line(error))
            return
        if missing:
            say(f"not on W&B: {missing} of {len(gains)} runs; wandb sync {runs}, {again}{owner}")
        return
    say(f"W&B is offline: the study's report run is in {report.folder}")
    say(f"specs of the W&B report and workspace: {' and '.join(map(str, files))}")
    say(f"forest plot for a Vega-Lite editor: {forest_file}")
    say(f"to publish them: wandb login, wandb sync {runs}, {again}your-team")


def publish_search(folder: Path, space: Space, say: Say) -> None:
    """Write the specs of a search's report and workspace; save them if W&B is online."""
    entity = os.environ.get("WANDB_ENTITY")
    online = wandb_mode() == "online"
    if online and not entity:
        try:
            entity = bounded(lambda: api().default_entity)
        except Exception as error:
            log.warning("W&B does not name a team for the search (%s)", first_line(error))
    views = search_views(folder.name, space, entity or UNKNOWN_ENTITY)
    files = write_specs(folder, views)
    if online and entity:
        save_views(folder, views, entity, say)
    else:
        say(f"specs of the W&B report and workspace: {' and '.join(map(str, files))}")


def save_views(folder: Path, views: Views, entity: str, say: Say) -> None:
    """Save report and workspace on the server; a server that rejects one loses nothing."""
    saved = SavedViews(folder, entity)
    for name, view in views.items():
        try:
            say(f"{name} on W&B: {saved.save(name, view)}")
        except Exception as error:  # Whatever the server answers, nothing is lost.
            log.warning("W&B rejected the %s (%s)", name, first_line(error))
