"""The order in which the callbacks of a run are called."""

from collections.abc import Iterable

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, WeightAveraging

from tasks.regularizers import AdaptiveClip, BufferAverage, DropoutRates, MaxNorm, PreciseBatchNorm
from tasks.run.checkpoints import BestCheckpoint, LastCheckpoint, RandomState
from tasks.run.cores import CoreMonitor
from tasks.run.progress import ConfigRecorder, EpochLines, ProgressBar, SpeedMonitor
from tasks.run.results import ResultsWriter


class CallbackOrder(Callback):
    """Puts all callbacks of the trainer into `ORDER`.

    Lightning appends those of `configure_callbacks` when a fit or a test begins, and calls `setup`
    next, before any other hook.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Sort the trainer's callbacks, including those that the task has added."""
        trainer.callbacks = in_order(trainer.callbacks)  # type: ignore[attr-defined]


ORDER: tuple[type[Callback], ...] = (
    CallbackOrder,
    # First, since it stops its clock when validation starts: other callbacks must not count.
    SpeedMonitor,
    CoreMonitor,
    ProgressBar,
    EpochLines,
    # Logs the configuration first, so that a run that fails later has it.
    ConfigRecorder,
    # All others, such as `tasks.monitors`. At the end of a validation they use the validated
    # weights, before `WeightAveraging` restores the trained weights.
    Callback,
    # Before `LastCheckpoint`, which saves whether training is to stop.
    EarlyStopping,
    DropoutRates,
    AdaptiveClip,
    # Before the average, so that the averaged weights are within the limit.
    MaxNorm,
    WeightAveraging,
    # After the average has replaced the weights: the statistics are those of the average.
    PreciseBatchNorm,
    # After the recomputation, since each rank uses its own batches there.
    BufferAverage,
    # After all callbacks that may draw random numbers when training starts.
    RandomState,
    # Before the checkpoints, which contain the history up to this epoch. After all callbacks that
    # log, since `metrics.json` marks a complete run.
    ResultsWriter,
    Checkpoint,
    BestCheckpoint,
    # Last, so that it saves the state of all others after this epoch, with the best score.
    LastCheckpoint,
)


def in_order(callbacks: Iterable[Callback]) -> list[Callback]:
    """Sort callbacks by `ORDER`; those of one class keep their order.

    Example:
        >>> names = [type(one).__name__ for one in in_order([RandomState(), SpeedMonitor()])]
        >>> names
        ['SpeedMonitor', 'RandomState']
    """

    def position(callback: Callback) -> int:
        return next(ORDER.index(kind) for kind in type(callback).__mro__ if kind in ORDER)

    return sorted(callbacks, key=position)
