"""Several devices: ranks over gloo compute the same as one process with the whole batch."""

import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from ranks import CASES, DOUBLE, STEPS, UNSYNCHRONIZED

from regain import Regularization
from tasks.data import Batches
from tasks.errors import InputError
from tasks.run.checkpoints import Stopped
from tasks.run.devices import (
    DDP,
    RanksEnd,
    check_precision,
    check_sharding,
    destroy_process_group,
    device_counts,
    launch_id,
    seed_rank,
    strategy_of,
)
from tasks.training import TrainingRegularization

Found = Callable[..., Any]
# A process that is forked from one with all imports starts fast.
multiprocessing.set_forkserver_preload(["ranks", "tasks.vision", "tasks.speech", "tasks.nlp"])


def run_processes(
    target: Callable[..., None], count: int, folder: Path, seconds: float
) -> list[int]:
    """Run processes at the same time, and return their exit codes; -1 for one that hangs."""
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=target, args=(n, str(folder))) for n in range(count)]
    try:
        for process in processes:
            process.start()
        end = time.monotonic() + seconds
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        return [process.exitcode if process.exitcode is not None else -1 for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Results of a rank in a run of four processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert run_processes(ranks.work, 4, folder, 240) == [0] * 4

    def load(name: str, rank: int = 0) -> Any:
        return torch.load(folder / f"{name} {rank}.pt", weights_only=False)

    return load


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference between two state dicts."""
    assert one.keys() == other.keys()
    pairs = ((value.double(), other[name].double()) for name, value in one.items())
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("ranks_", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_ranks_train_as_one_process_does(name: str, ranks_: int, found: Found) -> None:
    alone = found(f"{name} of 1")
    assert len(alone["losses"]) == STEPS
    # The weights changed noticeably.
    assert far(alone["state"], alone["first"]) > 0.03
    for rank in range(ranks_):
        together = found(f"{name} of {ranks_}", rank)
        assert together["losses"] == pytest.approx(alone["losses"], abs=1e-5, rel=0)
        assert far(together["state"], alone["state"]) < 1e-5


@pytest.mark.parametrize("arch", [arch for archs in DOUBLE.values() for arch in archs])
def test_gradients_of_masked_batches_are_exact(arch: str, found: Found) -> None:
    alone, together = (found(f"{arch} gradients of {count}") for count in (1, 2))
    assert far(together, alone) < 1e-11
    assert all(gradient.any() for gradient in alone.values())


@pytest.mark.parametrize("name", UNSYNCHRONIZED)
def test_without_synchronization_ranks_train_differently(name: str, found: Found) -> None:
    alone, separate = found(f"{name} of 1"), found(f"{name} unsynchronized")
    assert far(separate["state"], alone["state"]) > 1e-2
    gaps = [abs(a - b) for a, b in zip(separate["losses"], alone["losses"], strict=True)]
    assert max(gaps) > 1e-2


def test_running_statistics_of_all_ranks_are_averaged_before_use(found: Found) -> None:
    one, two = (found("own statistics", rank) for rank in range(2))
    for rank in (one, two):
        assert rank["joined"]
        # Statistics of its own batches, from the first one on.
        for (mean, variance), (own_mean, own_variance) in zip(
            rank["replayed early"], rank["own early"], strict=True
        ):
            torch.testing.assert_close(own_mean, mean)
            torch.testing.assert_close(own_variance, variance)
    norms = zip(one["own"], two["own"], one["validated"], two["validated"], strict=True)
    for (mean1, var1), (mean2, var2), after1, after2 in norms:
        assert not torch.allclose(mean1, mean2, rtol=1e-3)
        mean = (mean1 + mean2) / 2
        variance = (var1 + var2) / 2 + ((mean1 - mean2) / 2).square()
        for found_mean, found_variance in (after1, after2):
            torch.testing.assert_close(found_mean, mean)
            torch.testing.assert_close(found_variance, variance)
    saved = [value for name, value in one["saved"].items() if name.endswith("running_mean")]
    for value, (mean1, _), (mean2, _) in zip(
        saved, one["own early"], two["own early"], strict=True
    ):
        torch.testing.assert_close(value, (mean1 + mean2) / 2)


def test_ranks_start_with_the_same_weights_and_draw_different_masks(found: Found) -> None:
    one, two = (found("masks", rank) for rank in range(2))
    assert far(one["weights"], two["weights"]) == 0.0
    for mask, other in zip(one["masks"], two["masks"], strict=True):
        assert 0.3 < (mask != other).float().mean() < 0.7
    assert not torch.equal(one["masks"][0], one["masks"][1])
    # The weights stay equal.
    assert far(one["last"], two["last"]) == 0.0
    assert far(one["last"], one["weights"]) > 0.0


def test_masks_of_a_rank_are_not_those_of_the_next_seed() -> None:
    torch.manual_seed(8)
    neighbour = torch.rand(4)
    torch.manual_seed(7)
    seed_rank(1)
    own = torch.rand(4)
    torch.manual_seed(7)
    seed_rank(0)
    first = torch.rand(4)
    torch.manual_seed(7)
    assert torch.equal(first, torch.rand(4))
    assert not torch.equal(own, neighbour)
    assert not torch.equal(own, first)


def test_ranks_skip_the_same_layers(found: Found) -> None:
    one, two = (found("skipped", rank) for rank in range(2))
    assert one["steps"] == two["steps"]
    assert len({tuple(step) for step in one["steps"]}) > 1
    assert far(one["state"], two["state"]) == 0.0


def test_a_bad_loss_of_one_rank_ends_all_of_them(found: Found) -> None:
    for rank in range(2):
        assert "the loss of step 2 is NaN" in found("bad loss", rank)["error"]


def test_each_rank_perturbs_by_its_own_gradient_and_weights_stay_equal(found: Found) -> None:
    one, two = (found("sharpness", rank) for rank in range(2))
    assert far(one["state"], two["state"]) == 0.0
    task = ranks.task_of(
        ranks.data_of("vision", 8), Regularization(normalization="group"), depth=1, width=4
    )
    task.load_state_dict(one["before"])
    optimizer = torch.optim.SGD(task.parameters(), 0.05, 0.9, nesterov=True)

    def gradients(inputs: torch.Tensor, labels: torch.Tensor, weight: float) -> list[torch.Tensor]:
        loss = torch.nn.functional.cross_entropy(task(inputs), labels) * weight
        return [*torch.autograd.grad(loss, [*task.parameters()])]

    for step in range(3):
        optimizer.zero_grad()
        weights = [p.detach().clone() for p in task.parameters()]
        for rank in (one, two):
            batch = rank["batches"][step]
            first = gradients(*batch)
            norm = torch.cat([g.flatten() for g in first]).norm()
            for p, w, g in zip(task.parameters(), weights, first, strict=True):
                p.data = w + 0.3 * g / norm
            for p, w, g in zip(task.parameters(), weights, gradients(*batch), strict=True):
                p.data = w
                p.grad = g / 2 if p.grad is None else p.grad + g / 2
        optimizer.step()
    assert far(one["state"], one["before"]) > 0.01
    assert far(task.state_dict(), one["state"]) < 1e-5


def test_per_rank_batches_are_weighted_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = ranks.data_of("vision", 8).splits["train"]
    shares = []
    for rank in range(3):
        monkeypatch.setattr("tasks.data.batches._rank_and_world", lambda rank=rank: (rank, 3))
        shares.append(list(Batches(examples, 5, seed=0)))
    monkeypatch.setattr("tasks.data.batches._rank_and_world", lambda: (0, 1))
    whole = list(Batches(examples, 15, seed=0))
    # The global batch equals that of one rank with three times the batch size.
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.cat([part.indices for part in parts]).tolist() == batch.indices.tolist()
        value = batch.indices.double().square()
        joined = sum(part.weight * part.indices.double().square().mean() for part in parts) / 3
        torch.testing.assert_close(joined, value.mean())
        assert batch.weight == 1.0
    assert {len(share.indices) for part in shares for share in part} == {4, 5}


def test_one_process_builds_a_cached_file_while_the_others_wait(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=4) as server:
        (tmp_path / "port").write_text(str(server.getsockname()[1]))

        def start() -> None:
            lines = [server.accept()[0] for _ in range(4)]
            for line in lines:
                line.sendall(b"!")
                line.close()

        threading.Thread(target=start, daemon=True).start()
        codes = run_processes(ranks.build, 4, tmp_path, 120)
    builders = (tmp_path / "builders").read_text().split()
    # The first builder was killed, and the next one built the file for all.
    assert len(builders) == 2
    assert [number for number, code in enumerate(codes) if code == 9] == [int(builders[0])]
    results = {file.read_text() for file in tmp_path.glob("?.txt")}
    assert results == {builders[1]}
    assert len(list(tmp_path.glob("?.txt"))) == 3
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["file.pt"]


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "one",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
}
SLURM = {"SLURM_JOB_ID": "71", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "6", "SLURM_NNODES": "2"}


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "expected"),
    [
        ({}, "", "", ("1", 1)),
        ({}, "4", "", ("4", 1)),
        ({}, "auto", "1", ("auto", 1)),
        (TORCHRUN, "", "", ("2", 2)),
        (TORCHRUN, "2", "2", ("2", 2)),
        (SLURM, "", "", ("3", 2)),
        (SLURM | {"SLURM_NTASKS_PER_NODE": "3"}, "", "", ("3", 2)),
        # An interactive Slurm shell is not a Slurm run.
        (SLURM | {"SLURM_JOB_NAME": "bash"}, "", "", ("1", 1)),
        ({"MASTER_ADDR": "10.0.0.1"}, "4", "2", ("4", 2)),
    ],
)
def test_the_world_is_found_from_the_environment(
    environment: dict[str, str],
    devices: str,
    nodes: str,
    expected: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert device_counts(devices, nodes) == expected


def test_several_machines_need_a_launcher() -> None:
    with pytest.raises(InputError, match=r"NODES=2 needs a launcher; .* torchrun"):
        device_counts("4", "2")
    with pytest.raises(InputError, match="NODES=two is not a number of machines"):
        device_counts("4", "two")
    with pytest.raises(InputError, match="NODES=0 is not a number of machines"):
        device_counts("4", "0")


@pytest.mark.parametrize(
    ("strategy", "devices", "nodes", "gpus", "expected"),
    [
        ("auto", "1", 1, 0, "auto"),
        ("auto", "2", 1, 0, DDP),
        ("auto", "1", 2, 0, DDP),
        ("ddp", "4", 1, 0, DDP),
        ("auto", "auto", 1, 1, "auto"),
        ("auto", "-1", 1, 4, DDP),
        ("fsdp", "4", 1, 4, "fsdp"),
    ],
)
def test_several_devices_are_data_parallel(
    strategy: str,
    devices: str,
    nodes: int,
    gpus: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert strategy_of(strategy, devices, nodes) == expected


def test_all_processes_of_a_run_agree_on_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in (TORCHRUN | {"MASTER_PORT": str(store.port)}).items():
        monkeypatch.setenv(name, value)
    times = iter(["20260101-000000", "20260101-000001"])
    monkeypatch.setattr("tasks.run.devices.time.strftime", lambda _: next(times))
    assert [launch_id(), launch_id()] == ["20260101-000000"] * 2


def test_a_requeued_slurm_job_keeps_its_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (SLURM | {"SLURM_STEP_ID": "2"}).items():
        monkeypatch.setenv(name, value)
    assert SLURMEnvironment.detect()
    assert launch_id() == launch_id() == "slurm-71-2"


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[..., str]:
    """The log of a run with this number of devices about its batches."""

    def log_of(reg: Regularization, batch: int, devices: int = 1, accumulate: int = 1) -> str:
        task = ranks.task_of(ranks.data_of("vision", batch), reg, depth=1, width=4)

        class Stub:
            world_size = devices
            accumulate_grad_batches = accumulate

        caplog.clear()
        with caplog.at_level("INFO", "tasks"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(task), "trainer", Stub)
            task.log_batch_sizes(batch)
        return caplog.text

    return log_of


def test_the_log_has_the_effective_batch_size_and_that_of_batch_norm(messages: Found) -> None:
    synchronized, separate = (
        Regularization(normalization="batch", sync_bn=sync) for sync in ("auto", False)
    )
    text = messages(synchronized, 8, devices=4)
    assert "effective batch size 32: 8 on each of 4 devices" in text
    assert "model.optim.lr=0.05 is not scaled with it" in text
    assert "statistics of batch norm: 32 examples" in text
    assert "WARNING" not in text
    text = messages(separate, 8, devices=4)
    assert re.search(r"WARNING.*statistics from 8 examples.*set model\.reg\.sync_bn=true", text)
    # Accumulation adds gradients, but not statistics.
    text = messages(synchronized, 16, accumulate=4)
    assert "effective batch size 64: 16 on each of 1 devices, 4 batches a step" in text
    assert "statistics of batch norm: 16 examples" in text
    assert "WARNING" not in text
    text = messages(synchronized, 15)
    assert "WARNING" in text
    assert "sync" not in text
    assert "WARNING" not in messages(Regularization(), 2, devices=2)


def test_fsdp_without_a_gpu_is_one_line(
    train: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train("--task", "vision", "--devices", "2", "--strategy", "fsdp")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    assert "fsdp" in line
    assert "GPU" in line


@pytest.mark.parametrize(
    "name", ["weight_decay", "l1", "l2", "max_norm", "adaptive_clip", "sam", "ema"]
)
def test_options_that_need_full_weights_are_refused_with_fsdp(name: str) -> None:
    none = TrainingRegularization()
    training = none if name == "ema" else TrainingRegularization(**{name: 0.5})
    with pytest.raises(InputError, match=rf"model\.\w+\.{name}=0\.5 .* STRATEGY=fsdp"):
        check_sharding(Regularization(), training, 0.5 if name == "ema" else 0.0)
    with pytest.raises(InputError, match=r"weight_standardization=True .* STRATEGY=fsdp"):
        check_sharding(Regularization(weight_standardization=True), none, 0.0)
    check_sharding(Regularization(normalization="batch", dropout=0.5), none, 0.0)


def test_sam_is_refused_with_float16() -> None:
    training = TrainingRegularization(sam=0.05)
    with pytest.raises(
        InputError, match=r"model\.training\.sam=0\.05 .* use trainer\.precision=bf16"
    ):
        check_precision(training, "16-mixed")
    check_precision(training, "bf16-mixed")
    check_precision(training, "32-true")
    check_precision(TrainingRegularization(), "16-mixed")


def test_torchrun_makes_one_run(small_data: Callable[..., Path], caches: Path) -> None:
    data = small_data("nlp", train=61, test=23)
    arguments = [
        *("--task", "nlp", "--data", str(data), f"--data.cache_dir={caches}"),
        *("--trainer.max_epochs=1", "--model.width=16", "--data.vocabulary=100"),
        *("--data.batch_size=8", "--trainer.accelerator=cpu", "--reg", "batchnorm"),
    ]
    # Functions are called at exit in the opposite order of their registration.
    Path("begin.py").write_text(
        "import atexit, torch\n"
        "connected = torch.distributed.is_initialized\n"
        # One string with its line end is written at once: both processes share the pipe.
        "atexit.register(lambda: print(f'connected: {connected()}\\n', end=''))\n"
        "from tasks.train import main\n"
        "main()\n"
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launch, "begin.py", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = Path("runs/nlp-small-batchnorm-s0").iterdir()
    assert (folder / "best.ckpt").exists()
    assert (folder / "metrics.json").exists()
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    assert done.stdout.count("test accuracy") == 1
    assert done.stderr.count("effective batch size 16: 8 on each of 2 devices") == 1
    assert "UserWarning" not in done.stderr
    # With an open group, a process may abort after its exit code is decided.
    assert done.stdout.count("connected: False") == 2


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Callable[[], None], list[Any]]]:
    """Function that opens a process group of this process alone, and what is called at exit."""
    at_exit: list[Any] = []
    monkeypatch.setattr("tasks.run.devices.atexit.register", at_exit.append)
    monkeypatch.setattr("tasks.run.devices.atexit.unregister", at_exit.remove)

    def open_group() -> None:
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    yield open_group, at_exit
    destroy_process_group()


@pytest.mark.parametrize(
    ("error", "leaves"), [(None, True), (Stopped, True), (KeyboardInterrupt, False)]
)
def test_a_group_is_left_at_exit_unless_the_ranks_ended_apart(
    error: type[BaseException] | None,
    leaves: bool,
    group: tuple[Callable[[], None], list[Any]],
) -> None:
    open_group, at_exit = group
    with suppress(Stopped, KeyboardInterrupt), RanksEnd(Stopped):
        open_group()
        if error is not None:
            raise error
    # A second run in this process uses the same group.
    assert torch.distributed.is_initialized()
    assert at_exit == [destroy_process_group] * leaves


def test_a_group_of_the_caller_stays_open(group: tuple[Callable[[], None], list[Any]]) -> None:
    open_group, at_exit = group
    open_group()
    with RanksEnd(Stopped):
        pass
    assert at_exit == []
