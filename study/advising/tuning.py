"""Phase 1 of an advice: each arm gets the same number of trials, on validation data alone."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from study.advising.arms import LENGTH, Arm, read_arms, shared_ranges
from study.advising.budget import Plan, load_plan, make_plan
from study.advising.records import Advice, ArmTuning, Trial, Validated
from study.advising.resolving import value_at
from study.advising.sampling import Sampler
from study.advising.trials import Folders, error_of, read_probe
from study.advising.work import Work
from study.launch import Job
from study.preset_text import preset_text
from study.terminal import duration
from tasks.errors import InputError

FIRST_SEED = 0
# This many failed trainings in a row end the advice.
MOST_FAILURES = 3
# A training's time may be underestimated.
TIME_MARGIN = 1.1


def tune(
    advice: Advice, folder: Path, work: Work, say: Callable[[str], None] = print
) -> Iterator[Advice]:
    """Tune each arm; yield the advice whenever it has changed.

    Nothing is tuned once the confirmation has begun: it has read the test split.

    Args:
        advice: What is known.
        folder: Folder of the advice.
        work: Starts the trainings.
        say: Prints a line.

    Raises:
        InputError: The question is not valid, the budget is too small, or trainings fail.
    """
    if advice.confirmation is None:
        yield from Tuning(advice, folder, work, say).run()


class Tuning:
    """The trials of all arms.

    Args:
        advice: What is known.
        folder: Folder of the advice.
        work: Starts the trainings.
        say: Prints a line.
    """

    def __init__(
        self, advice: Advice, folder: Path, work: Work, say: Callable[[str], None]
    ) -> None:
        self.advice = advice
        self.folder = folder
        self.work = work
        self.say = say
        asked = advice.question
        self.arms = read_arms(asked)
        self.ranges = shared_ranges(self.arms, asked.arguments)
        self.folders = Folders(asked, folder, work.threads)
        # The first arm is the baseline; its trial 0 is that of all arms.
        self.trials: dict[str, list[Trial]] = {arm.name: [] for arm in self.arms}
        self.finalists: dict[str, list[int]] = {}
        self.failures = 0

    def run(self) -> Iterator[Advice]:
        """Run what is missing."""
        self.plan = load_plan(self.folder)
        if self.plan is None or self.plan.budget != self.work.budget:
            self.plan = self._planned(self.plan)
            self.plan.save(self.folder)
        self.say(self.describe())
        self.samplers = {
            arm.name: Sampler(arm, self.ranges, self.plan, index == 0, index)
            for index, arm in enumerate(self.arms)
        }
        seeds = [FIRST_SEED, *self.plan.seeds]
        for arm in self.arms:
            self.trials[arm.name] = self.folders.read(arm, seeds)
        yield self._advice()
        yield from self._run(self._trials())
        self._check_enough()
        self.finalists = {arm.name: self._best(arm) for arm in self.arms}
        yield self._advice()
        yield from self._run(self._repetitions())
        yield self._chosen()

    # The plan.

    def _planned(self, before: Plan | None) -> Plan:
        """Plan the tuning, from the time of a short training of the baseline."""
        baseline = self.arms[0]
        probe = self.folders.probe(baseline)
        began = self.work.seconds
        if not probe.done:
            self.say("a short training of the baseline, to measure its time")
        waiting = iter([probe])
        for job, good in self.work.run(lambda: next(waiting, None)):
            if not good:
                raise InputError(error_of(job.folder) or f"{job.folder} failed")
        measured = read_probe(probe, self.work.seconds - began)
        epoch = measured.steps_per_epoch
        preset_steps = self._preset_steps(baseline, epoch)
        plan = make_plan(
            self.work.budget,
            self.work.seconds,
            len(self.arms),
            self.work.at_a_time,
            preset_steps,
            measured,
            preset_steps if self.ranges.length is None else min(epoch, preset_steps),
        )
        if before is None:
            return plan
        # The trials have this length already, and the time of a start is known.
        return replace(
            plan,
            steps=before.steps,
            trials=max(plan.trials, before.trials),
            start_seconds=before.start_seconds,
        )

    def _preset_steps(self, arm: Arm, epoch: int) -> int:
        """Return the length of the preset on these data, in optimizer steps."""
        epochs = value_at(arm.config, "trainer.max_epochs")
        floor = 0
        if epochs is None:
            epochs = value_at(arm.config, "model.optim.epochs") or 1
            floor = value_at(arm.config, LENGTH) or 0
        steps = max(int(epochs) * epoch, -(-int(floor) // epoch) * epoch)
        most = value_at(arm.config, "trainer.max_steps") or -1
        return steps if most < 0 else min(steps, int(most))

    def describe(self) -> str:
        """Describe the plan in one line."""
        plan = self.plan
        assert plan is not None
        line = (
            f"plan: {plan.trials} trials of each of {len(self.arms)} arms with about "
            f"{plan.steps} optimizer steps ({duration(plan.seconds(plan.steps))}) each, "
            f"{self.work.at_a_time} at a time; the best {plan.finalists} of each arm again with "
            f"{len(plan.seeds)} further seeds; until {duration(plan.until)}, then the confirmation "
            f"until {duration(plan.budget)}"
        )
        if plan.steps < plan.preset_steps:
            minutes = plan.comfortable_minutes(len(self.arms), self.work.at_a_time)
            line += (
                f". The budget is short: the preset's trainings have {plan.preset_steps} steps, "
                f"for which BUDGET={minutes}m would do. Shorter ones favour what learns fast"
            )
        return line

    # Trainings.

    def _run(self, jobs: Iterator[tuple[Job, Arm, int, int]]) -> Iterator[Advice]:
        """Run trainings; yield the advice when one has ended."""
        started: dict[Path, tuple[Arm, int, int]] = {}

        def next_job() -> Job | None:
            found = next(jobs, None)
            if found is None:
                return None
            job, arm, number, seed = found
            started[job.folder] = arm, number, seed
            return job

        for job, good in self.work.run(next_job):
            arm, number, seed = started.pop(job.folder)
            trials = self.trials[arm.name]
            index = next(i for i, trial in enumerate(trials) if trial.number == number)
            trials[index] = self.folders.with_result(arm, trials[index], seed)
            self.failures = 0 if good else self.failures + 1
            yield self._advice()
            self._check_place(arm, trials[index].error or "")
            if self.failures >= MOST_FAILURES:
                error = trials[index].error
                raise InputError(
                    f"{self.failures} trainings in a row failed; {job.folder}: {error}"
                )

    def _trials(self) -> Iterator[tuple[Job, Arm, int, int]]:
        """Yield the missing trials, arm by arm, so that an interruption leaves the arms equal."""
        plan = self.plan
        assert plan is not None
        for number in range(plan.trials):
            # A round that has begun is completed.
            begun = any(len(self.trials[arm.name]) > number for arm in self.arms[1:])
            if number >= 2 and not begun and not self._round_fits():
                return
            for arm in self.arms if number else self.arms[:1]:
                trial = self._trial(arm, number)
                if FIRST_SEED not in trial.results and self._fits(arm, trial):
                    yield self.folders.job(arm, trial, FIRST_SEED), arm, number, FIRST_SEED

    def _trial(self, arm: Arm, number: int) -> Trial:
        """Return a trial; make it if there is none yet."""
        trials = self.trials[arm.name]
        found = next((trial for trial in trials if trial.number == number), None)
        if found is None:
            plan = self.plan
            assert plan is not None
            known = self._with_first(arm)
            later = plan.trials - number - 1
            spent = sum(trial.parameters.get(LENGTH, 0) for trial in known)
            # What is left of the arm's steps, if later trials are as short as possible.
            longest = plan.trials * plan.steps - spent - later * plan.steps // 2
            found = self.samplers[arm.name].next(known, max(longest, plan.steps // 2))
            trials.append(found)
            self.folders.save(arm, found)
        return found

    def _repetitions(self) -> Iterator[tuple[Job, Arm, int, int]]:
        """Yield the trainings of the finalists with further seeds, seed by seed."""
        plan = self.plan
        assert plan is not None
        for seed in plan.seeds:
            for rank in range(plan.finalists):
                for arm in self.arms:
                    numbers = self.finalists[arm.name]
                    if rank >= len(numbers):
                        continue
                    trial = self._trial(arm, numbers[rank])
                    if seed in trial.results:
                        continue
                    if not self._fits(arm, trial):
                        # Not the next one either: the arms have the same number of repetitions.
                        return
                    yield self.folders.job(arm, trial, seed), arm, trial.number, seed

    # Time.

    def _seconds(self, arm: Arm, steps: float) -> float:
        """Estimate the time of a training, from those of the arm that are complete."""
        plan = self.plan
        assert plan is not None
        known = [one for trial in self.trials[arm.name] for one in trial.results.values()]
        if not known:
            return plan.seconds(steps)
        return plan.start_seconds + steps * fmean(one.seconds / one.steps for one in known)

    def _fits(self, arm: Arm, trial: Trial) -> bool:
        """Whether a training would end before the end of the phase."""
        plan = self.plan
        assert plan is not None
        steps = trial.parameters.get(LENGTH, plan.steps)
        return self.work.seconds + TIME_MARGIN * self._seconds(arm, steps) <= plan.until

    def _round_fits(self) -> bool:
        """Whether another trial of each arm leaves time for the finalists."""
        plan = self.plan
        assert plan is not None
        trainings = 1 + plan.finalists * len(plan.seeds)
        steps = plan.steps * TIME_MARGIN
        seconds = sum(trainings * self._seconds(arm, steps) for arm in self.arms)
        return self.work.seconds + seconds / self.work.at_a_time <= plan.until

    # Results.

    def _with_first(self, arm: Arm) -> list[Trial]:
        """Return the trials of an arm, beginning with the one that all arms share."""
        own = [*self.trials[arm.name]]
        if arm is self.arms[0]:
            return own
        shared = self.trials[self.arms[0].name][:1]
        only_first = [
            replace(one, results={s: r for s, r in one.results.items() if s == FIRST_SEED})
            for one in shared
        ]
        return [*only_first, *own]

    def _candidates(self, arm: Arm) -> list[Trial]:
        """Return the trials that can be chosen: as many in each arm."""
        common = min(
            max((t.number for t in self.trials[one.name] if t.results or t.error), default=0)
            for one in self.arms
        )
        return [
            trial
            for trial in self.trials[arm.name]
            if trial.number <= common
            and FIRST_SEED in trial.results
            and not trial.results[FIRST_SEED].at_chance
        ]

    def _best(self, arm: Arm) -> list[int]:
        """Return the numbers of the finalists of an arm, best first."""
        plan = self.plan
        assert plan is not None
        trials = sorted(self._candidates(arm), key=lambda one: _rank([one.results[FIRST_SEED]]))
        return [trial.number for trial in trials[: plan.finalists]]

    def _check_place(self, arm: Arm, error: str) -> None:
        """Refuse to tune what the model does not have: most of the trials would fail."""
        for key in arm.own.parameters:
            if re.search(rf"\b{re.escape(key.rpartition('.')[2])}=", error):
                off = value_at(self.arms[0].config, key)
                raise InputError(
                    f"{arm.name}: {error}; to leave {key} out of the tuning, start again with "
                    f'ARGS="--{key}={off}" and another NAME'
                )

    def _check_enough(self) -> None:
        for arm in self.arms:
            if not any(trial.results for trial in self.trials[arm.name]):
                failed = next((t.error for t in self.trials[arm.name] if t.error), None)
                if failed is not None:
                    raise InputError(f"all trials of {arm.name} failed: {failed}")
                raise InputError(
                    f"BUDGET={duration(self.work.budget)} has no time left for the trials of "
                    f"{arm.name}; start the same command with a larger BUDGET to continue"
                )

    def _advice(self, chosen: dict[str, tuple[int, str]] | None = None) -> Advice:
        """Return the advice with the trials so far."""
        tuning = []
        for arm in self.arms:
            number, preset = (chosen or {}).get(arm.name, (None, ""))
            runs = [one for trial in self.trials[arm.name] for one in trial.results.values()]
            tuning.append(
                ArmTuning(
                    arm.name,
                    self._with_first(arm),
                    FIRST_SEED,
                    self.finalists.get(arm.name, []),
                    number,
                    preset,
                    sum(one.steps for one in runs),
                    sum(one.seconds for one in runs),
                )
            )
        self.advice = replace(self.advice, tuning=tuning, seconds=self.work.seconds)
        return self.advice

    def _chosen(self) -> Advice:
        """Choose a trial of each arm, and write its preset."""
        chosen = {}
        for arm in self.arms:
            trials = [self._trial(arm, number) for number in self.finalists[arm.name]]
            if not trials:
                self.say(f"{arm.name}: never trained; all trials stayed at chance accuracy")
                continue
            # The seeds that all finalists of the arm have.
            common = set.intersection(*({*trial.results} - {FIRST_SEED} for trial in trials))
            seeds = sorted(common) or [FIRST_SEED]
            best = min(trials, key=lambda one: _rank([one.results[s] for s in seeds]))
            chosen[arm.name] = best.number, str(self._write_preset(arm, best, seeds))
            if common:
                first = fmean(trial.results[FIRST_SEED].accuracy for trial in trials)
                further = fmean(t.results[s].accuracy for t in trials for s in seeds)
                self.say(
                    f"{arm.name}: trial {best.number} of {len(self._with_first(arm))}; its "
                    f"finalists had {100 * first:.2f} % with the first seed and "
                    f"{100 * further:.2f} % with further seeds"
                )
        return self._advice(chosen)

    def _write_preset(self, arm: Arm, trial: Trial, seeds: list[int]) -> Path:
        asked = self.advice.question
        file = self.folder / "tuned" / f"{arm.name}.yaml"
        file.parent.mkdir(exist_ok=True)
        accuracy = fmean(trial.results[seed].accuracy for seed in seeds)
        comment = [
            f"make train TASK={asked.task} DATA={asked.data} REG={file}",
            f"Trial {trial.number} ({trial.origin}) of {len(self._with_first(arm))}, chosen on "
            f"validation data; seeds {', '.join(map(str, seeds))}: {100 * accuracy:.2f} %.",
        ]
        values = arm.settings(trial.parameters)
        partial = file.with_suffix(".partial")
        partial.write_text(preset_text(asked.task, arm.preset, asked.data, values, comment))
        partial.replace(file)
        return file


def _rank(results: list[Validated]) -> tuple[float, float]:
    """Return a sort key: higher accuracy first, then lower loss."""
    return -fmean(one.accuracy for one in results), fmean(one.loss for one in results)
