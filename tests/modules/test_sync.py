"""Batch norm over ranks: several processes must do what one does with all their batches."""

import os

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from modules import MaskedBatchNorm, SyncBatchNorm, batch_norm
from modules.sync import _SyncBatchNorm

# Name of a case: sizes of the ranks' batches (of as many as there are), dims, options.
CASES = {
    "equal": ((4, 4, 4), 2, {}),
    "unequal": ((2, 5, 3), 1, {}),
    "vectors": ((3, 1, 2), 0, {}),
    "one is empty": ((4, 0, 3), 2, {}),
    "plain average": ((3, 3, 3), 1, {"momentum": None}),
    "no scale": ((3, 2, 4), 2, {"affine": False}),
}
STEPS = 2


def case_of(name, world):
    """The layer, and for each step the ranks' inputs and upstream gradients."""
    sizes, dims, options = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    shape = (6, 5, 4)[:dims]

    def draw(size):
        return torch.randn(size, 3, *shape, generator=generator, dtype=torch.float64)

    layer = SyncBatchNorm(3, dims, **options).double()
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(3, generator=generator))
    # Far from zero, where a sum of squares would lose its digits.
    steps = [[(draw(n) * 3 + 100, draw(n)) for n in sizes[:world]] for _ in range(STEPS)]
    return layer, steps


def masked_case(world):
    """As `case_of`, with masks; the first rank has no valid step in the second batch."""
    generator = torch.Generator().manual_seed(7)
    layer = MaskedBatchNorm(3, dims=1, kind="sync").double()
    steps = []
    for step in range(STEPS):
        ranks = []
        for rank in range(world):
            x, upstream = torch.randn(2, 4, 3, 6, generator=generator, dtype=torch.float64)
            mask = torch.rand(4, 6, generator=generator) < 0.3 + 0.2 * rank
            ranks.append((x * 2 + 5, upstream, mask & ((step, rank) != (1, 0))))
        steps.append(ranks)
    return layer, steps


def run(layer, steps, rank=None):
    """Outputs and gradients of a rank's batches, or of all ranks' joined."""
    found = []
    for ranks in steps:
        parts = ranks if rank is None else [ranks[rank]]
        x, upstream, *mask = (torch.cat(column) for column in zip(*parts, strict=True))
        x.requires_grad_()
        layer.zero_grad()
        y = layer(x, *mask)
        y.backward(upstream)
        grads = [parameter.grad.clone() for parameter in layer.parameters()]
        found.append((y.detach(), x.grad, grads))
    return found, {name: value.clone() for name, value in layer.state_dict().items()}


def work(rank, world, folder):
    torch.set_num_threads(1)
    init = f"file://{folder}/init"
    distributed.init_process_group("gloo", init, rank=rank, world_size=world)
    results = {name: run(*case_of(name, world), rank) for name in CASES}
    results["masked"] = run(*masked_case(world), rank)
    results["bfloat16"] = in_bfloat16(rank, world)
    results["together"] = trained_together(rank, world)
    # In evaluation nobody waits for anybody.
    layer = SyncBatchNorm(3, dims=0).eval()
    for _ in range(rank):
        layer(torch.randn(2, 3))
    try:
        # All ranks together have a single value.
        SyncBatchNorm(3, dims=0)(torch.randn(int(rank == 0), 3))
        results["refusal"] = ""
    except ValueError as error:
        results["refusal"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def in_bfloat16(rank, world):
    """Normalize half-precision inputs of ranks whose means are far apart."""
    layer = SyncBatchNorm(3, dims=1)
    x = torch.randn(64, 3, 8, generator=torch.Generator().manual_seed(rank)) + 2 * rank
    y = layer(x.bfloat16())
    return y.dtype, y.float().mean((0, 2)), y.float().square().mean((0, 2))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8), SyncBatchNorm(8, dims=0), nn.ReLU(), nn.Linear(8, 3)
    ).double()


def trained_together(rank, world, steps=3):
    """Train a network on this rank's share of each batch; on all of it if alone."""
    model = network()
    learner = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (12,), generator=generator)
        share = slice(rank * 12 // world, (rank + 1) * 12 // world)
        optimizer.zero_grad()
        nn.functional.cross_entropy(learner(x[share]), labels[share]).backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    """What each of two or three processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.spawn(
        work, (request.param, str(folder)), request.param, join=False
    )
    try:
        # It comes back whenever one of them ends.
        assert any(context.join(60) for _ in range(request.param))
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def reference(name, world):
    """PyTorch's batch norm on the joined batches of all ranks."""
    layer, steps = masked_case(world) if name == "masked" else case_of(name, world)
    if name == "masked":
        plain = MaskedBatchNorm(3, dims=1).double()
    else:
        _, dims, options = CASES[name]
        plain = batch_norm(3, dims, **options).double()
    for parameter, value in zip(plain.parameters(), layer.parameters(), strict=True):
        parameter.data.copy_(value.data)
    return run(plain, steps)


@pytest.mark.parametrize("name", [*CASES, "masked"])
def test_ranks_do_what_one_process_does_with_the_joined_batch(name, ranks):
    expected, state = reference(name, len(ranks))
    for step, (y, x_grad, grads) in enumerate(expected):
        parts = [rank[name][0][step] for rank in ranks]
        assert_same(torch.cat([part[0] for part in parts]), y)
        assert_same(torch.cat([part[1] for part in parts]), x_grad)
        # Each rank has the gradient of its own part; the data-parallel wrapper joins them.
        for place, grad in enumerate(grads):
            assert_same(sum(part[2][place] for part in parts), grad)
    for rank in ranks:
        # By the same names: the checkpoint of several ranks opens on one.
        assert rank[name][1].keys() == state.keys()
        for key, value in state.items():
            assert_same(rank[name][1][key], value)


def test_ranks_of_half_precision_are_normalized_together(ranks):
    kinds, means, squares = zip(*(rank["bfloat16"] for rank in ranks), strict=True)
    assert set(kinds) == {torch.bfloat16}
    assert torch.stack(means).mean(0).abs().max() < 0.01
    assert (torch.stack(squares).mean(0) - 1).abs().max() < 0.02
    # Each by itself is not: their means differ.
    assert means[0].max() < -0.5 < 0.5 < means[-1].min()


def test_ranks_train_as_one_process_does(ranks):
    expected = trained_together(0, 1)
    for rank in ranks:
        for name, value in expected.items():
            assert_same(rank["together"][name], value)
    assert not torch.equal(expected["0.weight"], network()[0].weight)


def test_a_single_value_over_all_ranks_is_refused_by_all_of_them(ranks):
    assert all("more than one value a channel" in rank["refusal"] for rank in ranks)


@pytest.fixture
def alone(tmp_path):
    """A distributed run of one process."""
    os.environ.pop("MASTER_ADDR", None)
    distributed.init_process_group("gloo", f"file://{tmp_path}/init", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def affine():
    return [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 2)])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_backward_pass_is_the_gradient_of_the_forward_pass(alone, shape, scaled):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    inputs = (x, *(affine() if scaled else ()))

    def first_output(x, weight=None, bias=None):
        return _SyncBatchNorm.apply(x, weight, bias, 1e-5, None)[0]

    assert torch.autograd.gradcheck(first_output, inputs)


def test_the_function_is_batch_norm(alone):
    x = torch.randn(8, 3, 5, dtype=torch.float64)
    weight, bias = affine()
    y, mean, variance, count = _SyncBatchNorm.apply(x, weight, bias, 1e-3, None)
    assert_same(y, nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=1e-3))
    assert_same(mean, x.mean((0, 2)))
    assert_same(variance, x.var((0, 2), correction=0))
    assert count == 40


def test_a_process_alone_takes_the_way_of_torch(alone, monkeypatch):
    monkeypatch.delattr(_SyncBatchNorm, "forward")
    layer, x = SyncBatchNorm(3, dims=1), torch.randn(8, 3, 5)
    assert torch.equal(layer(x), nn.BatchNorm1d(3)(x))


def test_without_a_distributed_run_it_is_batch_norm():
    layer, plain, x = SyncBatchNorm(3, dims=2), nn.BatchNorm2d(3), torch.randn(8, 3, 5, 4)
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.running_var, plain.running_var)
    assert torch.equal(layer.eval()(x), plain.eval()(x))
