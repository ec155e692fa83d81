"""Statistics of trained models: recomputation and averaging over ranks."""

import copy

import pytest
import torch
from torch import distributed, nn

from regain import (
    BatchRenorm,
    Dropout,
    FrozenBatchNorm,
    GhostBatchNorm,
    MaskedBatchNorm,
    SplitBatchNorm,
    SubSpectralBatchNorm,
    average_buffers,
    recompute_statistics,
)
from regain.torchnorm import BATCH_NORMS


def batches_of(*shape, count=4, mean=2.0):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + step) + mean
        for step in range(count)
    ]


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def moved(model, batches):
    """Move the running statistics to other values first."""
    for batch in batches:
        model(batch + 100)
    return model


def statistics(batches):
    """Mean and unbiased variance of each batch, averaged over batches."""
    rows = [batch.movedim(1, -1).reshape(-1, batch.shape[1]) for batch in batches]
    means, variances = zip(*((row.mean(0), row.var(0)) for row in rows), strict=True)
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


def assert_statistics(norm, batches):
    mean, variance = statistics(batches)
    assert_same(norm.running_mean, mean)
    assert_same(norm.running_var, variance)


def test_statistics_are_means_over_the_batches():
    batches = batches_of(8, 3, 5)
    norm = moved(nn.BatchNorm1d(3).double(), batches)
    recompute_statistics(norm, batches)
    assert_statistics(norm, batches)


def test_a_later_norm_sees_what_the_batch_statistics_of_the_earlier_ones_give():
    model = nn.Sequential(
        nn.BatchNorm1d(3), nn.ReLU(), Dropout(0.5), nn.Linear(3, 4), nn.BatchNorm1d(4)
    ).double()
    batches = batches_of(8, 3)
    moved(model, batches)
    recompute_statistics(model, batches)
    assert_statistics(model[0], batches)
    first = nn.BatchNorm1d(3).double()
    # Dropout is off.
    assert_statistics(model[4], [model[3](first(batch).relu()) for batch in batches])


def test_only_the_statistics_change():
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), Dropout(0.5), nn.BatchNorm1d(3)).double()
    model[2].eval()
    moved(model, batches_of(8, 3))
    before = copy.deepcopy(model)
    recompute_statistics(model, batches_of(8, 3))
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [model[0].momentum, model[2].momentum] == [0.3, 0.1]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]) == ("running" not in name)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("broken", [True, False])
def test_after_an_error_the_statistics_are_as_before(broken):
    model = moved(nn.Sequential(nn.BatchNorm1d(3), Dropout(0.5)).double(), batches_of(8, 3))
    before = copy.deepcopy(model.state_dict())

    def forward(batch):
        model(batch)
        raise RuntimeError("broken")

    error, batches = (RuntimeError, batches_of(8, 3)) if broken else (ValueError, [])
    with pytest.raises(error, match="broken" if broken else "there is no batch"):
        recompute_statistics(model, batches, forward)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[0].momentum == 0.1
    assert all(layer.training for layer in model.modules())


def test_padding_does_not_count():
    norm = SubSpectralBatchNorm(2, bands=2).double()
    mask = torch.arange(6) < torch.tensor([[6], [2], [1], [3]])
    batches = batches_of(4, 2, 4, 6)
    recompute_statistics(norm, batches, lambda batch: norm(batch, mask))
    valid = mask.view(4, 1, 6).expand(4, 2, 6)
    banded = [batch.reshape(4, 4, 2, 6).movedim(1, -1)[valid] for batch in batches]
    assert_statistics(norm.norm, banded)


def test_ghost_counts_whole_batches_and_split_the_clean_norm():
    batches = batches_of(8, 3, 5)
    ghost = moved(GhostBatchNorm(3, dims=1, size=2).double(), batches)
    recompute_statistics(ghost, batches)
    assert_statistics(ghost, batches)
    split = moved(SplitBatchNorm(3, dims=1).double(), batches)
    before = copy.deepcopy(split.augmented.state_dict())
    recompute_statistics(split, batches)
    assert_statistics(split, batches)
    for name, value in split.augmented.state_dict().items():
        assert torch.equal(before[name], value)


def test_renorm_stays_past_its_warm_up_and_frozen_stays_as_it_is():
    batches = batches_of(8, 3, 5)
    renorm = moved(BatchRenorm(3, dims=1, warmup=2).double(), batches)
    recompute_statistics(renorm, batches)
    assert_statistics(renorm, batches)
    assert renorm.num_batches_tracked == 4
    frozen = FrozenBatchNorm(3, dims=1).double()
    recompute_statistics(nn.Sequential(frozen, nn.BatchNorm1d(3).double()), batches)
    assert_same(frozen.running_mean, torch.zeros(3, dtype=torch.float64))


def test_a_norm_without_a_count_of_batches_has_the_same_statistics():
    batches = batches_of(8, 3, 5)
    norm = moved(nn.BatchNorm1d(3).double(), batches)
    norm.num_batches_tracked = None
    recompute_statistics(norm, batches)
    assert_statistics(norm, batches)
    assert norm.num_batches_tracked is None
    assert norm.momentum == 0.1


def test_norms_without_running_statistics_are_not_changed():
    model = nn.Sequential(
        nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3), nn.LazyBatchNorm1d()
    ).double()
    batches = batches_of(8, 3)
    # The last layer has no buffers yet.
    recompute_statistics(model, batches, lambda batch: model[1](model[0](batch)))
    normed = [model[0](batch) for batch in batches]
    assert_statistics(model[1], normed)
    average_buffers(model)


def test_norms_of_other_libraries_are_recomputed():
    from timm.layers import BatchNormAct2d, SyncBatchNormAct

    batches = batches_of(8, 3, 4, 5)
    for norm in (BatchNormAct2d(3), SyncBatchNormAct(3), nn.SyncBatchNorm(3)):
        recompute_statistics(moved(norm.double(), batches), batches)
        assert_statistics(norm, batches)


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_is_not_compiled_again(whole):
    batches, graphs = batches_of(8, 3), []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    expected = [model[0](batch) for batch in batches]
    options = {"backend": backend, "fullgraph": True}
    compiled = torch.compile(model, **options) if whole else model
    if not whole:
        model.compile(**options)
    compiled(batches[0])
    count = len(graphs)
    recompute_statistics(compiled, batches)
    assert_statistics(model[1], expected)
    assert len(graphs) == count > 0
    assert model[1].training


def averaged(rank, world, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=world)
    model = of_rank(rank)
    average_buffers(model)
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    # Far from zero, with small differences that float32 loses in squares.
    distant = nn.BatchNorm1d(3)
    distant.running_mean.copy_(distant_means(rank))
    average_buffers(distant)
    torch.save(distant.state_dict(), f"{folder}/distant {rank}.pt")
    wrapped = nn.parallel.DistributedDataParallel(nn.BatchNorm1d(3).double())
    recompute_statistics(wrapped, batches_of_rank(rank))
    torch.save(wrapped.module.state_dict(), f"{folder}/wrapped {rank}.pt")
    distributed.destroy_process_group()


def distant_means(rank):
    return torch.tensor([1000.0, -3000.0, 10_000.0]) + 0.01 * rank


def batches_of_rank(rank):
    return [batch + rank for batch in batches_of(8, 3)]


def of_rank(rank):
    generator = torch.Generator().manual_seed(rank)
    model = nn.Sequential(nn.BatchNorm1d(3), MaskedBatchNorm(2, dims=1), FrozenBatchNorm(3))
    for norm in (m for m in model.modules() if isinstance(m, BATCH_NORMS)):
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        norm.num_batches_tracked.fill_(7)
    return model


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_have_the_statistics_of_all(world, tmp_path):
    context = torch.multiprocessing.spawn(averaged, (world, str(tmp_path)), world, join=False)
    try:
        assert any(context.join(240) for _ in range(world))
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    models = [of_rank(rank).state_dict() for rank in range(world)]
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in found.items():
            every = torch.stack([model[name].double() for model in models])
            if "running" not in name or name.startswith("2."):
                # Buffers of frozen norms, and the counts of batches.
                expected = models[rank][name]
            elif name.endswith("mean"):
                expected = every.mean(0)
            else:
                means = torch.stack([model[name.replace("var", "mean")] for model in models])
                expected = every.mean(0) + means.double().var(0, correction=0)
            torch.testing.assert_close(value, expected.to(value.dtype))
        distant = torch.load(tmp_path / f"distant {rank}.pt")
        means = torch.stack([distant_means(rank).double() for rank in range(world)])
        expected = 1 + means.var(0, correction=0)
        torch.testing.assert_close(distant["running_var"], expected.float())
        # From this rank's batches: the wrapper does not broadcast buffers.
        wrapped = nn.BatchNorm1d(3).double()
        wrapped.load_state_dict(torch.load(tmp_path / f"wrapped {rank}.pt"))
        assert_statistics(wrapped, batches_of_rank(rank))


def test_without_ranks_nothing_is_averaged():
    model = of_rank(0)
    before = copy.deepcopy(model.state_dict())
    average_buffers(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
