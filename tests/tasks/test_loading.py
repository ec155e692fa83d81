import hashlib
import pickle

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from tasks.errors import InputError
from tasks.nlp.data import TextData
from tasks.speech.data import SpeechData
from tasks.vision.data import VisionData

SPLITS = ("train", "validation", "test")
RATE = 16_000


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def ready(data):
    data.setup()
    return data


def contents(data, split) -> dict[bytes, str]:
    """The class name of each input of a split, by the bytes of the input."""
    examples = data.splits[split]
    found = {}
    for index in range(len(examples)):
        batch = examples.gather(torch.tensor([index]))
        found[batch.inputs[0].numpy().tobytes()] = data.classes[int(batch.labels[0])]
    return found


def texts(data, split) -> dict[str, str]:
    batch = data.splits[split].gather(torch.arange(len(data.splits[split])))
    return {
        data.media(split, index): data.classes[label]
        for index, label in enumerate(batch.labels.tolist())
    }


def save_picture(file, pixels) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def save_clip(file, samples, rate=RATE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, samples, rate, subtype="PCM_16")


def picture_folder(folder, rng, names=("cat", "dog"), count=3, shape=(5, 4)):
    """Create images in a folder per split and class; return the content of each split."""
    made = {split: {} for split in SPLITS}
    for split in SPLITS:
        for name in names:
            for number in range(count):
                pixels = rng.integers(0, 256, shape, np.uint8)
                save_picture(folder / split / name / f"{number}.png", pixels)
                # Tensors are channels-first.
                made[split][np.moveaxis(np.atleast_3d(pixels), -1, 0).tobytes()] = name
    return made


def clip(rng, samples: int):
    return rng.integers(-20_000, 20_000, samples).astype(np.int16)


def command_folder(folder, rng, rate=RATE):
    """Create a folder with the layout of Speech Commands; return the content of each split."""
    made = {split: {} for split in SPLITS}
    listed = {split: [] for split in SPLITS}
    for word in ("yes", "no"):
        for speaker in range(6):
            split = SPLITS[speaker // 2]
            name = f"{word}/abcd{speaker}000_nohash_0.wav"
            samples = clip(rng, 300 + 40 * speaker)
            save_clip(folder / name, samples, rate)
            listed[split].append(name)
            made[split][samples.tobytes()] = word
    save_clip(folder / "_background_noise_" / "doing_the_dishes.wav", clip(rng, 900), rate)
    for split, file in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        (folder / file).write_text("".join(f"{name}\n" for name in listed[split]))
    return made


def csv(file, columns, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([columns, *rows]) + "\n")
    return str(file)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)], ids=["grey", "colour"])
def test_a_folder_of_pictures(tmp_path, cache, rng, shape):
    made = picture_folder(tmp_path / "pictures", rng, shape=shape)
    data = ready(VisionData(source=str(tmp_path / "pictures"), cache_dir=cache))
    assert data.classes == ["cat", "dog"]
    for split in SPLITS:
        assert contents(data, split) == made[split]
    pixels = np.stack([np.frombuffer(one, np.uint8) for one in made["train"]])
    spec = data.spec()
    channels = 1 if len(shape) == 2 else 3
    assert spec.shape == [channels, 5, 4]
    by_channel = pixels.reshape(len(pixels), channels, -1).transpose(1, 0, 2).reshape(channels, -1)
    assert spec.mean == pytest.approx(by_channel.mean(axis=1).tolist(), rel=1e-5)
    assert spec.std == pytest.approx(by_channel.std(axis=1, ddof=1).tolist(), rel=1e-5)


def test_grey_pictures_among_colour_ones_become_colour(tmp_path, cache):
    for split in SPLITS:
        for number in range(3):
            grey = np.full((4, 4), 10 + number, np.uint8)
            save_picture(tmp_path / "p" / split / "grey" / f"{number}.png", grey)
            red = np.zeros((4, 4, 3), np.uint8)
            red[..., 0] = 100 + number
            save_picture(tmp_path / "p" / split / "red" / f"{number}.png", red)
    data = ready(VisionData(source=str(tmp_path / "p"), cache_dir=cache))
    for inputs, name in contents(data, "test").items():
        pixels = np.frombuffer(inputs, np.uint8).reshape(3, 4, 4)
        colours = pixels[:, 0, 0].tolist()
        assert (pixels == pixels[:, :1, :1]).all()
        if name == "grey":
            assert colours == [colours[0]] * 3
        else:
            assert colours[0] >= 100
            assert colours[1:] == [0, 0]


def test_pictures_are_scaled_to_the_size_asked_for(tmp_path, cache):
    for split in SPLITS:
        for name, size, shade in (("a", 6, 50), ("b", 10, 200)):
            for number in range(2):
                pixels = np.full((size, size + 2), shade + number, np.uint8)
                save_picture(tmp_path / "p" / split / name / f"{number}.png", pixels)
    data = ready(VisionData(image_size=8, source=str(tmp_path / "p"), cache_dir=cache))
    assert contents(data, "train") == {
        bytes([shade + number] * 64): name
        for name, shade in (("a", 50), ("b", 200))
        for number in range(2)
    }


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_parquet_with_pictures(tmp_path, cache, rng, whole):
    features = datasets.Features(
        {"id": datasets.Value("int64"), "picture": datasets.Image()}
        | {"label": datasets.ClassLabel(names=["zebra", "ant"])}
    )
    made = {}
    for split in ("train", "test"):
        pixels = [rng.integers(0, 256, (4, 4, 3), np.uint8) for _ in range(8)]
        rows = {
            "id": list(range(8)),
            "picture": [Image.fromarray(one) for one in pixels],
            "label": [index % 2 for index in range(8)],
        }
        file = tmp_path / "data" / f"{split}.parquet"
        file.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features).to_parquet(file)
        made[split] = {
            np.moveaxis(one, -1, 0).tobytes(): ("zebra", "ant")[index % 2]
            for index, one in enumerate(pixels)
        }
    source = tmp_path / "data" if whole else tmp_path / "data" / "train.parquet"
    data = ready(VisionData(source=str(source), cache_dir=cache))
    # Class names have the order of the file: if sorted, the labels would be swapped.
    assert data.classes == ["zebra", "ant"]
    parts = {split: contents(data, split) for split in SPLITS}
    if whole:
        assert parts["test"] == made["test"]
        assert parts["train"] | parts["validation"] == made["train"]
    else:
        assert parts["train"] | parts["validation"] | parts["test"] == made["train"]


def test_the_layout_of_cifar(tmp_path, cache, rng, monkeypatch):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}

    def save(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    made = {"train": {}, "test": {}}
    words = [f"class{number}" for number in range(9, -1, -1)]
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (10, 3072), np.uint8)
        labels = rng.permutation(10).tolist()
        save(name, {"data": pixels, "labels": labels})
        split = "test" if name == "test_batch" else "train"
        # A row has first the red pixels, then the green and the blue ones.
        made[split] |= {
            row.tobytes(): words[label] for row, label in zip(pixels, labels, strict=True)
        }
    save("batches.meta", {"label_names": words})
    train = [[name, sums[name]] for name in sums if name.startswith("data_batch")]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})

    data = ready(VisionData(source=str(tmp_path / "data"), cache_dir=cache))
    assert data.classes == words
    assert data.spec().shape == [3, 32, 32]
    assert contents(data, "test") == made["test"]
    assert contents(data, "train") | contents(data, "validation") == made["train"]
    assert len(contents(data, "validation")) == 5

    (folder / "data_batch_3").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"DATA=.*corrupted"):
        ready(VisionData(source=str(tmp_path / "data"), cache_dir=cache))


@pytest.mark.parametrize("end", [".csv", ".tsv", ".jsonl"])
def test_a_file_of_texts(tmp_path, cache, end):
    made = {f"text, number {index}": ("spam", "ham")[index % 2] for index in range(20)}
    file = tmp_path / f"mail{end}"
    if end == ".jsonl":
        lines = [f'{{"label": "{name}", "text": "{text}"}}' for text, name in made.items()]
    elif end == ".tsv":
        # The other text column has the labels.
        lines = ["label\tphrase", *(f"{name}\t{text}" for text, name in made.items())]
    else:
        lines = ["label,text", *(f'{name},"{text}"' for text, name in made.items())]
    file.write_text("\n".join(lines))
    data = ready(TextData(source=str(file), cache_dir=cache))
    assert data.classes == ["ham", "spam"]
    parts = {split: texts(data, split) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }
    assert parts["train"] | parts["validation"] | parts["test"] == made


def test_a_folder_of_files_of_texts(tmp_path, cache):
    made = {}
    for split, file in (("train", "train"), ("validation", "dev"), ("test", "test")):
        made[split] = {f"{split} text {index}": str(index % 3) for index in range(6)}
        rows = [f"{text},{label},{text} again" for text, label in made[split].items()]
        csv(tmp_path / "data" / f"{file}.csv", "sentence,label,remark", *rows)
    data = ready(TextData(source=str(tmp_path / "data"), cache_dir=cache))
    assert data.classes == ["0", "1", "2"]
    for split in SPLITS:
        assert texts(data, split) == made[split]


def test_splits_of_other_names_are_found(tmp_path, cache):
    # A dataset card may use other split names, and `datasets` keeps them.
    card = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, name in (("train", "training"), ("validation", "dev"), ("test", "testing")):
        card += [f"  - split: {name}", f"    path: {name}.csv"]
        csv(
            tmp_path / "d" / f"{name}.csv",
            "text,label",
            *(f"{split} {n},{n % 2}" for n in range(6)),
        )
    (tmp_path / "d" / "README.md").write_text("\n".join([*card, "---"]))
    data = ready(TextData(source=str(tmp_path / "d"), cache_dir=cache))
    for split in SPLITS:
        assert texts(data, split) == {f"{split} {n}": str(n % 2) for n in range(6)}


def test_the_tokens_are_those_of_the_texts(tmp_path, cache):
    rows = [f"word{index % 4} and Word{index % 5},{index % 2}" for index in range(20)]
    data = ready(TextData(source=csv(tmp_path / "t.csv", "text,label", *rows), cache_dir=cache))
    for index in range(len(data.splits["train"])):
        ids = data.splits["train"].gather(torch.tensor([index])).inputs[0]
        words = data.tokenizer.decode(ids.tolist()).replace(" ##", "")
        assert words == data.media("train", index).lower()
    assert data.spec().vocabulary == data.tokenizer.get_vocab_size()


def test_the_tokenizer_has_seen_the_training_split_alone(tmp_path, cache):
    for split, word in (("train", "aaa"), ("test", "zzz")):
        rows = [f"{word},{index % 2}" for index in range(20)]
        csv(tmp_path / "data" / f"{split}.csv", "text,label", *rows)
    data = ready(TextData(source=str(tmp_path / "data"), cache_dir=cache))
    assert "aaa" in data.tokenizer.get_vocab()
    assert "z" not in data.tokenizer.get_vocab()
    test = data.splits["test"].gather(torch.arange(20))
    assert (test.inputs == data.spec().unknown).all()


def test_long_texts_are_cut(tmp_path, cache):
    rows = [f"{'a ' * (index + 1)},{index % 2}" for index in range(20)]
    source = csv(tmp_path / "t.csv", "text,label", *rows)
    data = ready(TextData(max_tokens=5, source=source, cache_dir=cache))
    assert data.splits["train"].lengths().max() == 5


def test_named_columns_are_used(tmp_path, cache):
    rows = [f"title {index},body {index},{index % 2},{index % 5}" for index in range(40)]
    source = csv(tmp_path / "t.csv", "title,body,label,topic", *rows)
    options = {"input_column": "body", "label_column": "topic"}
    data = ready(TextData(source=source, cache_dir=cache, **options))
    assert data.classes == ["0", "1", "2", "3", "4"]
    assert texts(data, "test").items() <= {(f"body {n}", str(n % 5)) for n in range(40)}


def test_a_folder_of_clips(tmp_path, cache, rng):
    made = {split: {} for split in SPLITS}
    for split in SPLITS:
        for name in ("left", "right"):
            for number in range(3):
                samples = clip(rng, 200 + 10 * number)
                save_clip(tmp_path / "clips" / split / name / f"{number}.wav", samples)
                made[split][samples.tobytes()] = name
    data = ready(SpeechData(source=str(tmp_path / "clips"), cache_dir=cache))
    assert data.classes == ["left", "right"]
    for split in SPLITS:
        assert contents(data, split) == made[split]
        assert sorted(data.splits[split].lengths().tolist()) == [200, 200, 210, 210, 220, 220]
    assert data.spec().sample_rate == RATE


def tone(rate, samples, frequency=200):
    return np.sin(2 * np.pi * frequency * np.arange(samples) / rate)


def test_clips_are_resampled_and_mixed_to_one_channel(tmp_path, cache):
    for split in SPLITS:
        for name, gains in (("left", (0.8, 0.0)), ("both", (0.8, 0.8))):
            for number in range(2):
                stereo = np.outer(tone(8000, 800), gains)
                save_clip(tmp_path / "c" / split / name / f"{number}.wav", stereo, 8000)
    data = ready(SpeechData(source=str(tmp_path / "c"), cache_dir=cache))
    found = contents(data, "train")
    assert sorted(found.values()) == ["both", "left"]
    for inputs, name in found.items():
        samples = np.frombuffer(inputs, np.int16) / 32768
        wanted = tone(RATE, 1600) * (0.4 if name == "left" else 0.8)
        assert len(samples) == 1600
        # At the ends, the filter covers only half of its samples.
        assert np.abs(samples - wanted)[50:-50].max() < 0.01


def test_parquet_with_clips(tmp_path, cache, rng):
    made, rows = {}, {"clip": [], "label": []}
    for index in range(20):
        samples = clip(rng, 300 + index)
        save_clip(tmp_path / "one.wav", samples)
        rows["clip"].append({"bytes": (tmp_path / "one.wav").read_bytes(), "path": None})
        rows["label"].append(index % 2)
        made[samples.tobytes()] = ("yes", "no")[index % 2]
    table = datasets.Dataset.from_dict(rows)
    table = table.cast_column("clip", datasets.Audio())
    table = table.cast_column("label", datasets.ClassLabel(names=["yes", "no"]))
    table.to_parquet(tmp_path / "train.parquet")
    data = ready(SpeechData(source=str(tmp_path / "train.parquet"), cache_dir=cache))
    parts = [contents(data, split) for split in SPLITS]
    assert [len(part) for part in parts] == [16, 2, 2]
    assert parts[0] | parts[1] | parts[2] == made


def test_the_layout_of_speech_commands(tmp_path, cache, rng):
    made = command_folder(tmp_path / "speech_commands_v0.02", rng)
    source = str(tmp_path / "speech_commands_v0.02")
    data = ready(SpeechData(source=source, cache_dir=cache))
    # Background noise is neither a class nor a clip.
    assert data.classes == ["no", "yes"]
    for split in SPLITS:
        assert contents(data, split) == made[split]


def test_speech_commands_of_another_sample_rate(tmp_path, cache, rng):
    made = command_folder(tmp_path / "words", rng, rate=8000)
    kept = ready(SpeechData(sample_rate=8000, source=str(tmp_path / "words"), cache_dir=cache))
    assert contents(kept, "train") == made["train"]
    doubled = ready(SpeechData(source=str(tmp_path / "words"), cache_dir=cache))
    assert sorted(doubled.splits["test"].lengths().tolist()) == [920, 920, 1000, 1000]
    assert kept.spec().sample_rate == 8000


def test_samples_of_the_builtin_clips_are_resampled_too(cache):
    # The clips are arrays at 16 kHz; a model for 8 kHz needs them resampled.
    decoded = SpeechData(sample_rate=8000, cache_dir=cache).decode(
        (tone(RATE, 1600) * 20_000).astype(np.int16)
    )
    assert len(decoded) == 800


GOOD = [f"text {index},{index % 2}" for index in range(20)]


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/path", "~/no/such/path", "a/b/c"])
def test_a_missing_path_is_named(cache, source):
    with pytest.raises(InputError, match=f"DATA={source}: no such path"):
        ready(TextData(source=source, cache_dir=cache))


def test_a_word_is_not_a_hub_id(cache):
    with pytest.raises(
        InputError, match=r"DATA=mnist is not known; .*cifar10.* hub id of the form owner/name"
    ):
        ready(VisionData(source="mnist", cache_dir=cache))


def test_a_file_of_another_kind_is_named(tmp_path, cache):
    file = tmp_path / "data.xlsx"
    file.write_text("")
    with pytest.raises(InputError, match=r"data\.xlsx: .*\.csv"):
        ready(TextData(source=str(file), cache_dir=cache))


def test_an_empty_folder_is_named(tmp_path, cache):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"DATA=.*nothing: cannot be loaded") as caught:
        ready(TextData(source=str(tmp_path / "nothing"), cache_dir=cache))
    assert "\n" not in str(caught.value)


def test_a_data_set_without_a_training_split_is_refused(tmp_path, cache):
    csv(tmp_path / "data" / "test.csv", "text,label", *GOOD)
    with pytest.raises(InputError, match="no split named train, only test"):
        ready(TextData(source=str(tmp_path / "data"), cache_dir=cache))


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ("text,topic", {}, "no column with labels among text, topic; name it with .*label_column"),
        ("text,label", {"label_column": "x"}, "no column 'x', only text, label"),
        ("text,label", {"input_column": "x"}, "no column 'x', only text, label"),
        ("label,class", {}, "no column of type text among label, class; .*input_column"),
        ("a,label,b", {}, "several columns of type text among a, label, b; .*input_column"),
    ],
)
def test_columns_that_cannot_be_found_are_named(tmp_path, cache, columns, options, message):
    values = {"text": "hello", "topic": "hello", "a": "hello", "b": "hello"}
    row = ",".join(values.get(column, "1") for column in columns.split(","))
    source = csv(tmp_path / "t.csv", columns, *[row] * 20)
    with pytest.raises(InputError, match=message):
        ready(TextData(source=source, cache_dir=cache, **options))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text,", "row 20 of split train has no label"),
        (",1", "1 of 21 texts of split train cannot be decoded; the first is row 20: "),
        ("  ,1", "1 of 21 texts .* row 20: the text is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, cache, row, message):
    source = csv(tmp_path / "t.csv", "text,label", *GOOD, row)
    with pytest.raises(InputError, match=message):
        ready(TextData(source=source, cache_dir=cache))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "1", "2"], "row 2 of split test has label 2, out of range: the 2 classes are 0, 1"),
        (["0", "", "1"], "row 1 of split test has no label"),
    ],
)
def test_a_label_that_only_the_test_has_is_named(tmp_path, cache, labels, message):
    csv(tmp_path / "data" / "train.csv", "text,label", *GOOD)
    csv(tmp_path / "data" / "test.csv", "text,label", *(f"text,{label}" for label in labels))
    with pytest.raises(InputError, match=message):
        ready(TextData(source=str(tmp_path / "data"), cache_dir=cache))


def test_numbers_that_are_labels_need_not_begin_at_zero(tmp_path, cache):
    rows = [f"text {index},{(10, 2, -1)[index % 3]}" for index in range(30)]
    data = ready(TextData(source=csv(tmp_path / "t.csv", "text,label", *rows), cache_dir=cache))
    # In numeric order: 2 before 10.
    assert data.classes == ["-1", "2", "10"]
    found = {}
    for split in SPLITS:
        found |= texts(data, split)
    assert found == dict(row.split(",") for row in rows)


def test_an_unlabelled_example_among_named_classes_is_named(tmp_path, cache):
    # Data sets with secret test labels use -1.
    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    (tmp_path / "d").mkdir()
    for split, labels in (("train", [0, 1] * 10), ("test", [0, 1, -1])):
        rows = {"text": ["text"] * len(labels), "label": labels}
        file = tmp_path / "d" / f"{split}.parquet"
        datasets.Dataset.from_dict(rows, features).to_parquet(file)
    message = "row 2 of split test has label -1, out of range: the 2 classes are bad, good"
    with pytest.raises(InputError, match=message):
        ready(TextData(source=str(tmp_path / "d"), cache_dir=cache))


def test_a_named_class_that_only_the_test_has_is_named(tmp_path, cache):
    csv(tmp_path / "d" / "train.csv", "text,label", *(f"text,{n}" for n in ["ham", "spam"] * 10))
    csv(tmp_path / "d" / "test.csv", "text,label", "text,ham", "text,eggs")
    with pytest.raises(InputError, match=r"row 1 of split test has label 'eggs', .*ham, spam"):
        ready(TextData(source=str(tmp_path / "d"), cache_dir=cache))


def test_a_table_without_rows_is_refused(tmp_path, cache):
    with pytest.raises(InputError):
        ready(TextData(source=csv(tmp_path / "t.csv", "text,label"), cache_dir=cache))


def test_broken_pictures_are_counted_and_the_first_is_named(tmp_path, cache, rng):
    picture_folder(tmp_path / "p", rng)
    for broken in ("cat/2.png", "dog/1.png"):
        (tmp_path / "p" / "test" / broken).write_bytes(b"no picture")
    message = r"2 of 6 images of split test cannot be decoded; the first is .*cat/2\.png"
    with pytest.raises(InputError, match=message) as caught:
        ready(VisionData(source=str(tmp_path / "p"), cache_dir=cache))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.pt*"))


def test_a_picture_cut_short_is_refused(tmp_path, cache, rng):
    picture_folder(tmp_path / "p", rng, shape=(40, 40))
    file = tmp_path / "p" / "train" / "dog" / "0.png"
    file.write_bytes(file.read_bytes()[:800])
    with pytest.raises(InputError, match=r"1 of 6 images of split train .*dog/0\.png"):
        ready(VisionData(source=str(tmp_path / "p"), cache_dir=cache))


def test_pictures_of_different_size_are_refused(tmp_path, cache, rng):
    picture_folder(tmp_path / "p", rng)
    save_picture(tmp_path / "p" / "train" / "cat" / "9.png", np.zeros((7, 9), np.uint8))
    with pytest.raises(InputError, match=r"\(4 x 5 and 9 x 7\); .*--data.image_size"):
        ready(VisionData(source=str(tmp_path / "p"), cache_dir=cache))


def test_splits_of_different_size_are_refused(tmp_path, cache):
    for split, size in zip(SPLITS, (4, 4, 6), strict=True):
        for number in range(4):
            pixels = np.zeros((size, size), np.uint8)
            save_picture(tmp_path / "p" / split / "ab"[number % 2] / f"{number}.png", pixels)
    with pytest.raises(InputError, match="4 x 4 and 6 x 6"):
        ready(VisionData(source=str(tmp_path / "p"), cache_dir=cache))


def test_a_split_of_colour_pictures_and_one_of_grey_ones_have_one_form(tmp_path, cache):
    for split, shape in zip(SPLITS, ((4, 4, 3), (4, 4), (4, 4)), strict=True):
        for number in range(4):
            pixels = np.full(shape, number, np.uint8)
            save_picture(tmp_path / "p" / split / "ab"[number % 2] / f"{number}.png", pixels)
    data = ready(VisionData(source=str(tmp_path / "p"), cache_dir=cache))
    assert data.splits["train"].values.shape[1:] == data.splits["test"].values.shape[1:]


@pytest.mark.parametrize("empty", [False, True], ids=["broken", "empty"])
def test_broken_clips_are_counted_and_the_first_is_named(tmp_path, cache, rng, empty):
    for split in SPLITS:
        for name in ("left", "right"):
            for number in range(2):
                save_clip(tmp_path / "c" / split / name / f"{number}.wav", clip(rng, 300))
    file = tmp_path / "c" / "train" / "right" / "1.wav"
    if empty:
        save_clip(file, np.zeros(0, np.int16))
    else:
        file.write_bytes(b"no sound")
    message = r"1 of 4 clips of split train cannot be decoded; the first is .*right/1\.wav"
    with pytest.raises(InputError, match=message):
        ready(SpeechData(source=str(tmp_path / "c"), cache_dir=cache))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "validation_list.txt").unlink(), "validation_list.txt"),
        (lambda folder: (folder / "validation_list.txt").write_text(""), "no clips for validation"),
        (lambda folder: (folder / "yes" / "abcd4000_nohash_0.wav").unlink(), "1 of 4 clips"),
        (lambda folder: (folder / "testing_list.txt").write_text("yes/plain.wav\n"), "DATA="),
        (lambda folder: (folder / "testing_list.txt").write_text("\n"), "DATA="),
    ],
    ids=["no list", "empty list", "lost clip", "other name", "blank line"],
)
def test_a_damaged_tree_of_speech_commands_is_refused(tmp_path, cache, rng, damage, message):
    command_folder(tmp_path / "words", rng)
    damage(tmp_path / "words")
    with pytest.raises(InputError, match=message):
        ready(SpeechData(source=str(tmp_path / "words"), cache_dir=cache))
