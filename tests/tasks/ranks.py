"""The processes of `test_devices`: each is a rank in several runs, one after the other."""

import copy
import os
import socket
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy

from regain import Dropout, LayerDrop, Regularization, convert_sync_batchnorm
from regain.inference import moving_norms
from tasks import nlp, speech, vision
from tasks.base import ClassificationTask
from tasks.data import ClassificationData, Examples
from tasks.data.cache import cached
from tasks.errors import InputError
from tasks.nlp.data import TextSpec
from tasks.optimization import Optimization
from tasks.regularizers import BufferAverage
from tasks.run.devices import DDP
from tasks.speech.data import SpeechSpec
from tasks.speech.models import M5, LogMel, as_floats
from tasks.training import TrainingRegularization

CLASSES = ["a", "b", "c"]
# Four batches per epoch, of 13, 13, 12 and 12 examples: three or four examples on each of 4 ranks.
EXAMPLES, GLOBAL_BATCH, STEPS = 50, 16, 20
SGD = Optimization(optimizer="sgd", lr=0.05, schedule="constant")
# With larger steps the text models diverge, and rounding errors grow.
SLOWER = Optimization(optimizer="sgd", lr=0.005, schedule="constant")
# By name: the task, and options of its model.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vision": ("vision", {"arch": "cnn", "depth": 2, "width": 8}),
    "vision-resnet": ("vision", {"arch": "resnet", "depth": 9, "width": 4}),
    "speech": ("speech", {"arch": "tc_resnet", "width": 8}),
    "nlp": ("nlp", {"arch": "text_cnn", "width": 16, "optim": SLOWER}),
    "nlp-lstm": ("nlp", {"arch": "lstm", "width": 16, "optim": SLOWER}),
}
# In these models, many units are so close to zero that rounding changes the result of a ReLU
# between runs, except in double precision.
DOUBLE = {"speech": ("tc_resnet", "bc_resnet", "m5"), "nlp": ("text_cnn", "dan", "lstm")}
# Models with gradient checkpointing on several ranks, and without it on one.
CHECKPOINTED = ("vision-resnet", "speech")
UNSYNCHRONIZED = ("vision", "speech", "nlp")


class Losses(DummyLogger):
    """Stores the logged training losses."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def log_metrics(self, metrics: Any, step: int | None = None, **_: Any) -> None:
        if "train/loss" in metrics:
            self.losses.append(metrics["train/loss"])


def data_of(task: str, batch_size: int) -> ClassificationData:
    """Random examples, the same in all processes; clips and texts differ in length."""
    generator = torch.Generator().manual_seed(0)

    def whole(high: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    data: ClassificationData
    offsets = None
    if task == "vision":
        data = vision.Data(batch_size=batch_size, allow_flip=False)
        values = whole(256, EXAMPLES, 1, 9, 9).to(torch.uint8)
    else:
        low, high = (2000, 5000) if task == "speech" else (3, 12)
        lengths = whole(high, EXAMPLES, low=low)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        total = int(offsets[-1])
        if task == "speech":
            data = speech.Data(batch_size=batch_size, sample_rate=8000)
            values = (3000 * torch.randn(total, generator=generator)).to(torch.int16)
        else:
            data = nlp.Data(batch_size=batch_size)
            values = whole(40, total, low=2).to(torch.int32)
    labels = whole(3, EXAMPLES)
    data.classes = CLASSES
    for split, size in (("train", EXAMPLES), ("validation", 11), ("test", 11)):
        data.splits[split] = Examples(values, offsets, labels, torch.arange(size))
    return data


def task_of(data: ClassificationData, reg: Regularization, **options: Any) -> ClassificationTask:
    torch.manual_seed(0)
    options = {"optim": SGD} | options
    if isinstance(data, vision.Data):
        return vision.Task(data.spec(), reg=reg, **options)
    if isinstance(data, speech.Data):
        return speech.Task(SpeechSpec(CLASSES, 8000), reg=reg, **options)
    return nlp.Task(TextSpec(CLASSES, 40, 0, 1, [0], 20), reg=reg, **options)


def fit(
    task: ClassificationTask,
    data: ClassificationData,
    world: int,
    callbacks: list[Callback] | None = None,
    **options: Any,
) -> tuple[L.Trainer, Losses]:
    losses = Losses()
    options = {"max_steps": STEPS, "limit_val_batches": 0} | options
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=DDP if world > 1 else "auto",
        logger=losses,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir="fit",
        callbacks=callbacks,
        **options,
    )
    trainer.fit(task, datamodule=data)
    return trainer, losses


def curve(name: str, world: int, sync_bn: bool = True) -> dict[str, Any]:
    """Losses and weights of twenty steps with a global batch of 16."""
    kind, options = CASES[name]
    data = data_of(kind, GLOBAL_BATCH // world)
    # Penalties are not a mean over examples: they count once for any number of ranks.
    reg = Regularization(normalization="batch", sync_bn=sync_bn)
    training = TrainingRegularization(l2=1e-3)
    again = world > 1 and name in CHECKPOINTED
    task = task_of(data, reg, training=training, gradient_checkpointing=again, **options)
    first = copy.deepcopy(task.state_dict())
    _, losses = fit(task, data, world)
    return {"losses": losses.losses, "first": first, "state": task.state_dict()}


def gradients(task: str, arch: str, world: int) -> dict[str, Tensor]:
    """Gradients of the first batch in double precision, the mean over the ranks."""
    data = data_of(task, GLOBAL_BATCH // world)
    reg = Regularization(normalization="batch")
    model: Any = task_of(data, reg, arch=arch, width=8).double().train()
    if world > 1:
        convert_sync_batchnorm(model)
    for layer in model.modules():
        if isinstance(layer, LogMel):
            # It always computes in single precision.
            layer.float().register_forward_hook(lambda _, x, y: (y[0].double(), y[1]))
        elif isinstance(layer, M5):
            layer.register_forward_pre_hook(lambda _, x: (as_floats(x[0]).double(), *x[1:]))
    batch = next(iter(data.train_dataloader()))
    (cross_entropy(model(batch.inputs, batch.lengths), batch.labels) * batch.weight).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    for gradient in found.values() if world > 1 else ():
        distributed.all_reduce(gradient)
        gradient /= world
    return found


def own_statistics(rank: int) -> dict[str, Any]:
    """The running statistics of ranks that are not synchronized, before and after they are joined.

    The learning rate is 0, so that the batches of this rank can be replayed.
    """
    data = data_of("vision", 8)
    reg = Regularization(normalization="batch", sync_bn=False)
    still = Optimization(optimizer="sgd", lr=1e-20, schedule="constant")
    task = task_of(data, reg, depth=1, width=4, optim=still)
    replayed = copy.deepcopy(task).train()
    found: dict[str, Any] = {}

    def buffers(module: Any) -> list[tuple[Tensor, Tensor]]:
        norms = moving_norms(module)
        return [(n.running_mean.clone(), n.running_var.clone()) for n in norms]  # type: ignore[union-attr]

    class Look(Callback):
        def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            found["own"] = buffers(pl_module)

        def on_validation_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
            found["validated"] = buffers(module)

    class Keep(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                found["own early"] = buffers(module)
                trainer.save_checkpoint("early.ckpt")

    trainer, _ = fit(
        task, data, 2, [Keep(), Look()], max_steps=-1, max_epochs=1, limit_val_batches=1.0
    )
    found["joined"] = any(isinstance(c, BufferAverage) for c in trainer.callbacks)  # type: ignore[attr-defined]
    found["saved"] = torch.load("early.ckpt", weights_only=True)["state_dict"]
    for step, batch in zip(count(1), data.train_dataloader(), strict=False):
        replayed(batch.inputs)
        if step == 3:
            found["replayed early"] = buffers(replayed)
    return found


def masks(rank: int) -> dict[str, Any]:
    """Initial weights, and the first dropout masks of training."""
    data = data_of("vision", 8)
    task = task_of(data, Regularization(dropout=0.5), depth=1, width=4)
    found: dict[str, Any] = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
            found.setdefault("weights", copy.deepcopy(module.state_dict()))
            found.setdefault("masks", []).append(Dropout(0.5)(torch.ones(64)))

    fit(task, data, 2, [Look()], max_steps=2)
    return found | {"last": task.state_dict()}


def skipped(rank: int) -> dict[str, Any]:
    """The layers that each step used under layer drop; the layers contain batch norms."""
    data = data_of("vision", 8)
    reg = Regularization(normalization="batch", layer_drop=0.5)
    task = task_of(data, reg, arch="resnet", depth=18, width=4, gradient_checkpointing=True)
    steps: list[list[int]] = []
    layers = [m for m in task.modules() if isinstance(m, LayerDrop)]
    for index, layer in enumerate(layers):
        layer.layer.register_forward_pre_hook(lambda *_, index=index: steps[-1].append(index))

    class Look(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            steps.append([])

    fit(task, data, 2, [Look()], max_steps=6)
    return {"steps": steps, "state": task.state_dict()}


def bad_loss(rank: int) -> dict[str, Any]:
    """The error of each rank after one of them had a NaN loss."""
    data = data_of("vision", 8)
    task = task_of(data, Regularization(), depth=1, width=4)
    calls = count()
    # Before the hook of the task, and on one rank only.
    task.penalty = lambda: float("nan") if next(calls) == 2 and rank == 1 else 0.0  # type: ignore[method-assign]
    try:
        fit(task, data, 2)
    except InputError as error:
        return {"error": str(error)}
    return {"error": ""}


def sharpness(rank: int) -> dict[str, Any]:
    """The batches of three steps, and the weights before and after them."""
    data = data_of("vision", 8)
    task = task_of(
        data,
        Regularization(normalization="group"),
        training=TrainingRegularization(sam=0.3),
        depth=1,
        width=4,
    )
    before, batches = copy.deepcopy(task), []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            batches.append(batch)

    fit(task, data, 2, [Look()], max_steps=3)
    rows = [(batch.inputs, batch.labels, batch.weight) for batch in batches]
    return {"before": before.state_dict(), "batches": rows, "state": task.state_dict()}


# Runs with two ranks, in addition to those with synchronization.
PAIRED: dict[str, Callable[[int], dict[str, Any]]] = {
    "own statistics": own_statistics,
    "masks": masks,
    "skipped": skipped,
    "bad loss": bad_loss,
    "sharpness": sharpness,
}


class Ranks:
    """Connects this process to the other ranks, as torchrun and Lightning do."""

    def __init__(self, rank: int, world: int, root: Path) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        fixed = {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "test"}
        self.environment = {name: str(value) for name, value in names.items()} | fixed
        self.options: Any = {"rank": rank, "world_size": world, "init_method": f"file://{root}"}

    def __enter__(self) -> None:
        os.environ.update(self.environment)
        distributed.init_process_group("gloo", **self.options)

    def __exit__(self, *_: Any) -> None:
        distributed.destroy_process_group()
        for name in self.environment:
            os.environ.pop(name)


def work(number: int, folder: str) -> None:
    """Run all cases in one of four processes, and save the results to files."""
    torch.set_num_threads(1)
    root = Path(folder)
    os.chdir(root)

    def keep(name: str, rank: int, found: dict[str, Any]) -> None:
        torch.save(found, root / f"{name} {rank}.pt")

    for turn, name in enumerate(CASES):
        if turn % 4 == number:
            keep(f"{name} of 1", 0, curve(name, world=1))
    doubles = [(task, arch) for task, archs in DOUBLE.items() for arch in archs]
    if number == 3:
        for task, arch in doubles:
            keep(f"{arch} gradients of 1", 0, gradients(task, arch, world=1))
    pair, rank = divmod(number, 2)
    with Ranks(rank, 2, root / f"pair{pair}"):
        if pair == 0:
            for name in CASES:
                keep(f"{name} of 2", rank, curve(name, world=2))
        else:
            for name in UNSYNCHRONIZED:
                keep(f"{name} unsynchronized", rank, curve(name, world=2, sync_bn=False))
            for task, arch in doubles:
                keep(f"{arch} gradients of 2", rank, gradients(task, arch, world=2))
            for name, run in PAIRED.items():
                keep(name, rank, run(rank))
    with Ranks(number, 4, root / "all"):
        for name in CASES:
            keep(f"{name} of 4", number, curve(name, world=4))


def build(number: int, folder: str) -> None:
    """Request a cached file at the same time as others; the first builder is killed."""
    root = Path(folder)
    # Wait for all processes.
    with socket.create_connection(("127.0.0.1", int((root / "port").read_text()))) as line:
        line.recv(1)

    def make() -> dict[str, Any]:
        with (root / "builders").open("a") as log:
            log.write(f"{number}\n")
        if len((root / "builders").read_text().split()) == 1:
            os._exit(9)
        return {"builder": number}

    loaded = cached(root / "cache" / "file.pt", make)
    (root / f"{number}.txt").write_text(str(loaded["builder"]))
