"""The display of an advice in the terminal: a table of the arms, or plain lines."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from study.advising.arms import LENGTH, RATE
from study.advising.records import Advice, ArmTuning, Contrast, Look, Trial, Validated
from study.advising.work import Work
from study.terminal import duration, live_display, plural

SHORT_KEYS = {RATE: "lr", LENGTH: "steps"}


class Display:
    """Shows the advice while it is made.

    Args:
        work: Has the time.
        console: Where to show it.
    """

    def __init__(self, work: Work, console: Console) -> None:
        self.work = work
        self.console = console
        self.phase = ""
        self.advice: Advice | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Update the table as long as trainings run; print nothing if not a terminal."""
        with live_display(self.console, self.render):
            yield

    def update(self, advice: Advice) -> None:
        """Show what has changed."""
        before, self.advice = self.advice, advice
        if not self.console.is_terminal and before is not None:
            for line in changes(before, advice):
                self.say(f"{line}  ({self.time()})")

    def say(self, line: str) -> None:
        """Print a line; names in it are not markup."""
        self.console.print(Text(line), soft_wrap=True)

    def time(self) -> str:
        """Describe the time that is used and left."""
        left = max(0.0, self.work.left)
        return f"{duration(self.work.seconds)} used, {duration(left)} left"

    def render(self) -> Group:
        """Render the state."""
        advice = self.advice
        state = Text(f"{self.phase}: {self.time()}")
        if advice is None:
            return Group(state)
        parts: list[Any] = [state, arms_table(advice)]
        if advice.confirmation is not None and advice.confirmation.looks:
            parts += [Text(line) for line in look_lines(advice.confirmation.looks[-1])]
        return Group(*parts)


def arms_table(advice: Advice) -> Table:
    """Render the trials of each arm, and the best one."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading, justify in (
        ("arm", "left"),
        ("trainings", "right"),
        ("time", "right"),
        ("best val %", "right"),
        ("with", "left"),
    ):
        column: Any = justify
        table.add_column(heading, justify=column, no_wrap=heading != "with")
    for index, arm in enumerate(advice.tuning):
        trials = arm.trials if index == 0 else arm.trials[1:]
        done = sum(len(trial.results) for trial in trials)
        best = best_trial(arm, baseline=index == 0)
        row = ["-", ""]
        if best is not None:
            row = [f"{100 * best[1].accuracy:.2f}", short_values(best[0].parameters)]
        if arm.never_trained:
            row = ["-", "all trials stayed at chance accuracy"]
        table.add_row(*map(Text, [arm.arm, str(done), duration(arm.seconds), *row]))
    return table


def best_trial(arm: ArmTuning, baseline: bool) -> tuple[Trial, Validated] | None:
    """Return the chosen trial of an arm, or the best one so far, and its result."""
    trials = [one for one in arm.trials[0 if baseline else 1 :] if arm.first_seed in one.results]
    chosen = [trial for trial in trials if trial.number == arm.chosen] or trials
    if not chosen:
        return None
    best = max(chosen, key=lambda trial: trial.results[arm.first_seed].accuracy)
    return best, best.results[arm.first_seed]


def short_values(values: dict[str, Any]) -> str:
    """Format parameters in one line, without those that are off.

    Example:
        >>> short_values({"model.optim.lr": 0.003, "model.reg.dropout": 0.0, "model.x.y": 2})
        'lr 0.003, y 2'
    """
    shown = ((SHORT_KEYS.get(key, key.split(".")[-1]), value) for key, value in values.items())
    return ", ".join(f"{key} {value}" for key, value in shown if value != 0)


def changes(before: Advice, after: Advice) -> list[str]:
    """Describe in lines what is new: trainings, and looks of the confirmation."""
    lines = []
    known = {arm.arm: {trial.number: trial for trial in arm.trials} for arm in before.tuning}
    for index, arm in enumerate(after.tuning):
        # The first trial is that of the baseline.
        for trial in arm.trials[0 if index == 0 else 1 :]:
            old = known.get(arm.arm, {}).get(trial.number)
            seen = old.results if old else {}
            name = f"{arm.arm}, trial {trial.number}"
            for seed, result in trial.results.items():
                if seed not in seen:
                    lines.append(
                        f"{name}, seed {seed}: {described(result)}; "
                        f"{short_values(trial.parameters)}"
                    )
            if trial.error and (old is None or old.error != trial.error):
                lines.append(f"{name}: failed: {trial.error}")
    then = before.confirmation.looks if before.confirmation else []
    now = after.confirmation.looks if after.confirmation else []
    for look in now[len(then) :]:
        lines += look_lines(look)
    return lines


def described(result: Validated) -> str:
    """Describe the result of a training."""
    chance = ", stayed at chance accuracy" if result.at_chance else ""
    return f"{100 * result.accuracy:.2f} %{chance}"


def look_lines(look: Look) -> list[str]:
    """Describe the gains after a round of the confirmation."""
    return [f"after {plural(look.seeds, 'pair')}: {gain(one)}" for one in look.contrasts]


def gain(contrast: Contrast) -> str:
    """Describe a gain in percentage points, with its interval."""
    text = f"{contrast.arm} {100 * contrast.gain:+.2f}"
    if contrast.low is None or contrast.high is None:
        return f"{text} points"
    return f"{text} points ({100 * contrast.low:+.2f} to {100 * contrast.high:+.2f})"
