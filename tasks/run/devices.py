"""Devices and processes of a run: launch, strategy, random seeds and reductions."""

import atexit
import ctypes
import os
import sys
import time
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import distributed

from regain import Regularization
from tasks.errors import InputError
from tasks.training import TrainingRegularization

# By default, DDP copies the running statistics of the first rank to all ranks before each step.
# Here, each rank keeps those of its own batches, and they are averaged before use.
DDP = "ddp_own_buffers"
if DDP not in StrategyRegistry:
    StrategyRegistry.register(
        DDP, DDPStrategy, "DDP with separate running statistics per rank", broadcast_buffers=False
    )


# From malloc.h: the block size from which malloc uses mmap, and the amount of free memory at the
# top of the heap from which malloc returns it to the system.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
# Environment variables with which the user sets these values.
MALLOC_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Make malloc reuse freed memory instead of returning it to the system.

    Each training step on the CPU allocates tensors of the same sizes. By default, the C library
    maps new memory for each large tensor, and the system zeroes it page by page, which takes up to
    half of the time of a convolutional network. Without the GNU C library, this does nothing.
    """
    if sys.platform != "linux" or any(name in os.environ for name in MALLOC_SETTINGS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def device_counts(devices: str, nodes: str) -> tuple[str, int]:
    """Return the number of devices per machine and the number of machines.

    The defaults come from torchrun or Slurm, if one of them started this process; otherwise both
    are one.

    Args:
        devices: Number, list or `auto`, as for Lightning; empty for the default.
        nodes: Number of machines; empty for the default.

    Raises:
        InputError: `nodes` is not a number of machines, or several machines were requested without
            a launcher.
    """
    if nodes and not (nodes.isdecimal() and int(nodes)):
        raise InputError(f"NODES={nodes} is not a number of machines: 1, 2, ...")
    if distributed.is_torchelastic_launched():
        found = os.environ["LOCAL_WORLD_SIZE"], int(os.environ["GROUP_WORLD_SIZE"])
    elif SLURMEnvironment.detect():
        found_nodes = int(os.environ.get("SLURM_NNODES", "1"))
        tasks = int(os.environ["SLURM_NTASKS"]) // found_nodes
        found = os.environ.get("SLURM_NTASKS_PER_NODE", str(tasks)), found_nodes
    elif nodes and int(nodes) > 1 and "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"NODES={nodes} needs a launcher; start the run on each machine with "
            f"torchrun --nnodes={nodes} ... -m tasks.train, or with srun"
        )
    else:
        found = "1", 1
    return devices or found[0], int(nodes or found[1])


def strategy_of(strategy: str, devices: str, nodes: int) -> str:
    """Return the name of the Lightning strategy; with several processes, `auto` is DDP."""
    several = nodes > 1 or devices != "1"
    if devices in ("auto", "-1"):
        several = nodes > 1 or torch.cuda.device_count() > 1
    return DDP if several and strategy in ("auto", "ddp") else strategy


# Options that need the full weights on each device.
WHOLE_WEIGHTS = "weight_decay l1 l2 max_norm sam adaptive_clip".split()


def check_sharding(reg: Regularization, training: TrainingRegularization, ema: float) -> None:
    """Check that no option needs the full weights, since FSDP shards them over the devices.

    Raises:
        InputError: An option needs the full weights.
    """
    found = {f"training.{name}": getattr(training, name) for name in WHOLE_WEIGHTS}
    found |= {"reg.weight_standardization": reg.weight_standardization, "optim.ema": ema}
    for name, value in found.items():
        if value:
            raise InputError(
                f"model.{name}={value} needs the full weights, but STRATEGY=fsdp shards them; "
                "turn it off, or use STRATEGY=ddp"
            )


def check_precision(training: TrainingRegularization, precision: str) -> None:
    """Check that no option computes gradients of the unscaled loss in half precision.

    Small gradients underflow there: float16 has only 5 exponent bits.

    Raises:
        InputError: SAM is combined with `16-mixed`.
    """
    if training.sam and precision == "16-mixed":
        raise InputError(
            f"model.training.sam={training.sam} computes gradients of an unscaled loss, many of "
            "which underflow under trainer.precision=16-mixed; use trainer.precision=bf16-mixed"
        )


def launch_id() -> str | None:
    """Return an id of this launch by torchrun or Slurm; None if neither started the process.

    The id is the same in all processes on all machines. With torchrun it is the start time of the
    first process that calls this function; with Slurm it is the job id, which does not change when
    the job is requeued.
    """
    if distributed.is_torchelastic_launched():
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # The torchrun agent on the first machine hosts the store. It survives restarts.
        c10d: Any = distributed
        store = c10d.TCPStore(address, port, is_master=False)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        agreed: bytes = store.compare_set("regain/started", "", stamp)
        return agreed.decode()
    job = SLURMEnvironment.job_id() if SLURMEnvironment.detect() else None
    return None if job is None else f"slurm-{job}-{os.environ.get('SLURM_STEP_ID', '0')}"


def is_first_rank() -> bool:
    """Whether this is the first rank; works before the process group is initialized."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


class RanksEnd:
    """Context in which a run starts ranks; they end together.

    At the end of the context, all ranks wait for the first one, which writes the results. The
    process group is destroyed when the process exits: threads of an open gloo group would abort it
    then. It cannot be destroyed earlier, since torchrun's store does not let a process open a
    second one. A group that was open before belongs to the caller, and stays open.

    Args:
        joint: Exception that all ranks raise together. After any other one, a rank waits for no
            other: they may be gone, or wait for this one.
    """

    def __init__(self, joint: type[BaseException]) -> None:
        self.joint = joint

    def __enter__(self) -> None:
        if not has_process_group():
            atexit.register(destroy_process_group)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind not in (None, self.joint):
            atexit.unregister(destroy_process_group)
        elif has_process_group():
            distributed.barrier()


def has_process_group() -> bool:
    """Whether this process is connected to other ranks."""
    return distributed.is_available() and distributed.is_initialized()


def destroy_process_group() -> None:
    """Disconnect this process from the other ranks, if it is connected."""
    if has_process_group():
        distributed.destroy_process_group()


def seed_rank(rank: int) -> None:
    """Give each rank its own seed, so that dropout masks and augmentations differ between ranks.

    Call it after the weights are initialized: for equal weights, all ranks start with one seed.
    """
    if rank:
        # CPU generators use 32 bits of the seed. The factor keeps these seeds distinct from small
        # seeds that other runs may use.
        torch.manual_seed((torch.initial_seed() + 1_000_003 * rank) % 2**32)


def reduce_over_ranks(sums: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduce two tensors over all ranks.

    Returns:
        The sum of `sums`, and the smallest non-negative `first`, or -1 if there is none.
    """
    if not has_process_group():
        return sums, first
    sums, never = sums.clone(), torch.iinfo(first.dtype).max
    first = torch.where(first < 0, never, first)
    distributed.all_reduce(sums)
    distributed.all_reduce(first, distributed.ReduceOp.MIN)
    return sums, torch.where(first == never, -1, first)
