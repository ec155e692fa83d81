"""What a study runs: each variant with each seed, at each point of any further axis."""

import itertools
import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from study.launch import Job
from tasks.configs import read_yaml_file
from tasks.errors import InputError
from tasks.names import check_folder_name
from tasks.presets import config_stack

STUDIES = Path("runs") / "studies"
# Where the runs on record lie, which tell how long one takes.
RECORDS = Path(__file__).resolve().parent.parent / "results"
# What `study.yaml` holds.
FORM = {
    "task": str,
    "data": str,
    "variants": [str],
    "seeds": [int],
    "axes": {str: [str]},
    "arguments": [str],
    "name": str,
}


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a variant at a point of the axes.

    Args:
        variant: Preset of `configs/reg`, or a file of that form.
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
        """A name of the arm that a folder can bear."""
        parts = [self.title, *(f"{key}={value}" for key, value in self.point)]
        return ",".join(parts).replace("/", "_")


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        task: vision, speech or nlp.
        data: builtin, a name, a path or a hub id.
        variants: Presets of `configs/reg`, or files; the first one is the baseline.
        seeds: Each variant runs with each of these.
        axes: Further keys of the configuration, and their values.
        arguments: For every run.
        name: Of the study.
        root: Folder of the folder that its runs and its pages lie in.
    """

    task: str
    data: str
    variants: list[str]
    seeds: list[int]
    axes: dict[str, list[str]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    name: str = ""
    root: Path = STUDIES

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise InputError("a study needs at least one variant and one seed")
        for key, values in self.axes.items():
            if not values:
                raise InputError(f"the axis {key} has no values; give it one or more")
        titles = [Path(variant).stem for variant in self.variants]
        for names, what in ((titles, "VARIANTS"), (self.seeds, "SEEDS")):
            if len(set(names)) < len(names):
                raise InputError(f"{what}={' '.join(map(str, names))} names one of them twice")
        for variant in self.variants:
            # A wrong name shall not wait for its first run.
            config_stack(self.task, variant, self.data)
        if not self.name:
            default = f"{self.task}-{Path(self.data).stem}"
            object.__setattr__(self, "name", "-".join([default, *self.axes]))
        check_folder_name(self.name, "NAME")
        runs = [f"{arm.name}-s{max(self.seeds)}" for arm in self.arms()]
        for run in runs:
            check_folder_name(run, "the name of a run")
        if len(set(runs)) < len(runs):
            run = next(one for one in runs if runs.count(one) > 1)
            raise InputError(f"two runs would have the folder {run}; change a value of an axis")

    @property
    def folder(self) -> Path:
        """Where the study's runs and its pages lie."""
        return self.root / self.name

    def arms(self) -> Iterator[Arm]:
        """Go through all variants at all points of the axes."""
        points = itertools.product(*([(k, v) for v in self.axes[k]] for k in self.axes))
        for point in points:
            for variant in self.variants:
                yield Arm(variant, point)

    def run_folder(self, arm: Arm, seed: int) -> Path:
        """Say where a run lies."""
        return self.folder / f"{arm.name}-s{seed}"

    def jobs(self, threads: int, gpus: int = 0) -> list[Job]:
        """List all runs. All variants of one seed stand together: a stopped study has pairs."""
        return [self.job(arm, seed, threads, gpus) for seed in self.seeds for arm in self.arms()]

    def job(self, arm: Arm, seed: int, threads: int, gpus: int) -> Job:
        """Make one run."""
        folder = self.run_folder(arm, seed)
        command = [
            *("-m", "tasks.train", "--task", self.task, "--reg", arm.variant),
            *("--data", self.data, "--seed", str(seed), "--run_dir", str(folder)),
            "--resume=auto",
            f"--trainer.logger.init_args.group={self.name}",
            f"--trainer.logger.init_args.name={self.name}-{folder.name}",
            # W&B takes tags of up to 64 characters.
            f"--trainer.logger.init_args.tags={json.dumps([arm.title[:64]])}",
            "--trainer.callbacks+=tasks.monitors.LayerMonitor",
            *self.arguments,
            *(f"--{key}={value}" for key, value in arm.point),
        ]
        return Job(folder.name, folder, command, threads, gpus)

    def save(self) -> None:
        """Write `study.yaml`, or add the variants, seeds and axis values that are new to it.

        Raises:
            InputError: The study in this folder is another one.
        """
        file = self.folder / "study.yaml"
        self.folder.mkdir(parents=True, exist_ok=True)
        merged = {key: value for key, value in asdict(self).items() if key != "root"}
        if file.exists():
            before = asdict(load_study(self.folder))
            fixed = ("task", "data", "arguments")
            changed = [key for key in fixed if before[key] != merged[key]]
            if before["axes"].keys() != merged["axes"].keys():
                changed.append("axes")
            if before["variants"][0] != merged["variants"][0]:
                changed.append("baseline")
            if changed:
                raise InputError(
                    f"the study {self.name} was begun with another {' and '.join(changed)}; "
                    "give this one a NAME of its own"
                )
            for key in ("variants", "seeds"):
                merged[key] = _united(before[key], merged[key])
            for key in merged["axes"]:
                merged["axes"][key] = _united(before["axes"][key], merged["axes"][key])
        partial = file.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(merged, sort_keys=False))
        partial.replace(file)


def _united(first: list[Any], second: list[Any]) -> list[Any]:
    return [*first, *(one for one in second if one not in first)]


def study_folder(named: str) -> Path:
    """Find the folder of a study by its name, or by a path in `runs`.

    Raises:
        InputError: The path leads out of `runs`.
    """
    if Path(named).name == named and named not in ("", ".."):
        return STUDIES / named
    # Not resolved: a study may lie on another disk, behind a link in `runs`.
    folder, runs = (Path(os.path.normpath(Path.cwd() / p)) for p in (named, STUDIES.parent))
    if runs not in folder.parents:
        raise InputError(
            f"STUDY={named} leads out of {STUDIES.parent}; give the name of a study in {STUDIES}"
        )
    return Path(named)


def load_study(folder: Path) -> Study:
    """Read the study in a folder.

    Raises:
        InputError: There is none.
    """
    file = folder / "study.yaml"
    if not file.is_file():
        known = sorted(file.parent.name for file in STUDIES.glob("*/study.yaml"))
        there = f"there are {', '.join(known)}" if known else "run make study first"
        raise InputError(f"there is no study in {folder}; {there}")
    content = read_yaml_file(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} is none of a study: it must hold keys and values")
    for key, kind in FORM.items():
        if key in content and not _is(content[key], kind):
            raise InputError(f"{file} is none of a study: {key} is {content[key]!r:.60}")
    try:
        return Study(**content, root=folder.parent)
    except TypeError as error:
        raise InputError(f"{file} is none of a study: {error}") from error


def _is(value: Any, kind: Any) -> bool:
    """Say whether a value is of a kind: a type, [of the items], or {of the values}."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(_is(item, kind[0]) for item in value)
    if isinstance(kind, dict):
        known = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        return known and all(_is(item, kind[str]) for item in value.values())
    return type(value) is kind


def seconds_a_run(study: Study) -> tuple[float, str] | None:
    """Estimate how long a run takes, from those on record; and say from which.

    Returns:
        The median of seconds and its source: runs of this study or, failing that, of the same task
        and data anywhere in `runs` or `results`; None if there are none.
    """
    own = sorted(study.folder.glob("*/metrics.json"))
    others = [*sorted(Path("runs").glob("**/metrics.json")), *sorted(RECORDS.glob("**/*.json"))]
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
