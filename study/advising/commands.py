"""The commands that an advice prints: to train with it, and to continue it."""

from math import ceil
from pathlib import Path

from study.advising.records import Question


def train_command(question: Question, preset: Path) -> str:
    """Return the command of a training with a preset."""
    command = f"make train TASK={question.task} DATA={_quoted(question.data)} "
    return command + f"REG={_quoted(str(preset))}" + _further(question)


def advise_command(question: Question) -> str:
    """Return the command that asks a question, again or with another budget."""
    arms = f'ARMS="{" ".join(question.arms)}"'
    if question.design:
        arms = f"DESIGN={question.design} REG={_quoted(question.recipe)}"
    return (
        f"make advise TASK={question.task} DATA={_quoted(question.data)} {arms} "
        f"NAME={_quoted(question.name)} "
        f"BUDGET={_duration(question.budget)} PRECISION={question.precision:g}{_further(question)}"
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{ceil(seconds)}s"
    minutes = ceil(seconds / 60)
    return f"{minutes}m" if minutes < 300 else f"{ceil(minutes / 60)}h"


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text


def _further(question: Question) -> str:
    return f' ARGS="{" ".join(question.arguments)}"' if question.arguments else ""
