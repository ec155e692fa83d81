"""What an advice answered, for the pages that cite it."""

from study.advising.commands import advise_command
from study.advising.records import Advice


def answer(advice: Advice) -> list[str]:
    """Return the command of an advice, its sentence and its notes."""
    assert advice.recommendation is not None
    return [
        "```sh",
        advise_command(advice.question),
        "```",
        "",
        f"> {advice.recommendation.sentence}",
        "",
        *(f"- {note}" for note in advice.recommendation.notes),
        "",
    ]
