"""Keyword recognition."""

from tasks.speech.data import SpeechData as Data
from tasks.speech.task import SpeechTask as Task

__all__ = ["Data", "Task"]
