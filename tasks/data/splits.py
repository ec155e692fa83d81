"""Creation of missing splits, and checks of all splits."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.errors import InputError
from tasks.run.plain_text import printable

log = logging.getLogger(__name__)

# Seed that selects the test examples if the source has no test split.
TEST_SEED = 0
HELD_OUT = "%s has no %s split: %d of its %d training examples, stratified, %s, are held out"


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Order examples at random so that each prefix has all classes in proportion.

    Example:
        >>> labels = torch.tensor([0] * 80 + [1] * 20)
        >>> labels[stratified_order(labels, seed=0)[:10]].sum().item()
        2
    """
    generator = torch.Generator().manual_seed(seed)
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().flatten()
        spread = torch.rand(1, generator=generator, dtype=torch.float64)
        rank = torch.randperm(len(members), generator=generator)
        position[members] = (rank + spread) / len(members)
    return position.argsort(stable=True)


def divide(
    source: str,
    labels: dict[str, Tensor],
    fractions: dict[str, float],
    train_fraction: float,
    seed: int,
) -> dict[str, tuple[str, Tensor]]:
    """Select the examples of each split; a test split that is created is the same for all seeds.

    Args:
        source: Where the data is from.
        labels: (examples,) class numbers of each split of the source.
        fractions: Held out for `test` and `validation` where the source has none.
        train_fraction: Fraction of the rest that is trained with.
        seed: Of the validation split and the order of the training examples.

    Returns:
        For each split, the split of the source that it is from and the indices of its examples.

    Raises:
        InputError: Fewer than two training examples are left.
    """
    whole = labels["train"]
    parts = {
        split: (split, torch.arange(len(labels[split]))) for split in fractions if split in labels
    }
    rest = torch.arange(len(whole))
    if "test" not in labels:
        # A search with one seed must not train on what a study with other seeds tests.
        order = stratified_order(whole, TEST_SEED)
        size = max(1, round(fractions["test"] * len(order)))
        log.info(HELD_OUT, printable(source), "test", size, len(whole), "the same for all seeds")
        parts["test"], rest = ("train", order[:size]), order[size:].sort().values
    order = rest[stratified_order(whole[rest], seed)]
    if "validation" not in labels:
        size = max(1, round(fractions["validation"] * len(order)))
        log.info(HELD_OUT, printable(source), "validation", size, len(whole), f"with seed {seed}")
        parts["validation"], order = ("train", order[:size]), order[size:]
    size = round(train_fraction * len(order))
    if size < 2:
        raise InputError(
            f"{size} training examples are left of {len(whole)}: at least 2 are needed"
        )
    parts["train"] = ("train", order[:size])
    return parts


def digest(value: Any) -> int:
    """Hash one decoded input to 63 bits, to find duplicates in other splits."""
    content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else None
    if content is None:
        content = repr(tuple(value.shape)).encode() + value.numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1


def check_splits(
    source: str,
    classes: list[str],
    labels: dict[str, Tensor],
    digests: dict[str, Tensor],
    *,
    warned: Path | None = None,
) -> None:
    """Warn of classes without examples and of examples that are in two splits.

    Args:
        source: Where the data is from.
        classes: Names of the classes.
        labels: (examples,) class numbers of each split.
        digests: (examples,) what `digest` makes of each input.
        warned: File that marks that duplicates were warned of; None to warn each time.

    Raises:
        InputError: All training examples are of one class.
    """
    if bool((labels["train"] == labels["train"][0]).all()):
        raise InputError(
            f"DATA={source}: all {len(labels['train'])} training examples are of one class, "
            f"{classes[int(labels['train'][0])]}; a classifier needs two"
        )
    for split, present in labels.items():
        counts = torch.bincount(present, minlength=len(classes)).tolist()
        missing = [f"{name:.40}" for name, count in zip(classes, counts, strict=True) if not count]
        if missing:
            log.warning(
                f"warning: {len(missing)} of {len(classes)} classes have no example in split "
                f"{split}: {', '.join(missing[:5])}{', ...' if missing[5:] else ''}"
            )
    found = {
        split: int(torch.isin(digests[split], digests["train"]).sum())
        for split in ("validation", "test")
    }
    if any(found.values()) and is_first_time(warned):
        for split, known in found.items():
            if known:
                log.warning(
                    f"warning: {known} of {len(digests[split])} examples of split {split} are in "
                    "split train too: accuracy there does not measure generalization"
                )


def is_first_time(mark: Path | None) -> bool:
    """Create a file, and return whether it is new; True in one of many processes."""
    try:
        if mark is not None:
            mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        pass  # The folder cannot be written: warn each time.
    return True
