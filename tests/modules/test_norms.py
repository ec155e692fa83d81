"""Every kind of norm: outputs, statistics and errors."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regain import (
    BatchRenorm,
    ChannelNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MaskedBatchNorm,
    MaskedGroupNorm,
    SplitBatchNorm,
    SubSpectralBatchNorm,
    SyncBatchNorm,
    batch_norm,
    masked_norm,
)
from regain.torchnorm import BATCH_NORMS

KINDS = ["batch", "ghost", "renorm", "sync", "frozen", "split", "layer", "group", "rms"]
OVER_THE_BATCH = ["batch", "ghost", "renorm", "sync", "split"]
PLAIN = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SPACE = (5, 4, 3)

# Each test runs with the kernels and with PyTorch operations.
pytestmark = pytest.mark.usefixtures("way")

by_example = settings(deadline=None, derandomize=True, max_examples=25)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_dims = pytest.mark.parametrize("dims", range(4))


def noise(*shape, seed=0, mean=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).add(mean).to(dtype)


def randomize(module, seed=0):
    """Set parameters and buffers to values that no mistake produces by chance."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point():
            with torch.no_grad():
                value.uniform_(0.5, 2.0, generator=generator)
                if name.endswith(("bias", "mean")):
                    value.sub_(1.0)
    return module


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def loaded(norm, other):
    """Copy parameters and statistics of one norm to another."""
    norm.load_state_dict({k: v for k, v in other.state_dict().items() if "." not in k})
    return norm


def assert_same_statistics(norm, plain):
    for name, value in plain.named_buffers():
        assert_same(norm.get_buffer(name), value)


@pytest.mark.parametrize("kind", OVER_THE_BATCH)
@by_example
@given(
    dims=st.integers(0, 3),
    batch=st.integers(32, 90),
    features=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_output_has_mean_beta_and_deviation_gamma(kind, dims, batch, features, dtype, seed):
    norm = randomize(batch_norm(features, dims, kind, ghost_size=16), seed)
    norm = norm.to(torch.promote_types(dtype, torch.float32))
    parts = {"ghost": batch // 16, "split": 2}.get(kind, 1)
    y = norm(noise(batch, features, *SPACE[:dims], seed=seed, dtype=dtype))
    assert y.dtype == dtype
    norms = [m for m in norm.modules() if isinstance(m, BATCH_NORMS)]
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-3
    pieces = y.split(math.ceil(batch / 2)) if kind == "split" else y.tensor_split(parts)
    for number, piece in enumerate(pieces):
        rows = piece.double().movedim(1, -1).reshape(-1, features)
        inner = norms[number] if kind == "split" else norms[0]
        torch.testing.assert_close(rows.mean(0), inner.bias.double(), atol=tolerance, rtol=0)
        deviation = rows.std(0, correction=0)
        torch.testing.assert_close(deviation, inner.weight.double(), atol=tolerance, rtol=0)


@every_dims
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"momentum": 0.3, "eps": 0.1}]
)
@pytest.mark.parametrize("kind", ["masked", "ghost", "renorm", "sync"])
def test_equals_the_batch_norm_of_torch(kind, options, dims):
    """Compare outputs, gradients and statistics for three batches, to include running averages."""
    make = {
        "masked": MaskedBatchNorm,
        "ghost": lambda *args, **named: GhostBatchNorm(*args, size=20, **named),
        # During warmup.
        "renorm": BatchRenorm,
        "sync": SyncBatchNorm,
    }[kind]
    norm = randomize(make(3, dims, **options).double())
    plain = PLAIN[dims](3, **options).double()
    plain.load_state_dict({k.split(".")[-1]: v for k, v in norm.state_dict().items()})
    for seed in range(3):
        x = noise(12, 3, *SPACE[:dims], seed=seed).requires_grad_()
        upstream = noise(*x.shape, seed=seed + 10)
        y, expected = norm(x), plain(x)
        assert_same(y, expected)
        wanted = torch.autograd.grad(expected, (x, *plain.parameters()), upstream)
        found = torch.autograd.grad(y, (x, *norm.parameters()), upstream)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
        buffers = {k.split(".")[-1]: v for k, v in norm.named_buffers()}
        for name, value in plain.named_buffers():
            assert_same(buffers[name], value)
    norm.eval(), plain.eval()
    assert_same(norm(x), plain(x))


@every_dims
def test_split_has_a_norm_for_each_half(dims):
    norm = randomize(SplitBatchNorm(3, dims).double())
    clean, augmented = (loaded(PLAIN[dims](3).double(), part) for part in (norm, norm.augmented))
    x = noise(9, 3, *SPACE[:dims])
    # The clean half is larger.
    assert_same(norm(x), torch.cat((clean(x[:5]), augmented(x[5:]))))
    assert_same_statistics(norm, clean)
    assert_same_statistics(norm.augmented, augmented)
    assert not torch.equal(clean.running_mean, augmented.running_mean)
    assert_same(norm.eval()(x), clean.eval()(x))


@pytest.mark.parametrize(("batch", "sizes"), [(64, [16] * 4), (50, [17, 17, 16]), (31, [31])])
def test_ghost_normalizes_parts_by_themselves(batch, sizes):
    norm = randomize(GhostBatchNorm(3, dims=1, size=16).double())
    plain = loaded(nn.BatchNorm1d(3).double(), norm)
    means = [plain.running_mean.clone()]
    x = noise(batch, 3, 5)
    parts = x.split(sizes)
    assert_same(norm(x), torch.cat([plain(part) for part in parts]))
    assert_same_statistics(norm, plain)
    # Algorithm 1 of the paper, written out.
    for part in parts:
        means.append(0.9 * means[-1] + 0.1 * part.mean((0, 2)))
    assert_same(norm.running_mean, means[-1])
    assert_same(norm.eval()(x), plain.eval()(x))


def renorm_written_out(x, norm, r_max, d_max):
    """Ioffe (2017), algorithm 1: channel by channel, with r and d as plain numbers."""
    channels = []
    for channel, values in enumerate(x.unbind(1)):
        mean = values.sum() / values.numel()
        deviation = ((values - mean).square().sum() / values.numel() + norm.eps).sqrt()
        running = math.sqrt(norm.running_var[channel].item() + norm.eps)
        r = min(max(deviation.item() / running, 1 / r_max), r_max)
        shift = (mean.item() - norm.running_mean[channel].item()) / running
        d = min(max(shift, -d_max), d_max)
        normed = (values - mean) / deviation * r + d
        channels.append(norm.weight[channel] * normed + norm.bias[channel])
    return torch.stack(channels, 1)


@pytest.mark.parametrize("mean", [0.3, 2.0, 40.0, -40.0])
@pytest.mark.parametrize("dims", [0, 2])
def test_renorm_after_its_warm_up_is_the_algorithm_of_the_paper(dims, mean):
    norm = randomize(BatchRenorm(3, dims, r_max=2.0, d_max=1.5, warmup=10).double())
    norm.num_batches_tracked.fill_(1000)
    plain = loaded(PLAIN[dims](3).double(), norm)
    x = noise(12, 3, *SPACE[:dims], mean=mean).requires_grad_()
    expected = renorm_written_out(x, norm, 2.0, 1.5)
    upstream = noise(*x.shape, seed=1)
    wanted = torch.autograd.grad(expected, (x, *norm.parameters()), upstream)
    y = norm(x)
    assert_same(y, expected)
    found = torch.autograd.grad(y, (x, *norm.parameters()), upstream)
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)
    plain(x)
    assert_same_statistics(norm, plain)


def test_renorm_without_limits_equals_evaluation():
    norm = randomize(BatchRenorm(3, 1, r_max=1e6, d_max=1e6, warmup=1).double())
    norm.num_batches_tracked.fill_(1000)
    evaluated = copy.deepcopy(norm).eval()
    x = noise(12, 3, 5)
    assert_same(norm(x), evaluated(x))


@pytest.mark.parametrize(
    ("seen", "r", "d"),
    [
        (0, 1.0, 0.0),
        (10, 1.0, 0.0),
        (30, 1 + 2 * 20 / 70, 2.5),
        (50, 1 + 2 * 40 / 70, 5.0),
        (80, 3.0, 5.0),
        (500, 3.0, 5.0),
    ],
)
def test_renorm_lets_its_limits_grow_in_the_proportions_of_the_paper(seen, r, d):
    norm = BatchRenorm(3, warmup=10)
    norm.num_batches_tracked.fill_(seen)
    assert [limit.item() for limit in norm.limits()] == pytest.approx([r, d])


def test_renorm_with_r_and_d_as_constants_has_the_gradient_of_its_output():
    # At their limits r and d are constant: finite differences then match the backward pass.
    norm = randomize(BatchRenorm(2, 0, r_max=1.01, d_max=0.01, warmup=0).double())
    norm.num_batches_tracked.fill_(1000)
    kept = copy.deepcopy(norm.state_dict())

    def from_the_same_state(x):
        norm.load_state_dict(kept)
        return norm(x)

    x = noise(6, 2, mean=30.0).requires_grad_()
    assert torch.autograd.gradcheck(from_the_same_state, x)


def test_frozen_does_not_move_and_trains_as_it_evaluates():
    plain = randomize(nn.BatchNorm2d(3).double())
    frozen = FrozenBatchNorm.of(copy.deepcopy(plain))
    before = copy.deepcopy(frozen.state_dict())
    x = noise(4, 3, 5, 5)
    y = frozen.train()(x)
    assert_same(y, plain.eval()(x))
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    # One example is enough.
    assert_same(frozen(x[:1]), y[:1])


def test_frozen_is_a_copy_and_leaves_the_norm_as_it_was():
    plain = randomize(nn.BatchNorm1d(3))
    frozen = FrozenBatchNorm.of(plain)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    before = copy.deepcopy(frozen.state_dict())
    plain(noise(8, 3, dtype=torch.float32)).square().sum().backward()
    torch.optim.SGD(plain.parameters(), 1.0).step()
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, before[name])
        assert not torch.equal(value, plain.state_dict()[name])


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, partial(SyncBatchNorm, dims=1)])
@pytest.mark.parametrize("training", [True, False])
def test_frozen_takes_over_epsilon_mode_and_missing_scale(kind, training):
    plain = kind(3, eps=0.5, affine=False).train(training)
    plain.running_var.fill_(2.0)
    frozen = FrozenBatchNorm.of(plain)
    assert frozen.training == training
    assert not list(frozen.parameters())
    x = noise(4, 3, 5, dtype=torch.float32)
    assert torch.equal(frozen(x), plain.eval()(x))


def test_only_plain_batch_norms_can_be_frozen():
    class WithActivation(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x).relu()

    for norm in (WithActivation(3), nn.GroupNorm(1, 3), BatchRenorm(3)):
        with pytest.raises(ValueError, match=type(norm).__name__):
            FrozenBatchNorm.of(norm)
    with pytest.raises(ValueError, match="track_running_stats=False"):
        FrozenBatchNorm.of(nn.BatchNorm1d(3, track_running_stats=False))


def test_a_new_frozen_norm_is_a_scale_and_a_shift():
    frozen = FrozenBatchNorm(3, dims=0, eps=0.0)
    nn.init.constant_(frozen.weight, 2.0)
    nn.init.constant_(frozen.bias, 5.0)
    x = noise(4, 3, dtype=torch.float32)
    torch.testing.assert_close(frozen(x), 2 * x + 5)
    assert all(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize(("kind", "reference"), [("layer", nn.LayerNorm), ("rms", nn.RMSNorm)])
@every_dims
def test_norm_over_channels_is_that_of_torch_at_each_position(kind, reference, dims):
    norm = randomize(batch_norm(6, dims, kind, eps=1e-3).double())
    plain = reference(6, eps=1e-3).double()
    plain.load_state_dict(norm.state_dict())
    x = noise(4, 6, *SPACE[:dims])
    assert_same(norm(x), plain(x.movedim(1, -1)).movedim(-1, 1))


def masks(draw):
    batch, time = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    lengths = draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    return torch.arange(time) < torch.tensor(lengths)[:, None]


@by_example
@given(mask=st.composite(masks)(), dims=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_group_norm_with_a_mask_is_that_of_each_sequence_cut_to_its_length(mask, dims, seed):
    norm = randomize(MaskedGroupNorm(6, groups=3).double(), seed)
    x = noise(len(mask), 6, *SPACE[: dims - 1], mask.shape[1], seed=seed).requires_grad_()
    y = norm(x, mask)
    plain = loaded(nn.GroupNorm(3, 6).double(), norm)
    for sequence, valid, out in zip(x, mask, y, strict=True):
        length = int(valid.sum())
        assert not out[..., length:].any()
        if length:
            assert_same(out[..., :length], plain(sequence[None, ..., :length])[0])
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_group_norm_without_a_mask_is_that_of_torch():
    norm = randomize(MaskedGroupNorm(6, groups=2).double())
    x = noise(4, 6, 5)
    expected = loaded(nn.GroupNorm(2, 6).double(), norm)(x)
    assert_same(norm(x), expected)
    assert_same(norm(x, torch.ones(4, 5, dtype=torch.bool)), expected)


@pytest.mark.parametrize(
    ("features", "groups"), [(64, 32), (48, 24), (8, 4), (6, 3), (7, 1), (1, 1)]
)
def test_group_norm_takes_the_largest_number_of_groups_that_divides(features, groups):
    assert MaskedGroupNorm(features).num_groups == groups


@every_kind
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding", [1e30, math.nan, math.inf])
def test_padding_has_no_influence(kind, training, padding):
    norm = randomize(masked_norm(4, 1, kind, ghost_size=4).double()).train(training)
    twin = copy.deepcopy(norm)
    mask = torch.arange(5) < torch.tensor([[5], [2], [3], [4], [1], [5], [2], [2]])
    x = noise(8, 4, 5)
    padded = torch.where(mask[:, None], x, padding)
    y = norm(padded, mask)
    assert not y.masked_select(~mask[:, None]).any()
    assert_same(y, twin(x, mask))
    for name, value in norm.state_dict().items():
        assert_same(value, twin.state_dict()[name])


@pytest.mark.parametrize("kind", ["batch", "renorm", "sync", "frozen"])
@pytest.mark.parametrize("dims", [1, 2])
def test_masked_is_the_same_norm_of_the_valid_steps(kind, dims):
    masked = randomize(MaskedBatchNorm(3, dims, kind).double())
    plain = batch_norm(3, 0, kind).double()
    plain.load_state_dict(masked.state_dict())
    for norm in (masked, plain):
        if kind == "renorm":
            norm.num_batches_tracked.fill_(1000)
    x = noise(4, 3, *SPACE[: dims - 1], 6)
    mask = torch.arange(6) < torch.tensor([[6], [2], [0], [4]])
    y = masked(x, mask)
    last = x.movedim(1, -1)
    valid = mask.view(4, *(1,) * (dims - 1), 6).expand(last.shape[:-1])
    assert_same(y.movedim(1, -1)[valid], plain(last[valid]))
    for name, value in plain.state_dict().items():
        assert_same(masked.state_dict()[name], value)


@pytest.mark.parametrize("kind", ["ghost", "split"])
def test_parts_of_a_batch_use_their_part_of_the_mask(kind):
    norm = randomize(masked_norm(3, 1, kind, ghost_size=4).double())
    parts = (norm, norm.augmented if kind == "split" else norm)
    first, second = (loaded(MaskedBatchNorm(3).double(), part) for part in parts)
    x, mask = noise(8, 3, 6), torch.arange(6) < torch.tensor([[6], [2], [1], [4]] * 2)
    assert_same(norm(x, mask), torch.cat((first(x[:4], mask[:4]), second(x[4:], mask[4:]))))


@pytest.mark.parametrize("kind", ["ghost", "renorm", "sync", "frozen", "split"])
def test_sub_spectral_norm_has_a_norm_of_the_kind_for_each_band(kind):
    norm = randomize(SubSpectralBatchNorm(2, bands=3, kind=kind, ghost_size=4).double())
    before = copy.deepcopy(norm.norm.state_dict())
    x = noise(8, 2, 6, 5)
    y = norm(x)
    for band in range(3):
        alone = masked_norm(2, 2, kind, ghost_size=4).double()
        # The channels of a band within the channels of all bands.
        alone.load_state_dict(
            {name: value[band::3] if value.dim() else value for name, value in before.items()}
        )
        rows = slice(2 * band, 2 * band + 2)
        assert_same(y[:, :, rows], alone(x[:, :, rows]))


@every_kind
@every_dims
def test_evaluation_changes_nothing_and_treats_examples_independently(kind, dims):
    norm = randomize(batch_norm(4, dims, kind).double()).eval()
    before = copy.deepcopy(norm.state_dict())
    x = noise(6, 4, *SPACE[:dims])
    assert_same(norm(x), torch.cat([norm(example) for example in x.split(1)]))
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])


@every_kind
@every_dims
def test_state_dict_and_copy_hold_all(kind, dims):
    norm = randomize(batch_norm(4, dims, kind))
    x = noise(6, 4, *SPACE[:dims], dtype=torch.float32)
    norm(x)
    other = batch_norm(4, dims, kind)
    other.load_state_dict(norm.state_dict())
    twin = copy.deepcopy(norm)
    assert torch.equal(other.eval()(x), norm.eval()(x))
    norm.train(), twin.train()
    y = norm(x)
    # The copy has not changed.
    assert torch.equal(twin(x), y)
    for name, value in twin.state_dict().items():
        assert torch.equal(value, norm.state_dict()[name])


@every_kind
def test_compiled_it_does_the_same(kind):
    torch._dynamo.reset()
    norm = randomize(masked_norm(4, 1, kind, ghost_size=4).double())
    twin = copy.deepcopy(norm)
    compiled = torch.compile(twin, backend="aot_eager")
    mask = torch.arange(5) < torch.tensor([[5], [2], [3], [4], [1], [5], [2], [2]])
    for seed in range(2):
        for valid in (None, mask):
            x = noise(8, 4, 5, seed=seed)
            assert_same(compiled(x, valid), norm(x, valid))
    for name, value in norm.state_dict().items():
        assert_same(twin.state_dict()[name], value)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["batch", "ghost", "renorm", "sync", "frozen", "split"])
def test_compiled_with_a_mask_it_is_one_graph(kind):
    torch._dynamo.reset()
    norm = randomize(masked_norm(4, 1, kind, ghost_size=4).double())
    for layer in norm.modules():
        # After the warmup of renorm.
        layer.num_batches_tracked.fill_(1000)
    twin = copy.deepcopy(norm)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (8, 11):
        mask = torch.arange(5) < torch.arange(batch)[:, None] % 4 + 2
        x = noise(batch, 4, 5, seed=batch)
        assert_same(compiled(x, mask), norm(x, mask))
    for name, value in norm.state_dict().items():
        assert_same(twin.state_dict()[name], value)
    torch._dynamo.reset()


@every_kind
def test_under_autocast_the_statistics_stay_in_single_precision(kind):
    model = nn.Sequential(nn.Conv1d(3, 4, 3), batch_norm(4, 1, kind))
    x = noise(16, 3, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    y.float().square().sum().backward()
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model[1].parameters())
    if kind in OVER_THE_BATCH:
        assert y.float().mean((0, 2)).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["ghost", "renorm", "frozen", "split"])
@pytest.mark.parametrize("make", [batch_norm, masked_norm])
def test_the_converter_of_torch_does_not_make_plain_norms_of_them(make, kind):
    norm = nn.Sequential(make(4, 2, kind))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    assert type(converted[0]) is type(make(4, 2, kind))


@pytest.mark.parametrize("kind", ["batch_norm", None, "", 1])
@pytest.mark.parametrize("make", [batch_norm, masked_norm, MaskedBatchNorm])
def test_a_wrong_kind_is_refused_by_value(make, kind):
    with pytest.raises(ValueError, match=f"not {kind!r}|={kind} "):
        make(4, 1, kind)


@every_kind
@pytest.mark.parametrize("dims", [-1, 4, 1.5, "2", None, True])
def test_wrong_dims_are_refused_by_value(kind, dims):
    for make in (batch_norm, masked_norm):
        with pytest.raises(ValueError, match=f"dims is one of 0, 1, 2 and 3, not {dims!r}"):
            make(4, dims, kind)


@every_kind
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("features", value) for value in (0, -1, 1.5, "4", None)),
        *(("eps", value) for value in (-1.0, math.nan, math.inf, "0.1", None)),
        *(("momentum", value) for value in (-0.1, 1.5, math.nan, "0.1", True)),
    ],
)
def test_a_wrong_option_is_refused_by_name_and_value(kind, name, value):
    if name == "momentum" and kind in ("layer", "group", "rms"):
        return
    options = {"features": 4, "dims": 1, "kind": kind} | {name: value}
    with pytest.raises(ValueError, match=f"{name} is .*{value!r}"):
        batch_norm(**options)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: GhostBatchNorm(4, size=0), "size is .* 0"),
        (lambda: GhostBatchNorm(4, size=2.5), "size is .* 2.5"),
        (lambda: BatchRenorm(4, r_max=0.5), "r_max is .* 0.5"),
        (lambda: BatchRenorm(4, r_max=math.nan), "r_max is .* nan"),
        (lambda: BatchRenorm(4, d_max=-1.0), "d_max is .* -1.0"),
        (lambda: BatchRenorm(4, warmup=1.5), "warmup is .* 1.5"),
        (lambda: MaskedGroupNorm(6, groups=4), "6 features do not divide into groups=4"),
        (lambda: MaskedGroupNorm(6, groups=0), "groups=0"),
        (lambda: ChannelNorm(4, kind="group"), "kind is .* 'group'"),
        (lambda: SubSpectralBatchNorm(4, kind="layer"), "not 'layer'"),
        (lambda: SubSpectralBatchNorm(4, bands=0), "bands is .* 0"),
    ],
)
def test_a_wrong_option_of_one_kind_is_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("kind", ["batch", "renorm", "sync", "ghost"])
def test_a_batch_of_one_value_is_refused(kind):
    with pytest.raises(ValueError, match=r"more than (1|one) value"):
        batch_norm(4, 0, kind)(torch.randn(1, 4))


def test_every_kind_without_scale_and_shift_is_the_one_with_neutral_ones():
    x = noise(8, 4, 5)
    for kind in KINDS:
        bare = batch_norm(4, 1, kind, affine=False).double()
        full = batch_norm(4, 1, kind).double()
        assert not list(bare.parameters())
        assert_same(bare(x), full(x))


@every_dims
def test_frozen_is_the_formula_of_its_statistics(dims):
    frozen = randomize(FrozenBatchNorm(3, dims, eps=0.25).double())
    x = noise(5, 3, *SPACE[:dims])
    y = frozen.train()(x)
    for channel in range(3):
        mean, variance, weight, bias = (
            value[channel].item()
            for value in (frozen.running_mean, frozen.running_var, frozen.weight, frozen.bias)
        )
        expected = (x[:, channel] - mean) / math.sqrt(variance + 0.25) * weight + bias
        assert_same(y[:, channel], expected)
