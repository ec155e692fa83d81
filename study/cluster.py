"""Runs of a study on other machines: on a Ray cluster, or as a Slurm array.

Both want the project, its environment and the study's folder at the same paths on all machines, as
a shared file system has them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from study.launch import Job, execute
from tasks.errors import InputError, first_line

# How often a run is tried again whose node has died.
RETRIES = 3
# Seconds between two looks at the jobs of Slurm.
POLL = 2.0
# Minutes that Slurm gives a run.
SLURM_MINUTES = 240


def carried_out(job: Job, directory: str) -> bool:
    """Carry out a run on the machine that this is called on.

    The scheduler has chosen its GPUs; the paths of a run are relative to the study's directory.
    """
    with contextlib.chdir(directory):
        return execute(job)


class Ray:
    """A run is a Ray task with its CPUs and GPUs, tried again when its node dies.

    Args:
        options: Further arguments of `ray.init`; without an `address`, RAY_ADDRESS says where the
            cluster is, and if it does not, Ray is started here.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
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
                raise InputError(f"LAUNCHER=ray finds no cluster: {reason}") from error
        self.at_a_time = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield each run when it has ended, well or not; on an interruption, cancel the others."""
        import ray

        remote = ray.remote(carried_out)
        waiting: dict[Any, Job] = {}
        for job in jobs:
            placed = remote.options(
                num_cpus=job.threads, num_gpus=job.gpus, max_retries=RETRIES, name=job.name
            )
            waiting[placed.remote(job, str(Path.cwd()))] = job
        try:
            while waiting:
                (ended,), _ = ray.wait(list(waiting), num_returns=1)
                # A node that died too often: the run stands as missing.
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(ended)
                yield waiting.pop(ended)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


class Slurm:
    """Runs as a Slurm array, through submitit.

    Args:
        folder: Where submitit keeps its scripts and logs.
        at_a_time: Most runs at the same time; `auto` leaves it to Slurm.
        options: Further parameters of submitit's executor, such as `slurm_partition`; `cluster`
            chooses the executor itself.

    Raises:
        InputError: submitit is not installed, there is no Slurm, or it has no such parameter.
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
        """Yield each run when it has ended, well or not; on an interruption, cancel the others."""
        if not jobs:
            return
        from submitit.helpers import as_completed

        self.executor.update_parameters(
            cpus_per_task=jobs[0].threads, gpus_per_node=jobs[0].gpus, name="regain"
        )
        directories = [str(Path.cwd())] * len(jobs)
        handles = self.executor.map_array(carried_out, list(jobs), directories)
        waiting = dict(zip(handles, jobs, strict=True))
        try:
            for handle in as_completed(handles, poll_frequency=POLL):
                yield waiting.pop(handle)
        finally:
            for handle in waiting:
                handle.cancel()
