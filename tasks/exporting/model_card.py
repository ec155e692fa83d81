"""The model card: README.md of an export, with metadata that the Hugging Face hub reads."""

import inspect
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tasks.data.files import with_home
from tasks.exporting.agreement import TOLERANCE, Agreement
from tasks.inference.predictor import Predictor
from tasks.lookup import task_label
from tasks.run.checkpoints import LAST
from tasks.run.plain_text import without_folders
from tasks.run.results import RESULTS

CARD = "README.md"
# Classes that are listed by name.
MOST_CLASSES = 100
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Names of the hub for what a model does.
PIPELINES = {
    "image": ("image-classification", "Image classification"),
    "audio": ("audio-classification", "Audio classification"),
    "text": ("text-classification", "Text classification"),
}


@dataclass
class Origin:
    """What is known of the run of a checkpoint, besides the checkpoint.

    Args:
        results: Content of the run's `metrics.json`; empty if there is none.
        study: What the study of the run found for its variant; empty if there is none.
    """

    results: dict[str, Any] = field(default_factory=dict)
    study: str = ""


def origin_of(checkpoint: str | Path, predictor: Predictor) -> Origin:
    """Read the results of the run and of its study beside a checkpoint.

    Args:
        checkpoint: The checkpoint, the folder of the run, or an address.
        predictor: Its predictor.
    """
    if "://" in str(checkpoint):
        return Origin()
    path = with_home(checkpoint)
    folder = path if path.is_dir() else path.parent
    results = _read_json(folder / RESULTS)
    # Other results may lie beside a checkpoint that was copied.
    facts = predictor.facts
    if any(results.get(name) != facts[name] for name in ("task", "data", "reg", "seed", "name")):
        return Origin()
    if path.name == LAST:
        # The study and `test` are of the best checkpoint.
        return Origin(results | {"test": results.get("test_last", {})})
    return Origin(results, study_text(folder))


def study_text(folder: Path) -> str:
    """Return what the study of a run found for its variant; empty if there is no study.

    Args:
        folder: The folder of the run; that of the study holds `state.json`.
    """
    state = _read_json(folder.absolute().parent / "state.json")
    try:
        arm = next(one for one in state["arms"] if folder.name in one["runs"])
        text = (
            f"Study: variant {arm['label']}, mean test accuracy of {arm['seeds']} seeds "
            f"{100 * arm['test']:.2f} %"
        )
        if arm["interval"]:
            low, high = arm["interval"]
            text += (
                f"; gain over {arm['baseline']} {100 * arm['gain']:+.2f} points, 95 % interval "
                f"{100 * low:+.2f} to {100 * high:+.2f}"
            )
        return _cell(f"{text}. Verdict: {state['verdict']}")
    except (LookupError, StopIteration, TypeError, ValueError):
        # Not a study, or one that has no report of this version.
        return ""


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def model_card(
    predictor: Predictor,
    metadata: Mapping[str, Any],
    origin: Origin,
    agreement: Agreement | None,
    files: Mapping[str, str],
    license_id: str | None = None,
) -> str:
    """Return the model card as Markdown with a YAML header.

    Args:
        predictor: The predictor of the checkpoint.
        metadata: The metadata of the export.
        origin: Results of the run and of its study.
        agreement: Result of the check of the exported model; None if weights alone are exported.
        files: The files of the export, each with its content in words.
        license_id: Identifier of the license of the weights, as the hub knows it.
    """
    from huggingface_hub import ModelCard, ModelCardData

    facts = predictor.facts
    pipeline, doing = PIPELINES.get(predictor.kind, (None, "Classification"))
    name = str(facts["name"])
    data = data_label(str(facts["data"]))
    header: Any = ModelCardData(
        license=license_id,
        library_name="regain",
        tags=["regain", "pytorch", "lightning", "dropout", "batch-normalization"],
        datasets=[data] if HUB_ID.fullmatch(data) else None,
        metrics=["accuracy"],
        pipeline_tag=pipeline,
        model_name=name,
        eval_results=_hub_results(origin, data, pipeline or "other", doing),
    )
    sections = {
        "": _summary(predictor, doing, data),
        "Files": _table(("file", "content"), [(f"`{one}`", text) for one, text in files.items()]),
        "Inputs and outputs": _inputs(metadata),
        "Data": _data(predictor, origin, data),
        "Regularization": _regularization(predictor),
        "Results": _results(facts, origin),
        "Calibration": _calibration(predictor, origin),
        "Check of the export": _check(agreement, metadata),
        "Intended use and limits": _limits(predictor, data),
        "Training": _training(facts, data),
    }
    parts = [f"# {name}"]
    parts += [f"## {title}\n\n{text}" if title else text for title, text in sections.items()]
    card = ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    return str(card)


def data_label(data: str) -> str:
    """Return the name of a data set; of a path, the last part alone.

    Example:
        >>> data_label("/home/me/cats"), data_label("builtin"), data_label("stanfordnlp/imdb")
        ('cats', 'builtin', 'stanfordnlp/imdb')
    """
    is_path = with_home(data).exists() or not HUB_ID.fullmatch(data)
    return Path(data).name if is_path and "/" in data else data


def _hub_results(origin: Origin, data: str, pipeline: str, doing: str) -> Any:
    from huggingface_hub import EvalResult

    accuracy = origin.results.get("test", {}).get("acc")
    if accuracy is None:
        return None
    return [
        EvalResult(
            task_type=pipeline,
            task_name=doing,
            dataset_type=data,
            dataset_name=data,
            dataset_split="test",
            metric_type="accuracy",
            metric_name="Test accuracy",
            metric_value=round(accuracy, 4),
        )
    ]


def _table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(one) for one in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _names(classes: list[str]) -> str:
    shown = [f"`{_cell(one).replace('`', chr(39))}`" for one in classes[:MOST_CLASSES]]
    more = len(classes) - MOST_CLASSES
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _summary(predictor: Predictor, doing: str, data: str) -> str:
    arch = predictor.task.hparams.get("arch", type(predictor.task.model).__name__)
    count = sum(one.numel() for one in predictor.task.model.parameters())
    return (
        f"{doing} with {len(predictor.classes)} classes: the model `{arch}` ({count:,} parameters),"
        f" trained on {data} with the regularization preset `{predictor.facts['reg']}`."
    )


def _inputs(metadata: Mapping[str, Any]) -> str:
    rows = [
        (f"`{one['name']}`", one["dtype"], f"({', '.join(map(str, one['shape']))})", one["content"])
        for one in metadata["inputs"]
    ]
    rows += [
        (f"`{name}`", "float32", "(batch, classes)", text)
        for name, text in metadata["outputs"].items()
    ]
    steps = metadata.get("fewest_steps", 1)
    note = f"\n\nShorter inputs are padded to {steps} steps." if steps > 1 else ""
    given = "\n".join(
        f"- {name.replace('_', ' ')}: {_cell(value)}"
        for name, value in metadata["preprocessing"].items()
    )
    table = _table(("name", "type", "shape", "content"), rows)
    return f"{table}{note}\n\nPreprocessing:\n\n{given}"


def _data(predictor: Predictor, origin: Origin, data: str) -> str:
    facts = predictor.facts
    sizes = origin.results.get("examples", {})
    splits = ", ".join(
        f"{sizes[split]:,} {split}" for split in ("train", "validation", "test") if split in sizes
    )
    options = facts["config"].get("data", {})
    noise, fraction = options.get("label_noise"), options.get("train_fraction")
    named = type(predictor.data).sources
    meaning = (inspect.getdoc(named.find(data)) or "") if data in named.names() else ""
    lines = [f"- source: {data}" + (f": {meaning.splitlines()[0]}" if meaning else "")]
    lines += [f"- examples: {splits}"] if splits else []
    lines += [f"- fraction of wrong training labels, on purpose: {noise:g}"] if noise else []
    if fraction not in (None, 1.0):
        lines.append(f"- fraction of the training split: {fraction:g}")
    return "\n".join([*lines, f"- classes: {_names(predictor.classes)}"])


def _regularization(predictor: Predictor) -> str:
    known = inspect.signature(type(predictor.task)).parameters
    given = predictor.task.hparams
    lines = []
    for key in ("reg", "training", "augment"):
        if key in known and key in given:
            usual, value = known[key].default, given[key]
            lines += [
                f"- `model.{key}.{one.name}` = {getattr(value, one.name)}"
                for one in fields(value)
                if getattr(value, one.name) != getattr(usual, one.name, None)
            ]
    preset = f"Preset `{predictor.facts['reg']}`"
    if not lines:
        return f"{preset}: no value differs from the defaults."
    return "\n".join([f"{preset}. Values that are not the defaults:", "", *lines])


def _results(facts: Mapping[str, Any], origin: Origin) -> str:
    rows = []
    test = origin.results.get("test", {})
    count = origin.results.get("examples", {}).get("test")
    for name, title, factor, unit in (
        ("acc", "accuracy", 100, " %"),
        ("loss", "negative log-likelihood", 1, " nats"),
        ("ece", "expected calibration error", 100, " %"),
    ):
        validation = facts["validation"].get(f"val/{name}")
        values = [validation, test.get(name)]
        if any(isinstance(one, float) for one in values):
            rows.append(
                (
                    title,
                    *(
                        f"{factor * one:.2f}{unit}" if isinstance(one, float) else "not measured"
                        for one in values
                    ),
                )
            )
    parts = [f"This checkpoint (seed {facts['seed']}):"]
    heads = ("metric", "validation", "test")
    parts.append(_table(heads, rows) if rows else "No metrics are known.")
    if count:
        parts.append(
            f"The test split has {count:,} examples; it was not used to select the checkpoint."
        )
    parts.append(origin.study or "This is one seed: other seeds give other results.")
    return "\n\n".join(parts)


def _calibration(predictor: Predictor, origin: Origin) -> str:
    text = (
        f"Probabilities are softmax(logits / {predictor.temperature:.4g}); the temperature was "
        "fitted on the validation split (Guo et al. 2017)."
    )
    test = origin.results.get("test", {})
    if "ece_calibrated" in test:
        text += (
            f" Expected calibration error on the test split: {100 * test['ece']:.1f} % before, "
            f"{100 * test['ece_calibrated']:.1f} % after."
        )
    return text


def _check(agreement: Agreement | None, metadata: Mapping[str, Any]) -> str:
    if agreement is None:
        return "Only weights are exported, as trained; there is no graph to check."
    lengths = f" and lengths {', '.join(map(str, agreement.lengths))}" if agreement.lengths else ""
    text = (
        f"The exported model was compared with the checkpoint on {agreement.examples}: batches of "
        f"{', '.join(map(str, agreement.batch_sizes))}{lengths}. Logits differ by at most "
        f"{agreement.difference:.1e} of the largest logit (limit: {TOLERANCE:g}); "
        f"{agreement.same_classes} of {agreement.count} have the same class."
    )
    left = metadata["batch_norms_not_folded"]
    if left:
        reasons = "\n".join(f"- `{name}`: {reason}" for name, reason in left.items())
        text += f"\n\nBatch norms that are not folded:\n\n{reasons}"
    return text


def _limits(predictor: Predictor, data: str) -> str:
    own = {
        "image": "pictures of other subjects, cameras or resolutions",
        "audio": "other words, languages, speakers, microphones and noise",
        "text": "other languages, topics and kinds of text",
    }
    return "\n".join(
        (
            "- For research on regularization, and for inputs like those of "
            f"{data}. It was tested on the test split of these data alone.",
            f"- Not tested on {own.get(predictor.kind, 'other data')}, and not for decisions "
            "about people.",
            f"- It always answers with one of its {len(predictor.classes)} classes, also for "
            "inputs of none of them.",
        )
    )


def _training(facts: Mapping[str, Any], data: str) -> str:
    seed, reg = facts["seed"], Path(str(facts["reg"])).stem
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    commit = facts["git_commit"] or "unknown"
    command = f"make train TASK={task_label(str(facts['task']))} REG={reg} DATA={data} SEED={seed}"
    if facts["arguments"]:
        further = without_folders(shlex.join(map(str, facts["arguments"])))
        command += f" ARGS={shlex.quote(further)}"
    return f"```\n{command}\n```\n\nVersions: {versions}. Commit: `{commit}`."
