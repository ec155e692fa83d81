"""Reports, workspaces and chart presets on a W&B server: publishing again updates the same ones."""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from study import forest
from tasks.errors import first_line
from tasks.run.wandb_internals import wandb

log = logging.getLogger(__name__)

# Addresses of what is saved, by server, team and kind.
FILE = "wandb-views.json"
# Seconds that one step may take; wandb itself retries for minutes.
TIMEOUT = 30.0
T = TypeVar("T")


def bounded(call: Callable[[], T]) -> T:
    """Return what a call returns.

    Raises:
        TimeoutError: It takes too long; it goes on in the background.
        Exception: What the call raises.
    """
    result: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if errors:
        raise errors[0]
    if not result:
        raise TimeoutError(f"no answer in {TIMEOUT:.0f} seconds")
    return result[0]


class SavedViews:
    """What a study or a search has saved on a server.

    Args:
        folder: Folder of the study or search.
        entity: W&B team or user.
    """

    def __init__(self, folder: Path, entity: str) -> None:
        self.file = folder / FILE
        self.entity = entity
        self.owner = f"{wandb.setup().settings.base_url}/{entity}"

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            content: dict[str, dict[str, str]] = json.loads(self.file.read_text())
            return content
        except (OSError, ValueError):
            return {}

    def _address(self, name: str) -> str | None:
        return self._read().get(self.owner, {}).get(name)

    def _store(self, name: str, address: str) -> None:
        content = self._read()
        content.setdefault(self.owner, {})[name] = address
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.file)

    def save(self, name: str, view: Any) -> str:
        """Save a report or a workspace, in place of the earlier one of this name.

        Comments on a report are kept; its own changes to panels are overwritten.

        Returns:
            The address of the view.

        Raises:
            Exception: The server does not respond, or rejects it.
        """
        address = self._address(name)
        if address is not None:
            view = _updated(address, view)
        bounded(view.save)
        self._store(name, view.url)
        return str(view.url)

    def save_preset(self) -> str | None:
        """Save the forest plot as a chart preset of the team, unless it was saved before.

        Returns:
            Its name; None if the server rejects it.
        """
        name = forest.preset_name()
        known = f"{self.entity}/{name}"
        if self._address("preset") == known:
            return known
        try:
            bounded(
                lambda: wandb.Api().create_custom_chart(
                    entity=self.entity,
                    name=name,
                    display_name="Forest plot of gains",
                    spec_type="vega2",
                    access="private",
                    spec=forest.forest_spec(),
                )
            )
        except Exception as error:
            # Another study of the team may have saved it.
            said = str(error).lower()
            if "exist" not in said or "not exist" in said:
                log.warning("W&B rejected the forest plot (%s)", first_line(error))
                return None
        self._store("preset", known)
        return known


def _updated(address: str, view: Any) -> Any:
    """Return the saved view with the content of a new one; the new one if it was deleted."""
    is_report = isinstance(view, reports.Report)
    kind = reports.Report if is_report else workspaces.Workspace
    try:
        saved = bounded(lambda: kind.from_url(address))
    except (TypeError, KeyError, ValueError):
        return view
    names = ("title", "description", "blocks", "width")
    for name in names if is_report else ("name", "sections", "settings", "runset_settings"):
        setattr(saved, name, getattr(view, name))
    return saved
