"""Data: loading, cache, splits and batches."""

from tasks.data.base import ClassificationData, DataSpec, Sound
from tasks.data.batches import Batch, Batches, Examples, lay_out, whole_batch
from tasks.data.loading import Rows, Source

__all__ = [
    "Batch",
    "Batches",
    "ClassificationData",
    "DataSpec",
    "Examples",
    "Rows",
    "Sound",
    "Source",
    "lay_out",
    "whole_batch",
]
