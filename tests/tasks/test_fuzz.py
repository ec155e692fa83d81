"""Whatever comes in: something valid, or an error that the user can mend; never another one."""

import contextlib
import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from study.plan import load_study
from study.search_space import read_space
from tasks import vision
from tasks.data.labels import label_ids
from tasks.data.loading import Rows, Source, decode_rows
from tasks.errors import InputError
from tasks.nlp.data import TextData
from tasks.run.build import INVALID_CONFIG_ERRORS, RunCLI
from tasks.run.presets import CONFIGS, config_stack, preset_names
from tasks.run.yaml_files import check_configurations
from tasks.speech.data import SpeechData
from tasks.vision.data import VisionData

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from([10**400, "nan", "1e999", "~", "-", "&a", "*a", "../..", "os.system", "{", ""]),
)
KEYS = st.sampled_from(
    [
        *("model", "data", "trainer", "seed_everything", "reg", "optim", "augment", "dropout"),
        *("lr", "batch_size", "width", "depth", "arch", "callbacks", "logger", "class_path"),
        *("init_args", "max_epochs", "precision", "config", "vision", "speech", "nlp"),
        *("parameters", "min", "max", "values", "value", "distribution", "q"),
    ]
)
NESTED = st.recursive(
    SCALARS,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(KEYS | SCALARS, parts, max_size=4),
    max_leaves=12,
)
DOTTED = st.sampled_from(
    [
        *("model.arch", "model.width", "model.depth", "model.reg", "model.reg.dropout", "model"),
        *(
            "model.reg.normalization",
            "model.training.early_stopping",
            "model.optim",
            "model.optim.lr",
        ),
        *("model.augment", "model.augment.mixup", "data", "data.batch_size", "data.image_size"),
        *("data.source", "data.train_fraction", "data.cache_dir", "trainer.max_epochs", "trainer"),
        *("trainer.precision", "trainer.callbacks", "trainer.callbacks+", "trainer.logger"),
        *("trainer.logger.init_args", "trainer.devices", "trainer.max_time", "seed_everything"),
    ]
)

WHOLE = ["trainer.max_epochs", "data.batch_size", "model.training.early_stopping"]
FRACTIONAL = ["model.reg.dropout", "model.optim.lr", "model.training.l2"]


def as_yaml(content: Any) -> str:
    with contextlib.suppress(yaml.YAMLError, ValueError):
        return str(yaml.dump(content))
    return str(content)


TEXTS = NESTED.map(as_yaml) | st.text(max_size=60) | NESTED.map(str)
ARGUMENTS = st.lists(st.tuples(DOTTED, (SCALARS | NESTED).map(str)), max_size=3)


@functools.cache
def parser() -> Any:
    """Build the parser of the command line, once for all examples."""
    built = []

    class OnlyParser(RunCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            built.append(parser)
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        OnlyParser(
            vision.Task,
            vision.Data,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            run=False,
            args=[],
        )
    return built[0]


@given(TEXTS, ARGUMENTS)
@example("model: &m\n  reg: *m", [])
@example("{}", [("model", "&m {reg: *m}")])
@example("a: " + "[" * 900 + "]" * 900, [])
def test_configurations(text: str, overrides: list[tuple[str, str]]) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        Path("fuzz.yaml").write_text(text, encoding="utf-8")
    arguments = ["--config", "fuzz.yaml", *(f"--{key}={value}" for key, value in overrides)]
    # All else than what `tasks.run.build.build` makes one line of is a mistake.
    with contextlib.suppress(InputError, *INVALID_CONFIG_ERRORS):
        check_configurations(arguments)
        parser().parse_args(arguments)


@given(st.sampled_from(WHOLE), st.integers(-(2**40), 2**40))
def test_a_whole_number_on_the_command_line_is_what_the_run_gets(key: str, value: int) -> None:
    arguments = [f"--{key}={value}"]
    check_configurations(arguments)
    found = parser().parse_args(arguments)[key]
    assert (found, type(found)) == (value, int)


@given(st.sampled_from(FRACTIONAL), st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_on_the_command_line_is_what_the_run_gets(key: str, value: float) -> None:
    arguments = [f"--{key}={value}"]
    check_configurations(arguments)
    assert parser().parse_args(arguments)[key] == value


@given(st.sampled_from(WHOLE + FRACTIONAL), st.from_regex(r"[g-m]{1,6}[0-9]*", fullmatch=True))
def test_text_in_place_of_a_number_is_refused(key: str, text: str) -> None:
    check_configurations([f"--{key}={text}"])
    with pytest.raises(INVALID_CONFIG_ERRORS):
        parser().parse_args([f"--{key}={text}"])


def taken(call: Callable[[], Any]) -> Any:
    """Return what a call returns; None if it refuses what it is given, in one line."""
    refusal = ""
    try:
        return call()
    except InputError as error:
        refusal = str(error)
    assert refusal.strip()
    assert "\n" not in refusal
    assert "object at 0x" not in refusal
    return None


@given(st.binary(max_size=80) | TEXTS.map(lambda text: text.encode("utf-8", "replace")))
@example(b"vision: {model: {reg: {dropout: 0.5}}}")
def test_presets(content: bytes) -> None:
    Path("fuzz.yaml").write_bytes(content)
    stack = taken(lambda: config_stack("vision", "fuzz.yaml", "builtin"))
    if stack is not None:
        given = yaml.safe_load(content)["vision"]
        assert as_yaml(yaml.safe_load(stack[-1])) == as_yaml({} if given is None else given)


@given(st.text(max_size=300), st.text(max_size=300))
@example("both", "trec")
@example("both", "a/trec")
@example("both", "other")
@example("bth", "trec")
def test_names_of_presets_and_data(reg: str, data: str) -> None:
    stack = taken(lambda: config_stack("nlp", reg, data))
    known = reg in preset_names("reg")
    assert (stack is not None) == (known and valid_name(data))
    if stack is not None:
        # The base, the task's and the preset's; the data's only if it has one.
        assert len(stack) == 3 + (Path(data).name in preset_names("data"))


def valid_name(data: str) -> bool:
    parts = data.encode("utf-8", "surrogatepass").split(b"/")
    return bool(data) and "\0" not in data and max(map(len, parts)) <= 255


@given(NESTED.map(lambda content: as_yaml({"parameters": {"model.reg.dropout": content}})) | TEXTS)
@example("parameters: {a: {min: 0, max: 3}, b: {value: 1}}")
def test_search_spaces(text: str) -> None:
    Path("fuzz.yaml").write_bytes(text.encode("utf-8", "replace"))
    space = taken(lambda: read_space(Path("fuzz.yaml")))
    if space is not None:
        given = yaml.safe_load(text)["parameters"]
        assert {*space.parameters, *space.fixed} == {str(key) for key in given}
        assert space.parameters.keys().isdisjoint(space.fixed)


FIELDS = st.sampled_from(["task", "data", "variants", "seeds", "axes", "arguments", "name", "x"])
STUDY = {"task": "vision", "data": "builtin", "variants": ["none"], "seeds": [0]}
STUDIES = st.dictionaries(FIELDS, NESTED, max_size=8).flatmap(
    lambda changes: st.sampled_from(
        [
            changes,
            {"task": "vision", "data": "builtin", "variants": ["none"], "seeds": [0]} | changes,
        ]
    )
)


@given(STUDIES.map(as_yaml) | TEXTS)
def test_studies_on_record(text: str) -> None:
    Path("study.yaml").write_bytes(text.encode("utf-8", "replace"))
    names = taken(lambda: [job.name for job in load_study(Path()).jobs(1)])
    if names is not None:
        given = yaml.safe_load(text)
        points = math.prod(len(values) for values in given.get("axes", {}).values())
        assert len(names) == len(given["variants"]) * len(given["seeds"]) * points


LABELS = st.lists(SCALARS | st.lists(st.integers(), max_size=2), max_size=8)


@given(LABELS, LABELS, st.none() | st.lists(st.text(max_size=4), max_size=4))
@example(["a", "b", "c"], ["a"], None)
def test_labels(train: list[Any], test: list[Any], classes: list[str] | None) -> None:
    splits = {"train": Rows(train, train), "test": Rows(test, test)}
    found = taken(lambda: label_ids(Source(splits, classes)))
    if found is None:
        return
    ids, names = found
    numbers, rows = [*ids["train"].tolist(), *ids["test"].tolist()], train + test
    assert len(numbers) == len(rows)
    assert 0 <= min(numbers) <= max(numbers) < len(names)
    # The same label has the same number everywhere, and another one another.
    assert len(set(zip(numbers, rows, strict=True))) == len(set(numbers)) == len(set(rows))


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
PICTURES = [
    saved(lambda file, kind=kind: Image.fromarray(PIXELS).save(file, kind))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA")
]
SOUND = np.random.default_rng(0).uniform(-0.5, 0.5, 300)
CLIPS = [
    saved(lambda file, kind=kind: soundfile.write(file, SOUND, 16_000, format=kind))
    for kind in ("WAV", "FLAC", "OGG", "AIFF", "AU")
]


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """Flip, cut out or insert bytes of a file that is whole, at its head above all."""
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.sampled_from([min(60, len(content)), len(content)]))
        place = draw(st.integers(0, end))
        new = draw(st.binary(max_size=4))
        content[place : place + draw(st.integers(0, len(new) + 3))] = new
    return bytes(content)


def decoded(data: VisionData | SpeechData | TextData, value: Any) -> Any:
    """Decode one row as a data set's are; None if it is refused, by one line that names it."""
    refusal = ""
    try:
        return decode_rows([value], data.decode, "train", data.noun)[0]
    except InputError as error:
        refusal = str(error)
    assert refusal.startswith(f"1 of 1 {data.noun}s of split train cannot be decoded; ")
    assert "row 0: " in refusal
    assert "object at 0x" not in refusal
    assert "\n" not in refusal
    return None


@pytest.mark.filterwarnings("ignore")
@given(st.binary(max_size=200) | damaged(PICTURES), st.sampled_from([None, 8]))
def test_pictures(content: bytes, size: int | None) -> None:
    pixels = decoded(VisionData(image_size=size), {"bytes": content, "path": None})
    if pixels is not None:
        assert pixels.dtype == torch.uint8
        assert pixels.dim() == 3
        assert len(pixels) in (1, 3)
        assert size is None or pixels.shape[1:] == (size, size)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@given(st.binary(max_size=200) | damaged(CLIPS))
def test_clips(content: bytes) -> None:
    samples = decoded(SpeechData(max_seconds=2.0), {"bytes": content, "path": None})
    if samples is not None:
        assert samples.dtype == torch.int16
        assert samples.dim() == 1
        assert 0 < len(samples) <= math.ceil(2.0 * 16_000)


@given(st.text() | SCALARS | st.binary())
def test_texts(value: Any) -> None:
    text = decoded(TextData(), value)
    assert text is None or (text == value and text.strip())


def test_every_file_of_the_project_is_taken() -> None:
    """Show that the checks refuse nothing that is good."""
    for file in CONFIGS.rglob("*.yaml"):
        if "reg" in file.parts or "data" in file.parts:
            for task in yaml.safe_load(file.read_text()):
                assert config_stack(task, str(file), "builtin")
        elif "sweep" in file.parts:
            assert read_space(file).parameters
        else:
            check_configurations([f"--config={file}"])
