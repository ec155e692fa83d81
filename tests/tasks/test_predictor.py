"""`tasks.load`: raw inputs of every form get the predictions of the run that trained the model."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import nn

import tasks
from regain import Dropout
from regain.montecarlo import mc_passes
from tasks.errors import InputError
from tasks.inference.predictor import Predictor
from tasks.run.checkpoints import repeatable
from tasks.run.fit import train
from tasks.train import parse

Data = Callable[..., Path]
Trained = Callable[[str], "Run"]

OPTIONS = {
    "vision": ["--model.arch=mlp", "--model.depth=1", "--model.width=32"],
    "speech": ["--model.width=8"],
    "nlp": ["--model.width=16", "--data.vocabulary=100"],
}
COLUMNS = {"vision": "img", "speech": "audio", "nlp": "text"}


class Recorder(Callback):
    """Keeps the logits of the test of the best checkpoint."""

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self.logits = pl_module.test_logits.clone()


class Run:
    """A finished run: its predictor, its test rows as raw inputs, and what it recorded."""

    def __init__(self, folder: Path, task: str, data: Path, logits: torch.Tensor) -> None:
        self.folder = folder
        self.logits = logits
        self.predictor = tasks.load(folder)
        self.results = json.loads((folder / "metrics.json").read_text())
        table = pyarrow.parquet.read_table(data / "data" / "test-00000-of-00001.parquet")
        column = table.column(COLUMNS[task]).to_pylist()
        self.raw = column if task == "nlp" else [one["bytes"] for one in column]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, caches: Path) -> Callable[..., Run]:
    """Train a small model of a task once."""
    root = tmp_path_factory.mktemp("trained")
    made: dict[str, Run] = {}

    def of(task: str, small_data: Data) -> Run:
        if task not in made:
            data = small_data(task).rename(root / task)
            recorder = Recorder()
            arguments = [
                *("--task", task, "--data", str(data), "--run_dir", str(root / f"{task}-run")),
                *("--reg", "batchnorm", f"--data.cache_dir={caches}", "--data.batch_size=16"),
                *("--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.max_epochs=4"),
                *("--model.reg.dropout=0.3", "--data.validation_fraction=0.3", *OPTIONS[task]),
            ]
            train(*parse(arguments), [recorder])
            made[task] = Run(root / f"{task}-run", task, data, recorder.logits)
        return made[task]

    return of


@pytest.fixture
def run_of(trained: Callable[..., Run], small_data: Data) -> Trained:
    """Return the run of a task."""
    return lambda task: trained(task, small_data)


@pytest.mark.parametrize("task", COLUMNS)
def test_predictions_for_test_rows_are_those_of_the_run(task: str, run_of: Trained) -> None:
    run = run_of(task)
    predictor = tasks.load(run.folder)
    # Bit for bit: the test, too, takes the longest first.
    lengths = [len(predictor.data.batch([predictor.decode(one)]).inputs[0]) for one in run.raw]
    order = np.argsort([-length for length in lengths], kind="stable").tolist()
    batch = predictor.encode([run.raw[row] for row in order])
    with torch.no_grad():
        assert torch.equal(predictor.task.evaluate(batch), run.logits[order])
    predictor.temperature = 1.0
    found = predictor(run.raw)
    recorded = run.results["predictions"]
    assert [predictor.classes.index(one.label) for one in found] == recorded["predicted"]
    # As `metrics.json` rounds them.
    np.testing.assert_allclose([one.confidence for one in found], recorded["confidence"], atol=6e-5)
    assert len(set(recorded["predicted"])) > 1


@pytest.mark.parametrize("task", COLUMNS)
def test_a_checkpoint_says_what_its_run_was(task: str, run_of: Trained) -> None:
    run = run_of(task)
    facts, results = run.predictor.facts, run.results
    for name in ("task", "data", "reg", "name", "seed", "versions", "git_commit", "config"):
        assert facts[name] == results[name], name
    assert facts["validation"]["val/acc"] == results["best"]["val/acc"]
    assert run.predictor.classes == results["classes"]
    assert run.predictor.kind == {"vision": "image", "speech": "audio", "nlp": "text"}[task]
    assert not run.predictor.task.training


@pytest.mark.parametrize("task", COLUMNS)
def test_one_input_and_many_in_small_batches_get_the_same(task: str, run_of: Trained) -> None:
    run = run_of(task)
    many = run.predictor(run.raw[:7], batch_size=3)
    for raw, found in zip(run.raw, many, strict=False):
        one = run.predictor(raw)
        assert one.label == found.label
        assert list(one.probabilities) == run.predictor.classes
        values = np.array(list(one.probabilities.values()))
        np.testing.assert_allclose(values, list(found.probabilities.values()), atol=1e-5)
        assert values.sum() == pytest.approx(1)
        assert one.confidence == max(values) == one.probabilities[one.label]
        assert one.entropy == pytest.approx(-(values * np.log(values)).sum(), rel=1e-4)
        assert one.sure == (one.entropy <= run.predictor.threshold)
        assert one.mutual_information is None
    assert run.predictor([]) == []


@pytest.mark.parametrize("task", COLUMNS)
def test_dropout_passes_give_the_mean_and_their_disagreement(task: str, run_of: Trained) -> None:
    run = run_of(task)
    predictor, batch = tasks.load(run.folder), run.predictor.encode(run.raw[:6])
    inputs = [one for one in (batch.inputs, batch.lengths) if one is not None]
    with repeatable(predictor.task):
        logs = mc_passes(predictor.task, *inputs, passes=10, limit=256).numpy()
    scaled = np.exp(logs.astype(np.float64) / predictor.mc_temperature)
    passes = scaled / scaled.sum(2, keepdims=True)
    mean = passes.mean(0)
    entropy = -(mean * np.log(mean)).sum(1)
    expected = entropy + (passes * np.log(passes)).sum(2).mean(0)
    # The thresholds with and without dropout are two.
    predictor.threshold, predictor.mc_threshold = math.inf, float(np.median(entropy))
    shown = predictor.predict(batch, mc=10)
    assert sum(one.sure for one in shown) == 3
    for row, found in enumerate(shown):
        np.testing.assert_allclose(list(found.probabilities.values()), mean[row], rtol=1e-4)
        assert found.entropy == pytest.approx(entropy[row], rel=1e-4)
        assert found.mutual_information == pytest.approx(expected[row], rel=1e-3, abs=1e-6)
        assert 0 < found.mutual_information <= found.entropy
        assert found.sure == (found.entropy <= predictor.mc_threshold)


def test_dropout_passes_repeat_and_change_no_state(run_of: Trained) -> None:
    predictor = run_of("vision").predictor
    raw = run_of("vision").raw[:5]
    dropout = next(layer for layer in predictor.task.modules() if hasattr(layer, "p"))
    dropout.generator = torch.Generator().manual_seed(5)
    before = torch.get_rng_state(), dropout.generator.get_state()
    plain, first = predictor(raw), predictor(raw, mc=5)
    torch.rand(3)
    torch.set_rng_state(before[0])
    assert predictor(raw, mc=5) == first
    assert predictor(raw) == plain
    assert [one.entropy for one in first] != [one.entropy for one in plain]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(dropout.generator.get_state(), before[1])
    assert not any(layer.training for layer in predictor.task.modules())
    dropout.generator = None


def test_layers_with_their_own_generators_draw_different_masks_each_time_the_same() -> None:
    model = nn.Sequential(
        Dropout(0.5, generator=torch.Generator()), Dropout(0.5, generator=torch.Generator())
    )
    drawn = []
    for _ in range(2):
        with repeatable(model):
            drawn.append([layer(torch.ones(64)) for layer in model])
    assert not torch.equal(*drawn[0])
    assert all(torch.equal(one, two) for one, two in zip(*drawn, strict=True))


def test_dropout_passes_of_a_model_without_dropout_are_refused(run_of: Trained) -> None:
    predictor = tasks.load(run_of("vision").folder)
    predictor.task.model = nn.Sequential(*predictor.task.model)
    for layer in predictor.task.modules():
        if hasattr(layer, "p"):
            layer.p = 0.0
    with pytest.raises(InputError, match=r"mc=5 needs dropout, and the model has none"):
        predictor(run_of("vision").raw[0], mc=5)
    with pytest.raises(InputError, match=r"mc=-1"):
        predictor(run_of("vision").raw[0], mc=-1)


# Images.


def photo(width: int = 30, height: int = 20) -> Image.Image:
    """A coloured picture that is not the same in any direction."""
    rows, columns = np.mgrid[0:height, 0:width]
    levels = [255 * columns / width, 255 * rows / height, 128 + 0 * rows]
    return Image.fromarray(np.stack(levels, 2).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def shown(predictor: Predictor, raw: Any) -> np.ndarray:
    """Return what the model gets of an image, (height, width, channels)."""
    found: np.ndarray = predictor.encode([raw]).inputs[0].movedim(0, -1).numpy()
    return found


def forms(picture: Image.Image) -> dict[str, Any]:
    pixels = np.array(picture)
    picture.save("one.png")
    tensor = torch.from_numpy(pixels).movedim(-1, 0)
    return {
        "text": "one.png",
        "path": Path("one.png"),
        "bytes": encoded(picture),
        "row": {"bytes": encoded(picture), "path": None},
        "pillow": picture,
        "array": pixels,
        "array of 64 bits": pixels.astype(np.int64),
        "floats": pixels / 255,
        "channels first": np.moveaxis(pixels, 2, 0),
        "RGBA": np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        "tensor": tensor,
        "tensor of floats": tensor.float() / 255,
        "tensor with channels last": torch.from_numpy(pixels),
    }


def test_all_forms_of_an_image_are_the_same_to_the_model(run_of: Trained) -> None:
    predictor, size = run_of("vision").predictor, (12, 12)
    # Resized as training images would be, whether the size of the picture is that of training.
    for picture in (photo(*size), photo(30, 20), photo(5, 400)):
        wanted = np.array(picture.resize(size, Image.Resampling.BICUBIC))
        for name, raw in forms(picture).items():
            np.testing.assert_array_equal(shown(predictor, raw), wanted, err_msg=name)


def test_modes_and_orientations_of_an_image_are_converted(run_of: Trained) -> None:
    predictor = run_of("vision").predictor
    picture = photo(12, 12)
    plain = np.array(picture)
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = np.array(picture.convert("L"))
    deep = grey.astype(np.uint16) * 256 + 77
    cases = {
        "RGBA": (picture.convert("RGBA"), plain),
        "palette": (picture.quantize(), np.array(picture.quantize().convert("RGB"))),
        "grey": (picture.convert("L"), np.dstack([grey] * 3)),
        "grey array": (grey, np.dstack([grey] * 3)),
        "grey array with a channel": (grey[:, :, None], np.dstack([grey] * 3)),
        "16 bits": (Image.fromarray(deep), np.dstack([grey] * 3)),
        "array of 16 bits": (deep, np.dstack([grey] * 3)),
        "colours of 16 bits": (plain.astype(np.uint16) * 256, plain),
        "black and white": (grey > 127, np.dstack([(grey > 127) * 255] * 3)),
        "upright": (encoded(picture, exif=turned), np.rot90(plain, -1)),
        "upright in memory": (
            Image.open(io.BytesIO(encoded(picture, exif=turned))),
            np.rot90(plain, -1),
        ),
    }
    for name, (raw, wanted) in cases.items():
        np.testing.assert_array_equal(shown(predictor, raw), wanted, err_msg=name)
    # The caller's image is not turned.
    mine = Image.open(io.BytesIO(encoded(photo(12, 8), exif=turned)))
    predictor(mine)
    assert mine.size == (12, 8)


def test_a_model_of_grey_images_gets_grey_ones() -> None:
    data = tasks.vision.Data()
    data.load_state_dict({"shape": [1, 8, 6], "dtype": "uint8"})
    picture = photo()
    wanted = picture.convert("L").resize((6, 8), Image.Resampling.BICUBIC)
    for raw in (picture, np.array(picture), encoded(picture, "JPEG", quality=100)):
        found = data.decode_input(raw)
        assert found.shape == (1, 8, 6)
        np.testing.assert_allclose(found[0].float(), np.array(wanted, dtype=np.float32), atol=3)


REFUSED_IMAGES = {
    "standardized": (np.linspace(-2, 2, 75).reshape(5, 5, 3), "floats from -2 to 2; give floats"),
    "bytes as floats": (np.full((5, 5), 200.0), "floats from 200 to 200"),
    "nan": (np.full((5, 5), np.nan), "NaN"),
    "too large": (np.full((5, 5), 300), "from 300 to 300; give bytes"),
    "negative": (np.full((5, 5), -1), "from -1 to -1"),
    "batch": (np.zeros((2, 5, 5, 3), np.uint8), "give a list of pictures"),
    "channels": (np.zeros((5, 5, 7), np.uint8), "without a dimension of 1, 3 or 4 channels"),
    "vector": (np.zeros(25, np.uint8), r"shape is \(25,\)"),
    "empty": (np.zeros((0, 5), np.uint8), "no pixels"),
    "text": (np.full((5, 5), "a"), "not numbers"),
    "no file": ("missing.png", "No such file"),
    "no image": (b"GIF89a no image", "image"),
    "empty file": (b"", "it is empty"),
    "number": (3, "there is no image"),
    "none": (None, "there is no image"),
}


@pytest.mark.parametrize("case", REFUSED_IMAGES)
def test_what_is_no_image_is_refused(case: str, run_of: Trained) -> None:
    raw, reason = REFUSED_IMAGES[case]
    predictor = run_of("vision").predictor
    with pytest.raises(InputError, match=reason) as refused:
        predictor.decode(raw)
    assert "\n" not in str(refused.value)
    # Among others it is named.
    name = raw if isinstance(raw, str) else 1
    with pytest.raises(InputError, match=f"input {name}: "):
        predictor([photo(), raw])


# Clips.


def tone(rate: int, pitch: int = 900, seconds: float = 0.2) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


def heard(predictor: Predictor, raw: Any) -> np.ndarray:
    """Return what the model gets of a clip, as floats."""
    found: np.ndarray = predictor.encode([raw]).inputs[0].numpy() / 32768
    return found


def test_all_forms_of_a_clip_are_the_same_to_the_model(run_of: Trained) -> None:
    predictor = run_of("speech").predictor
    clip = np.round(tone(16_000) * 32768).astype(np.int16)
    soundfile.write("one.wav", clip, 16_000)
    floats = clip / 32768
    stereo = np.stack([floats + 0.1, floats - 0.1], axis=1)
    cases = {
        "text": "one.wav",
        "path": Path("one.wav"),
        "bytes": Path("one.wav").read_bytes(),
        "row": {"bytes": Path("one.wav").read_bytes(), "path": None},
        "16 bits": (clip, 16_000),
        "32 bits": (clip.astype(np.int32) << 16, 16_000),
        "floats": (floats, 16_000),
        "floats of 32 bits": (floats.astype(np.float32), np.int64(16_000)),
        "rate as a float": (clip, 16_000.0),
        "tensor": (torch.from_numpy(clip), 16_000),
        "two channels": (stereo, 16_000),
        "channels first": (torch.from_numpy(stereo.T.copy()), 16_000),
        "one channel": (clip[:, None], 16_000),
        "torchaudio": (torch.from_numpy(floats)[None], 16_000),
    }
    for name, raw in cases.items():
        np.testing.assert_array_equal(heard(predictor, raw), floats, err_msg=name)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_a_clip_of_another_rate_is_resampled(rate: int, run_of: Trained) -> None:
    predictor, wanted = run_of("speech").predictor, tone(16_000)
    soundfile.write("one.mp3", np.stack([tone(rate)] * 2, axis=1), rate)
    soundfile.write("one.wav", tone(rate), rate, subtype="PCM_24")
    for raw in ((tone(rate), rate), "one.wav", "one.mp3"):
        found = heard(predictor, raw)
        # An MP3 has padding at both ends.
        shift = int(np.argmax(np.correlate(found, wanted, "full"))) - len(wanted) + 1
        middle = slice(400, 2800)
        there = found[max(0, shift) :][middle]
        assert np.abs(there - wanted[max(0, -shift) :][middle]).max() < 0.05
        labels = {predictor(raw).label, predictor((wanted, 16_000)).label}
        assert len(labels) == 1


def test_unsigned_bytes_are_centred_as_in_wav_files(run_of: Trained) -> None:
    predictor = run_of("speech").predictor
    clip = np.round(tone(16_000) * 127 + 128).astype(np.uint8)
    np.testing.assert_allclose(heard(predictor, (clip, 16_000)), (clip - 128.0) / 128)


REFUSED_CLIPS = {
    "no rate": (np.zeros(400, np.int16), r"without a sample rate; give \(samples, rate\)"),
    "tensor without a rate": (torch.zeros(400), "without a sample rate"),
    "rate first": ((16_000, np.zeros(400)), r"sample rate is ndarray.*give \(samples, rate\)"),
    "rate as text": ((np.zeros(400), "16000"), "sample rate is str"),
    "broken rate": ((np.zeros(400), 0.5), "not a whole number"),
    "low rate": ((np.zeros(400), 10), "not within 1000"),
    "infinite rate": ((np.zeros(400), math.inf), "not a whole number"),
    "loud": ((np.full(400, 3000.0), 16_000), "reach 3000, where full scale is 1"),
    "nan": ((np.full(400, np.nan), 16_000), "NaN"),
    "empty": ((np.zeros(0), 16_000), "no samples"),
    "long": ((np.zeros(16_000 * 61, np.int16), 16_000), "lasts 61 s"),
    "64 bits": ((np.zeros(400, np.int64), 16_000), "samples are int64"),
    "square": ((np.zeros((400, 400)), 16_000), r"shape of its samples is \(400, 400\)"),
    "list": (([0.0] * 400, 16_000), "samples are list"),
    "three": ((np.zeros(400), 16_000, 1), "without a sample rate"),
    "no clip": (b"RIFF no clip", "it is no clip"),
    "no file": ("missing.wav", "missing.wav|No such file"),
    "none": (None, "without a sample rate"),
}


@pytest.mark.parametrize("case", REFUSED_CLIPS)
def test_what_is_no_clip_is_refused(case: str, run_of: Trained) -> None:
    raw, reason = REFUSED_CLIPS[case]
    with pytest.raises(InputError, match=reason) as refused:
        run_of("speech").predictor.decode(raw)
    assert "\n" not in str(refused.value)


# Texts.


def test_texts_are_read_as_in_training(run_of: Trained) -> None:
    predictor = run_of("nlp").predictor
    plain, loud, german = predictor(["red one two", "RED One TWO", "Größe ßtraße 漢字 🙂"])
    assert plain == loud
    assert sum(german.probabilities.values()) == pytest.approx(1)
    # Cut at the length of the training.
    long = predictor.encode([" ".join(["red"] * 5000)])
    assert long.inputs.shape == (1, predictor.task.spec.max_tokens)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"red", "it is bytes, not text"),
        (Path("red"), "not text"),
        (3, "it is int, not text"),
        (" \n", "the text is empty"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_is_no_text_is_refused(raw: Any, reason: str, run_of: Trained) -> None:
    with pytest.raises(InputError, match=reason):
        run_of("nlp").predictor(raw)
