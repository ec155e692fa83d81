"""airbench94's recipe (Jordan 2024, arXiv 2404.00498) as a plain script: accuracy over time.

    .venv/bin/python -m benchmarks.airbench --data ../shared/data/cifar10 --width 16 --epochs 10

Implemented from the paper for the CPU, in single precision or bfloat16. Batch and width are
arguments, since the original's 64 channels are meant for a large GPU. It prints a line per epoch
and writes the results as JSON. Training, validation and test images are those of
`make train TASK=vision`; the test images are read once, at the end.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.run.devices import keep_freed_memory
from tasks.vision.data import VisionData

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# As in the paper; the learning rate is for 1024 examples, before the momentum factor.
LR, MOMENTUM, DECAY, BIAS_FACTOR, SMOOTHING = 11.5, 0.85, 0.0153, 64.0, 0.2
WHITEN_BIAS_EPOCHS, SCALE, SHIFT, LOOKAHEAD = 3, 1 / 9, 2, 5


class Norm(nn.BatchNorm2d):
    """Batch norm without a learned scale, with fast running statistics."""

    def __init__(self, features: int) -> None:
        super().__init__(features, eps=1e-12, momentum=0.4)
        self.weight.requires_grad_(False)


class Group(nn.Module):
    """Convolution, pooling, norm, GELU; convolution, norm, GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = Norm(outputs), Norm(outputs)
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of half the height and width."""
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Net(nn.Module):
    """A whitening layer, three groups, a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.groups = nn.Sequential(
            Group(24, width), Group(width, 4 * width), Group(4 * width, 4 * width)
        )
        self.linear = nn.Linear(4 * width, 10, bias=False)

    def init_whitening(self, images: Tensor) -> None:
        """Set the first layer to the principal axes of 2 x 2 patches, with both signs."""
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        axes = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.data[:] = torch.cat((axes, -axes))
        self.whiten.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.groups(F.gelu(self.whiten(x)))
        return self.linear(F.max_pool2d(x, x.shape[2:]).flatten(1)) * SCALE


def orders(count: int, size: int, epochs: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield each epoch's batches: image indices, and flips that alternate between epochs."""
    flipped = torch.rand(count) < 0.5
    for _ in range(epochs):
        order = torch.randperm(count)
        yield [(index, flipped[index]) for index in order.split(size) if len(index) == size]
        flipped = ~flipped


def crop(padded: Tensor, index: Tensor, flipped: Tensor) -> Tensor:
    """Crop each image, and flip some."""
    views = padded[index].unfold(2, 32, 1).unfold(3, 32, 1)
    top, left = (torch.randint(2 * SHIFT + 1, (len(index),)) for _ in range(2))
    x = views[torch.arange(len(index)), :, top, left]
    return torch.where(flipped.view(-1, 1, 1, 1), x.flip(3), x)


def predict(net: nn.Module, images: Tensor) -> Tensor:
    """Average the logits of six views: flipped, and shifted by a pixel, as in the paper."""
    net.eval()
    wide = F.pad(images, (1,) * 4, mode="reflect")
    views = ((images, 0.5), (wide[:, :, :32, :32], 0.25), (wide[:, :, 2:, 2:], 0.25))
    with torch.no_grad():
        return sum(weight * 0.5 * (net(view) + net(view.flip(3))) for view, weight in views)


def main() -> None:
    """Train, evaluate and print the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--no_test", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    begin = time.perf_counter()
    torch.manual_seed(options.seed)
    data = VisionData(source=options.data, seed=options.seed)
    data.setup()
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (MEAN, STD))

    def split(name: str) -> tuple[Tensor, Tensor]:
        batch = data.splits[name].gather(torch.arange(len(data.splits[name])))
        return (batch.inputs.float() / 255 - mean) / std, batch.labels

    images, labels = split("train")
    net = Net(options.width).to(memory_format=torch.channels_last)
    net.init_whitening(images[:5000])
    kilostep = 1024 * (1 + 1 / (1 - MOMENTUM))
    lr = LR / kilostep * options.batch
    decay = DECAY * options.batch / kilostep
    biases = [p for name, p in net.groups.named_parameters() if "norm" in name and p.requires_grad]
    chosen = {id(p) for p in biases}
    others = [p for p in net.parameters() if p.requires_grad and id(p) not in chosen]
    groups = [
        {"params": biases, "lr": lr * BIAS_FACTOR, "weight_decay": decay / lr / BIAS_FACTOR},
        {"params": others, "lr": lr, "weight_decay": decay / lr},
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)
    steps = options.epochs * (len(images) // options.batch)
    peak = int(0.23 * steps)

    def factor(step: int) -> float:
        if step < peak:
            return 0.2 + 0.8 * step / peak
        return 1.0 - 0.93 * (step - peak) / (steps - peak)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    slow = {name: value.clone() for name, value in net.state_dict().items()}
    step, curve = 0, []
    padded = F.pad(images, (SHIFT,) * 4, mode="reflect")
    for epoch, parts in enumerate(orders(len(images), options.batch, options.epochs)):
        net.train()
        net.whiten.bias.requires_grad_(epoch < WHITEN_BIAS_EPOCHS)
        for index, flipped in parts:
            x = crop(padded, index, flipped).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
                logits = net(x)
            loss = F.cross_entropy(logits.float(), labels[index], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % LOOKAHEAD == 0:
                # The slow weights follow, then the fast ones restart from them (Zhang et al. 2019).
                follow = 0.95**LOOKAHEAD * (step / steps) ** 3
                look_ahead(net, slow, follow)
        passed = time.perf_counter() - begin
        curve.append([passed, accuracy(net, *split("validation"), options.bfloat16, views=False)])
        print(f"epoch {epoch + 1}/{options.epochs}  {passed:.0f} s  val {100 * curve[-1][1]:.2f} %")
    look_ahead(net, slow, 1.0)
    found = {
        "arguments": vars(options) | {"out": None},
        "curve": curve,
        "seconds": time.perf_counter() - begin,
        "validation": accuracy(net, *split("validation"), options.bfloat16),
        "threads": torch.get_num_threads(),
    }
    if not options.no_test:
        found["test"] = accuracy(net, *split("test"), options.bfloat16)
    print(json.dumps({key: value for key, value in found.items() if key != "curve"}))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def look_ahead(net: nn.Module, slow: dict[str, Tensor], keep: float) -> None:
    """Move the slow weights towards the fast ones, then copy them to the fast ones."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                slow[name].lerp_(value, 1 - keep)
                value.copy_(slow[name])


def accuracy(
    net: nn.Module, images: Tensor, labels: Tensor, bfloat16: bool, views: bool = True
) -> float:
    """Return the accuracy on the images."""
    hits = 0
    for x, y in zip(images.split(1000), labels.split(1000), strict=True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            net.eval()
            hits += int(((predict(net, x) if views else net(x)).argmax(1) == y).sum())
    return hits / len(labels)


if __name__ == "__main__":
    main()
