import math
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from scipy.stats import binomtest

from tasks.metrics import Predictions, at_chance, classification_metrics


def logits_of(probabilities):
    return torch.tensor(probabilities).log()


def test_metrics_are_those_computed_by_hand():
    # Two classes; the confidences 0.95 (15th of 15 bins), 0.71 and 0.69 (11th), 0.55 (9th). Of 10
    # bins, 0.71 and 0.69 would be in two.
    logits = logits_of([[0.95, 0.05], [0.29, 0.71], [0.69, 0.31], [0.55, 0.45]])
    labels = torch.tensor([0, 1, 1, 1])
    got = classification_metrics(logits, labels)
    assert got["acc"] == pytest.approx(0.5)
    loss = -(math.log(0.95) + math.log(0.71) + math.log(0.31) + math.log(0.45)) / 4
    assert got["loss"] == pytest.approx(loss, rel=1e-5)
    # Each bin: its fraction of examples times |accuracy - mean confidence|.
    ece = 1 / 4 * (1 - 0.95) + 2 / 4 * (0.70 - 0.5) + 1 / 4 * (0.55 - 0)
    assert got["ece"] == pytest.approx(ece, rel=1e-4)


def test_accuracy_counts_examples_and_not_classes():
    labels = torch.tensor([0] * 9 + [1])
    logits = torch.tensor([[1.0, 0.0]]).expand(10, 2)
    assert classification_metrics(logits, labels)["acc"] == pytest.approx(0.9)


def test_a_class_that_does_not_occur_changes_nothing():
    logits = logits_of([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    got = classification_metrics(logits, torch.tensor([0, 1]))
    assert got["acc"] == 1.0
    assert got["ece"] == pytest.approx(0.35, rel=1e-4)


def test_predictions_come_back_in_the_order_of_the_split_each_once():
    predictions = Predictions()
    predictions.add(torch.tensor([4, 0]), torch.tensor([[4.0], [0.0]]), torch.tensor([14, 10]))
    predictions.add(torch.tensor([2, 0]), torch.tensor([[2.0], [0.0]]), torch.tensor([12, 10]))
    predictions.add(torch.tensor([3, 1]), torch.tensor([[3.0], [1.0]]), torch.tensor([13, 11]))
    logits, labels = predictions.collect()
    assert logits.flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert labels.tolist() == [10, 11, 12, 13, 14]


def test_predictions_are_cleared_by_collect():
    predictions = Predictions()
    predictions.add(torch.tensor([0, 1]), torch.zeros(2, 3), torch.tensor([0, 1]))
    predictions.collect()
    predictions.add(torch.tensor([0]), torch.ones(1, 3), torch.tensor([2]))
    logits, labels = predictions.collect()
    assert logits.tolist() == [[1.0, 1.0, 1.0]]
    assert labels.tolist() == [2]


def test_predictions_keep_no_graph_and_full_precision():
    predictions = Predictions()
    logits = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True) * 2
    predictions.add(torch.tensor([0, 1]), logits, torch.tensor([0, 1]))
    collected, _ = predictions.collect()
    assert not collected.requires_grad
    assert collected.dtype == torch.float32


# The indices on each rank, of seven examples: unequal numbers, and two examples on both ranks.
SHARES = ([[6, 0, 2], [3]], [[5], [1, 0], [4, 6]])


def split_of_seven():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 0])


def evaluate(rank: int, folder: str) -> None:
    """Collect on one rank, and save the result."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2
    )
    logits, labels = split_of_seven()
    predictions = Predictions()
    for share in SHARES[rank]:
        index = torch.tensor(share)
        predictions.add(index, logits[index], labels[index])
    torch.save(predictions.collect(), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_collect_what_one_does(tmp_path):
    torch.multiprocessing.spawn(evaluate, args=(str(tmp_path),), nprocs=2)
    logits, labels = split_of_seven()
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(got[0], logits)
        assert torch.equal(got[1], labels)


def right(hits, labels, classes):
    """Logits of which the first `hits` are correct, and all others wrong."""
    predicted = (labels + 1) % classes
    predicted[:hits] = labels[:hits]
    return torch.nn.functional.one_hot(predicted, classes).float()


@pytest.mark.parametrize("counts", [[10] * 3, [80, 10, 10], [1] * 30, [60, 20]])
def test_chance_is_a_binomial_test_against_the_largest_class(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    examples = len(labels)
    chance = max(counts) / examples
    for hits in range(examples + 1):
        p = binomtest(hits, examples, chance, alternative="greater").pvalue
        assert at_chance(right(hits, labels, len(counts)), labels) == (p >= 0.01)
    # Predicting one class for all examples is never above chance.
    same = torch.zeros(examples, len(counts))
    same[:, 0] = 1.0
    assert at_chance(same, labels)


def test_a_random_guess_is_at_chance_also_with_missing_classes():
    torch.manual_seed(0)
    labels = torch.randint(30, (100,))
    guesses = [at_chance(torch.randn(100, 30), labels) for _ in range(500)]
    assert sum(guesses) > 490
    # Only two of 30 classes occur.
    assert not at_chance(right(10, torch.arange(10) % 2, 30), torch.arange(10) % 2)
    assert at_chance(right(5, torch.arange(10) % 2, 30), torch.arange(10) % 2)


@pytest.mark.parametrize("examples", [1, 3])
def test_too_few_examples_are_not_at_chance(examples):
    labels = torch.arange(examples)
    assert not at_chance(right(0, labels, 4), labels)
