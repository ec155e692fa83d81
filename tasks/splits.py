"""How examples are split, and what is wrong with a split."""

import hashlib
import logging
from typing import Any

import torch
from torch import Tensor

from tasks.errors import InputError

log = logging.getLogger(__name__)


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Order examples at random so that any first part of them holds each class in proportion.

    Example:
        >>> labels = torch.tensor([0] * 80 + [1] * 20)
        >>> labels[stratified_order(labels, seed=0)[:10]].sum().item()
        2
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().flatten()
        spread = torch.rand(1, generator=generator, dtype=torch.float64)
        rank = torch.randperm(len(members), generator=generator)
        place[members] = (rank + spread) / len(members)
    return place.argsort(stable=True)


def digest(value: Any) -> int:
    """Hash one decoded input to 63 bits, by which the same one is found in another split."""
    content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else None
    if content is None:
        content = repr(tuple(value.shape)).encode() + value.numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def check_splits(
    source: str, classes: list[str], labels: dict[str, Tensor], digests: dict[str, Tensor]
) -> None:
    """Warn of what makes a score worth less than it seems.

    Args:
        source: Where the data is from.
        classes: Names of the classes.
        labels: (examples,) class numbers of each split.
        digests: (examples,) what `digest` makes of each input.

    Raises:
        InputError: All training examples are of one class.
    """
    if bool((labels["train"] == labels["train"][0]).all()):
        raise InputError(
            f"DATA={source}: all {len(labels['train'])} training examples are of one class, "
            f"{classes[int(labels['train'][0])]}; there is nothing to tell apart"
        )
    for split, found in labels.items():
        counts = torch.bincount(found, minlength=len(classes)).tolist()
        missing = [name for name, count in zip(classes, counts, strict=True) if not count]
        if missing:
            log.warning(
                f"warning: {len(missing)} of {len(classes)} classes have no example in split "
                f"{split}: {', '.join(missing[:5])}{', ...' if missing[5:] else ''}"
            )
    for split in ("validation", "test"):
        known = int(torch.isin(digests[split], digests["train"]).sum())
        if known:
            log.warning(
                f"warning: {known} of {len(digests[split])} examples of split {split} are in "
                "split train too: accuracy there does not measure what is new"
            )
