"""The time that an advice may take, and the trainings that it starts."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from study.launch import Job, execute, run_jobs


@dataclass(frozen=True)
class Work:
    """Starts trainings until the budget is spent.

    Args:
        budget: Seconds for everything.
        at_a_time: Number of parallel trainings.
        threads: CPU threads of each training.
        before: Seconds spent by earlier, interrupted starts.
    """

    budget: float
    at_a_time: int
    threads: int
    before: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds spent so far, over all starts."""
        return self.before + time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds left of the budget; negative if it is overspent."""
        return self.budget - self.seconds

    def run(self, next_job: Callable[[], Job | None]) -> Iterator[tuple[Job, bool]]:
        """Run trainings in parallel; yield each one, and whether it is complete.

        Args:
            next_job: Called when a training can start; it returns None when none is left or when
                the next one would not end within the budget.
        """
        yield from run_jobs(self.at_a_time, next_job, execute)
