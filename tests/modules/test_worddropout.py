"""Tests of word dropout; tests of every layer are in test_dropout.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regain import EmbeddingDropout, WordDropout, embedding_dropout, word_dropout

by_example = settings(deadline=None, derandomize=True, max_examples=50)
seeds = st.integers(0, 2**31)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_word_dropout_replaces_at_rate_p(p, assert_rate):
    assert_rate(word_dropout(torch.full((1900, 1900), 7), p, replacement=1) == 1, p)


@by_example
@given(
    p=st.floats(0.0, 0.99),
    replacement=st.integers(0, 5),
    fraction=st.floats(0.0, 1.0),
    seed=seeds,
)
def test_word_dropout_puts_in_only_the_replacement_and_not_where_kept(
    p, replacement, fraction, seed
):
    torch.manual_seed(seed)
    ids = torch.randint(10, 1000, (4, 30))
    keep = torch.rand(ids.shape) < fraction
    before = ids.clone()
    out = word_dropout(ids, p, replacement, keep)
    assert torch.equal(out[keep], ids[keep])
    assert (out[out != ids] == replacement).all()
    assert out.dtype == ids.dtype
    assert torch.equal(ids, before)


def test_word_dropout_draws_for_each_token(assert_independent):
    dropped = word_dropout(torch.full((200, 200), 7), 0.5, replacement=1) == 1
    for dim in (0, 1):
        assert_independent(dropped, dim)


def test_word_dropout_keep_does_not_lower_the_rate_elsewhere(assert_rate):
    ids = torch.full((1900, 900), 7)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[:, ::2] = True
    out = word_dropout(ids, 0.5, 1, keep)
    assert_rate(out[~keep] == 1, 0.5)


def test_word_dropout_at_rate_zero_is_the_identity():
    ids = torch.randint(0, 100, (4, 30))
    assert torch.equal(word_dropout(ids, 0.0, replacement=1000), ids)


def test_word_dropout_is_reproducible_with_a_generator():
    ids = torch.full((20, 20), 7)
    state = torch.get_rng_state()
    first = word_dropout(ids, 0.5, 1, generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(word_dropout(ids, 0.5, 1, generator=seeded(3)), first)
    assert not torch.equal(word_dropout(ids, 0.5, 1, generator=seeded(4)), first)


@by_example
@given(
    p=st.floats(0.01, 0.95),
    kept=st.lists(st.integers(0, 9), max_size=4),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=seeds,
)
def test_layer_keeps_the_words_that_must_stay(p, kept, shape, dtype, seed):
    torch.manual_seed(seed)
    ids = torch.randint(0, 10, shape, dtype=dtype)
    layer = WordDropout(p, replacement=99, kept=kept)
    out = layer(ids)
    stays = sum((ids == word for word in kept), torch.zeros_like(ids, dtype=torch.bool)).bool()
    assert torch.equal(out[stays], ids[stays])
    assert ((out == ids) | (out == 99)).all()
    assert out.dtype == dtype
    assert torch.equal(layer.eval()(ids), ids)


def test_layer_replaces_the_rest_at_rate_p(assert_rate):
    ids = torch.tensor([0, 2, 7]).expand(1_450_000, 3)
    out = WordDropout(0.2, replacement=1, kept=[0, 2])(ids)
    assert torch.equal(out[:, :2], ids[:, :2])
    assert_rate(out[:, 2] == 1, 0.2)


def test_padding_stays_by_default():
    assert not WordDropout(0.9)(torch.zeros(1000, dtype=torch.long)).any()


def test_word_dropout_shows_what_it_does():
    layer = WordDropout(0.25, replacement=3, kept=[0, 2])
    assert repr(layer) == "WordDropout(p=0.25, replacement=3, kept=[0, 2])"


@by_example
@given(p=st.floats(0.01, 0.95), seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_dropped_word_is_zero_at_each_occurrence(p, seed, dtype):
    torch.manual_seed(seed)
    table = nn.Embedding(6, 3, dtype=dtype)
    ids = torch.randint(0, 6, (5, 7))
    layer = EmbeddingDropout(table, p)
    out = layer(ids)
    for word in range(6):
        vectors = out[ids == word]
        if len(vectors) and (vectors[0] == 0).all():
            assert (vectors == 0).all()
        else:
            expected = (table.weight[word] / (1 - p)).expand_as(vectors)
            torch.testing.assert_close(vectors, expected)
    assert torch.equal(layer.eval()(ids), table(ids))


def test_embedding_dropout_draws_for_each_word_at_each_call(assert_rate, assert_independent):
    table = nn.Embedding.from_pretrained(torch.ones(365_000, 1))
    dropped = embedding_dropout(table, torch.arange(365_000), 0.5)[:, 0] == 0
    assert_rate(dropped, 0.5)
    assert_independent(dropped, 0)
    again = embedding_dropout(table, torch.arange(365_000), 0.5)[:, 0] == 0
    assert_independent(torch.stack((dropped, again)), 0)


def test_gradient_of_the_table_is_that_of_the_words_that_were_kept():
    layer = EmbeddingDropout(nn.Embedding(50, 2, dtype=torch.float64), 0.4)
    ids = torch.arange(50).repeat(3)  # Each word three times.
    out = layer(ids)
    out.sum().backward()
    kept = (out[:50, 0] != 0).double()
    assert 0 < kept.mean() < 1
    expected = (3 * kept / 0.6).unsqueeze(1).expand(50, 2)
    torch.testing.assert_close(layer.table.weight.grad, expected)


def test_padding_of_the_table_stays_without_a_gradient():
    layer = EmbeddingDropout(nn.Embedding(5, 3, padding_idx=0), 0.5, seeded(0))
    out = layer(torch.tensor([[0, 1, 2, 3]]))
    out.sum().backward()
    assert not out[0, 0].any()
    assert not layer.table.weight.grad[0].any()


def test_all_words_are_dropped_at_rate_one():
    ids = torch.randint(2, 9, (4, 30))
    assert (word_dropout(ids, 1.0, replacement=1) == 1).all()
    assert WordDropout(1.0, 1, kept=[5])(ids).eq(torch.where(ids == 5, 5, 1)).all()
    table = nn.Embedding(9, 3)
    nn.init.constant_(table.weight, torch.inf)
    words = EmbeddingDropout(table, 1.0)(ids)
    assert not words.any()
    words.sum().backward()
    assert not table.weight.grad.any()
