import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from regain import ConcreteDropout, concrete_dropout

by_example = settings(deadline=None, derandomize=True, max_examples=50)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def logit(p):
    return math.log(p / (1 - p))


@by_example
@given(
    p=st.floats(0.01, 0.95),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_identity_in_eval(p, shape, dtype):
    x = torch.randn(shape).to(dtype)
    features = x.shape[1] if x.dim() > 1 else 1
    state = torch.get_rng_state()
    assert torch.equal(ConcreteDropout(features, p).eval()(x), x)
    assert torch.equal(concrete_dropout(x, torch.tensor(p), training=False), x)
    assert torch.equal(torch.get_rng_state(), state)


@by_example
@given(
    p=st.floats(0.01, 0.95),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_scales_by_between_zero_and_the_inverse_keep_rate(p, shape, dtype, seed):
    torch.manual_seed(seed)
    x = (torch.rand(shape) + 1).to(dtype)
    y = ConcreteDropout(3, p)(x)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    factor = y.double() / x.double()
    assert (factor >= 0).all()
    assert (factor <= (1 + 2 * torch.finfo(dtype).eps + 1e-5) / (1 - p)).all()


@pytest.mark.parametrize(
    ("p", "own_generator", "dtype"),
    [(0.2, False, torch.float32), (0.5, True, torch.float64), (0.3, True, torch.bfloat16)],
)
def test_more_than_half_is_dropped_at_rate_p(p, own_generator, dtype, assert_rate):
    # The relaxed draw is below one half where the binary draw would be zero.
    x = torch.ones(math.ceil(365_000 * (1 - p) / p), 1, dtype=dtype)
    y = ConcreteDropout(1, p, seeded(1) if own_generator else None)(x)
    assert_rate(y * (1 - p) < 0.5, p)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.8])
def test_mean_is_nearly_kept_and_most_draws_are_near_zero_or_one(p):
    kept = ConcreteDropout(100, p)(torch.ones(4000, 100)) * (1 - p)
    # The relaxation shifts the mean rate slightly towards one half.
    assert kept.mean().item() == pytest.approx(1 - p, abs=0.01)
    assert ((kept < 0.05) | (kept > 0.95)).float().mean() > 0.8


def test_mean_rate_is_the_integral_of_the_relaxed_draw():
    p = 0.1
    uniform = (torch.arange(4_000_000, dtype=torch.float64) + 0.5) / 4_000_000
    odds = p / (1 - p) * uniform / (1 - uniform)
    expected = (1 / (1 + odds**-10)).mean().item()
    dropped = 1 - ConcreteDropout(1, p)(torch.ones(4_000_000, 1)).double() * (1 - p)
    spread = dropped.std().item() / math.sqrt(4_000_000)
    assert abs(dropped.mean().item() - expected) <= 3 * spread
    # A rate that is 1 % off is outside.
    assert 6 * spread < 0.01 * p


@pytest.mark.parametrize("shape", [(60, 70), (60, 70, 4), (60, 70, 2, 3)])
def test_positions_share_the_draw_and_features_and_examples_do_not(shape, assert_independent):
    y = ConcreteDropout(70, 0.5)(torch.ones(shape)).view(60, 70, -1)
    assert torch.equal(y, y[:, :, :1].expand_as(y))
    for dim in (0, 1):
        assert_independent(y[:, :, 0].detach() < 1, dim)


def test_reproducible_with_a_generator_and_fresh_at_every_call():
    x = torch.ones(20, 30)
    state = torch.get_rng_state()
    layer = ConcreteDropout(30, 0.3, seeded(3))
    first, second = layer(x), layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ConcreteDropout(30, 0.3, seeded(3))(x), first)
    assert torch.equal(concrete_dropout(x, torch.tensor(0.3), generator=seeded(3)), first)
    assert not torch.equal(ConcreteDropout(30, 0.3, seeded(4))(x), first)
    assert not torch.equal(second, first)
    assert not torch.equal(ConcreteDropout(30, 0.3)(x), ConcreteDropout(30, 0.3)(x))


@pytest.mark.parametrize("p", [0.05, 0.4, 0.9])
def test_gradients_of_input_and_rate(p):
    def drop(x, parameter):
        # The same draw at every call.
        return concrete_dropout(x, parameter.sigmoid(), generator=seeded(5))

    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    parameter = torch.tensor(logit(p), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(drop, (x, parameter))
    (gradient,) = torch.autograd.grad(drop(x, parameter).square().sum(), parameter)
    assert gradient != 0


def test_gradient_of_the_input_is_the_scaled_draw():
    x = (torch.rand(8, 8, 8, dtype=torch.float64) + 1).requires_grad_()
    y = ConcreteDropout(8, 0.3)(x)
    upstream = torch.randn_like(x)
    y.backward(upstream)
    torch.testing.assert_close(x.grad, upstream * (y / x).detach())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_falls_where_noise_costs_and_rises_where_the_penalty_asks_for_it(p):
    def train(loss):
        layer = ConcreteDropout(50, p, seeded(0))
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        for _ in range(40):
            optimizer.zero_grad()
            loss(layer).backward()
            optimizer.step()
        return layer.p.item()

    x = torch.ones(100, 50)
    assert train(lambda layer: (layer(x) - x).square().mean()) < 0.5 * p
    # Entropy is largest at one half.
    after = train(lambda layer: layer.penalty())
    assert abs(after - 0.5) < abs(p - 0.5) or p == after == 0.5
    # The penalty of a high rate grows with the weights.
    assert train(lambda layer: layer.penalty(torch.full((50, 500), 1e3))) < p


@by_example
@given(
    p=st.floats(0.001, 0.999),
    features=st.integers(1, 50),
    scale=st.floats(0.001, 1.0),
    seed=st.integers(0, 2**31),
)
def test_penalty_is_the_closed_form(p, features, scale, seed):
    weight = torch.randn(5, 7, dtype=torch.float64, generator=seeded(seed))
    layer = ConcreteDropout(features, p).double()
    layer.logit.data.fill_(logit(p))
    assert layer.penalty().shape == ()
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert layer.penalty().item() == pytest.approx(-features * entropy, rel=1e-9)
    squares = sum(value**2 for value in weight.flatten().tolist())
    expected = -features * entropy + scale**2 / 2 * squares / (1 - p)
    assert layer.penalty(weight, scale).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    # d penalty / d logit = p (1 - p) * (features * log(p / (1 - p)) + ... / (1 - p)**2)
    layer.penalty(weight, scale).backward()
    slope = features * logit(p) + scale**2 / 2 * squares / (1 - p) ** 2
    assert layer.logit.grad.item() == pytest.approx(p * (1 - p) * slope, rel=1e-9, abs=1e-12)


def test_penalty_has_a_gradient_for_the_weight():
    weight = torch.randn(3, 4, requires_grad=True)
    ConcreteDropout(4, 0.2).penalty(weight, 0.5).backward()
    torch.testing.assert_close(weight.grad, 0.25 * weight.detach() / 0.8)


@pytest.mark.parametrize("value", [-200.0, -30.0, -10.0, 10.0, 20.0, 200.0])
def test_extreme_rates_stay_finite(value):
    layer = ConcreteDropout(4)
    layer.logit.data.fill_(value)
    y = layer(torch.ones(500, 4))
    (y.sum() + layer.penalty()).backward()
    assert y.isfinite().all()
    assert layer.logit.grad.isfinite()


def test_state_dict_holds_the_rate():
    layer, other = ConcreteDropout(4, 0.2), ConcreteDropout(4, 0.7)
    assert set(layer.state_dict()) == {"logit"}
    other.load_state_dict(layer.state_dict())
    assert other.p.item() == pytest.approx(0.2)


def test_state_dict_of_a_scalar_rate_is_taken():
    layer, other = nn.Sequential(ConcreteDropout(4, 0.2)), nn.Sequential(ConcreteDropout(4, 0.7))
    saved = {"0.logit": layer.state_dict()["0.logit"].view(())}
    other.load_state_dict(saved)
    assert other[0].p.item() == pytest.approx(0.2)
    assert other[0].logit.shape == (1,)
    # The given state dict is not changed.
    assert saved["0.logit"].shape == ()
    assert layer[0].p.shape == ()


def test_a_deep_copy_draws_like_the_original():
    x, layer = torch.ones(20, 30), ConcreteDropout(30, 0.3, seeded(3))
    layer(x)
    twin = copy.deepcopy(layer)
    expected = twin(x)
    assert torch.equal(layer(x), expected)
    twin.logit.data.add_(1)
    assert layer.p.item() == pytest.approx(0.3)


@pytest.mark.parametrize("p", [1, 1.0, -0.1, math.nan, math.inf, "0.5", True, False, None])
def test_wrong_rate_is_refused_by_value(p):
    with pytest.raises(ValueError, match="p is a rate") as refusal:
        ConcreteDropout(4, p)
    assert str(refusal.value).endswith(f"not {p!r}")


def test_rate_zero_is_refused_because_it_cannot_be_learned():
    with pytest.raises(ValueError, match=r"p is an initial rate in \(0, 1\), not 0\.0"):
        ConcreteDropout(4, 0.0)


@pytest.mark.parametrize("features", [-1, 2.0, "4", True, None])
def test_wrong_features_are_refused(features):
    with pytest.raises(ValueError, match="features is a whole number"):
        ConcreteDropout(features)


def test_repr_shows_features_and_rate():
    assert repr(ConcreteDropout(4, 0.25)) == "ConcreteDropout(features=4, p=0.25)"


def test_autocast_gives_the_type_that_it_gives_without_dropout():
    layer = ConcreteDropout(6, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = nn.Conv1d(3, 6, 3)(torch.randn(4, 3, 12))
        y = layer(x)
    assert (y.dtype, y.shape) == (torch.bfloat16, x.shape)
    y.square().sum().backward()
    assert layer.logit.grad.isfinite()


def sharded_on_a_rank(rank, meeting, results):
    """Train two sharded layers, and save their rates."""
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), ConcreteDropout(4, 0.2)) for _ in "ab"))
    for layer in (*model, model):
        fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.zeros(8, 4)).sum() * 0 + sum(block[1].penalty() for block in model)
        loss.backward()
        optimizer.step()
    torch.save(([block[1].p.item() for block in model], repr(model[0][1])), f"{results}/{rank}.pt")
    distributed.destroy_process_group()


def test_a_sharded_rate_is_learned(tmp_path):
    layer = ConcreteDropout(4, 0.2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        layer.penalty().backward()
        optimizer.step()
    torch.multiprocessing.spawn(
        sharded_on_a_rank, (f"file://{tmp_path}/meeting", str(tmp_path)), nprocs=2
    )
    for rank in (0, 1):
        rates, shown = torch.load(tmp_path / f"{rank}.pt")
        assert rates == pytest.approx([layer.p.item()] * 2)
        assert shown == "ConcreteDropout(features=4, p=0.2)"
    assert layer.p.item() > 0.21
