"""Which runs are compared for the gain of each run, and which files it is written to."""

from pathlib import Path
from typing import Any

import pytest

from study import run_gains
from study.gain_table import gain_tables
from study.plan import Study
from study.results import collect
from study.run_gains import Gains, LiveGains, gains_of_runs, write_offline
from tests.study.conftest import Planted, record, right


def gains(study: Study) -> dict[str, dict[str, float]]:
    found = gains_of_runs(study, gain_tables(collect(study)))
    return {folder.name: values for folder, values in found.items()}


def test_a_gain_is_the_difference_to_the_baseline_with_the_same_seed(planted: Planted) -> None:
    def one(seed: int, hits: int, variant: str, val: float, gap: float, ece: float) -> Any:
        made = record(seed, right(hits, 100), variant, history=[(10, val - 0.1), (20, val)])
        made["test"] |= {"ece": ece, "loss": 1 + ece}
        made["best"]["reg/gap_acc"] = gap
        return made

    study = planted(
        {
            "none": [one(0, 50, "none", 0.5, 0.3, 0.1), one(1, 60, "none", 0.6, 0.2, 0.2)],
            "both": [one(0, 53, "both", 0.7, 0.1, 0.4), one(1, 59, "both", 0.5, 0.3, 0.1)],
        }
    )
    found = gains(study)
    assert found["both-s0"] == pytest.approx(
        {
            "gain/test_acc": 0.03,
            "gain/val_acc": 0.2,
            "gain/test_loss": 0.3,
            "gain/ece": 0.3,
            "gain/gap": -0.2,
        }
    )
    assert found["both-s1"]["gain/test_acc"] == pytest.approx(-0.01)
    # So that plots show it.
    assert set(found["none-s1"].values()) == {0.0}


def test_a_run_without_its_baseline_has_no_gain(planted: Planted) -> None:
    study = planted(
        {
            "none": [record(0, right(50, 100))],
            "both": [record(seed, right(53, 100), "both") for seed in range(2)],
        }
    )
    assert gains(study).keys() == {"none-s0", "both-s0"}


def test_the_baseline_is_at_the_same_point_of_the_axes(planted: Planted) -> None:
    study = planted(
        {"none": [record(0, right(50, 100))], "both": [record(0, right(53, 100), "both")]},
        axes={"data.train_fraction": ["0.1", "1.0"]},
    )
    assert len(gains(study)) == 4
    low = study.run_folder(next(study.arms()), 0)
    assert low.name == "none,data.train_fraction=0.1-s0"
    (low / "metrics.json").unlink()
    assert gains(study).keys() == {
        "none,data.train_fraction=1.0-s0",
        "both,data.train_fraction=1.0-s0",
    }


def test_with_one_variant_the_baseline_is_the_first_point(planted: Planted) -> None:
    study = planted({"both": [record(0, right(50, 100))]}, axes={"model.depth": ["1", "2"]})
    for index, arm in enumerate(study.arms()):
        file = study.run_folder(arm, 0) / "metrics.json"
        file.write_text(file.read_text().replace('"acc": 0.5', f'"acc": {0.5 + index / 8}'))
    found = gains(study)
    assert found["both,model.depth=2-s0"]["gain/test_acc"] == pytest.approx(0.125)


def test_the_last_file_of_a_resumed_run_gets_the_gain_unless_it_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []
    monkeypatch.setattr(run_gains, "set_summary", lambda file, *_: written.append(str(file)))
    files = [
        Path(f"runs/{run}/wandb/offline-run-{day}-x/run-x.wandb") for run in "ab" for day in (1, 2)
    ]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    files[-1].with_name("run-x.wandb.synced").touch()
    values: Gains = {Path("runs/a"): {}, Path("runs/b"): {}, Path("runs/c"): {}}
    write_offline(values)
    assert written == [str(files[1])]


def test_a_damaged_file_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    file = Path("runs/a/wandb/offline-run-1-x/run-x.wandb")
    file.parent.mkdir(parents=True)
    file.write_text("nothing")
    write_offline({Path("runs/a"): {"gain/ece": 0.0}})
    [said] = caplog.messages
    assert str(file) in said


def test_while_a_study_is_in_progress_each_gain_is_published_once(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = planted(
        {
            name: [record(seed, right(50 + more, 100), name) for seed in range(3)]
            for name, more in (("none", 0), ("both", 3))
        }
    )
    sent: list[set[str]] = []

    def send(_: Study, found: Gains, entity: str) -> int:
        assert entity == "team"
        sent.append({folder.name for folder in found})
        if len(sent) == 2:
            raise OSError("gone")
        return 0

    monkeypatch.setattr(run_gains, "wandb_mode", lambda: "online")
    monkeypatch.setattr(run_gains, "update_online", send)
    hidden = [study.folder / f"both-s{seed}" / "metrics.json" for seed in range(3)]
    for file in hidden:
        file.rename(file.with_suffix(".later"))
    live = LiveGains(study, "team")
    for file in [None, *hidden]:
        if file is not None:
            file.with_suffix(".later").rename(file)
        live.update(gain_tables(collect(study)))
    # After an error the server is not asked again: the report does it.
    assert sent == [{"none-s0", "none-s1", "none-s2"}, {"both-s0"}]
    assert caplog.text.count("W&B did not take the gain (gone)") == 1
