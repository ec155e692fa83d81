"""Batch norm over ranks: several processes must match one process with all their batches."""

import os

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from regain import (
    MaskedBatchNorm,
    SubSpectralBatchNorm,
    SyncBatchNorm,
    batch_norm,
    convert_sync_batchnorm,
    masked_norm,
)
from regain.ranknorm import _SyncBatchNorm

# By case: batch size of each rank, dims, options.
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
    """Return the layer, and for each step the inputs and upstream gradients of the ranks."""
    sizes, dims, options = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    shape = (6, 5, 4)[:dims]

    def draw(size):
        return torch.randn(size, 3, *shape, generator=generator, dtype=torch.float64)

    layer = SyncBatchNorm(3, dims, **options).double()
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(3, generator=generator))
    # Far from zero, where a sum of squares would lose precision.
    steps = [[(draw(n) * 3 + 100, draw(n)) for n in sizes[:world]] for _ in range(STEPS)]
    return layer, steps


def masked_case(world):
    """Like `case_of`, with masks; the first rank has no valid step in the second batch."""
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
    """Outputs and gradients for the batches of one rank, or the joined batches of all ranks."""
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
    results["converted"] = converted(rank, world)
    results["together"] = trained_together(rank, world)
    # No communication in evaluation.
    layer = SyncBatchNorm(3, dims=0).eval()
    for _ in range(rank):
        layer(torch.randn(2, 3))
    try:
        # All ranks together have a single value per channel.
        SyncBatchNorm(3, dims=0)(torch.randn(int(rank == 0), 3))
        results["refusal"] = ""
    except ValueError as error:
        results["refusal"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def mixed():
    """A model with plain and masked norms, and a ghost norm that is not synchronized."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), MaskedBatchNorm(6, dims=0)]
    return nn.Sequential(*layers).double()


def converted(rank, world, steps=3):
    """Train a converted model on this rank's part of each batch; on all of it in one process."""
    model = mixed()
    before = dict(model.named_parameters()), dict(model.named_buffers())
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    assert convert_sync_batchnorm(model) is model
    # The optimizer was built before the conversion.
    for one, other in zip(before, (model.named_parameters(), model.named_buffers()), strict=True):
        assert all(one[name] is value for name, value in other)
    learner = DistributedDataParallel(model) if world > 1 else model
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
        wanted = torch.randn(12, 6, generator=generator, dtype=torch.float64)
        part = slice(rank * 12 // world, (rank + 1) * 12 // world)
        optimizer.zero_grad()
        nn.functional.mse_loss(learner(x[part]), wanted[part]).backward()
        optimizer.step()
    return model.state_dict()


def in_bfloat16(rank, world):
    """Normalize half-precision inputs of ranks with very different means."""
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
    """Train a network on this rank's part of each batch; on all of it in one process."""
    model = network()
    learner = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (12,), generator=generator)
        own = slice(rank * 12 // world, (rank + 1) * 12 // world)
        optimizer.zero_grad()
        nn.functional.cross_entropy(learner(x[own]), labels[own]).backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    """Results of each of two or three processes."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.spawn(
        work, (request.param, str(folder)), request.param, join=False
    )
    try:
        # `join` returns whenever one process ends.
        assert any(context.join(240) for _ in range(request.param))
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
        # Each rank has the gradient of its own batch; DistributedDataParallel would add them.
        for index, grad in enumerate(grads):
            assert_same(sum(part[2][index] for part in parts), grad)
    for rank in ranks:
        # With the same keys: a checkpoint of several ranks loads in one process.
        assert rank[name][1].keys() == state.keys()
        for key, value in state.items():
            assert_same(rank[name][1][key], value)


def test_ranks_of_half_precision_are_normalized_together(ranks):
    kinds, means, squares = zip(*(rank["bfloat16"] for rank in ranks), strict=True)
    assert set(kinds) == {torch.bfloat16}
    assert torch.stack(means).mean(0).abs().max() < 0.01
    assert (torch.stack(squares).mean(0) - 1).abs().max() < 0.02
    # Without synchronization the statistics differ, because the means differ.
    assert means[0].max() < -0.5 < 0.5 < means[-1].min()


def test_ranks_train_as_one_process_does(ranks):
    expected = trained_together(0, 1)
    for rank in ranks:
        for name, value in expected.items():
            assert_same(rank["together"][name], value)
    assert not torch.equal(expected["0.weight"], network()[0].weight)


def test_a_converted_model_trains_on_ranks_as_on_one_process(ranks):
    expected = converted(0, 1)
    for rank in ranks:
        assert rank["converted"].keys() == mixed().state_dict().keys()
        for name, value in expected.items():
            assert_same(rank["converted"][name], value)
    assert not torch.equal(expected["0.weight"], mixed()[0].weight)


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


def test_a_single_process_uses_the_batch_norm_of_torch(alone, monkeypatch):
    monkeypatch.delattr(_SyncBatchNorm, "forward")
    layer, x = SyncBatchNorm(3, dims=1), torch.randn(8, 3, 5)
    assert torch.equal(layer(x), nn.BatchNorm1d(3)(x))


def test_without_a_distributed_run_it_is_batch_norm():
    layer, plain, x = SyncBatchNorm(3, dims=2), nn.BatchNorm2d(3), torch.randn(8, 3, 5, 4)
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.running_var, plain.running_var)
    assert torch.equal(layer.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("dims", range(4))
@pytest.mark.parametrize("training", [True, False])
def test_conversion_changes_the_class_and_nothing_else(dims, training):
    heard = []
    model = nn.Sequential(batch_norm(3, dims, momentum=0.3, eps=0.1)).train(training)
    model[0].register_forward_hook(lambda module, *_: heard.append(type(module)))
    norm, names = model[0], list(model.state_dict())
    tensors = [*model.parameters(), *model.buffers()]
    assert convert_sync_batchnorm(model) is model
    assert model[0] is norm
    assert type(norm) is SyncBatchNorm
    assert (norm.dims, norm.momentum, norm.eps, norm.training) == (max(dims, 1), 0.3, 0.1, training)
    assert list(model.state_dict()) == names
    after = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(tensors, after, strict=True))
    shape = (4, 3, 5, 6, 2)[: dims + 2]
    plain = batch_norm(3, dims, momentum=0.3, eps=0.1).train(training)
    x = torch.randn(shape)
    assert torch.equal(model(x), plain(x))
    assert heard == [SyncBatchNorm]
    wrong = "expected 2D or 3D input" if dims < 2 else f"expected {dims + 2}D input"
    with pytest.raises(ValueError, match=wrong):
        model(torch.randn(4, 3, 2, 2, 2, 2))


def test_masked_norms_of_kind_batch_are_converted_and_other_kinds_are_not():
    kinds = ["batch", "ghost", "renorm", "frozen", "split"]
    model = nn.Sequential(
        *(masked_norm(4, 2, kind) for kind in kinds),
        *(SubSpectralBatchNorm(4, 2, kind) for kind in ("batch", "ghost")),
        *(batch_norm(4, 2, kind) for kind in ("renorm", "frozen", "layer", "group")),
    )
    before = [(type(layer), getattr(layer, "kind", "")) for layer in model.modules()]
    convert_sync_batchnorm(model)
    changed = [
        (name, layer.kind)
        for (name, layer), (kind, old) in zip(model.named_modules(), before, strict=True)
        if type(layer) is not kind or getattr(layer, "kind", "") != old
    ]
    assert changed == [("0", "sync"), ("5.norm", "sync")]


def test_a_norm_with_another_forward_is_not_converted():
    class WithActivation(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x).relu()

    model = nn.Sequential(WithActivation(3), nn.BatchNorm1d(3))
    convert_sync_batchnorm(model)
    assert [type(layer) for layer in model] == [WithActivation, SyncBatchNorm]
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].forward = lambda x: x
    with pytest.raises(ValueError, match="the forward of a BatchNorm1d has been replaced"):
        convert_sync_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm1d
