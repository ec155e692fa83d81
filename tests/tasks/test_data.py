import logging
from collections import Counter
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch

from tasks.data import (
    Batch,
    Batches,
    ClassificationData,
    DataSpec,
    Examples,
    lay_out,
)
from tasks.data.loading import Rows, Source
from tasks.data.splits import stratified_order
from tasks.errors import InputError


class Numbers(ClassificationData):
    """Returns a source from memory; its inputs are already tensors."""

    kind: ClassVar[str] = "number"
    noun: ClassVar[str] = "number"

    def __init__(self, made: Source, **options: Any) -> None:
        super().__init__(**options)
        self.made = made

    def read(self) -> Source:
        return self.made

    def decode(self, value: Any) -> Any:
        return torch.tensor([value])

    def spec(self) -> DataSpec:
        return DataSpec(self.classes)

    def media(self, split: str, index: int) -> Any:
        return None


def rows(first: int, labels: list[int]) -> Rows:
    """Inputs first, first + 1, ...: each example is unique."""
    return Rows(list(range(first, first + len(labels))), labels)


def numbers(tmp_path, train, **options) -> Numbers:
    splits = {"train": rows(0, train)}
    for split, first in (("validation", 10_000), ("test", 20_000)):
        if split in options:
            splits[split] = rows(first, options.pop(split))
    data = Numbers(Source(splits, ["a", "b", "c", "d"]), cache_dir=str(tmp_path), **options)
    data.setup()
    return data


def contents(data: ClassificationData, split: str) -> dict[int, int]:
    """The label of each input of a split, in order."""
    batch = data.splits[split].gather(torch.arange(len(data.splits[split])))
    return dict(zip(batch.inputs.flatten().tolist(), batch.labels.tolist(), strict=True))


def plain(count: int) -> Examples:
    return Examples(torch.arange(count), None, torch.zeros(count).long(), torch.arange(count))


def ragged(lengths: list[int], padding: int = 0) -> Examples:
    """Example i has all values i + 1."""
    inputs = [torch.full((size,), index + 1) for index, size in enumerate(lengths)]
    made = lay_out(inputs)
    labels, chosen = torch.zeros(len(lengths)).long(), torch.arange(len(lengths))
    return Examples(made["values"], made["offsets"], labels, chosen, padding)


def mixed_lengths(count: int) -> list[int]:
    return torch.randint(1, 200, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def indices(batches: Batches) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


def joined(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def as_rank(monkeypatch, rank: int, world: int) -> None:
    monkeypatch.setattr("tasks.data.batches._rank_and_world", lambda: (rank, world))


def shares(monkeypatch, batches: Batches, world: int) -> list[list[list[int]]]:
    """The examples of an epoch on each rank, as indices in the split."""
    out = []
    for rank in range(world):
        as_rank(monkeypatch, rank, world)
        out.append(indices(batches))
        assert len(out[-1]) == len(batches), f"rank {rank} has other batches than it says"
    return out


def padded_share(batches: Batches) -> float:
    sizes = [(batch.inputs.numel(), batch.inputs.ne(0).sum().item()) for batch in batches]
    return 1 - sum(valid for _, valid in sizes) / sum(total for total, _ in sizes)


@pytest.mark.parametrize("lengths", [None, mixed_lengths(103)], ids=["plain", "ragged"])
def test_an_epoch_has_each_example_once_in_batches_of_similar_size(lengths):
    examples = plain(103) if lengths is None else ragged(lengths)
    got = indices(Batches(examples, batch_size=10, seed=3))
    assert sorted(joined(got)) == list(range(103))
    assert {len(batch) for batch in got} == {9, 10}


@pytest.mark.parametrize("lengths", [None, mixed_lengths(103)], ids=["plain", "ragged"])
def test_training_order_is_a_pure_function_of_seed_and_epoch(lengths):
    examples = plain(103) if lengths is None else ragged(lengths)
    orders = {}
    for seed in (0, 1):
        batches = Batches(examples, batch_size=10, seed=seed)
        for epoch in (0, 1, 2):
            batches.set_epoch(epoch)
            orders[seed, epoch] = indices(batches)
    # All six differ: the order depends on seed and epoch, and not on their sum.
    assert len({str(order) for order in orders.values()}) == 6
    again = Batches(examples, batch_size=10, seed=1)
    # Earlier draws from the global generator change nothing.
    torch.manual_seed(5)
    again.set_epoch(2)
    assert indices(again) == orders[1, 2]
    assert indices(again) == orders[1, 2]


def test_the_order_of_training_is_not_that_of_the_split():
    got = joined(indices(Batches(plain(103), batch_size=10, seed=0)))
    assert got != sorted(got)


def test_batches_have_examples_of_similar_length():
    examples = ragged(mixed_lengths(3000))
    bucketed = Batches(examples, batch_size=20, seed=0)
    assert padded_share(bucketed) < 0.1
    shuffled = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    same = [examples.gather(part) for part in shuffled.tensor_split(150)]
    assert padded_share(same) > 0.4
    # The batches are in random order, short and long ones mixed.
    longest = [batch.inputs.shape[1] for batch in bucketed]
    rises = sum(a < b for a, b in pairwise(longest))
    assert 50 < rises < 100


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("lengths", [None, mixed_lengths(103)], ids=["plain", "ragged"])
def test_ranks_share_each_training_batch(monkeypatch, world, lengths):
    examples = plain(103) if lengths is None else ragged(lengths)
    batches = Batches(examples, batch_size=5, seed=0)
    by_rank = shares(monkeypatch, batches, world)
    whole = [batch.tolist() for batch in batches.order(0)]
    assert len(whole) == -(-103 // (5 * world))
    assert [joined(list(parts)) for parts in zip(*by_rank, strict=True)] == whole
    assert sorted(joined(whole)) == list(range(103))
    sizes = [len(batch) for rank in by_rank for batch in rank]
    assert max(sizes) <= 5
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("count", "batch_size", "world"), [(7, 1, 3), (100, 1, 3), (11, 2, 3), (50, 4, 4)]
)
def test_no_rank_has_fewer_training_batches_than_another(monkeypatch, count, batch_size, world):
    # If a rank ran out of batches, the others would wait for its gradients.
    by_rank = shares(monkeypatch, Batches(plain(count), batch_size, seed=0), world)
    assert all(batch for rank in by_rank for batch in rank)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("variable", [False, True], ids=["plain", "ragged"])
def test_evaluation_has_each_example_and_as_many_batches_on_each_rank(
    monkeypatch, world, count, variable
):
    examples = ragged(mixed_lengths(count)) if variable and count > 1 else plain(count)
    by_rank = shares(monkeypatch, Batches(examples, batch_size=4), world)
    seen = Counter(index for rank in by_rank for index in joined(rank))
    assert sorted(seen) == list(range(count))
    assert all(batch for rank in by_rank for batch in rank)
    # Repeats only make the per-rank batches equal in size.
    assert sum(seen.values()) - count < world * len(by_rank[0])
    if world == 1:
        assert set(seen.values()) == {1}


def test_evaluation_begins_with_the_longest_examples():
    # If memory is too small, evaluation then fails at the start and not at the end.
    longest = [batch.inputs.shape[1] for batch in Batches(ragged(mixed_lengths(100)), 10)]
    assert longest == sorted(longest, reverse=True)


def test_shorter_examples_are_filled_with_the_padding_value():
    batch = ragged([2, 4, 1], padding=7).gather(torch.tensor([2, 1, 0]))
    assert batch.inputs.tolist() == [[3, 7, 7, 7], [2, 2, 2, 2], [1, 1, 7, 7]]
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [1, 4, 2]
    assert batch.indices.tolist() == [2, 1, 0]


def test_lengths_are_given_where_anything_is_padded_and_only_there():
    examples = ragged([3, 3, 2])
    assert examples.gather(torch.tensor([0, 1])).lengths is None
    assert examples.gather(torch.tensor([2])).lengths is None
    assert examples.gather(torch.tensor([0, 2])).lengths is not None
    assert plain(3).gather(torch.tensor([0, 2])).lengths is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32])
@pytest.mark.parametrize("sizes", [(3, 3), (3, 2)], ids=["plain", "ragged"])
def test_a_batch_has_the_type_of_its_examples(dtype, sizes):
    made = lay_out([torch.ones(size, dtype=dtype) for size in sizes])
    examples = Examples(made["values"], made["offsets"], torch.zeros(2).long(), torch.arange(2))
    assert examples.gather(torch.tensor([0, 1])).inputs.dtype == dtype


def test_a_subset_has_the_examples_at_its_indices():
    examples = Examples(
        torch.arange(10) * 10, None, torch.arange(10), chosen=torch.tensor([7, 3, 5, 1])
    )
    part = examples.subset(torch.tensor([2, 0]))
    batch = part.gather(torch.tensor([0, 1]))
    assert batch.inputs.tolist() == [50, 70]
    assert batch.labels.tolist() == [5, 7]
    # Indices are relative to the split, and not to its source.
    assert batch.indices.tolist() == [0, 1]


@pytest.mark.parametrize("seed", [0, 1])
def test_each_prefix_of_a_stratified_order_is_in_proportion(seed):
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    order = stratified_order(labels, seed)
    assert sorted(order.tolist()) == list(range(1000))
    for size in range(1, 1001):
        counts = torch.bincount(labels[order[:size]], minlength=3)
        assert (counts - size * torch.tensor([0.6, 0.3, 0.1])).abs().max() <= 2


def test_a_stratified_order_is_random_within_a_class_and_seeded():
    labels = torch.tensor([0, 1] * 100)
    first, again, other = (stratified_order(labels, seed).tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    members = [index for index in first if index % 2 == 0]
    assert members != sorted(members)
    assert members != [index for index in other if index % 2 == 0]


def test_made_splits_are_disjoint_and_stratified(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="tasks.data.splits")
    labels = [0] * 300 + [1] * 60 + [2] * 40
    data = numbers(tmp_path, labels, validation_fraction=0.2, test_fraction=0.25)
    parts = {split: contents(data, split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 240,
        "validation": 60,
        "test": 100,
    }
    together = {index: label for part in parts.values() for index, label in part.items()}
    assert together == dict(enumerate(labels))
    for part in parts.values():
        counts = Counter(part.values())
        for label, share in ((0, 0.75), (1, 0.15), (2, 0.1)):
            assert abs(counts[label] - share * len(part)) <= 2
    logged = " ".join(caplog.messages)
    assert "no test split: 100 of its 400 training examples" in logged
    assert "no validation split: 60 of its 400 training examples" in logged


def test_the_seed_chooses_the_validation_split(tmp_path):
    labels = [0, 1, 2, 3] * 50
    first, again, other = (
        set(contents(numbers(tmp_path, labels, seed=seed), "validation")) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_no_seed_reads_what_another_one_tests(tmp_path):
    # A search with seed 100 and a study with other seeds, on data without a test split.
    labels = [0, 1, 2, 3] * 50
    search = numbers(tmp_path, labels, seed=100)
    read = contents(search, "train").keys() | contents(search, "validation").keys()
    for seed in range(5):
        tested = contents(numbers(tmp_path, labels, seed=seed), "test").keys()
        assert len(tested) == 20
        assert not tested & read


def test_training_examples_of_a_source_with_a_test_split_never_change(tmp_path):
    # Recorded results are reproducible only if a seed keeps its split and order.
    data = numbers(tmp_path, [0, 1] * 20, test=[1, 0], seed=3)
    order = stratified_order(torch.tensor([0, 1] * 20), seed=3)
    assert data.splits["validation"].chosen.tolist() == order[:4].tolist()
    assert data.splits["train"].chosen.tolist() == order[4:].tolist()


def test_splits_of_the_source_are_used_as_they_are(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="tasks.data.splits")
    data = numbers(tmp_path, [0, 1] * 20, validation=[1, 0, 1], test=[2, 2, 0, 1])
    assert contents(data, "validation") == {10_000: 1, 10_001: 0, 10_002: 1}
    assert contents(data, "test") == {20_000: 2, 20_001: 2, 20_002: 0, 20_003: 1}
    assert contents(data, "train").keys() == set(range(40))
    assert not any("held out" in message for message in caplog.messages)


def test_only_the_missing_split_is_made(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="tasks.data.splits")
    data = numbers(tmp_path, [0, 1] * 20, test=[2, 2])
    assert set(contents(data, "test")) == {20_000, 20_001}
    held_out = [message for message in caplog.messages if "held out" in message]
    assert len(held_out) == 1
    assert "no validation split: 4 of its 40 training examples" in held_out[0]


def test_smaller_training_sets_are_parts_of_larger_ones(tmp_path):
    labels = [0] * 160 + [1] * 40
    whole, half, tenth = (
        numbers(tmp_path, labels, train_fraction=fraction) for fraction in (1.0, 0.5, 0.1)
    )
    sets = [set(contents(data, "train")) for data in (tenth, half, whole)]
    assert [len(one) for one in sets] == [16, 81, 162]
    assert sets[0] < sets[1] < sets[2]
    assert 2 <= Counter(contents(tenth, "train").values())[1] <= 4
    for split in ("validation", "test"):
        assert contents(tenth, split) == contents(whole, split)


def test_label_noise_changes_exactly_its_fraction_to_other_classes(tmp_path):
    labels = [0, 1, 2, 3] * 100
    clean = numbers(tmp_path, labels)
    noisy = numbers(tmp_path, labels, label_noise=0.3)
    before, after = contents(clean, "train"), contents(noisy, "train")
    assert list(before) == list(after)
    changed = [index for index in before if before[index] != after[index]]
    assert len(changed) == round(0.3 * len(before))
    # All other classes occur as noisy labels, and no number that is not a class.
    pairs = {(before[index], after[index]) for index in changed}
    assert pairs == {(a, b) for a in range(4) for b in range(4) if a != b}
    for split in ("validation", "test"):
        assert contents(noisy, split) == contents(clean, split)


def test_label_noise_is_drawn_from_the_seed(tmp_path):
    options = {"validation": [0], "test": [0], "label_noise": 0.3}
    first, again, other = (
        contents(numbers(tmp_path, [0, 1, 2, 3] * 50, seed=seed, **options), "train")
        for seed in (0, 0, 1)
    )
    assert first == again
    wrong = [{index for index in part if part[index] != index % 4} for part in (first, other)]
    assert wrong[0] != wrong[1]


def test_the_probe_of_the_training_accuracy_is_of_training_examples(tmp_path):
    data = numbers(tmp_path, [0, 1] * 100, batch_size=10)
    validation, probe = data.val_dataloader()
    seen = [
        {value for batch in batches for value in batch.inputs.flatten().tolist()}
        for batches in (validation, probe)
    ]
    assert seen[0] == set(contents(data, "validation"))
    assert seen[1] <= set(contents(data, "train"))
    assert len(seen[1]) == len(seen[0])


def test_loaders_serve_their_own_splits(tmp_path):
    data = numbers(tmp_path, [0, 1] * 50, batch_size=7, seed=4, test=[1, 0, 1])
    train = data.train_dataloader()
    assert {value for batch in train for value in batch.inputs.flatten().tolist()} == set(
        contents(data, "train")
    )
    assert max(len(batch.inputs) for batch in train) == 7
    assert train.seed == 4
    test: list[Batch] = list(data.test_dataloader())
    assert [batch.inputs.flatten().tolist() for batch in test] == [[20_000, 20_001, 20_002]]


def test_setup_of_a_further_stage_changes_nothing(tmp_path):
    data = numbers(tmp_path, [0, 1] * 50)
    splits = dict(data.splits)
    data.setup("test")
    assert all(data.splits[split] is part for split, part in splits.items())


def test_too_few_training_examples_are_refused(tmp_path):
    with pytest.raises(InputError, match="1 training examples are left of 20"):
        numbers(tmp_path, [0, 1] * 10, train_fraction=0.05)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("test_fraction", -0.1),
        ("train_fraction", 0.0),
        ("train_fraction", 1.5),
        ("label_noise", 1.0),
        ("label_noise", -0.2),
        ("batch_size", 0),
    ],
)
def test_options_out_of_range_are_named(tmp_path, option, value):
    with pytest.raises(ValueError, match=f"{option} is .*{value}"):
        numbers(tmp_path, [0, 1] * 10, **{option: value})
