"""Tables of other programs: unusual label types, duplicate columns, compressed, misnamed."""

import bz2
import datetime
import decimal
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tasks.errors import InputError
from tasks.nlp.data import TextData
from tests.tasks.test_bad_data import texts

COMMAS = "".join(["text,label\n", *(f"text {row},{'ab'[row % 2]}\n" for row in range(20))])


def parquet(labels: list[Any], names: tuple[str, ...] = ("text", "label")) -> bytes:
    buffer = io.BytesIO()
    rows = [f"text {row}" for row in range(20)]
    columns = [pyarrow.array(rows), *[pyarrow.array((labels * 20)[:20])] * (len(names) - 1)]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=list(names)), buffer)
    return buffer.getvalue()


def lines(labels: list[Any]) -> str:
    rows = ({"text": f"text {row}", "label": labels[row % len(labels)]} for row in range(20))
    return "".join(json.dumps(row) + "\n" for row in rows)


DAYS = [datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)]
LABELS = {
    "floats": ([0.0, 1.0], ["0", "1"]),
    "halves": ([0.5, 1.0], ["0.5", "1"]),
    "a minus zero": ([0.0, -0.0, 1.0], ["0", "1"]),
    "booleans": ([True, False], ["False", "True"]),
    "dates": (DAYS, ["2020-01-01", "2021-01-01"]),
    "line breaks": (["a\nb", "c"], ["a\\nb", "c"]),
    "emoji": (["👩‍🔬", "😀"], ["👩‍🔬", "😀"]),
    "control characters": (["a\x1b[2J", "b\u202ec"], ["a\\x1b[2J", "b\\u202ec"]),
    "300 letters": (["x" * 300, "y" * 300], ["x" * 300, "y" * 300]),
    "a formula": (["=1+1", "@a"], ["=1+1", "@a"]),
}


@pytest.mark.parametrize(("labels", "classes"), LABELS.values(), ids=LABELS)
def test_labels_are_read(labels: list[Any], classes: list[str]) -> None:
    data = texts(parquet(labels), "t.parquet")
    assert data.classes == classes
    counted = sum(len(part) for part in data.splits.values())
    assert counted == 20


REFUSED_LABELS = {
    "lists": ([[0], [1]], "has label .0.: a label is a name or a number"),
    "one-hot rows": ([[0, 1], [1, 0]], "has label .0, 1.: a label is a name or a number"),
    "decimals": ([decimal.Decimal("1.5"), decimal.Decimal("2.5")], "a label is a name or a number"),
    "blanks": (["", "a"], "row 0 of split train has no label; in a table, an empty cell and NA"),
}


@pytest.mark.parametrize(("labels", "message"), REFUSED_LABELS.values(), ids=REFUSED_LABELS)
def test_labels_are_refused(labels: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        texts(parquet(labels), "t.parquet")


def test_booleans_among_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="all names or all numbers, or all true or false"):
        texts(lines([True, 0]), "t.jsonl")


@pytest.mark.parametrize("labels", [["Cat", "cat"], ["cat", "cat "], ["\xe9", "e\u0301"]])
def test_class_names_that_look_the_same_are_logged(
    labels: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert len(texts(lines(labels), "t.jsonl").classes) == 2
    (warning,) = [one.message for one in caplog.records if "are two classes" in one.message]
    assert warning.startswith("warning: ")


def test_a_column_twice_is_refused() -> None:
    twice = "text,label,label\n" + "".join(f"t {row},{row % 2},{row % 3}\n" for row in range(20))
    with pytest.raises(InputError, match=r"two columns are called 'label'.*--data\.label_column"):
        texts(twice)
    assert texts(twice, label_column="label.1").classes == ["0", "1", "2"]
    twice = "text,text,label\n" + "".join(f"t {row},u {row},{row % 2}\n" for row in range(20))
    with pytest.raises(InputError, match=r"two columns are called 'text'.*--data\.input_column"):
        texts(twice)
    with pytest.raises(InputError, match="cannot be loaded as a data set"):
        texts(parquet(["a", "b"], ("text", "label", "label")), "t.parquet")


def test_columns_in_columns_are_refused() -> None:
    rows = ({"data": {"text": f"text {row}", "label": row % 2}} for row in range(20))
    with pytest.raises(InputError, match=r"among data \(holds text, label: lay it out flat\)"):
        texts("".join(json.dumps(row) + "\n" for row in rows), "t.jsonl")


@pytest.mark.parametrize("head", ["Text,Label", " text , label ", "TEXT,LABELS"])
def test_case_and_spaces_of_a_header_do_not_count(head: str) -> None:
    assert texts(COMMAS.replace("text,label", head, 1)).classes == ["a", "b"]


def test_a_column_with_the_exact_name_comes_first() -> None:
    rows = "".join(f"t {row},{row % 2},{row % 3}\n" for row in range(20))
    assert texts("text,Label,label\n" + rows).classes == ["0", "1", "2"]


TABS = COMMAS.replace(",", "\t")
FILES = {
    "gz": ("t.csv.gz", gzip.compress(COMMAS.encode())),
    "bz2": ("t.csv.bz2", bz2.compress(COMMAS.encode())),
    "xz": ("t.csv.xz", lzma.compress(COMMAS.encode())),
    "JSON lines, gz": ("t.jsonl.gz", gzip.compress(lines(["a", "b"]).encode())),
    "TSV": ("t.tsv", TABS.encode()),
    "TSV, gz": ("t.tsv.gz", gzip.compress(TABS.encode())),
    "upper case": ("T.CSV", COMMAS.encode()),
    "TSV in upper case": ("T.TSV", TABS.encode()),
    "parquet in upper case": ("T.PARQUET", parquet(["a", "b"])),
}


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES)
def test_a_file_is_read(name: str, content: bytes) -> None:
    assert texts(content, name).classes == ["a", "b"]


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return buffer.getvalue()


SHEETS = {
    "Excel": ("t.xlsx", zipped()),
    "old Excel": ("t.XLS", b"\xd0\xcf\x11\xe0" + bytes(500)),
    "OpenDocument": ("t.ods", zipped()),
    "Excel named CSV": ("t.csv", zipped()),
    "old Excel named TSV": ("t.tsv", b"\xd0\xcf\x11\xe0" + bytes(500)),
}


@pytest.mark.parametrize(("name", "content"), SHEETS.values(), ids=SHEETS)
def test_a_spreadsheet_is_refused(name: str, content: bytes) -> None:
    with pytest.raises(InputError, match=r"save the sheet as a \.csv file \(UTF-8\)"):
        texts(content, name)


@pytest.mark.parametrize("name", ["a*.csv", "[ab].csv", "a?.csv", "a\nb.csv"])
def test_only_the_file_of_that_name_is_read(name: str) -> None:
    for other in ("ab.csv", "a.csv", "b.csv"):
        Path(other).write_text(COMMAS.replace("text ", "other "))
    data = texts(COMMAS, name)
    assert sum(len(part) for part in data.splits.values()) == 20
    assert all(text.startswith("text ") for text in data.texts["train"])


@pytest.mark.parametrize("name", ["a*b", "[ab]", "a::b"])
def test_a_folder_that_is_a_pattern_is_refused(name: str) -> None:
    for folder in ("axb", name):
        Path(folder).mkdir()
        Path(folder, "train.csv").write_text(COMMAS)
    data = TextData(source=name, cache_dir="cache")
    with pytest.raises(InputError, match=r"rename the folder, without \* \? \[ \] and :: in its"):
        data.setup()


def test_an_error_is_one_line_whatever_a_name_holds() -> None:
    with pytest.raises(InputError) as caught:
        texts("", "a\n\x1b[31mb.csv")
    assert "a\\n\\x1b[31mb.csv" in str(caught.value)


TEXTS = {
    "emoji": ["😀" * (row + 1) + "👩‍🔬" for row in range(20)],
    "punctuation": ["?!" * (row + 1) for row in range(20)],
    "right to left": [f"שלום {row}" for row in range(20)],
    "marks without a letter": ["\u0301" * (row + 1) for row in range(20)],
    "names of special tokens": [f"[PAD] [UNK] {row}" for row in range(20)],
}


@pytest.mark.parametrize("rows", TEXTS.values(), ids=TEXTS)
def test_texts_are_tokens(rows: list[str]) -> None:
    content = ({"text": text, "label": index % 2} for index, text in enumerate(rows))
    data = texts("".join(json.dumps(row) + "\n" for row in content), "t.jsonl")
    for part in data.splits.values():
        batch = part.gather(range(len(part)))  # type: ignore[arg-type]
        assert int(batch.inputs.max()) < data.tokenizer.get_vocab_size()
        assert bool((batch.inputs[:, 0] != data.padding).all())


@pytest.mark.parametrize("text", ["a\ud800", "\udfff b"])
def test_half_of_a_surrogate_pair_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it holds half of a surrogate pair"):
        TextData().decode(text)
    with pytest.raises(InputError, match="surrogate pair"):
        texts(lines(["a", "b"]).replace("text 3", "\\ud800"), "t.jsonl")


@pytest.mark.parametrize("column", ["text", "label"])
def test_parquet_that_is_not_utf8_is_refused(column: str) -> None:
    raw = pyarrow.array([b"\xff" if row == 3 else b"t %d" % row for row in range(20)])
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 20, [None, *raw.buffers()[1:]])
    other = "label" if column == "text" else "text"
    table = {column: broken, other: pyarrow.array([f"x {row % 2}" for row in range(20)])}
    pyarrow.parquet.write_table(pyarrow.table(table), "t.parquet")
    with pytest.raises(InputError, match=r"byte 0xff .*; save it as UTF-8"):
        texts(Path("t.parquet").read_bytes(), "t.parquet")
