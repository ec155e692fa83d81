"""Logging to all loggers of a trainer: `trainer.logger` is only the first of them."""

from collections.abc import Mapping
from typing import Any

import lightning as L


def log_row(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Log numbers of the current step."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step)


def log_config(trainer: L.Trainer, values: dict[str, Any]) -> None:
    """Log values of the configuration."""
    for logger in trainer.loggers:
        logger.log_hyperparams(values)


def loggers_with(trainer: L.Trainer, method: str) -> list[Any]:
    """Return the loggers that have a method, such as `log_media`."""
    return [logger for logger in trainer.loggers if hasattr(logger, method)]
