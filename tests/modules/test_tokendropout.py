import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from regain import TokenDropout, token_dropout

by_example = settings(deadline=None, derandomize=True, max_examples=60)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def numbered(batch, tokens, dtype=torch.float32):
    """Tokens whose values are their indices."""
    return torch.arange(tokens, dtype=dtype).expand(batch, -1).clone()


def rounded(count, p):
    """The number of kept tokens of `count`, halves rounded up, in integer arithmetic."""
    return min(count, max(1, (2 * count * round(1000 * (1 - p)) + 1000) // 2000))


@by_example
@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 40),
    prefix=st.integers(0, 3),
    p=st.integers(0, 99).map(lambda hundredth: hundredth / 100),
    ordered=st.booleans(),
    seed=st.integers(0, 2**31),
)
# 0.1 times 15 is less than a half more than 1, in floating point.
@example(batch=2, tokens=15, prefix=0, p=0.9, ordered=True, seed=0)
def test_the_rounded_fraction_is_removed_and_the_prefix_is_kept(
    batch, tokens, prefix, p, ordered, seed
):
    torch.manual_seed(seed)
    x = torch.randn(batch, tokens, 3)
    before = x.clone()
    kept, mask, indices = token_dropout(x, p, prefix=prefix, ordered=ordered)
    prefix = min(prefix, tokens)
    count = prefix + (rounded(tokens - prefix, p) if tokens > prefix else 0)
    assert kept.shape == (batch, count, 3)
    assert mask is None
    assert torch.equal(kept, x.gather(1, indices.unsqueeze(2).expand(-1, -1, 3)))
    assert torch.equal(indices[:, :prefix], torch.arange(prefix).expand(batch, -1))
    # No duplicate tokens.
    assert all(len(set(row.tolist())) == count for row in indices)
    if ordered:
        assert (indices.diff(dim=1) > 0).all()
    assert torch.equal(x, before)


@by_example
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    extra=st.integers(0, 5),
    prefix=st.integers(0, 2),
    p=st.integers(1, 99).map(lambda hundredth: hundredth / 100),
    ordered=st.booleans(),
    left=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_in_padded_sequences_the_fraction_of_valid_tokens_is_removed(
    lengths, extra, prefix, p, ordered, left, seed
):
    torch.manual_seed(seed)
    lengths = [prefix + length for length in lengths]
    tokens = max(lengths) + extra
    mask = torch.arange(tokens) < torch.tensor(lengths).unsqueeze(1)
    if left:
        # Padding between the prefix and the text: some tokenizers pad on the left.
        mask = torch.cat((mask[:, :prefix], mask[:, prefix:].flip(1)), dim=1)
    x = numbered(len(lengths), tokens) + 1
    kept, still, indices = token_dropout(x, p, mask=mask, prefix=prefix, ordered=ordered)
    assert torch.equal(kept, x.gather(1, indices))
    for row, length in enumerate(lengths):
        valid = indices[row][still[row]].tolist()
        assert len(set(valid)) == len(valid)
        assert mask[row, valid].all()
        expected = prefix + (rounded(length - prefix, p) if length > prefix else 0)
        assert len(valid) == expected
        assert valid[:prefix] == list(range(prefix))
        if ordered:
            assert valid == sorted(valid)
    # The longest sequence sets the length; others are padded at the end.
    longest = rounded(tokens - prefix, p) if tokens > prefix else 0
    assert kept.shape[1] == prefix + longest
    assert not (still[:, 1:] & ~still[:, :-1]).any()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32])
def test_a_mask_of_numbers_is_one_of_booleans(dtype):
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    kept = [
        token_dropout(numbered(2, 4), 0.5, True, seeded(0), one, prefix=0)
        for one in (mask.bool(), mask.to(dtype))
    ]
    for one, other in zip(*kept, strict=True):
        assert torch.equal(one, other)
    assert kept[1].mask.dtype == torch.bool


@pytest.mark.parametrize("masked", [False, True])
def test_each_token_is_dropped_at_rate_p_at_each_index(masked, assert_rate):
    mask = torch.ones(370_000, 6, dtype=torch.bool)
    mask[:, 4:] = not masked
    _, still, indices = token_dropout(numbered(*mask.shape), 0.5, mask=mask, prefix=0)
    seen = torch.zeros(370_000, 7).scatter(1, indices.masked_fill(~still, 6), 1.0)
    for index in range(4 if masked else 6):
        assert_rate(seen[:, index] == 0, 0.5)


def test_each_example_draws_its_own():
    indices = token_dropout(torch.ones(300, 40), 0.5).indices
    assert len({tuple(row.tolist()) for row in indices}) == 300
    layer = TokenDropout(0.5)
    x = numbered(1, 40)
    assert len({tuple(layer(x)[0].tolist()) for _ in range(50)}) == 50


def test_the_mean_of_the_kept_tokens_is_that_of_all_in_expectation():
    x = torch.randn(1, 11, 3, dtype=torch.float64)
    means = TokenDropout(0.6, prefix=0)(x.expand(100_000, -1, -1)).mean(1)
    error = means.std(0) / math.sqrt(len(means))
    assert ((means.mean(0) - x[0].mean(0)).abs() < 4 * error).all()


def test_the_gradient_of_what_is_removed_is_zero():
    x = torch.randn(6, 9, 2, dtype=torch.float64, requires_grad=True)
    kept, _, indices = token_dropout(x, 0.5, True, seeded(0))
    upstream = torch.randn_like(kept)
    kept.backward(upstream)
    expected = torch.zeros_like(x).scatter(1, indices.unsqueeze(2).expand(-1, -1, 2), upstream)
    assert torch.equal(x.grad, expected)
    assert torch.autograd.gradcheck(
        lambda x: token_dropout(x, 0.5, True, seeded(0)).x, (x.detach().requires_grad_(),)
    )


@pytest.mark.parametrize("layer", [TokenDropout(0.7).eval(), TokenDropout(0.0)])
def test_nothing_happens_in_evaluation_and_at_rate_zero(layer):
    x, mask = torch.randn(3, 10, 2), torch.rand(3, 10) < 0.5
    state = torch.get_rng_state()
    assert layer(x) is x
    kept, still, indices = layer(x, mask)
    assert kept is x
    assert torch.equal(still, mask)
    assert torch.equal(indices, torch.arange(10).expand(3, -1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("own", [False, True])
def test_the_draw_follows_the_seed(own):
    x = numbered(3, 50)

    def drawn(seed):
        torch.manual_seed(seed)
        layer = TokenDropout(0.5, generator=seeded(seed) if own else None)
        return torch.stack([layer(x) for _ in range(3)])

    state = torch.get_rng_state()
    first = drawn(3)
    assert torch.equal(drawn(3), first)
    assert not torch.equal(drawn(4), first)
    if own:
        torch.set_rng_state(state)
        TokenDropout(0.5, generator=seeded(0))(x)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2), (2, 1, 3), (4, 6)])
def test_empty_batches_and_short_sequences_pass(shape):
    x = torch.randn(shape)
    mask = torch.ones(shape[:2], dtype=torch.bool)
    for inputs in ((x,), (x, mask)):
        TokenDropout(0.5, prefix=2)(*inputs)
    assert token_dropout(x, 0.5, mask=~mask, prefix=0).mask.sum() == 0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_it_compiles_into_one_graph_of_a_fixed_size(masked, ordered):
    torch._dynamo.reset()
    layer = TokenDropout(0.5, ordered=ordered)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, mask = torch.randn(3, 9, 2), torch.arange(9) < torch.tensor([[9], [4], [2]])
    kept = compiled(x, mask) if masked else compiled(x)
    assert (kept.x if masked else kept).shape == (3, 5, 2)
    if masked:
        assert kept.mask.sum(1).tolist() == [5, 3, 2]


def test_it_knows_its_shape_on_the_meta_device():
    x = torch.randn(3, 9, 2, device="meta")
    kept = TokenDropout(0.5)(x, torch.ones(3, 9, dtype=torch.bool, device="meta"))
    assert [tuple(part.shape) for part in kept] == [(3, 5, 2), (3, 5), (3, 5)]


def test_torch_fx_records_it_as_one_step():
    model = nn.Sequential(nn.Linear(2, 4), TokenDropout(0.5), nn.Linear(4, 1))
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["0", "1", "2"]
    assert traced(torch.ones(3, 9, 2)).shape == (3, 5, 1)
    assert traced.eval()(torch.ones(3, 9, 2)).shape == (3, 9, 1)
    mask = torch.ones(3, 9, dtype=torch.bool)
    alone = torch.fx.symbolic_trace(lambda x, mask: token_dropout(x, 0.5, mask=mask).x)
    assert alone(torch.ones(3, 9, 2), mask).shape == (3, 5, 2)


def test_it_can_be_used_between_layers():
    model = nn.Sequential(nn.Linear(2, 4), TokenDropout(0.5), nn.Linear(4, 1))
    assert model(torch.ones(3, 9, 2)).shape == (3, 5, 1)
    assert repr(model[1]) == "TokenDropout(p=0.5, prefix=1, ordered=True)"
    assert not TokenDropout(0.5).state_dict()


@pytest.mark.parametrize("p", [1, 1.0, -0.1, math.nan, "0.5", True, None])
def test_a_wrong_rate_is_refused(p):
    for make in (TokenDropout, lambda p: token_dropout(torch.ones(2, 3), p)):
        with pytest.raises(ValueError, match=f"p is a rate .*not {p!r}"):
            make(p)


@pytest.mark.parametrize("prefix", [-1, 1.0, True, None, "1"])
def test_a_wrong_prefix_is_refused(prefix):
    for make in (
        lambda prefix: TokenDropout(0.5, prefix),
        lambda prefix: token_dropout(torch.ones(2, 3), prefix=prefix),
    ):
        with pytest.raises(ValueError, match=f"prefix is a whole number .*not {prefix!r}"):
            make(prefix)


@pytest.mark.parametrize("shape", [(3, 8), (9,), (1, 9), (3, 9, 1)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"the mask has the shape .*\(3, 9\)"):
        TokenDropout(0.5)(torch.ones(3, 9, 2), torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="token dropout needs"):
        TokenDropout(0.5)(torch.ones(3))
