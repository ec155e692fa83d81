"""Runs of a study on other machines: on a Ray cluster or as a Slurm array.

Both need a shared file system: the project, its environment and the study's folder must have the
same paths on all machines.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from study.launch import Job, execute
from tasks.errors import InputError, first_line

# Number of retries of a run whose node died.
RETRIES = 3
# Seconds between polls of Slurm.
POLL = 2.0
# Time limit of a run in minutes.
SLURM_MINUTES = 240


def execute_in(job: Job, directory: str) -> bool:
    """Run a job on this machine, in a directory.

    The scheduler has chosen its GPUs; the paths of a job are relative to the directory.
    """
    with contextlib.chdir(directory):
        return execute(job)


class Ray:
    """Starts each run as a Ray task with its CPUs and GPUs, retried if its node dies.

    Args:
        options: Further arguments of `ray.init`. Without `address`, the cluster at RAY_ADDRESS is
            used, or else Ray is started on this machine.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, options: dict[str, str]) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise InputError("LAUNCHER=ray needs Ray: .venv/bin/pip install -e '.[ray]'") from error
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False, logging_level="error", **options)
            except (ConnectionError, RuntimeError, ValueError, TypeError) as error:
                reason = first_line(error)
                raise InputError(f"LAUNCHER=ray cannot reach the cluster: {reason}") from error
        self.at_a_time = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield each run when it has ended, successfully or not; if interrupted, cancel others."""
        import ray

        remote = ray.remote(execute_in)
        waiting: dict[Any, Job] = {}
        for job in jobs:
            placed = remote.options(
                num_cpus=job.threads, num_gpus=job.gpus, max_retries=RETRIES, name=job.name
            )
            waiting[placed.remote(job, str(Path.cwd()))] = job
        try:
            while waiting:
                (ended,), _ = ray.wait(list(waiting), num_returns=1)
                # After too many node failures the run counts as missing.
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(ended)
                yield waiting.pop(ended)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


class Slurm:
    """Starts runs as a Slurm array, through submitit.

    Args:
        folder: Folder of submitit's scripts and logs.
        at_a_time: Maximum number of parallel runs; `auto` sets no limit.
        options: Further parameters of submitit's executor, such as `slurm_partition`; `cluster`
            chooses the executor itself.

    Raises:
        InputError: submitit is not installed, Slurm is not available, or a parameter is unknown.
    """

    def __init__(self, folder: Path, at_a_time: str, options: dict[str, str]) -> None:
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise InputError(
                "LAUNCHER=slurm needs submitit: .venv/bin/pip install -e '.[slurm]'"
            ) from error
        options = dict(options)
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=options.pop("cluster", "slurm"))
        except RuntimeError as error:
            raise InputError(f"LAUNCHER=slurm: {error}") from error
        parameters: dict[str, Any] = {"timeout_min": SLURM_MINUTES}
        if at_a_time != "auto":
            parameters["slurm_array_parallelism"] = int(at_a_time)
        parameters |= {
            key: int(value) if value.isdecimal() else value for key, value in options.items()
        }
        try:
            self.executor.update_parameters(**parameters)
        except (TypeError, ValueError, NameError) as error:
            raise InputError(f"LAUNCHER=slurm: {error}") from error

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield each run when it has ended, successfully or not; if interrupted, cancel others."""
        if not jobs:
            return
        from submitit.helpers import as_completed

        self.executor.update_parameters(
            cpus_per_task=jobs[0].threads, gpus_per_node=jobs[0].gpus, name="regain"
        )
        directories = [str(Path.cwd())] * len(jobs)
        handles = self.executor.map_array(execute_in, list(jobs), directories)
        waiting = dict(zip(handles, jobs, strict=True))
        try:
            for handle in as_completed(handles, poll_frequency=POLL):
                yield waiting.pop(handle)
        finally:
            for handle in waiting:
                handle.cancel()
