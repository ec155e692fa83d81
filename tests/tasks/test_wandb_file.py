"""Values added to the file of a finished offline W&B run; wandb itself reads it back."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from tasks.run.tracking import RunLogger
from tasks.run.wandb_file_internals import BLOCK, read_records, set_summary

Finished = Callable[..., Path]


@pytest.fixture
def offline_run() -> Finished:
    """Log an offline run and return its file."""

    def log(finished: bool = True) -> Path:
        logger = RunLogger(name="a", save_dir="run")
        logger.log_hyperparams({"long": "x" * 3 * BLOCK})
        for step in range(3):
            logger.log_metrics({"val/acc": step / 4}, step=step)
        logger.log_summary({"best": {"val/acc": 0.5}})
        if finished:
            logger.close()
            # wandb's process writes the end of the file after the run is closed.
            wandb.teardown()
        [file] = Path("run").glob("wandb/offline-run-*/run-*.wandb")
        return file

    return log


def seen_by_wandb(file: Path) -> dict[str, Any]:
    """Read a run with wandb's own command."""
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--summary", "--json"]
    found = subprocess.run([*command, file], capture_output=True, text=True, check=True)
    content: dict[str, Any] = json.loads(found.stdout)
    del content["last_write"]
    return content


def test_wandb_reads_the_added_values_and_all_that_was_there(offline_run: Finished) -> None:
    file = offline_run()
    before, records = seen_by_wandb(file), read_records(file)
    assert set_summary(file, "gain/", {"gain/test_acc": 0.125, "gain/ece": -0.5})
    after = seen_by_wandb(file)
    added = {name: after["summary"].pop(name) for name in ("gain/test_acc", "gain/ece")}
    assert added == {"gain/test_acc": 0.125, "gain/ece": -0.5}
    assert after == before
    assert after["config"]["long"] == "x" * 3 * BLOCK
    # One record more, before the last one; all others are the same bytes.
    new = read_records(file)
    assert new[:-2] + new[-1:] == records
    assert after["summary"]["best"] == {"val/acc": 0.5}


def test_values_set_again_replace_the_earlier_ones(offline_run: Finished) -> None:
    file = offline_run()
    set_summary(file, "gain/", {"gain/test_acc": 0.125, "gain/ece": 1.0})
    set_summary(file, "gain/", {"gain/test_acc": 0.25})
    found = seen_by_wandb(file)["summary"]
    assert {name for name in found if name.startswith("gain/")} == {"gain/test_acc"}
    assert found["gain/test_acc"] == 0.25
    # The same values again: the file is not touched.
    facts = file.stat()
    assert set_summary(file, "gain/", {"gain/test_acc": 0.25})
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (facts.st_ino, facts.st_mtime_ns)
    assert not list(file.parent.glob("*.partial"))


def test_the_file_of_an_unfinished_run_stays_as_it_is(offline_run: Finished) -> None:
    file = offline_run()
    whole = file.read_bytes()
    # As after a kill: the last record is cut off.
    file.write_bytes(whole[:-3])
    assert not set_summary(file, "gain/", {"gain/test_acc": 0.125})
    assert file.read_bytes() == whole[:-3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:], "is damaged"),
        (lambda content: b"SQLite" + content, "is not the file of a W&B run"),
    ],
)
def test_a_damaged_file_is_refused_and_stays_as_it_is(
    offline_run: Finished, change: Callable[[bytes], bytes], said: str
) -> None:
    file = offline_run()
    file.write_bytes(broken := change(file.read_bytes()))
    with pytest.raises(ValueError, match=said):
        set_summary(file, "gain/", {"gain/test_acc": 0.125})
    assert file.read_bytes() == broken
