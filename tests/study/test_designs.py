"""Study designs: presets of a recipe's parts, and what the parts contribute."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.designs import WITHOUT_BOTH, design_presets
from study.factorial import effects
from study.factorial_chart import interaction
from study.gain_table import GainTable, gain_tables, rows
from study.next_steps import steps_after
from study.page import study_command, write_page
from study.page_charts import along_axes
from study.plan import Study, load_study
from study.report import main as report_main
from study.results import collect
from study.run import parse, study_from_options
from study.state import store_state
from study.tuned import ADVICES
from study.verdict import verdict
from tasks.errors import InputError
from tasks.run.presets import CONFIGS, config_stack
from tests.study.advised import plant_advice
from tests.study.conftest import Planted, record, right


def asked(*options: str) -> Study:
    """Make a study from the command line."""
    return study_from_options(*parse(["--task", "vision", "--seeds", "5", *options]))


def plant(study: Study, hits: dict[str, list[int]]) -> GainTable:
    """Write results of a study: numbers of hits of 1,000 by variant and seed."""
    study.save()
    for arm in study.arms():
        for seed, count in enumerate(hits[arm.title]):
            folder = study.run_folder(arm, seed)
            folder.mkdir(parents=True)
            content = record(seed, right(count, 1000), arm.title)
            (folder / "metrics.json").write_text(json.dumps(content))
    return gain_tables(collect(load_study(study.folder)))[0]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A recipe of three parts."""
    reg, training = {"normalization": "batch", "head_dropout": 0.2}, {"weight_decay": 0.1}
    file = tmp_path / "mine.yaml"
    model = {"reg": reg, "training": training, "optim": {"lr": 0.5}}
    file.write_text(yaml.safe_dump({"vision": {"model": model}}))
    return str(file)


ABLATION = {
    "mine": [700, 710, 690, 705, 695],
    "without-normalization": [600, 612, 588, 604, 596],
    "without-head_dropout": [730, 742, 721, 734, 726],
    "without-weight_decay": [701, 709, 690, 706, 694],
    "none": [590, 598, 581, 594, 586],
}


def test_an_ablation_says_what_each_part_contributes(recipe: str) -> None:
    """A part without which the recipe is worse contributes; the sign is that of the part."""
    study = asked("--design", "ablation", "--reg", recipe)
    assert study.name == "vision-builtin-ablation-mine"
    assert [arm.title for arm in study.arms()] == list(ABLATION)
    table = plant(study, ABLATION)
    cells = {row[0]: dict(zip(table.headings, row, strict=True)) for row in rows(table)}
    assert list(cells) == ["mine", "normalization", "head_dropout", "weight_decay", "all parts"]
    assert cells["mine"]["contribution"] == "recipe"
    assert cells["normalization"]["contribution"] == "+10.00"
    assert cells["normalization"]["test % without it"].startswith("60.00")
    assert cells["head_dropout"]["contribution"] == "-3.06"
    assert verdict(table) == (
        "All parts together contribute +11.02 points (+10.86 to +11.18); normalization contributes "
        "+10.00 points (+9.80 to +10.20); head_dropout costs 3.06 points (2.92 to 3.20); no "
        "significant contribution of weight_decay (5 paired seeds)."
    )
    assert steps_after(table).steps[0] == (
        "Keep normalization in mine. Remove head_dropout: without it, mine is better."
    )
    collection = collect(load_study(study.folder))
    # A model card says what the variant gains, not what the part contributes.
    arms = {arm["label"]: arm for arm in store_state(collection, [table])["arms"]}
    lacking = arms["without-normalization"]
    assert lacking["gain"] == pytest.approx(-0.10)
    assert lacking["interval"] == pytest.approx([-0.1020, -0.0980], abs=1e-4)
    assert arms["mine"]["gain"] is None
    command = study_command(collection)
    assert " DESIGN=ablation REG=" in command
    assert "VARIANTS" not in command


def test_presets_of_a_design_are_kept(recipe: str) -> None:
    """A recipe that has changed since would mix two recipes in one study."""
    options = ("--design", "ablation", "--reg", recipe)
    first = asked(*options)
    assert asked(*options).variants == first.variants
    lacking = yaml.safe_load(Path(first.variants[1]).read_text())["vision"]["model"]
    assert lacking["reg"] == {"head_dropout": 0.2}
    content = yaml.safe_load(Path(recipe).read_text())
    content["vision"]["model"]["reg"]["head_dropout"] = 0.3
    Path(recipe).write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"mine\.yaml, which the study uses, differs .* NAME"):
        asked(*options)


def test_a_factorial_has_equal_rates_and_the_rest_of_the_recipe_everywhere(tmp_path: Path) -> None:
    files = design_presets("factorial", "speech", "builtin", "full", tmp_path)
    models = {Path(f).stem: yaml.safe_load(Path(f).read_text())["speech"]["model"] for f in files}
    dropout = {"dropout": 0.1, "dropout_kind": "channel", "head_dropout": 0.3}
    norm = {"normalization": "batch"}
    assert {name: model["reg"] for name, model in models.items()} == {
        "none": {},
        "dropout": dropout,
        "normalization": norm,
        "both": dropout | norm,
    }
    assert all(model["training"] == models["both"]["training"] for model in models.values())


def test_kinds_leave_out_all_options_of_one_kind(tmp_path: Path) -> None:
    files = design_presets("kinds", "speech", "builtin", "full", tmp_path)
    models = {Path(f).stem: yaml.safe_load(Path(f).read_text())["speech"]["model"] for f in files}
    full = models.pop("full")
    dropout = {"dropout": 0.1, "dropout_kind": "channel", "head_dropout": 0.3}
    reg = {"normalization": "batch", **dropout}
    assert full["reg"] == reg
    assert {name: model["reg"] for name, model in models.items()} == {
        "without-dropout": {"normalization": "batch"},
        "without-normalization": dropout,
        "without-weight_decay": reg,
        "without-label_smoothing": reg,
        "without-augmentation": reg,
        "without-dropout-and-normalization": {},
        "none": {},
    }
    assert models["without-augmentation"]["augment"] == {}
    assert models["without-dropout-and-normalization"]["augment"] == full["augment"]
    assert models["none"]["augment"] == models["none"]["training"] == {}


KINDS = {
    "mine": [710, 752, 688],
    "without-normalization": [638, 680, 622],
    "without-dropout": [702, 740, 678],
    "without-weight_decay": [709, 750, 690],
    "without-dropout-and-normalization": [600, 640, 580],
    "none": [601, 641, 578],
}


def test_kinds_have_contributions_and_effects(recipe: str) -> None:
    """The factorial has the other parts in all four variants; `none` is not one of them."""
    study = asked("--design", "kinds", "--reg", recipe)
    assert {arm.title for arm in study.arms()} == set(KINDS)
    table = plant(replace(study, seeds=[0, 1, 2]), KINDS)
    contributions = dict(zip(table.subjects, table.comparisons, strict=True))
    assert 1000 * contributions["dropout"].gain.mean == pytest.approx(10)
    assert 1000 * contributions["dropout and normalization"].gain.mean == pytest.approx(110)
    assert [1000 * one.estimate.mean for one in effects(table)] == pytest.approx([25, 85, -30])
    assert verdict(table).startswith("Main effect of dropout: +2.50 points")
    # `none` does not stand in for a variant that has no results yet.
    kept = [i for i, label in enumerate(table.labels) if label != WITHOUT_BOTH]
    assert not effects(
        replace(
            table,
            arms=[table.arms[i] for i in kept],
            results=[table.results[i] for i in kept],
            comparisons=[table.comparisons[i] for i in kept],
        )
    )
    collection = collect(load_study(study.folder))
    write_page(collection, [table], study.folder / "study.html")
    chart = interaction(table)
    assert [list(line.y) for line in chart.data] == [
        pytest.approx([60.67, 70.67], abs=0.01),
        pytest.approx([64.67, 71.67], abs=0.01),
    ]


def test_kinds_without_a_norm_have_no_effects(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    model = {"reg": {"head_dropout": 0.2}, "training": {"weight_decay": 0.1}}
    file.write_text(yaml.safe_dump({"vision": {"model": model}}))
    study = asked("--design", "kinds", "--reg", str(file))
    names = ["mine", "without-dropout", "without-weight_decay", "none"]
    assert [arm.title for arm in study.arms()] == names
    assert not effects(
        plant(replace(study, seeds=[0, 1, 2]), {name: [600, 610, 590] for name in names})
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--design", "ablations"], "DESIGN=ablations is not known"),
        (["--reg", "full"], "REG=full is the recipe of a design"),
        (["--design", "ablation", "--reg", "none"], "REG=none turns on no regularizer"),
        (["--design", "factorial", "--reg", "dropout"], "has no normalization: DESIGN=factorial"),
        (["--design", "factorial", "--reg", "batchnorm"], "has no dropout: DESIGN=factorial"),
        (["--effect", "0"], "EFFECT=0 must be points above 0"),
        (["--effect", "nan"], "EFFECT=nan must be points above 0"),
        (["--tuned"], "none has no tuned file for TASK=vision DATA=builtin; .* make advise TASK"),
    ],
)
def test_mistakes_name_the_value_and_the_fix(options: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        asked(*options)


def test_the_tuned_file_of_each_variant_is_copied() -> None:
    """A search over `none` that turned dropout on is no tuned `none`."""

    def search(name: str, reg: str, model: dict[str, Any]) -> None:
        folder = Path("runs/sweeps") / name
        folder.mkdir(parents=True)
        given = {"task": "vision", "data": "builtin", "reg": reg}
        (folder / "trials.json").write_text(json.dumps({"given": given}))
        (folder / "best.yaml").write_text(yaml.safe_dump({"vision": {"model": model}}))

    search("a", "none", {"reg": {"head_dropout": 0.3}, "optim": {"lr": 0.01}})
    search("b", "none", {"reg": {"head_dropout": 0.0}, "optim": {"lr": 0.02}})
    search("c", "dropout", {"reg": {"head_dropout": 0.4, "dropout": 0.1}})
    study = asked("--tuned", "--variants", "none dropout")
    assert [arm.title for arm in study.arms()] == ["none", "dropout"]
    assert study.sources == {
        "none": "runs/sweeps/b/best.yaml",
        "dropout": "runs/sweeps/c/best.yaml",
    }
    assert "lr: 0.02" in Path(study.variants[0]).read_text()
    study.save()
    assert load_study(study.folder).sources == study.sources


OUTCOMES = {
    "none": [700, 710, 690, 705, 695],
    "up": [740, 752, 731, 744, 736],
    "down": [660, 672, 651, 664, 656],
    "same": [701, 709, 690, 706, 694],
    "unclear": [720, 700, 715, 690, 730],
}


def test_an_effect_of_interest_tells_equal_from_unknown(tmp_path: Path) -> None:
    """The four outcomes; without it, "same" and "unclear" are both not significant."""
    variants = []
    for name in OUTCOMES:
        variants.append(str(tmp_path / f"{name}.yaml"))
        Path(variants[-1]).write_text("vision: {}\n")
    study = Study("vision", "builtin", variants, list(range(5)), arguments=["--logger", "csv"])
    plain = plant(study, OUTCOMES)
    assert {one.outcome for one in plain.comparisons} == {""}
    assert "same and unclear do not differ significantly" in verdict(plain)
    report_main(["--study", study.name, "--effect", "1.0"])
    table = gain_tables(collect(load_study(study.folder)))[0]
    assert [one.outcome for one in table.comparisons[1:]] == [
        *("gains", "loses", "practically equal", "not known yet")
    ]
    more = table.comparisons[-1].more_seeds
    said = verdict(table)
    assert said.startswith("up gains +4.06 points (+3.92 to +4.20) over none; down loses 3.94")
    assert "same is practically equal to none (within 1 point)" in said
    assert more
    assert f"unclear: not known yet; about {more} more seeds would tell" in said
    advised = steps_after(table)
    assert advised.seeds == 5 + more
    assert advised.steps[0] == "Use up."
    # Given again without it, the study keeps it.
    study.save()
    assert load_study(study.folder).effect == 1.0


def test_an_ablation_along_an_axis_speaks_of_contributions(planted: Planted) -> None:
    """The chart has a line for each part, not for each variant; the next steps name no gain."""
    arms = {}
    for name in ("mine", "without-normalization", "none"):
        Path(f"{name}.yaml").write_text("vision: {}\n")
        arms[f"{name}.yaml"] = [
            record(seed, right(hits, 1000), name) for seed, hits in enumerate(ABLATION[name][:3])
        ]
    noisy = [690, 720, 700]
    arms["without-normalization.yaml"] = [
        record(seed, right(hits, 1000)) for seed, hits in enumerate(noisy)
    ]
    axes = {"data.train_fraction": ["0.5", "1.0"]}
    study = planted(arms, axes=axes, design="ablation", recipe="mine", name="along")
    tables = gain_tables(collect(study))
    figures = along_axes(tables)
    assert [trace.name for trace in figures["axis-gain"].data] == ["normalization", "all parts"]
    assert [trace.name for trace in figures["axis-accuracy"].data] == [
        *("mine", "without-normalization", "none")
    ]
    assert figures["axis-gain"].layout.yaxis.title.text == "contribution, points"
    said = " ".join(steps_after(tables[0]).steps)
    assert "normalization: a contribution too small" in said
    assert "gain" not in said


def test_the_tuned_file_of_an_advice_comes_first() -> None:
    """All arms of an advice had the same budget; an arm that it has not chosen yet has no file."""
    advice, folder = plant_advice(ADVICES)
    study = asked("--tuned", "--variants", "none dropout")
    tuned = folder / "tuned"
    assert study.sources == {name: str(tuned / f"{name}.yaml") for name in ("none", "dropout")}
    assert yaml.safe_load(Path(study.variants[1]).read_text()) == yaml.safe_load(
        (tuned / "dropout.yaml").read_text()
    )
    with pytest.raises(InputError, match="none has no tuned file for TASK=vision DATA=other"):
        asked("--tuned", "--variants", "none", "--data", "other")
    open_arms = [replace(one, chosen=None) for one in advice.tuning]
    replace(advice, tuning=open_arms).save(folder)
    with pytest.raises(InputError, match="none has no tuned file for TASK=vision DATA=builtin"):
        asked("--tuned", "--variants", "none")


def test_without_its_norm_a_recipe_takes_the_rate_of_networks_without_one(tmp_path: Path) -> None:
    """A rate in the recipe belongs to its norm: it would hide the shipped one without a norm."""
    model = {"reg": {"normalization": "batch", "head_dropout": 0.2}, "optim": {"lr": 0.5}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"speech": {"model": model}}))
    # Data without a section in configs/data, which could set the rate.
    made = design_presets("ablation", "speech", "recordings", str(file), tmp_path)
    rates = {}
    for preset in made:
        stack = [yaml.safe_load(text) for text in config_stack("speech", preset, "recordings")[1:]]
        given = [one.get("model", {}).get("optim", {}).get("lr") for one in stack]
        rates[Path(preset).stem] = next(rate for rate in reversed(given) if rate is not None)
    shipped = yaml.safe_load((CONFIGS / "speech.yaml").read_text())["without_norm"]
    without_norm = shipped["model"]["optim"]["lr"]
    assert rates == {
        "mine": 0.5,
        "without-head_dropout": 0.5,
        "without-normalization": without_norm,
        "none": without_norm,
    }
