"""How many processes a run has, what they must know of each other, and the memory of each."""

import ctypes
import os
import sys
import time
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import distributed

from modules import Regularization
from tasks.errors import InputError

# Each rank keeps the running statistics of its own batches: by default those of the first rank
# would overwrite the others' before each step. They are averaged before they are used.
DDP = "ddp_own_buffers"
if DDP not in StrategyRegistry:
    StrategyRegistry.register(
        DDP, DDPStrategy, "Data parallel; running statistics stay apart", broadcast_buffers=False
    )


# Of malloc.h: the size from which a block is mapped by itself, and how much free memory at the end
# of the heap goes back to the system.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
# With these, users have chosen themselves.
MALLOC_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees, for what it needs next.

    A training step on the CPU needs the same large tensors as the one before. By default the C
    library maps each of them anew, and the system fills it with zeros page by page, which takes a
    convolutional network up to half of its time. Without the GNU C library nothing changes.
    """
    if sys.platform != "linux" or any(name in os.environ for name in MALLOC_SETTINGS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def world(devices: str, nodes: str) -> tuple[str, int]:
    """Say how many devices each machine has, and how many machines there are.

    What is not given is that of torchrun or Slurm, where one of them started this process, and
    one otherwise.

    Args:
        devices: Number, list or `auto`, as Lightning takes them; empty if not given.
        nodes: Number of machines; empty if not given.

    Raises:
        InputError: `nodes` is no number, or there are several machines and nothing to join them.
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
            f"NODES={nodes}: nothing joins the machines; start the run on each of them with "
            f"torchrun --nnodes={nodes} ... -m tasks.train, or with srun"
        )
    else:
        found = "1", 1
    return devices or found[0], int(nodes or found[1])


def strategy_of(strategy: str, devices: str, nodes: int) -> str:
    """Name the strategy of Lightning: for several processes, `auto` is data parallel."""
    several = nodes > 1 or devices != "1"
    if devices in ("auto", "-1"):
        several = nodes > 1 or torch.cuda.device_count() > 1
    return DDP if several and strategy in ("auto", "ddp") else strategy


# Options that look at whole weights.
SHARDED = "weight_decay l1 l2 max_norm sam weight_standardization adaptive_clip".split()


def refuse_sharded(reg: Regularization, ema: float) -> None:
    """Refuse what looks at whole weights, where each device holds a piece of them.

    Raises:
        InputError: The regularization or the average is such.
    """
    found = {name: getattr(reg, name) for name in SHARDED}
    for name, value in (
        {f"reg.{name}": value for name, value in found.items()} | {"optim.ema": ema}
    ).items():
        if value:
            raise InputError(
                f"model.{name}={value} looks at whole weights, which STRATEGY=fsdp cuts into "
                "pieces; leave it off, or use STRATEGY=ddp"
            )


def refuse_scaled(reg: Regularization, precision: str) -> None:
    """Refuse what takes gradients of its own, where small ones are zero if the loss is not scaled.

    Raises:
        InputError: The regularization is such, and the precision has only 5 bits of exponent.
    """
    if reg.sam and precision == "16-mixed":
        raise InputError(
            f"model.reg.sam={reg.sam} takes gradients of a loss that is not scaled, many of which "
            "are zero under trainer.precision=16-mixed; use trainer.precision=bf16-mixed"
        )


def started() -> str | None:
    """Name the start of a run that torchrun or Slurm has started; None if neither has.

    It is the same text in all processes, on all machines: the time, which torchrun's processes take
    from the first of them that asks; on Slurm it is the number of the job, which stays the same
    when the job is put back into the queue.
    """
    if distributed.is_torchelastic_launched():
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # The agent of the first machine keeps it, for the processes of a restart too.
        c10d: Any = distributed
        store = c10d.TCPStore(address, port, is_master=False)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        agreed: bytes = store.compare_set("regain/started", "", stamp)
        return agreed.decode()
    job = SLURMEnvironment.job_id() if SLURMEnvironment.detect() else None
    return None if job is None else f"slurm-{job}-{os.environ.get('SLURM_STEP_ID', '0')}"


def is_first() -> bool:
    """Whether this process is the one that speaks for all; known before they are connected."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


def draw_own_masks(rank: int) -> None:
    """Let each rank draw dropout masks and augmentations of its own from here on.

    All ranks are seeded alike, so that they begin with equal weights.
    """
    if rank:
        # Generators on the CPU take 32 bits of a seed; the factor keeps the ranks of one seed away
        # from the neighbouring seeds.
        torch.manual_seed((torch.initial_seed() + 1_000_003 * rank) % 2**32)


def on_all_ranks(sums: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Add up sums over all ranks, and find the smallest number that is not negative; -1 if none."""
    if not distributed.is_available() or not distributed.is_initialized():
        return sums, first
    sums, never = sums.clone(), torch.iinfo(first.dtype).max
    first = torch.where(first < 0, never, first)
    distributed.all_reduce(sums)
    distributed.all_reduce(first, distributed.ReduceOp.MIN)
    return sums, torch.where(first == never, -1, first)
