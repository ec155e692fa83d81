"""A step of sharpness-aware minimization against two plain steps."""

import torch
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from benchmarks.measure import Row, compare
from regain import SharpnessAware

BATCH = 128


def sharpness() -> list[Row]:
    """SAM and ASAM: a step of ResNet-18."""
    model = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, fused=True)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def plain() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()

    rows = []
    for name, rho, adaptive in (("SAM", 0.05, False), ("ASAM", 0.5, True)):
        sam = SharpnessAware(model, rho, adaptive)

        def aware(sam: SharpnessAware = sam) -> None:
            optimizer.zero_grad()
            sam.climb(lambda: cross_entropy(model(images), labels)).backward()
            sam.restore()
            optimizer.step()

        what = f"a step of {name}, ResNet-18, {BATCH}x3x32x32"
        rows.append(compare(what, "two plain steps", aware, plain, 1.15, rounds=15))
    return rows
