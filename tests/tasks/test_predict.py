"""`make predict`: what it reads, what it writes, and what it says of inputs that cannot be read."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from PIL import Image

import tasks
from tasks import predict
from tasks.errors import InputError
from tasks.inference.inputs import Inputs
from tasks.inference.predictor import Prediction, Predictor
from tasks.inference.tables import Table

SMALL = {
    "vision": ["--model.width=8"],
    "speech": ["--model.width=8"],
    "nlp": ["--model.width=16", "--data.vocabulary=200", "--model.optim.lr=0.01"],
}
COMMAND = [sys.executable, "-m", "tasks.predict"]
Model = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained() -> dict[str, Path]:
    """The folders of the runs that the tests of this file share."""
    return {}


@pytest.fixture
def model(trained, small_data, train, tmp_path_factory, monkeypatch) -> Model:
    """Train a small model of a task once, and return the folder of its run."""

    def of(task: str) -> Path:
        if task not in trained:
            data = small_data(task)
            folder = tmp_path_factory.mktemp(task)
            with monkeypatch.context() as there:
                there.chdir(folder)
                options = ["--trainer.max_epochs=15", "--data.batch_size=8", *SMALL[task]]
                train("--task", task, "--data", str(data), *options)
            trained[task] = folder / "run"
        return trained[task]

    return of


def jpeg(path: Path, width: int, height: int, level: int, orientation: int = 1) -> Path:
    """Write a photo with EXIF data."""
    rng = np.random.default_rng(level)
    pixels = (rng.integers(0, 80, (12, 12, 3)) + level).astype(np.uint8)
    photo = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path, "JPEG", exif=exif, quality=95)
    return path


def clip(path: Path, pitch: int, rate: int = 44_100, channels: int = 2) -> Path:
    """Write a recording."""
    time = np.arange(rate // 4) / rate
    samples = 0.5 * np.sin(2 * np.pi * pitch * time)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack([samples] * channels, 1), rate)
    return path


@pytest.fixture
def photos() -> list[Path]:
    """Three photos of sizes that no training image has, and one file that is none."""
    (Path("photos/.hidden")).mkdir(parents=True)
    Path("photos/.hidden/x.png").write_bytes(b"")
    found = [
        jpeg(Path("photos/a.jpg"), 40, 30, 10),
        jpeg(Path("photos/deep/b.JPEG"), 17, 23, 90, orientation=6),
        jpeg(Path("photos/deep/c.jpg"), 64, 64, 170),
    ]
    Path("photos/notes.txt").write_text("not an image")
    return found


def table_of(file: Path) -> list[dict]:
    """The rows of a file of predictions, with the probabilities of all classes as a mapping."""
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if file.suffix == ".parquet":
        rows = pyarrow.parquet.read_table(file).to_pylist()
    else:
        rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    for row in rows:
        row["probabilities"] = {
            name.removeprefix("probability: "): row.pop(name)
            for name in list(row)
            if name.startswith("probability: ")
        }
    return rows


def run(folder: Path, *arguments: object) -> None:
    predict.main(["--ckpt", str(folder), *map(str, arguments)])


def predictions(folder: Path, *arguments: object) -> list[dict]:
    """Run the command, and return what it has written as JSON."""
    run(folder, *arguments, "--out", "out.jsonl")
    return table_of(Path("out.jsonl"))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error of a command that must fail, its only line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        predict.main([str(one) for one in arguments])
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def same(row: dict, one: Prediction) -> bool:
    assert row["class"] == one.label
    assert list(row["probabilities"]) == list(one.probabilities)
    found = [float(value) for value in row["probabilities"].values()]
    assert found == pytest.approx(list(one.probabilities.values()), abs=1e-6)
    assert float(row["probability"]) == pytest.approx(one.confidence, abs=1e-6)
    assert float(row["entropy"]) == pytest.approx(one.entropy, abs=1e-5)
    return True


# What is read.


def test_a_folder_of_photos_is_predicted_as_in_python(model, photos, capsys) -> None:
    rows = predictions(model("vision"), "--input", "photos")
    assert [row["input"] for row in rows] == [str(path) for path in photos]
    predictor = tasks.load(model("vision"))
    assert all(same(row, one) for row, one in zip(rows, predictor(list(photos)), strict=True))
    assert len({row["probability"] for row in rows}) == 3
    assert "predicted 3 of 3 inputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["photos/deep/*.jpg"], ["photos/deep/c.jpg"]),
        (["photos/**/*.[jJ]*"], ["photos/a.jpg", "photos/deep/b.JPEG", "photos/deep/c.jpg"]),
        (
            ["photos/deep", "photos/a.jpg"],
            ["photos/deep/b.JPEG", "photos/deep/c.jpg", "photos/a.jpg"],
        ),
        # As `make predict INPUT="photos/a.jpg photos/deep/c.jpg"` gives them.
        (["photos/a.jpg photos/deep/c.jpg"], ["photos/a.jpg", "photos/deep/c.jpg"]),
        (["odd/[1] my *.jpg"], ["odd/[1] my *.jpg"]),
    ],
    ids=["pattern", "pattern below", "folder and file", "one word", "odd name"],
)
def test_files_folders_and_patterns(model, photos, given, expected) -> None:
    jpeg(Path("odd/[1] my *.jpg"), 12, 12, 10)
    assert [row["input"] for row in predictions(model("vision"), "--input", *given)] == expected


def test_recordings_of_another_rate_and_two_channels(model) -> None:
    paths = [clip(Path(f"clips/{pitch}.mp3"), pitch) for pitch in (300, 900, 2700)]
    paths.append(clip(Path("clips/mono.wav"), 900, rate=8000, channels=1))
    rows = predictions(model("speech"), "--input", "clips", "--batch-size=3")
    assert [row["input"] for row in rows] == sorted(map(str, paths))
    predictor = tasks.load(model("speech"))
    for row in rows:
        assert same(row, predictor(row["input"]))


def test_texts_of_files_and_of_the_command_line(model) -> None:
    Path("texts").mkdir()
    # With the mark and the line ends of Windows, and blank lines.
    Path("texts/a.txt").write_bytes("\ufeffred Größe\r\n\r\n blue Übung \n".encode())
    Path("texts/b.TXT").write_text("green\n")
    Path("texts/c.md").write_text("not of a folder\n")
    rows = predictions(model("nlp"), "--input", "texts", "--text", "red one", "--text", "blue")
    assert [(row["input"], row["text"]) for row in rows] == [
        ("text:1", "red one"),
        ("text:2", "blue"),
        ("texts/a.txt:1", "red Größe"),
        ("texts/a.txt:3", " blue Übung "),
        ("texts/b.TXT:1", "green"),
    ]
    predictor = tasks.load(model("nlp"))
    assert all(same(row, predictor(row["text"])) for row in rows)
    # Named, it is a text file.
    [row] = predictions(model("nlp"), "--input", "texts/c.md")
    assert row["text"] == "not of a folder"


def texts_as(suffix: str, labels: tuple[str, ...]) -> Path:
    """Write texts with labels in a format."""
    texts = ("red, one", "blue\ntwo", "green", "red")
    rows = list(zip(texts, "1234", labels, strict=True))
    names = ("text", "id", "label")
    path = Path(f"texts{suffix}")
    written = io.StringIO()
    if suffix == ".parquet":
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path
    if "json" in suffix:
        records = [dict(zip(names, row, strict=True)) for row in rows]
        lines = "\n".join(json.dumps(record) for record in records)
        written.write(json.dumps(records) if suffix == ".json" else lines)
    else:
        delimiter = "\t" if ".tsv" in suffix else ","
        csv.writer(written, delimiter=delimiter).writerows([names, *rows])
    content = written.getvalue().encode("utf-8-sig" if suffix == ".csv" else "utf-8")
    packed = {"gz": gzip.compress, "bz2": bz2.compress}.get(suffix.rpartition(".")[2])
    path.write_bytes(packed(content) if packed else content)
    return path


@pytest.mark.parametrize(
    "suffix", [".csv", ".tsv", ".CSV.gz", ".jsonl", ".jsonl.bz2", ".json", ".parquet"]
)
def test_a_table_with_labels_gives_an_accuracy(model, capsys, suffix) -> None:
    expected = tasks.load(model("nlp"))(["red, one", "blue\ntwo", "green", "red"])
    right = expected[0].label
    wrong = "b" if expected[1].label == "a" else "a"
    path = texts_as(suffix, (right, wrong, "", "x"))
    rows = predictions(model("nlp"), "--input", path)
    assert [(row["input"], row["text"], row["label"]) for row in rows] == [
        (f"{path}:1", "red, one", right),
        (f"{path}:2", "blue\ntwo", wrong),
        (f"{path}:3", "green", None),
        (f"{path}:4", "red", "x"),
    ]
    assert all(same(row, one) for row, one in zip(rows, expected, strict=True))
    written = capsys.readouterr().err
    assert "accuracy 50.00 % on 2 labelled inputs" in written
    assert "the labels of 1 inputs are not classes of the model" in written


def test_the_columns_are_those_that_are_named(model, capsys) -> None:
    expected = tasks.load(model("nlp"))(["blue", "green"])
    labels = [one.label for one in expected]
    Path("t.csv").write_text(f"text,other,kind\nred,blue,{labels[0]}\nx,green,{labels[1]}\n")
    options = ("--input-column=other", "--label-column=kind")
    assert [row["class"] for row in predictions(model("nlp"), "--input", "t.csv", *options)] == [
        "b",
        "c",
    ]
    assert "accuracy 100.00 % on 2" in capsys.readouterr().err
    ckpt = ("--ckpt", model("nlp"), "--input", "t.csv")
    assert "no column 'wrong', only text, other, kind" in refusal(
        capsys, *ckpt, "--input-column=wrong"
    )
    Path("t.csv").write_text("one,two\nred,blue\n")
    assert "several columns of type text among one, two; name it with --input-column" in refusal(
        capsys, *ckpt
    )


def test_images_in_tables_are_bytes_or_paths(model, photos, capsys) -> None:
    import datasets

    predictor = tasks.load(model("vision"))
    expected = predictor(list(photos))
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    # Two labels of three are those that are predicted.
    names = ["a", "b", "c"]
    labels = [names.index(one.label) for one in expected]
    labels[2] = (labels[2] + 1) % 3
    column = [{"bytes": path.read_bytes(), "path": None} for path in photos]
    table = pyarrow.Table.from_pydict(
        {"img": column, "label": labels}, schema=features.arrow_schema
    )
    pyarrow.parquet.write_table(table, "hub.parquet")
    # Paths are relative to the table, which lies elsewhere than the command runs.
    names = [str(path.relative_to("photos")) for path in photos]
    Path("photos/list.csv").write_text(
        "\n".join(["file_name,caption", *(f"{name},x" for name in names)])
    )
    for table_name in ("hub.parquet", "photos/list.csv"):
        rows = predictions(model("vision"), "--input", table_name)
        assert [row["input"] for row in rows] == [f"{table_name}:{n}" for n in (1, 2, 3)]
        assert all(same(row, one) for row, one in zip(rows, expected, strict=True))
    assert "accuracy 66.67 % on 3 labelled inputs" in capsys.readouterr().err


def test_a_large_table_is_not_in_memory_as_a_whole(model, monkeypatch) -> None:
    texts = [f"red {number}" for number in range(1000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), "t.parquet")
    Path("t.csv").write_text("\n".join(["text", *texts]))
    read = []
    whole = Table._raw
    monkeypatch.setattr(
        Table, "_raw", lambda self, name, row: read.append(name) or whole(self, name, row)
    )
    predictor = tasks.load(model("nlp"))
    for name in ("t.parquet", "t.csv"):
        rows = predict.rows_of(predictor, Inputs([name], "text"), 100, 0)
        # The first batch is predicted before the rest is read.
        assert [row.raw.value for row in next(rows)] == texts[:100]
        assert len(read) == 100
        assert sum(map(len, rows)) == 900
        read.clear()


def test_standard_input_holds_texts_or_paths(model, photos, monkeypatch, capsys) -> None:
    # `tests/test_docs.py` pipes names into a process.
    def piped(task: str, content: bytes) -> list[list[str]]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        predict.main(["--ckpt", str(model(task)), "--input", "-"])
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    model("vision"), model("nlp")
    capsys.readouterr()
    header, *rows = piped("nlp", "red Größe\n\nblue\tone\n".encode())
    assert header == ["input", "text", "class", "probability", "2. class", "2. probability", "note"]
    # A tab in a text is not the next column.
    assert [row[:2] for row in rows] == [["stdin:1", "red Größe"], ["stdin:3", "blue\\tone"]]
    expected = tasks.load(model("nlp"))(["red Größe", "blue\tone"])
    assert [row[2:4] for row in rows] == [[one.label, f"{one.confidence:.4f}"] for one in expected]
    _, *rows = piped("vision", b"photos/deep/c.jpg\nphotos/a.jpg\n")
    assert [row[0] for row in rows] == ["photos/deep/c.jpg", "photos/a.jpg"]


def test_a_name_that_begins_with_a_tilde_is_a_file(photos, monkeypatch) -> None:
    files = [photos[0].rename("~lost.jpg"), photos[1].rename("~other.jpg")]
    names = b"~lost.jpg\n~other.jpg\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names)))
    for given in (["~lost.jpg", "~other.jpg"], ["~lost.jpg ~other.jpg"], ["-"]):
        assert [one.value for one in Inputs(given, "image")] == files
    with pytest.raises(InputError, match=r"INPUT=~none.jpg: no such file or folder"):
        Inputs(["~none.jpg"], "image")


# What cannot be read.


def test_unreadable_inputs_are_named_and_the_others_predicted(model, photos, capsys) -> None:
    Path("photos/empty.png").write_bytes(b"")
    Path("photos/damaged.jpg").write_bytes(photos[0].read_bytes()[:700])
    Path("photos/text.jpg").write_text("no image")
    run(model("vision"), "--input", "photos", "--out", "out.csv")
    rows = table_of(Path("out.csv"))
    bad = {row["input"]: row["error"] for row in rows if row["error"]}
    assert list(bad) == ["photos/damaged.jpg", "photos/empty.png", "photos/text.jpg"]
    assert bad["photos/empty.png"] == "it is empty"
    assert "it is no image; formats are" in bad["photos/text.jpg"]
    for row in rows:
        assert any(row["probabilities"].values()) == bool(row["class"]) == (not row["error"])
    expected = tasks.load(model("vision"))(list(photos))
    readable = [row for row in rows if not row["error"]]
    assert all(same(row, one) for row, one in zip(readable, expected, strict=True))
    written = capsys.readouterr()
    assert "predicted 3 of 6 inputs" in written.err
    assert "warning: 3 of 6 inputs could not be read:" in written.err
    assert "photos/text.jpg: it is no image" in written.err
    # Also in a pipe.
    assert "photos/empty.png\t\t\t\t\tit is empty" in written.out


def test_of_many_unreadable_inputs_ten_are_named(model, capsys) -> None:
    Path("t.csv").write_text("text\n" + "red\n" + "x,y\n" * 15)
    run(model("nlp"), "--input", "t.csv")
    lines = capsys.readouterr().err.splitlines()
    assert "warning: 15 of 16 inputs could not be read:" in lines
    assert sum("it has 2 cells, and the header 1" in line for line in lines) == 10
    assert "  and 5 more; OUT=predictions.csv names all" in lines


@pytest.mark.parametrize(
    ("name", "content", "reasons"),
    [
        ("t.txt", b"red\n\xe4\xf6\nblue\n", {2: "it is not UTF-8; save the file as UTF-8"}),
        ("t.txt", "red\n".encode("utf-16"), {0: "it is no text file"}),
        ("t.csv", b"text\nred\n\xe4\xf6\n", {2: "it is not UTF-8"}),
        ("t.csv", b"id,text\n1,red\n2,\n", {2: "there is no text"}),
        ("t.csv", b'id,text\n1,red\n2,"  "\n', {2: "the text is empty"}),
        (
            "t.jsonl",
            b'{"text": "red"}\nblue\n{"text": 1}\n[]\n',
            {2: "it is no JSON", 3: "it is int, not text", 4: "no mapping"},
        ),
        ("t.jsonl", b'{"text": "red"}\n' + b"[" * 10**5, {2: "it is no JSON"}),
        (
            "t.csv.gz",
            gzip.compress(b"text\nred\n" + b"x" * 10**6 + b"\nred\n")[:-300],
            {2: "the file cannot be read from here on"},
        ),
    ],
    ids=[
        "Latin-1",
        "UTF-16",
        "Latin-1 CSV",
        "empty cell",
        "blank cell",
        "JSON",
        "deep JSON",
        "truncated gzip",
    ],
)
def test_a_row_that_cannot_be_read_is_named(model, name, content, reasons) -> None:
    Path(name).write_bytes(content)
    rows = predictions(model("nlp"), "--text", "red", "--input", name)
    bad = {row["input"]: row["error"] for row in rows if row["error"]}
    assert list(bad) == [f"{name}:{number}" if number else name for number in reasons]
    for error, reason in zip(bad.values(), reasons.values(), strict=True):
        assert reason in error
    assert all(row["class"] for row in rows if not row["error"])


@pytest.mark.parametrize(
    ("task", "given", "parts"),
    [
        ("vision", ["nothing.jpg"], ["INPUT=nothing.jpg: no such file or folder"]),
        ("vision", ["photos/*.gif"], ["INPUT=photos/*.gif: no file matches this pattern"]),
        ("vision", ["photos/a.jpg nothing.jpg"], ["INPUT=nothing.jpg"]),
        ("vision", ["empty"], ["INPUT=empty: the folder holds no images"]),
        ("speech", ["photos"], ["INPUT=photos: the folder holds no clips"]),
        ("vision", ["tables"], ["the folder holds no images", "give the file: tables/t.csv"]),
        ("vision", ["photos/notes.txt"], ["none of 1 inputs could be read", "it is no image"]),
        ("vision", [], ["INPUT is missing"]),
        ("nlp", ["blank.txt"], ["there is no input in it"]),
        ("nlp", ["empty.csv"], ["empty.csv cannot be read (it is empty"]),
        ("nlp", ["sheet.csv"], ["save the sheet as a .csv file"]),
        ("nlp", ["broken.parquet"], ["broken.parquet cannot be read"]),
        ("nlp", ["twice.csv"], ["two columns are called 'text'"]),
    ],
)
def test_what_cannot_be_predicted_is_one_line(model, photos, capsys, task, given, parts) -> None:
    Path("empty").mkdir()
    Path("tables").mkdir()
    Path("tables/t.csv").write_text("image\na.jpg\n")
    Path("blank.txt").write_text("\n \n")
    Path("empty.csv").write_text("")
    Path("sheet.csv").write_bytes(b"PK\x03\x04...")
    Path("broken.parquet").write_bytes(b"PAR1")
    Path("twice.csv").write_text("text,text\na,b\n")
    inputs = ["--input", *given] if given else []
    line = refusal(capsys, "--ckpt", model(task), *inputs, "--out", "out.csv")
    for part in parts:
        assert part in line
    assert not list(Path().glob("out.csv*"))


# What is written.


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_each_format_holds_what_the_predictor_says(model, photos, suffix) -> None:
    file = Path(f"out{suffix}")
    run(model("vision"), "--input", "photos", "--out", file, "--batch-size=2")
    expected = tasks.load(model("vision"))(list(photos))
    rows = table_of(file)
    assert all(same(row, one) for row, one in zip(rows, expected, strict=True))
    names = ["input", "class", "probability", "entropy", "sure", "error", "probabilities"]
    assert list(rows[0]) == names
    if suffix == ".parquet":
        schema = pyarrow.parquet.read_schema(file)
        assert schema.field("probability: a").type == pyarrow.float64()
        assert schema.field("sure").type == pyarrow.bool_()
    assert [str(row["sure"]) for row in rows] == [str(one.sure) for one in expected]


def test_no_cell_of_the_csv_is_a_formula(model) -> None:
    text = "=HYPERLINK(1) red"
    run(model("nlp"), "--text", text, "--out", "out.csv")
    assert table_of(Path("out.csv"))[0]["text"] == f"'{text}"
    # Other formats hold the text itself.
    assert predictions(model("nlp"), "--text", text)[0]["text"] == text


def test_an_input_is_not_overwritten(model, capsys) -> None:
    Path("t.csv").write_text("text\nred\n")
    out = Path("t.csv").resolve()
    line = refusal(capsys, "--ckpt", model("nlp"), "--input", "t.csv", "--out", out)
    assert f"OUT={out} is one of the inputs" in line
    assert Path("t.csv").read_text() == "text\nred\n"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("out.xlsx", "the name ends in .csv, .jsonl, .parquet"),
        ("no/out.csv", "the folder no does not"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(model, capsys, name, part) -> None:
    line = refusal(capsys, "--ckpt", model("nlp"), "--text", "red", "--out", name)
    assert part in line


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_ctrl_c_keeps_the_predictions_so_far(model, capsys, monkeypatch, suffix) -> None:
    Path("t.txt").write_text("red\nblue\ngreen\n")
    file = Path(f"out{suffix}")
    file.write_text("of an earlier call")
    whole = Predictor.predict
    calls = []

    def interrupted(self, batch, *rest):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, batch, *rest)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run(model("nlp"), "--input", "t.txt", "--out", file, "--batch-size=1")
    assert stopped.value.code == 130
    partial = Path(f"out{suffix}.partial")
    assert f"interrupted; those so far are in {partial}" in capsys.readouterr().err
    assert file.read_text() == "of an earlier call"
    kept = partial.rename(f"kept{suffix}")
    assert [row["text"] for row in table_of(kept)] == ["red", "blue"]


def test_ctrl_c_before_the_first_prediction_names_no_file(capsys, monkeypatch) -> None:
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "load", interrupted)
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--ckpt", "best.ckpt", "--text", "red", "--out", "out.csv"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_has_enough_ends_it_without_an_error(model) -> None:
    Path("t.txt").write_text("red\n" * 20_000)
    command = shlex.join([*COMMAND, "--ckpt", str(model("nlp")), "--input", "t.txt"])
    # With a buffer, which Python would write at exit, and fail again.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -n 2"],
        env=buffered,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("t.txt:1\tred\t")
    assert done.stderr == ""


def on_terminal(command: list[str]) -> str:
    """Run a command on a terminal of 100 columns, and return what it prints there."""
    reading, writing = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    shown = b""
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, env=environment) as one:
        os.close(writing)
        # Reading is an error when the process has ended.
        with contextlib.suppress(OSError):
            while part := os.read(reading, 65536):
                shown += part
        assert one.wait(300) == 0
    os.close(reading)
    return shown.decode()


def test_on_a_terminal_the_first_rows_are_a_table(model) -> None:
    Path("t.txt").write_text("".join(f"red [bold]{number}\n" for number in range(1, 51)))
    shown = on_terminal([*COMMAND, "--ckpt", str(model("nlp")), "--input", "t.txt"])
    assert "red [bold]1" in shown
    # A name in brackets is no style.
    assert "red [bold]40" in shown
    assert "red [bold]41" not in shown
    assert "... and 10 more; OUT=predictions.csv saves all" in shown


# The options.


def test_the_options_change_what_the_predictor_does(model, photos) -> None:
    predictor = tasks.load(model("vision"))
    predictor.temperature = 4.0
    flat = predictor(list(photos))
    rows = predictions(model("vision"), "--input", "photos", "--temperature=4")
    assert all(same(row, one) for row, one in zip(rows, flat, strict=True))
    entropies = sorted(row["entropy"] for row in rows)
    middle = str(entropies[1])
    rows = predictions(
        model("vision"), "--input", "photos", "--temperature=4", f"--threshold={middle}"
    )
    assert sorted(row["sure"] for row in rows) == [False, True, True]


def test_monte_carlo_dropout_adds_the_mutual_information(model, photos, capsys) -> None:
    model("vision")
    # What a training has printed.
    capsys.readouterr()
    run(model("vision"), "--input", "photos", "--mc=5", "--out", "out.parquet")
    rows = table_of(Path("out.parquet"))
    expected = tasks.load(model("vision"))(list(photos), mc=5)
    assert all(same(row, one) for row, one in zip(rows, expected, strict=True))
    found = [row["mutual_information"] for row in rows]
    assert found == pytest.approx([one.mutual_information for one in expected], abs=1e-6)
    assert min(found) > 0
    assert [row["sure"] for row in rows] == [one.sure for one in expected]
    header, *lines = capsys.readouterr().out.splitlines()
    assert "\tentropy\tmutual_information\tnote" in header
    assert lines[0].split("\t")[-3:-1] == [
        f"{rows[0][name]:.4f}" for name in ("entropy", "mutual_information")
    ]
    # Of these passes too, the options are other ones than those of the checkpoint.
    run(
        model("vision"),
        "--input",
        "photos",
        "--mc=5",
        "--threshold=1e-9",
        "--temperature=9",
        "--out",
        "out.parquet",
    )
    changed = table_of(Path("out.parquet"))
    assert not any(row["sure"] for row in changed)
    assert all(new["entropy"] > old["entropy"] for new, old in zip(changed, rows, strict=True))


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("--top=0", "'0' is not a whole number of at least 1"),
        ("--mc=-1", "'-1' is not a whole number of at least 1"),
        ("--batch-size=many", "'many' is not"),
        ("--temperature=0", "'0' is not a number above 0"),
        ("--threshold=nan", "'nan' is not a number above 0"),
    ],
)
def test_an_option_out_of_range_is_refused(capsys, option, part) -> None:
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--ckpt", "x", option])
    assert stopped.value.code == 2
    assert part in capsys.readouterr().err.splitlines()[-1]


def test_a_device_that_is_not_there_is_one_line(model, capsys) -> None:
    line = refusal(capsys, "--ckpt", model("nlp"), "--text", "red", "--device=cuda:99")
    assert "device cuda:99 cannot be used" in line
    line = refusal(capsys, "--ckpt", model("nlp"), "--text", "red", "--device=gpu")
    assert "device gpu cannot be used" in line


# The checkpoint.


def test_without_a_checkpoint_the_newest_runs_are_listed(capsys) -> None:
    assert "runs holds no run with a checkpoint" in refusal(capsys)
    for number, name in enumerate(["a/1", "b/2", "studies/s/none-s0", "c/4", "d/5", "e/6"]):
        file = Path("runs") / name / "best.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (number, number))
    line = refusal(capsys)
    assert "CKPT is missing" in line
    listed = "runs/e/6, runs/d/5, runs/c/4, runs/studies/s/none-s0, runs/b/2 and 1 more"
    assert listed in line
    assert "runs/x does not exist" in refusal(capsys, "--ckpt", "runs/x")
    # The runs of a study differ: which one is not guessed.
    assert "runs/studies/s/none-s0" in refusal(capsys, "--ckpt", "runs/studies/s")


def test_of_a_folder_of_runs_the_newest_counts(model) -> None:
    for stamp in ("20260101-000000-000000", "20260102-000000-000000"):
        folder = Path("runs/nlp-small-both-s0") / stamp
        folder.mkdir(parents=True)
        if "0102" in stamp:
            (folder / "best.ckpt").symlink_to(model("nlp") / "best.ckpt")
        else:
            (folder / "best.ckpt").write_bytes(b"")
    assert predictions(Path("runs/nlp-small-both-s0"), "--text", "red")


def test_a_file_that_is_no_checkpoint_is_one_line(capsys) -> None:
    Path("x.ckpt").write_bytes(b"nothing")
    assert "x.ckpt" in refusal(capsys, "--ckpt", "x.ckpt", "--input", "x.ckpt")
