"""The time that further runs take, and the start of only those that end within the budget."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from study.advising.work import Work
from study.launch import Job

# Until a run is measured: a run with a test takes longer than one of the tuning.
MARGIN = 1.2


@dataclass(frozen=True)
class Run:
    """A run of an arm.

    Args:
        arm: Name of the arm.
        job: How it is started.
    """

    arm: str
    job: Job


@dataclass
class Pace:
    """Estimates the time of runs.

    Args:
        expected: Seconds of a run of each arm in the tuning.
        at_a_time: Number of parallel runs.
        measured: Seconds of the runs of each arm that are complete.
        failed: Folders of the runs that failed since this start; they are not tried again.
    """

    expected: dict[str, float]
    at_a_time: int
    measured: dict[str, list[float]] = field(default_factory=dict)
    failed: set[Path] = field(default_factory=set)

    def missing(self, group: Sequence[Run]) -> list[Run]:
        """Return the runs that are to be started."""
        return [run for run in group if not run.job.done and run.job.folder not in self.failed]

    def seconds(self, arm: str) -> float:
        """Return the seconds of a run, measured if possible."""
        measured = self.measured.get(arm)
        return fmean(measured) if measured else MARGIN * self.expected[arm]

    def together(self, arms: Iterable[str]) -> float:
        """Return the seconds of runs of these arms, several of them in parallel."""
        each = [self.seconds(arm) for arm in arms]
        # The last runs may end one after the other.
        return max(sum(each) / self.at_a_time, max(each)) if each else 0.0

    def affordable(self, groups: Sequence[Sequence[Run]], seconds: float) -> int:
        """Return how many of the first groups end within a time."""
        arms: list[str] = []
        for count, group in enumerate(groups):
            arms += [run.arm for run in self.missing(group)]
            if self.together(arms) > seconds:
                return count
        return len(groups)


def run_groups(
    groups: Sequence[Sequence[Run]], work: Work, pace: Pace, keep: float
) -> Iterator[Job]:
    """Run what is missing of the groups, one after the other; yield each run that has ended.

    The runs of a group are of use together. A group that would not end in time is not started.

    Args:
        groups: Runs, such as one of each arm with the same seed.
        work: Starts the runs.
        pace: Estimates their time, and learns from them.
        keep: Seconds of the budget to be left at the end.
    """
    waiting = deque(group for group in groups if pace.missing(group))
    queue: deque[Run] = deque()
    running: dict[str, tuple[Run, float]] = {}

    def next_job() -> Job | None:
        if not queue and waiting:
            missing = pace.missing(waiting[0])
            ahead = [*missing, *(run for run, _ in running.values())]
            if pace.together(run.arm for run in ahead) > work.left - keep:
                return None
            queue.extend(missing)
            waiting.popleft()
        if not queue:
            return None
        run = queue.popleft()
        running[run.job.name] = (run, work.seconds)
        return run.job

    for job, complete in work.run(next_job):
        run, began = running.pop(job.name)
        if complete:
            pace.measured.setdefault(run.arm, []).append(work.seconds - began)
        else:
            pace.failed.add(job.folder)
        yield job
