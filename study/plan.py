"""The runs of a study: each variant with each seed, at each point of the axes."""

import itertools
import json
import os
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from study.launch import Job
from tasks.data.sources import source_label
from tasks.errors import InputError
from tasks.lookup import task_label
from tasks.run.folder_names import check_folder_name
from tasks.run.loggers import logger_names
from tasks.run.presets import config_stack
from tasks.run.yaml_files import read_yaml_file

STUDIES = Path("runs") / "studies"
# Recorded runs, for the estimate of the duration.
RESULTS = Path(__file__).resolve().parent.parent / "results"
# The runs of a study have the same code, which the report run logs, and there may be hundreds of
# checkpoints.
SMALL_LOGS = [f"--trainer.logger.init_args.{key}" for key in ("log_code=false", "log_model=none")]
# Keys and types of `study.yaml`.
FIELDS = {
    "task": str,
    "data": str,
    "variants": [str],
    "seeds": [int],
    "axes": {str: [str]},
    "arguments": [str],
    "name": str,
    "group": str,
    "design": str,
    "recipe": str,
    "sources": {str: str},
    "effect": float,
}


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a variant at a point of the axes.

    Args:
        variant: Preset in `configs/reg`, or a file of that form.
        point: Value of each axis.
    """

    variant: str
    point: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """The variant's short name."""
        return Path(self.variant).stem

    @property
    def name(self) -> str:
        """The name of the arm in a folder name."""
        parts = [self.title, *(f"{key}={value}" for key, value in self.point)]
        return ",".join(parts).replace("/", "_")


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        task: vision, speech or nlp, or the import path of a task.
        data: builtin, a name, a path or a hub id.
        variants: Presets in `configs/reg`, or files; the first one is the baseline.
        seeds: The seeds of each variant.
        axes: Further configuration keys and their values.
        arguments: Training arguments of every run.
        name: Name of the study; default: task, data and axes.
        root: Parent of the study's folder.
        group: W&B group of the runs; default: the name.
        design: What is compared: empty, variants with the first one; `ablation`, a recipe with
            itself without each of its parts; `factorial`, dropout and normalization together, each
            alone, and neither.
        recipe: The preset that the variants of a design are made from.
        sources: The tuned file that a variant was copied from, by the variant's short name.
        effect: Smallest effect of interest, in percentage points; 0 for none.
    """

    task: str
    data: str
    variants: list[str]
    seeds: list[int]
    axes: dict[str, list[str]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    name: str = ""
    root: Path = STUDIES
    group: str = ""
    design: str = ""
    recipe: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    effect: float = 0.0

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise InputError("a study needs at least one variant and one seed")
        for key, values in self.axes.items():
            if not values:
                raise InputError(f"the axis {key} has no values; give at least one")
        if not 0.0 <= self.effect < 100.0:
            raise InputError(f"EFFECT={self.effect:g} must be points above 0 and below 100")
        titles = [Path(variant).stem for variant in self.variants]
        for names, what in ((titles, "VARIANTS"), (self.seeds, "SEEDS")):
            if len(set(names)) < len(names):
                raise InputError(f"{what}={' '.join(map(str, names))} contains a duplicate")
        for variant in self.variants:
            # Reports an unknown name before anything runs.
            config_stack(self.task, variant, self.data)
        if not self.name:
            object.__setattr__(self, "name", default_name(self.task, self.data, self.axes))
        check_folder_name(self.name, "NAME")
        runs = [f"{arm.name}-s{max(self.seeds)}" for arm in self.arms()]
        for run in runs:
            check_folder_name(run, "the name of a run")
        if len(set(runs)) < len(runs):
            run = next(one for one in runs if runs.count(one) > 1)
            raise InputError(f"two runs would share the folder {run}; change a value of an axis")

    @property
    def folder(self) -> Path:
        """Folder of the study's runs and pages."""
        return self.root / self.name

    @property
    def uses_wandb(self) -> bool:
        """Whether the runs are logged to W&B."""
        return uses_wandb(self.arguments)

    @property
    def size(self) -> int:
        """Number of runs."""
        return len(list(self.arms())) * len(self.seeds)

    def arms(self) -> Iterator[Arm]:
        """Yield each variant at each point of the axes."""
        points = itertools.product(*([(k, v) for v in self.axes[k]] for k in self.axes))
        for point in points:
            for variant in self.variants:
                yield Arm(variant, point)

    def run_folder(self, arm: Arm, seed: int) -> Path:
        """Return the folder of a run."""
        return self.folder / f"{arm.name}-s{seed}"

    def jobs(self, threads: int, gpus: int = 0) -> list[Job]:
        """List all runs, seed by seed, so that an interrupted study has complete pairs."""
        return [self.job(arm, seed, threads, gpus) for seed in self.seeds for arm in self.arms()]

    def job(self, arm: Arm, seed: int, threads: int, gpus: int) -> Job:
        """Make the job of one run."""
        folder = self.run_folder(arm, seed)
        command = [
            *("-m", "tasks.train", "--task", self.task, "--reg", arm.variant),
            *("--data", self.data, "--seed", str(seed), "--run_dir", str(folder)),
            "--resume=auto",
            f"--trainer.logger.init_args.group={self.group or self.name}",
            f"--trainer.logger.init_args.name={self.group or self.name}-{folder.name}",
            # W&B limits tags to 64 characters.
            f"--trainer.logger.init_args.tags={json.dumps([arm.title[:64]])}",
            *SMALL_LOGS,
            "--trainer.callbacks+=tasks.monitors.LayerMonitor",
            *self.arguments,
            *(f"--{key}={value}" for key, value in arm.point),
        ]
        return Job(folder.name, folder, command, threads, gpus)

    def save(self) -> None:
        """Write `study.yaml`; if it exists, add new variants, seeds and axis values.

        The smallest effect of interest may change.

        Raises:
            InputError: The folder has a study that differs in anything else.
        """
        file = self.folder / "study.yaml"
        self.folder.mkdir(parents=True, exist_ok=True)
        merged = {key: value for key, value in asdict(self).items() if key != "root"}
        if file.exists():
            before = asdict(load_study(self.folder))
            fixed = ("task", "data", "arguments", "design", "recipe")
            changed = [key for key in fixed if before[key] != merged[key]]
            if before["axes"].keys() != merged["axes"].keys():
                changed.append("axes")
            if before["variants"][0] != merged["variants"][0]:
                changed.append("baseline")
            if changed:
                raise InputError(
                    f"the study {self.name} exists with a different {' and '.join(changed)}; "
                    "choose another NAME"
                )
            for key in ("variants", "seeds"):
                merged[key] = _union(before[key], merged[key])
            merged["sources"] = before["sources"] | merged["sources"]
            merged["effect"] = merged["effect"] or before["effect"]
            for key in merged["axes"]:
                merged["axes"][key] = _union(before["axes"][key], merged["axes"][key])
        partial = file.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(merged, sort_keys=False))
        partial.replace(file)


def uses_wandb(arguments: list[str]) -> bool:
    """Whether runs with these arguments are logged to W&B."""
    given = (value for key, value in pairwise(arguments) if key == "--logger")
    return "wandb" in logger_names(next(given, ""))


def default_name(task: str, data: str, further: Iterable[str] = ()) -> str:
    """Return the name of a study that has none: task, data and what else tells it from others."""
    return "-".join([task_label(task), Path(source_label(data)).stem, *further])


def effect_of(text: str) -> float:
    """Return the smallest effect of interest in points; 0 if there is none.

    Raises:
        InputError: It is not a number above 0 and below 100.

    Example:
        >>> effect_of("1.5"), effect_of("")
        (1.5, 0.0)
    """
    try:
        effect = float(text) if text else 0.0
    except ValueError:
        effect = -1.0
    if text and not 0.0 < effect < 100.0:
        raise InputError(f"EFFECT={text} must be points above 0 and below 100, such as 1.0")
    return effect


def _union(first: list[Any], second: list[Any]) -> list[Any]:
    return [*first, *(one for one in second if one not in first)]


def study_folder(named: str) -> Path:
    """Return the folder of a study, given its name or a path in `runs`.

    Raises:
        InputError: The path is outside `runs`.
    """
    if Path(named).name == named and named not in ("", ".."):
        return STUDIES / named
    # Links are not resolved: `runs` may link to a study on another disk.
    folder, runs = (Path(os.path.normpath(Path.cwd() / p)) for p in (named, STUDIES.parent))
    if runs not in folder.parents:
        raise InputError(
            f"STUDY={named} is outside {STUDIES.parent}; give the name of a study in {STUDIES}"
        )
    return Path(named)


def load_study(folder: Path) -> Study:
    """Read `study.yaml` in a folder.

    Raises:
        InputError: It does not exist or is not valid.
    """
    file = folder / "study.yaml"
    if not file.is_file():
        known = sorted(file.parent.name for file in STUDIES.glob("*/study.yaml"))
        choices = f"choose one of {', '.join(known)}" if known else "run make study first"
        raise InputError(f"there is no study in {folder}; {choices}")
    content = read_yaml_file(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a valid study: it must be a mapping")
    for key, kind in FIELDS.items():
        if key in content and not _has_type(content[key], kind):
            raise InputError(f"{file} is not a valid study: {key} is {content[key]!r:.60}")
    try:
        return Study(**content, root=folder.parent)
    except TypeError as error:
        raise InputError(f"{file} is not a valid study: {error}") from error


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value has a type: a class, [class of the items] or {str: class of the values}."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(_has_type(item, kind[0]) for item in value)
    if isinstance(kind, dict):
        known = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        return known and all(_has_type(item, kind[str]) for item in value.values())
    return type(value) is kind or (kind is float and type(value) is int)


def estimate_run_seconds(study: Study) -> tuple[float, str] | None:
    """Estimate the duration of a run from earlier runs.

    Returns:
        The median in seconds and its source: runs of this study or else of the same task and data
        in `runs` or `results`; None if there are none.
    """
    own = sorted(study.folder.glob("*/metrics.json"))
    others = [*sorted(Path("runs").glob("**/metrics.json")), *sorted(RESULTS.glob("**/*.json"))]
    for files, source in ((own, "of this study"), (others, f"of {study.task} on {study.data}")):
        seconds = []
        for file in files:
            try:
                record = json.loads(file.read_text())
                same = (record["task"], record["data"]) == (study.task, study.data)
                if same and not record["config"]["trainer"].get("fast_dev_run"):
                    seconds.append(float(record["seconds"]["all"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        if seconds:
            return statistics.median(seconds), f"the median of {len(seconds)} runs {source}"
    return None
