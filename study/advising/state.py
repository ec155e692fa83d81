"""The state of the confirmation, which `make export` reads for the card of a model."""

from pathlib import Path
from typing import Any

from study.advising.page import contrasts_of, read_confirmed
from study.advising.records import Advice
from study.state import store_state, write_state


def store_confirmed_state(advice: Advice, folder: Path) -> None:
    """Store gains, intervals and verdict of an advice in the folder of its confirmation.

    They are those of the last look: the intervals and the verdict of a study are not valid after
    several looks.
    """
    confirmed = read_confirmed(advice, folder)
    if confirmed is None or confirmed.table is None:
        return
    collection = confirmed.collection
    state: dict[str, Any] = store_state(collection, [confirmed.table])
    found = {one.arm: one for one in contrasts_of(advice)}
    for arm in state["arms"]:
        one = found.get(arm["label"])
        arm["gain"] = None if one is None else one.gain
        arm["interval"] = None if one is None or one.low is None else [one.low, one.high]
    state["verdict"] = advice.recommendation.sentence if advice.recommendation else ""
    write_state(collection.study.folder, state)
