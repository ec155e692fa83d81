"""Text classification."""

from tasks.nlp.data import TextData as Data
from tasks.nlp.task import TextTask as Task

__all__ = ["Data", "Task"]
