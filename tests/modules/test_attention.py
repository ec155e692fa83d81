"""Tests of dropout in attention; tests of every layer are in test_dropout.py."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regain import AttentionDropout, DropHead, attention_dropout, drop_head

VARIANTS = [(False, False), (True, False), (False, True), (True, True)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def parts(keys=7, queries=5, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((2, 3, queries, 4), (2, 3, keys, 4), (2, 3, keys, 6))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_columns_are_dropped_for_all_queries_and_heads_differ():
    weights = torch.full((4, 3, 6, 50), 0.02)
    dropped = attention_dropout(weights, 0.5, columns=True) == 0
    assert torch.equal(dropped, dropped[:, :, :1].expand_as(dropped))
    heads = dropped[:, :, 0].flatten(0, 1)
    assert len({tuple(head.tolist()) for head in heads}) == len(heads)


@pytest.mark.parametrize("columns", [False, True])
def test_renormalized_probabilities_sum_to_one_in_their_proportions(columns):
    weights = torch.randn(8, 3, 20, 30, dtype=torch.float64).softmax(-1)
    left = attention_dropout(weights, 0.4, columns=columns, renormalize=True)
    torch.testing.assert_close(left.sum(-1), torch.ones(8, 3, 20, dtype=torch.float64))
    kept = left != 0
    assert 0.5 < kept.double().mean() < 0.7
    expected = weights * kept / (weights * kept).sum(-1, keepdim=True)
    torch.testing.assert_close(left, expected)


def test_a_query_that_has_lost_all_keys_gets_zeros_and_finite_gradients():
    weights = torch.ones(4000, 1, 1, 2, requires_grad=True)
    left = attention_dropout(weights, 0.9, renormalize=True)
    left.mul(1e6).square().sum().backward()
    assert (left.sum(-1) == 0).any()
    assert left.isfinite().all()
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize(("columns", "renormalize"), VARIANTS)
@pytest.mark.parametrize("masked", ["no", "booleans", "numbers", "causal"])
def test_attend_is_dropout_of_the_probabilities(columns, renormalize, masked):
    query, key, value = parts()
    allowed = torch.ones(5, 7, dtype=torch.bool)
    options = {"scale": 0.3}
    if masked in ("booleans", "numbers"):
        allowed = torch.rand(5, 7) < 0.6
        allowed[:, 0] = True
        options["mask"] = allowed if masked == "booleans" else allowed.double().log()
    if masked == "causal":
        allowed = allowed.tril()
        options["is_causal"] = True
    layer = AttentionDropout(0.4, columns, renormalize, seeded(3))
    found = layer.attend(query, key, value, **options)

    scores = (query @ key.transpose(2, 3) * 0.3).masked_fill(~allowed, -math.inf)
    layer.generator.manual_seed(3)
    expected = layer(scores.softmax(-1)) @ value
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (query, key, value), upstream, retain_graph=True),
        torch.autograd.grad(expected, (query, key, value), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_plain_kind_runs_in_the_fused_kernel():
    query, key, value = parts()
    torch.manual_seed(5)
    found = AttentionDropout(0.4).attend(query, key, value)
    torch.manual_seed(5)
    assert torch.equal(found, F.scaled_dot_product_attention(query, key, value, dropout_p=0.4))


@pytest.mark.parametrize(("columns", "renormalize"), VARIANTS)
def test_evaluation_and_rate_zero_are_attention_without_dropout(columns, renormalize):
    query, key, value = parts()
    expected = F.scaled_dot_product_attention(query, key, value)
    for layer in (
        AttentionDropout(0.4, columns, renormalize).eval(),
        AttentionDropout(0.0, columns, renormalize),
        AttentionDropout(0.4, columns, renormalize, seeded(0)).eval(),
    ):
        assert torch.equal(layer.attend(query, key, value), expected)


@pytest.mark.parametrize("columns", [False, True])
def test_attend_keeps_the_mean(columns):
    query, key, value = (part.detach() for part in parts())
    layer = AttentionDropout(0.3, columns)
    passes = torch.stack([layer.attend(query, key, value) for _ in range(4000)])
    expected = F.scaled_dot_product_attention(query, key, value)
    error = passes.std(0) / math.sqrt(len(passes))
    assert ((passes.mean(0) - expected).abs() <= 4.5 * error).all()


@pytest.mark.parametrize(("columns", "renormalize"), VARIANTS)
def test_attend_compiles_into_one_graph(columns, renormalize):
    torch._dynamo.reset()
    layer = AttentionDropout(0.5, columns, renormalize)
    compiled = torch.compile(layer.attend, backend="aot_eager", fullgraph=True)
    query, key, value = parts()
    y = compiled(query, key, value)
    y.sum().backward()
    assert not torch.equal(y, compiled(query, key, value))
    assert query.grad.isfinite().all()


def test_whole_heads_are_dropped_for_each_example_separately():
    x = torch.rand(40, 8, 5, 4) + 1
    kept = (DropHead(0.5)(x) != 0).flatten(2)
    assert torch.equal(kept, kept[:, :, :1].expand_as(kept))
    assert len({tuple(example.tolist()) for example in kept[:, :, 0]}) > 20


@pytest.mark.parametrize("dim", [1, 2, -1, -2])
def test_heads_may_be_in_any_dimension_but_the_first(dim):
    dropped = drop_head(torch.ones(20, 6, 7, 8), 0.5, dim=dim) == 0
    for other in range(1, 4):
        same = torch.equal(dropped, dropped.narrow(other, 0, 1).expand_as(dropped))
        assert same == (other != dim % 4)


def test_concatenated_heads_can_be_dropped_after_unflatten():
    joined = torch.ones(10, 5, 8 * 4)
    heads = DropHead(0.5, dim=2)(joined.unflatten(-1, (8, -1)))
    kept = heads.flatten(2).view(10, 5, 8, 4)
    assert torch.equal(kept, kept[:, :1, :, :1].expand_as(kept))


@pytest.mark.parametrize("dim", [0, 1.0, True, None, "1"])
def test_an_invalid_dimension_of_heads_is_refused(dim):
    with pytest.raises(ValueError, match=f"dim is a dimension after the batch, not {dim!r}"):
        DropHead(0.5, dim)


@pytest.mark.parametrize("dim", [0, 3, -3, 7])
def test_a_dimension_that_the_input_does_not_have_is_refused(dim):
    with pytest.raises(ValueError, match=rf"dim={dim} is no dimension .*\(2, 3, 4\)"):
        drop_head(torch.ones(2, 3, 4), 0.5, dim=dim)


def test_both_show_what_they_do():
    shown = repr(AttentionDropout(0.25, columns=True))
    assert shown == "AttentionDropout(p=0.25, columns=True, renormalize=False)"
    assert repr(nn.Sequential(DropHead(0.25))).count("DropHead(p=0.25)") == 1
