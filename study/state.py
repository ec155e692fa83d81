"""How far a study is and what it says, kept beside it: an index need not read all of its runs."""

import contextlib
import json
from pathlib import Path
from typing import Any

from study.plan import load_study
from study.results import collect
from study.tables import tables, verdict
from tasks.errors import InputError

STATE = "state.json"
# The files of a study that its state follows from.
SOURCES = ("study.yaml", "*/metrics.json", "*/error.txt")


def sources(folder: Path) -> dict[str, list[int]]:
    """Return the size and the time of each file that a study's state follows from."""
    found = {}
    for pattern in SOURCES:
        for file in folder.glob(pattern):
            # A file may vanish at any moment, or be a link to nowhere.
            with contextlib.suppress(OSError):
                facts = file.stat()
                found[str(file.relative_to(folder))] = [facts.st_size, facts.st_mtime_ns]
    return found


def stored_state(folder: Path) -> dict[str, Any] | None:
    """Return the state that is kept beside a study; None if there is none or files have changed."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["files"] != sources(folder):
            return None
        return {key: str(state[key]) for key in ("progress", "verdict")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_state(folder: Path) -> dict[str, Any]:
    """Read all runs of a study, and keep beside it how far it is and what it says.

    Returns:
        `progress`, `verdict`, and the `files` that were read.
    """
    state: dict[str, Any] = {"progress": "", "verdict": "", "files": sources(folder)}
    try:
        collection = collect(load_study(folder))
        study = collection.study
        planned = len(list(study.arms())) * len(study.seeds)
        state["progress"] = f"{collection.done} of {planned} runs"
        if collection.errors:
            state["progress"] += f", {len(collection.errors)} failed"
        state["verdict"] = " ".join(verdict(table) for table in tables(collection))
    except InputError as error:
        state["verdict"] = str(error)
    except Exception as error:
        # Results that are broken in any way must not hide all other studies.
        state["verdict"] = f"its results cannot be read ({type(error).__name__}: {error})"
    partial = folder / f"{STATE}.partial"
    # A folder that cannot be written is read again the next time.
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(state) + "\n", encoding="utf-8")
        partial.replace(folder / STATE)
    return state
