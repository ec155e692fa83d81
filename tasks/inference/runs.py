"""Selection of the checkpoint to use: a file, a run, or the newest run of a folder."""

from collections.abc import Iterator
from pathlib import Path

from tasks.errors import InputError
from tasks.run.checkpoints import BEST

RUNS = Path("runs")
# Runs in an error message.
LISTED = 5


def required_checkpoint(given: str | None) -> str:
    """Return the checkpoint of the command line.

    Raises:
        InputError: There is none; it lists the newest runs.
    """
    if not given:
        raise InputError(f"CKPT is missing: a checkpoint or the folder of a run; {_newest(RUNS)}")
    return given


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path means.

    Args:
        path: A checkpoint; the folder of a run; or a folder of runs such as
            `runs/vision-builtin-both-s0`, of which the newest is taken.

    Raises:
        InputError: There is none, or a folder holds runs of different names, as the folder of a
            study does.
    """
    # The checkpoint of sharded weights is a folder.
    if path.is_file() or path.suffix == Path(BEST).suffix:
        return path
    if not path.is_dir():
        raise InputError(f"{path} does not exist; {_newest(RUNS)}")
    if (path / BEST).exists():
        return path / BEST
    # Runs of one name lie in folders named by time.
    runs = sorted(file.parent for file in path.glob(f"*/{BEST}"))
    if runs and all(run.name[:1].isdigit() for run in runs):
        return runs[-1] / BEST
    raise InputError(f"{path} holds no {BEST} of its own; {_newest(path)}")


def _newest(root: Path) -> str:
    """List the newest runs with a checkpoint in a folder, for an error."""
    found = sorted(_checkpoints(root), key=lambda file: -file.stat().st_mtime)
    if not found:
        return f"{root} holds no run with a checkpoint: start one with make train TASK=vision"
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    listed = ", ".join(str(file.parent) for file in found[:LISTED])
    return f"the newest runs in {root}: {listed}{more}"


def _checkpoints(root: Path) -> Iterator[Path]:
    """Find checkpoints of runs and of the runs of studies."""
    for depth in ("*", "*/*", "*/*/*"):
        yield from root.glob(f"{depth}/{BEST}")
