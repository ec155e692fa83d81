"""What is done to a trained model: statistics recomputed, norms folded, buffers averaged."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modules import (
    BatchRenorm,
    Dropout,
    FrozenBatchNorm,
    GhostBatchNorm,
    MaskedBatchNorm,
    Regularization,
    SplitBatchNorm,
    SubSpectralBatchNorm,
    average_buffers,
    fold_batchnorm,
    recompute_statistics,
)


def batches_of(*shape, count=4, mean=2.0):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + step) + mean
        for step in range(count)
    ]


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def moved(model, batches):
    """Let the running statistics go somewhere else first."""
    for batch in batches:
        model(batch + 100)
    return model


def statistics(batches):
    """Means over batches of each batch's mean and unbiased variance."""
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


def test_all_but_the_statistics_stays_as_it_was():
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
    assert_statistics(norm.norm.norm, banded)


def test_ghost_counts_whole_batches_and_split_the_clean_norm():
    batches = batches_of(8, 3, 5)
    ghost = moved(GhostBatchNorm(3, dims=1, size=2).double(), batches)
    recompute_statistics(ghost, batches)
    assert_statistics(ghost.norm.norm, batches)
    split = moved(SplitBatchNorm(3, dims=1).double(), batches)
    before = copy.deepcopy(split.augmented.state_dict())
    recompute_statistics(split, batches)
    assert_statistics(split.clean.norm, batches)
    for name, value in split.augmented.state_dict().items():
        assert torch.equal(before[name], value)


def test_renorm_stays_past_its_warm_up_and_frozen_stays_as_it_is():
    batches = batches_of(8, 3, 5)
    renorm = moved(BatchRenorm(3, dims=1, warmup=2).double(), batches)
    recompute_statistics(renorm, batches)
    assert_statistics(renorm.norm, batches)
    assert renorm.norm.num_batches_tracked == 4
    frozen = FrozenBatchNorm(3, dims=1).double()
    recompute_statistics(nn.Sequential(frozen, nn.BatchNorm1d(3).double()), batches)
    assert_same(frozen.norm.running_mean, torch.zeros(3, dtype=torch.float64))


def averaged(rank, world, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=world)
    model = of_rank(rank)
    average_buffers(model)
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def of_rank(rank):
    generator = torch.Generator().manual_seed(rank)
    model = nn.Sequential(nn.BatchNorm1d(3), MaskedBatchNorm(2, dims=1), FrozenBatchNorm(3))
    for norm in (m for m in model.modules() if isinstance(m, _BatchNorm)):
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        norm.num_batches_tracked.fill_(7)
    return model


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_have_the_statistics_of_all(world, tmp_path):
    context = torch.multiprocessing.spawn(averaged, (world, str(tmp_path)), world, join=False)
    try:
        assert any(context.join(60) for _ in range(world))
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
                # Those that are frozen, and the numbers of batches.
                expected = models[rank][name]
            elif name.endswith("mean"):
                expected = every.mean(0)
            else:
                means = torch.stack([model[name.replace("var", "mean")] for model in models])
                expected = every.mean(0) + means.double().var(0, correction=0)
            torch.testing.assert_close(value, expected.to(value.dtype))


def test_without_ranks_nothing_is_averaged():
    model = of_rank(0)
    before = copy.deepcopy(model.state_dict())
    average_buffers(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def norms(model):
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def randomized(model):
    torch.manual_seed(0)
    for norm in norms(model):
        for value in (norm.running_var, norm.weight):
            nn.init.uniform_(value, 0.5, 2.0)
        for value in (norm.running_mean, norm.bias):
            nn.init.normal_(value)
    return model


def assert_folds(model, *example, left):
    model = randomized(model)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batchnorm(model, *example)
    assert len(norms(folded)) == left
    assert not any(layer.training for layer in folded.modules())
    # The model itself stays.
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(layer.training for layer in model.modules())
    model.eval()
    with torch.no_grad():
        expected, found = model(*example), folded(*example)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    # What is saved can be loaded.
    twin = copy.deepcopy(folded)
    twin.load_state_dict(folded.state_dict())
    return folded


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
        (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 8, 8)),
        (nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), (2, 3, 4, 4, 4)),
        (nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), (2, 4, 8, 8)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), (2, 3, 5, 5)),
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3)),
        (nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=True), (5, 3)),
    ],
)
def test_a_norm_is_folded_into_the_layer_before_it(layer, norm, shape):
    assert_folds(nn.Sequential(layer, norm, nn.ReLU()), torch.randn(shape), left=0)


def test_what_runs_in_training_only_may_stand_between():
    model = nn.Sequential(nn.Linear(3, 4), Dropout(0.5), nn.Dropout(0.5), nn.BatchNorm1d(4))
    assert_folds(model, torch.randn(5, 3), left=0)


class Reused(nn.Module):
    """Uses what its layer puts out in a way that is told."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)

    def forward(self, x):
        y = self.conv(x)
        if self.how == "shape":
            # To ask for the shape is no use.
            return self.norm(y).view(y.shape[0], y.size(1), -1)
        if self.how == "residual":
            return self.norm(y) + y
        if self.how == "in place":
            return self.norm(y.relu_())
        if self.how == "conv twice":
            return self.norm(y) + self.conv(x + 1)
        if self.how == "norm twice":
            return self.norm(y) + self.norm(x)
        return self.conv(self.norm(x))


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("shape", 0),
        ("residual", 1),
        ("in place", 1),
        ("conv twice", 1),
        ("norm twice", 1),
        ("norm first", 1),
    ],
)
def test_a_norm_is_folded_only_where_nothing_else_uses_its_input(how, left):
    assert_folds(Reused(how), torch.randn(2, 3, 5), left=left)


def test_weights_of_other_types_are_folded_in_their_type():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)).double()
    folded = assert_folds(model, torch.randn(2, 3, 8, dtype=torch.float64), left=0)
    assert folded[0].weight.dtype == torch.float64


BATCH = Regularization(normalization="batch", dropout=0.1, dropout_kind="channel")


@pytest.mark.parametrize(
    ("arch", "size", "left"),
    [
        ("mlp", {"depth": 2, "width": 16}, 0),
        ("cnn", {"depth": 2, "width": 8}, 0),
        ("resnet", {"depth": 18, "width": 8}, 0),
        # Pre-activation: the first norm of a block, and the last one of all, follow a sum.
        ("wide_resnet", {"depth": 10, "width": 1}, 4),
    ],
)
def test_vision_models_are_folded(arch, size, left):
    from tasks.vision.data import VisionSpec
    from tasks.vision.models import MODELS

    spec = VisionSpec(["a", "b"], [3, 16, 16], [120.0] * 3, [60.0] * 3, mirror=True)
    model = MODELS[arch](spec, BATCH, **size)
    for parameter in model.parameters():
        # Branches that begin at zero would hide what goes wrong in them.
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    images = torch.randint(0, 256, (4, 3, 16, 16)).byte()
    assert_folds(model, images, left=left)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("arch", "size", "left"),
    [
        ("tc_resnet", {"width": 8}, 0),
        ("m5", {"width": 8}, 0),
        # Its sub-spectral norms stand behind a change of shape, one in each of the 12 blocks.
        ("bc_resnet", {"width": 8}, 12),
    ],
)
def test_speech_models_are_folded_and_mask_on(arch, size, left, padded):
    from modules import AudioAugmentation
    from tasks.speech.data import SpeechSpec
    from tasks.speech.models import MODELS

    model = MODELS[arch](SpeechSpec(["a", "b"], 16_000), BATCH, AudioAugmentation(), **size)
    clips = torch.randn(3, 8000)
    lengths = (torch.tensor([8000, 6400, 3200]),) if padded else ()
    assert_folds(model, clips, *lengths, left=left)
