"""`study.html`: a study on one page that holds all it needs and opens from disk."""

import base64
import importlib
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import soundfile
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from study import charts
from study.mistakes import Fixed, fixed_mistakes
from study.results import Collection, Result
from study.statistics import Estimate, paired
from study.tables import COLUMNS, MEANINGS, Table, rows, tables, verdict
from tasks.data import ClassificationData, Sound
from tasks.errors import InputError

# Letters of a text that a page shows.
LONGEST = 2000
PAGE = Path(__file__).parent / "page"
# Of one run and no other, or of no interest beside the variants themselves.
OWN_KEYS = ("seed_everything", "data.seed", "trainer.logger.", "trainer.default_root_dir")
VERSIONS = ("python", "torch", "lightning", "torchvision", "torchaudio", "transformers", "wandb")


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Lay a nested configuration out: `model.reg.dropout` to its value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def differences(table: Table) -> list[list[str]]:
    """List the keys in which the arms' configurations differ, and their values."""
    configs = [flat(next(iter(results.values())).record["config"]) for results in table.results]
    keys = [key for key in configs[0] if not key.startswith(OWN_KEYS)]
    return [
        [key, *(str(config.get(key, "")) for config in configs)]
        for key in keys
        if len({str(config.get(key)) for config in configs}) > 1
    ]


def made_with(collection: Collection) -> dict[str, str]:
    """Tell what the runs depended on: machine, versions, commits."""
    records = [r.record for seeds in collection.results.values() for r in seeds.values()]
    machine, versions = records[0]["machine"], records[0]["versions"]
    study = collection.study
    command = f"make study TASK={study.task} DATA={study.data} "
    # A single number is how many, from 0 on.
    seeds = "1" if study.seeds == [0] else ",".join(map(str, study.seeds))
    command += f'VARIANTS="{" ".join(study.variants)}" SEEDS={seeds} NAME={study.name}'
    further = [f"--axis {key}={','.join(values)}" for key, values in study.axes.items()]
    further += study.arguments
    if further:
        command += f' ARGS="{" ".join(further)}"'
    return {
        "command": command,
        "runs": str(len(records)),
        "commit": ", ".join(sorted({str(record["git_commit"]) for record in records})),
        "machine": f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads a run",
        "versions": ", ".join(f"{name} {versions[name]}" for name in VERSIONS),
        "hours of training": f"{sum(r['seconds']['all'] for r in records) / 3600:.2f}",
    }


def data_uri(kind: str, content: bytes) -> str:
    """Write bytes as an address that holds them itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def shown(media: Any) -> dict[str, str]:
    """Turn a picture, a sound or a text into what the page shows of it."""
    buffer = io.BytesIO()
    if isinstance(media, str):
        return {"text": media if len(media) <= LONGEST else f"{media[:LONGEST]}…"}
    if isinstance(media, Sound):
        soundfile.write(buffer, media.samples, media.rate, format="FLAC", subtype="PCM_16")
        return {"audio": data_uri("audio/flac", buffer.getvalue())}
    assert isinstance(media, Image.Image)
    media.save(buffer, "PNG")
    return {"image": data_uri("image/png", buffer.getvalue())}


def data_of(result: Result) -> ClassificationData | None:
    """Load the data of a run; None where it is not on this machine."""
    record = result.record
    task = importlib.import_module(f"tasks.{record['task']}")
    try:
        data: ClassificationData = task.Data(**record["config"]["data"])
        data.setup()
    except (InputError, ValueError, TypeError):
        return None
    return data


def mistakes_of(table: Table, place: int) -> dict[str, Any] | None:
    """Collect what the page shows of the mistakes that an arm fixed; None if there are none."""
    found: Fixed | None = fixed_mistakes(table.results[0], table.results[place])
    if found is None:
        return None
    data = data_of(found.of)
    classes = found.of.record["classes"]
    cards = [
        {
            "index": one.index,
            "label": classes[one.label],
            "before": _taken_for(classes, one.before),
            "after": _taken_for(classes, one.after),
            **(shown(data.media("test", one.index)) if data else {}),
        }
        for one in found.examples
    ]
    return {
        "variant": table.labels[place],
        "total": found.total,
        "reverse": found.reverse,
        "cards": cards,
        "wide": any("audio" in card or "text" in card for card in cards),
    }


def _taken_for(classes: list[str], counts: dict[int, int]) -> list[dict[str, str]]:
    """List what an example was taken for, the most frequent first, and how often if several."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    several = sum(counts.values()) > 1
    return [
        {"name": classes[label], "times": f" ({count}x)" if several else ""}
        for label, count in ranked
    ]


def along_axis(found: list[Table], axis: str) -> dict[str, Any]:
    """Draw gain and accuracy over the values of the study's first axis."""

    def gain(table: Table, place: int) -> Estimate | None:
        return _in_points(table.comparisons[place].gain)

    def accuracy(table: Table, place: int) -> Estimate | None:
        return _accuracy(list(table.results[place].values()))

    gains = charts.over_axis(found, axis, gain)
    gains.update_yaxes(title_text="gain, points")
    accuracies = charts.over_axis(found, axis, accuracy)
    accuracies.update_yaxes(title_text="test accuracy, %")
    return {"axis-gain": gains, "axis-accuracy": accuracies}


def _in_points(estimate: Estimate | None) -> Estimate | None:
    if estimate is None or estimate.low is None or estimate.high is None:
        return None if estimate is None else Estimate(100 * estimate.mean)
    return Estimate(100 * estimate.mean, 100 * estimate.low, 100 * estimate.high)


def _accuracy(results: list[Result]) -> Estimate | None:
    return _in_points(paired([result.accuracy for result in results]))


def figures_of(table: Table) -> dict[str, Any]:
    """Draw everything that is drawn of one table."""
    figures = {
        "gains": charts.gains(table) if len(table.arms) > 1 else None,
        "curves": charts.learning_curves(table),
        "gaps": charts.gaps(table),
        "reliability": charts.reliability(table),
        "layers": charts.layers(table),
        "confusion-baseline": charts.confusion(list(table.results[0].values()), table.labels[0]),
    }
    best = highest(table)
    if best:
        results = list(table.results[best].values())
        figures["confusion-best"] = charts.confusion(results, table.labels[best])
    return {name: figure for name, figure in figures.items() if figure is not None}


def highest(table: Table) -> int:
    """Return the place of the arm with the highest mean accuracy."""
    return int(np.argmax([one.mean for one in table.comparisons]))


def write_page(collection: Collection, file: Path) -> None:
    """Write the page of a study.

    Where there are axes, the pictures of single runs are those of the last point.

    Raises:
        InputError: There is no run yet, or none of the baseline.
    """
    found = tables(collection)
    if not found:
        raise InputError(f"no run of {collection.study.name} is complete yet")
    study, table = collection.study, found[-1]
    figures = figures_of(table)
    axis = next(iter(study.axes), "")
    if axis and len(found) > 1:
        figures |= along_axis(found, axis)
    elif table.axis:
        single = [
            Table("", [arm], [results], [one])
            for arm, results, one in zip(table.arms, table.results, table.comparisons, strict=True)
        ]
        figures["axis-accuracy"] = along_axis(single, axis)["axis-accuracy"]
    planned = len(list(study.arms())) * len(study.seeds)
    incomplete = ""
    if collection.done < planned:
        incomplete = f"{planned - collection.done} of {planned} runs are missing"
        incomplete += f", {len(collection.errors)} of them failed." if collection.errors else "."
    best = highest(table)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, trim_blocks=True
    )
    sizes = next(iter(table.results[0].values())).record["examples"]
    facts = f"{study.task} on {study.data}, {len(study.seeds)} seeds; " + ", ".join(
        f"{count:,} {split}" for split, count in sizes.items()
    )
    content = environment.get_template("study.html").render(
        name=f"study {study.name}",
        facts=facts,
        incomplete=incomplete,
        axis=axis,
        columns=COLUMNS,
        meanings=MEANINGS,
        tables=[
            {
                "title": one.title,
                "verdict": verdict(one),
                "rows": [
                    {"cells": cells, "shown": comparison.shown}
                    for cells, comparison in zip(rows(one), one.comparisons, strict=True)
                ],
            }
            for one in found
        ],
        chips=[
            {"label": label, "colour": charts.colour(place)}
            for place, label in enumerate(table.labels)
        ],
        figures={name: Markup(_script_safe(figure)) for name, figure in figures.items()},
        mistakes=mistakes_of(table, best) if best else None,
        differences=differences(table),
        made=made_with(collection),
        css=Markup((PAGE / "study.css").read_text()),
        js=Markup((PAGE / "study.js").read_text()),
        plotly=Markup(get_plotlyjs()),
    )
    partial = file.with_suffix(".partial")
    partial.write_text(content)
    partial.replace(file)


def _script_safe(figure: Any) -> str:
    # A class name could hold what ends a script.
    return json.dumps(json.loads(figure.to_json())).replace("<", "\\u003c")
