"""Progress and verdict of a study, stored in its folder so that the index opens fast."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study.gain_table import GainTable, gain_tables
from study.plan import load_study
from study.results import Collection, collect, source_files
from study.verdict import verdict
from tasks.errors import InputError

STATE = "state.json"


def stored_state(folder: Path) -> dict[str, Any] | None:
    """Return the stored state of a study; None if there is none or files have changed since."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["files"] != source_files(folder):
            return None
        counts = {key: int(state[key]) for key in ("done", "size")}
        return counts | {key: str(state[key]) for key in ("progress", "verdict")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_state(folder: Path) -> dict[str, Any]:
    """Read all runs of a study and store its state.

    Returns:
        `progress` in words, `verdict` with one line per table, the number of runs that are `done`,
        the `size` of the study, and the `files` that were read.
    """
    state: dict[str, Any] = {"progress": "", "verdict": "", "done": 0, "size": 0}
    state["files"] = source_files(folder)
    try:
        collection = collect(load_study(folder))
        state["progress"] = _progress(collection)
        return store_state(collection, gain_tables(collection))
    except InputError as error:
        state["verdict"] = str(error)
    except Exception as error:
        # One study with broken results must not hide the others.
        state["verdict"] = f"its results cannot be read ({type(error).__name__}: {error})"
    write_state(folder, state)
    return state


def store_state(collection: Collection, tables: Sequence[GainTable]) -> dict[str, Any]:
    """Store the state of a study whose gain tables are known, and return it as `read_state`."""
    state = {
        "progress": _progress(collection),
        "verdict": "\n".join(_titled(table) for table in tables),
        "done": collection.done,
        "size": collection.study.size,
        "files": collection.files,
        "arms": _arms(collection, tables),
    }
    write_state(collection.study.folder, state)
    return state


def _titled(table: GainTable) -> str:
    return f"{table.title}: {verdict(table)}" if table.title else verdict(table)


def _arms(collection: Collection, tables: Sequence[GainTable]) -> list[dict[str, Any]]:
    """Return the mean test accuracy and the gain of each arm; `make export` reads them."""
    found = []
    for table in tables:
        for arm, results, one in zip(table.arms, table.results, table.comparisons, strict=True):
            gain, limits = None, None
            # The gain of the arm: an ablation has the contribution of the part that it lacks.
            sign = -1 if table.ablation else 1
            if one.gain is not None and arm is not table.arms[0]:
                gain = sign * one.gain.mean
                if one.gain.low is not None and one.gain.high is not None:
                    limits = sorted([sign * one.gain.low, sign * one.gain.high])
            found.append(
                {
                    "label": table.label(arm),
                    "baseline": table.labels[0],
                    "runs": [collection.study.run_folder(arm, seed).name for seed in results],
                    "seeds": len(results),
                    "test": one.mean,
                    "gain": gain,
                    "interval": limits,
                }
            )
    return found


def _progress(collection: Collection) -> str:
    progress = f"{collection.done} of {collection.study.size} runs"
    return progress + (f", {len(collection.errors)} failed" if collection.errors else "")


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a study atomically."""
    partial = folder / f"{STATE}.partial"
    # If the folder is read-only, its runs are read again the next time.
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(state) + "\n", encoding="utf-8")
        partial.replace(folder / STATE)
