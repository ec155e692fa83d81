"""Image classification."""

from tasks.vision.data import VisionData as Data
from tasks.vision.task import VisionTask as Task

__all__ = ["Data", "Task"]
