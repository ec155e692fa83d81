"""Names of classes and variants that contain code, markup or formulas."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from study import charts
from study.gain_table import gain_tables, markdown
from study.launch import Job
from study.mistake_cards import embedded_media
from study.page import write_page
from study.plan import Study
from study.report_run import examples
from study.results import collect
from study.run import Progress, show_plan, terminal_table
from study.wandb_views import study_views
from tasks.run.artifacts import artifact_name
from tests.study.conftest import Planted, read_tables, record, right

SCRIPT = "</script><script>alert(1)</script>"
ODD = ["=1+1", SCRIPT, "x" * 300, "x" * 299 + "y", "שלום", "👩‍🔬", "Cat", "cat", "a\\nb", "<b>"]


def many_classes(hits: list[bool], variant: str, seed: int) -> dict[str, Any]:
    """Create a result with unusual class names."""
    made = record(seed, hits, variant, classes=ODD)
    labels = [index % len(ODD) for index in range(len(hits))]
    taken = [(label + (not hit)) % len(ODD) for label, hit in zip(labels, hits, strict=True)]
    confusion = [[0] * len(ODD) for _ in ODD]
    for label, other in zip(labels, taken, strict=True):
        confusion[label][other] += 1
    made["predictions"] |= {"label": labels, "predicted": taken}
    return made | {"confusion": confusion}


@pytest.fixture
def odd(planted: Planted) -> Study:
    arms = {
        name: [many_classes(right(40 + 9 * s + more, 100), name, s) for s in range(3)]
        for name, more in (("none", 0), ("both", 20))
    }
    return planted(arms)


class Tags(HTMLParser):
    """Collects tags and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["script"]:
            self.text.append(data)


def test_on_the_page_names_of_classes_are_text(odd: Study) -> None:
    write_page(*read_tables(odd), Path("study.html"))
    content = Path("study.html").read_text()
    assert SCRIPT not in content
    parser = Tags()
    parser.feed(re.sub(r"<script>.*?</script>", "", content, flags=re.DOTALL))
    assert "b" not in parser.tags
    text = "".join(parser.text)
    for name in ODD:
        assert name in text, name
    # A right-to-left name does not change the direction of other text.
    assert '<bdi title="שלום">שלום</bdi>' in content
    assert re.search(r"\S+</bdi> \(\dx\)", content)


def test_each_class_has_a_row_in_the_confusion_matrix(odd: Study) -> None:
    results = list(gain_tables(collect(odd))[0].results[0].values())
    figure = charts.confusion(results)
    heat = json.loads(figure.to_json())["data"][0]
    assert len(set(heat["x"])) == len(ODD)
    assert max(map(len, heat["x"])) < 70
    assert not [name for name in heat["x"] if "<" in name]
    assert "&lt;b&gt;" in heat["x"]


def test_in_tables_of_wandb_no_name_is_a_formula(odd: Study) -> None:
    table: Any = examples(gain_tables(collect(odd))[0])
    cells = {cell for row in table.data for cell in row if isinstance(cell, str)}
    assert "'=1+1" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


def test_a_text_of_a_megabyte_is_cut_on_the_page() -> None:
    assert len(embedded_media("x" * 1_000_000)["text"]) < 3000
    assert embedded_media("<b>") == {"text": "<b>"}


NAMES = ["[/red]x", "[bold]y", ":smile:", "it's", "étude ☃", "a|b", "[link=http://x]z"]


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name])
def test_the_name_of_a_study_is_text(name: str, planted: Planted) -> None:
    study = planted({"none": [record(0, right(50, 100))]}, name=name)
    console = Console(file=io.StringIO(), width=200)
    show_plan(study, 1, 1, 1, console)
    assert f"study {name}: " in console.file.getvalue()  # type: ignore[attr-defined]
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", artifact_name(name * 50))
    views = study_views(study, gain_tables(collect(study)), "team", None)
    assert views["report"].blocks
    assert views["workspace"].sections


@pytest.mark.parametrize("name", NAMES)
def test_values_and_errors_are_text_in_the_terminal(name: str, planted: Planted) -> None:
    study = planted({"none": [record(0, right(50, 100))]}, axes={"model.name": [name]})
    console = Console(file=io.StringIO(), width=200)
    folder = study.run_folder(next(study.arms()), 0)
    (folder / "metrics.json").rename("kept.json")
    (folder / "error.txt").write_text(f"no such file: {name} [/usr/lib]\n")
    Progress(study, 1, 1, console).update(Job(folder.name, folder, []))
    (folder / "error.txt").unlink()
    Path("kept.json").rename(folder / "metrics.json")
    (table,) = gain_tables(collect(study))
    console.print(terminal_table(table, console.width))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"failed: no such file: {name} [/usr/lib]" in written
    assert f"name={name}" in written
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown(table).splitlines()}
    assert len(columns) == 1


def test_a_variant_with_odd_letters_is_one_tag() -> None:
    Path("a,b: [c].yaml").write_text("vision: {}\n")
    study = Study("vision", "builtin", ["none", "a,b: [c].yaml"], [0])
    command = study.jobs(1)[1].command
    (tags,) = [part for part in command if "tags=" in part]
    assert json.loads(tags.partition("tags=")[2]) == ["a,b: [c]"]
