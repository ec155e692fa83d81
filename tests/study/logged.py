"""What a W&B run logged, read from its offline file, and what the panels of a view ask for."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.offline import last_offline_run

# Columns of runs that W&B itself fills.
OF_WANDB = {"_runtime", "createdAt", "displayName", "group", "jobType"}


@dataclass
class Logged:
    """Keys of the history and of the system metrics; summary, configuration and tables."""

    history: set[str] = field(default_factory=set)
    system: set[str] = field(default_factory=set)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def value(self, section: str, key: str) -> Any:
        """Find a value of the summary or the configuration, as W&B does: by a dotted key.

        W&B stores values of the configuration under `value`: `model.value.reg.dropout`.
        """
        tree: Any = getattr(self, section)
        if section == "config":
            first, _, rest = key.partition(".")
            assert rest.split(".")[0] == "value", f"{key} is not addressed as W&B stores it"
            key = ".".join([first, *rest.split(".")[1:]])
        return _find(tree, key)

    def columns(self, key: str) -> list[str]:
        """Columns of a table in the summary."""
        assert _find(self.summary, f"{key}._type") == "table-file", f"{key} is not a table"
        file = self.folder / _find(self.summary, f"{key}.path")
        columns: list[str] = json.loads(file.read_text())["columns"]
        return columns


def _find(tree: Any, key: str) -> Any:
    """Find a dotted key, the names of which may contain dots."""
    if key == "":
        return tree
    assert isinstance(tree, Mapping), f"{key} is not logged"
    # The longest name first: wandb's command joins the names of nested values by dots.
    for name in sorted(tree, key=len, reverse=True):
        if key == name or key.startswith(f"{name}."):
            return _find(tree[name], key[len(name) + 1 :])
    raise AssertionError(f"{key} is not logged")


def read_logged(folder: Path) -> Logged:
    """Read the last offline W&B run in a run's folder."""
    run = last_offline_run(folder)
    found = Logged(summary=run.summary, folder=run.folder / "files")
    found.history = {key for row in run.rows for key in row}
    found.system = {f"system/{key}" for one in run.of("stats") for key in one["item"]}
    for one in (*run.of("config"), *(one["config"] for one in run.of("run"))):
        found.config |= one.get("update", {})
    return found


def panels_of(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the job type whose runs a panel shows, and the panel, of a workspace or a report."""
    if "section" in spec:
        for section in spec["section"]["panelBankConfig"]["sections"]:
            for panel in section["panels"]:
                yield "", panel
        return
    for block in spec["blocks"]:
        if block["type"] == "panel-grid":
            [runs] = block["metadata"]["runSets"]
            filters = {one["key"]["name"]: one["value"] for one in runs["filters"]["filters"]}
            for panel in block["metadata"]["panelBankSectionConfig"]["panels"]:
                yield filters["jobType"], panel


def check_panel(panel: dict[str, Any], runs: list[Logged]) -> None:
    """Check that each key of a panel is logged by one of the runs.

    Raises:
        AssertionError: One is not, or has no number, table or picture as the panel needs.
    """
    kind, config = panel["viewType"], panel["config"]
    metrics = config.get("metrics", [])
    group = config.get("groupBy")
    if group is not None:
        some(runs, lambda run: run.value("config", group))
    if kind == "Run History Line Plot":
        pattern = config.get("metricRegex")
        assert metrics or pattern, f"{config['chartTitle']} has no metric"
        for metric in metrics:
            some(runs, lambda run, metric=metric: is_in(metric, run.history | run.system))
        if pattern is not None:
            some(
                runs, lambda run: is_in(True, [bool(re.fullmatch(pattern, k)) for k in run.history])
            )
        axis = config["xAxis"]
        some(runs, lambda run: is_in(axis, run.history))
    elif kind == "Bar Chart":
        for metric in metrics:
            some(runs, lambda run, metric=metric: is_number(run.value("summary", metric)))
    elif kind == "Scatter Plot":
        for axis in (config["xAxis"], config["yAxis"]):
            check_column(axis, runs)
    elif kind == "Parallel Coordinates Plot":
        for column in config["columns"]:
            check_column(column["accessor"], runs)
    elif kind == "Parameter Importance":
        some(runs, lambda run: is_number(run.value("summary", config["targetKey"])))
    elif kind == "Media Browser":
        for key in config["mediaKeys"]:
            some(runs, lambda run, key=key: run.value("summary", f"{key}.path"))
    elif kind == "Vega2":
        key = table_key(config["userQuery"])
        fields = set(config["fieldSettings"].values())
        some(runs, lambda run: is_in(fields, [fields & set(run.columns(key))]))
    elif kind == "Weave":
        key = config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]
        some(runs, lambda run: run.columns(key))
    else:
        raise AssertionError(f"no check for a panel of type {kind}")


def check_column(column: str, runs: list[Logged]) -> None:
    """Check a column of W&B's table of runs, such as `config:run.value.seed`."""
    section, _, key = column.partition(":")
    if section == "run":
        assert key in OF_WANDB, f"{key} is no property of a run"
    elif section == "summary":
        some(runs, lambda run: is_number(run.value("summary", key)))
    else:
        some(runs, lambda run: run.value(section, key))


def check_runset(runs_of: dict[str, Any], runs: list[Logged]) -> None:
    """Check the columns, groups and order of a set of runs."""
    keys = [*runs_of["grouping"], *(one["key"] for one in runs_of["sort"]["keys"])]
    keys += [one["key"] for one in runs_of["filters"]["filters"]]
    columns = [f"{key['section']}:{key['name']}" for key in keys]
    for column in (*columns, *runs_of["runFeed"]["columnOrder"]):
        check_column(column, runs)


def table_key(query: Any) -> str:
    """Find the table that a query of a custom chart reads."""
    [key] = [
        argument["value"]
        for one in query["queryFields"][0]["fields"]
        if one["name"] == "summaryTable"
        for argument in one["args"]
    ]
    return str(key)


def some(runs: list[Logged], check: Any) -> None:
    """Check that one of the runs passes."""
    errors = []
    for run in runs:
        try:
            check(run)
            return
        except AssertionError as error:
            errors.append(str(error).splitlines()[0])
    raise AssertionError(errors[0] if errors else "no run")


def is_in(one: Any, all_of: Any) -> None:
    """Check that a key is logged."""
    assert one in all_of, f"{one} is not logged"


def is_number(value: Any) -> None:
    """Check that a value can be plotted."""
    assert isinstance(value, (int, float)), f"{value} is no number"
