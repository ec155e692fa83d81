"""Encoders of `transformers` under dropout of their layers, attention, heads and tokens."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from regain import (
    AttentionDropout,
    DropHead,
    DropoutSchedule,
    Regularization,
    dropout_rates,
    mc_dropout,
    recomputed,
)
from tasks.base import ClassificationTask
from tasks.errors import InputError
from tasks.gradient_checkpointing import checkpoint_blocks
from tasks.nlp import encoders
from tasks.nlp.data import TextSpec
from tasks.nlp.models import Transformer
from tasks.nlp.task import TextTask
from tasks.optimization import Optimization

SPEC = TextSpec(["a", "b", "c"], vocabulary=60, padding=0, unknown=1, special=[0])
SIZE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
CONFIGS = {
    "bert": lambda: BertConfig(**SIZE),
    "roberta": lambda: RobertaConfig(**SIZE, pad_token_id=1),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=64
    ),
    # One layer with shared weights for all depths.
    "albert": lambda: AlbertConfig(**SIZE, embedding_size=16),
    # Rotary position embeddings; its attention stores the dropout rate as a number.
    "modernbert": lambda: ModernBertConfig(**SIZE, pad_token_id=0),
    "gpt2": lambda: GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4),
    # These have their own attention code.
    "mpnet": lambda: MPNetConfig(**SIZE),
    "deberta": lambda: DebertaV2Config(**SIZE),
}
OURS = ["bert", "roberta", "distilbert", "albert", "modernbert", "gpt2"]


def built(name, reg):
    torch.manual_seed(0)
    config = CONFIGS[name]()
    encoders.set_dropouts(config, reg)
    encoder = AutoModel.from_config(config)
    if encoders.own_attention(config, reg):
        encoders.drop_in_attention(encoder, reg)
    return encoder


def layers(model, kinds):
    return [layer for layer in model.modules() if isinstance(layer, kinds)]


def texts(count=4, length=9):
    ids = torch.randint(5, 60, (count, length), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(length) < torch.tensor([length, 7, 4, 1]).unsqueeze(1)
    return ids, mask


@pytest.mark.parametrize(
    ("name", "hidden", "attention"),
    [
        ("bert", "hidden_dropout_prob", "attention_probs_dropout_prob"),
        ("distilbert", "dropout", "attention_dropout"),
        ("deberta", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    ],
)
@pytest.mark.parametrize(
    ("options", "outside", "inside"),
    [
        ({"dropout": 0.25}, 0.25, 0.25),
        ({}, 0.0, 0.0),
        ({"attention_dropout": 0.3}, 0.0, 0.3),
        ({"dropout": 0.25, "attention_dropout": 0.3}, 0.25, 0.3),
        ({"dropout": 0.25, "attention_dropout": 0.0}, 0.25, 0.0),
    ],
)
def test_every_dropout_of_an_encoder_is_set(name, hidden, attention, options, outside, inside):
    reg = Regularization(**options)
    config = CONFIGS[name]()
    encoders.set_dropouts(config, reg)
    ours = name != "deberta"
    assert getattr(config, hidden) == outside
    # The encoder's dropout is off where our layers replace it.
    assert getattr(config, attention) == (0.0 if ours else inside)
    encoder = built(name, reg)
    found = {layer.p for layer in layers(encoder, AttentionDropout)}
    assert found == ({inside} if ours and inside else set())
    torchs = {layer.p for layer in layers(encoder, nn.Dropout)}
    assert torchs == ({outside, 0.0} if ours else {outside, inside})


def test_a_dropout_that_cannot_be_set_is_refused():
    config = BertConfig()
    config.to_dict = lambda: {"hidden_size": 32}
    encoders.set_dropouts(config, Regularization())
    with pytest.raises(InputError, match=r"a bert encoder has no dropout .* set to 0\.3"):
        encoders.set_dropouts(config, Regularization(dropout=0.3))
    config = MPNetConfig()
    config.to_dict = lambda: {"hidden_dropout_prob": 0.1}
    with pytest.raises(InputError, match=r"a mpnet encoder has no attention dropout .* to 0\.3"):
        encoders.set_dropouts(config, Regularization(attention_dropout=0.3))


@pytest.mark.parametrize("name", OURS)
def test_attention_of_each_family_has_our_layers_and_the_same_outputs(name):
    plain = built(name, Regularization())
    reg = Regularization(attention_dropout=0.2, attention_head_dropout=0.3)
    encoder = built(name, reg)
    depth = 1 if name == "albert" else 2
    assert [layer.p for layer in layers(encoder, AttentionDropout)] == [0.2] * depth
    assert [layer.p for layer in layers(encoder, DropHead)] == [0.3] * depth
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    ids, mask = texts()
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    with torch.no_grad():
        expected = plain.eval()(**inputs).last_hidden_state[mask]
        found = encoder.eval()(**inputs).last_hidden_state[mask]
        assert torch.equal(found, expected)
        encoder.train()
        first, second = (encoder(**inputs).last_hidden_state[mask] for _ in range(2))
    assert not torch.allclose(first, second)


def test_dropout_in_attention_draws_what_the_encoder_would_draw_itself():
    # Our layers must draw the same masks as the encoder's own dropout.
    config = BertConfig(**SIZE, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    torch.manual_seed(0)
    plain = AutoModel.from_config(config).train()
    encoder = built("bert", Regularization(dropout=0.1)).train()
    ids, mask = texts()
    found = []
    for model in (plain, encoder):
        torch.manual_seed(2)
        found.append(model(input_ids=ids, attention_mask=mask.long()).last_hidden_state)
    assert torch.equal(*found)


def test_a_dropped_head_gives_nothing_to_its_example():
    encoder = built("bert", Regularization(attention_head_dropout=0.5)).train()
    attention = encoder.encoder.layer[0].attention.self
    outputs = []
    attention.register_forward_hook(lambda *call: outputs.append(call[2][0]))
    ids, mask = texts()
    encoder(input_ids=ids, attention_mask=mask.long())
    heads = outputs[0].unflatten(-1, (4, 8))
    kept = heads != 0
    assert torch.equal(kept, kept[:, :1, :, :1].expand_as(kept))
    assert 0 < kept.float().mean() < 1
    # Each example drops different heads.
    assert len({tuple(example.tolist()) for example in kept[:, 0, :, 0]}) > 1


@pytest.mark.parametrize("name", ["attention_dropout", "attention_head_dropout", "token_dropout"])
def test_schedules_and_monte_carlo_dropout_reach_attention_and_tokens(name):
    model = Transformer(SPEC, Regularization(**{name: 0.4}), depth=1, width=32)
    rates = dropout_rates(model)
    assert 0.4 in rates.values()
    ids, mask = texts()
    ids = ids * mask
    with torch.no_grad():
        model.eval()
        still = model(ids)
        assert torch.equal(model(ids), still)
        with mc_dropout(model):
            first, second = model(ids), model(ids)
            assert not torch.allclose(first, second)
        model.train()
        DropoutSchedule("late", 10).apply(model, rates, 0)
        torch.testing.assert_close(model(ids), still)


@pytest.mark.parametrize(("name", "first"), [(n, 2 if n == "roberta" else 0) for n in OURS])
def test_removed_tokens_are_masked_tokens(name, first):
    encoder = built(name, Regularization())
    assert encoders.first_position(encoder, 0.5) == first
    assert encoder.training
    encoder.eval()
    ids, _ = texts()
    kept = torch.tensor([0, 2, 3, 7]).expand(4, -1)
    mask = torch.zeros_like(ids).scatter(1, kept, 1)
    with torch.no_grad():
        masked = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        removed = encoder(
            input_ids=ids.gather(1, kept),
            attention_mask=torch.ones_like(kept),
            position_ids=kept + first,
        ).last_hidden_state
        whole = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    wanted = masked[mask.bool()].view_as(removed)
    torch.testing.assert_close(removed, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole[mask.bool()].view_as(removed), wanted, rtol=1e-3, atol=1e-4)


def test_a_transformer_computes_the_kept_tokens_alone():
    torch.manual_seed(0)
    model = Transformer(SPEC, Regularization(token_dropout=0.5), depth=1, width=32)
    seen = []
    model.encoder.register_forward_pre_hook(
        lambda _, args, named: seen.append(named), with_kwargs=True
    )
    ids, mask = texts()
    ids = ids * mask
    logits = model.train()(ids)
    assert seen[0]["input_ids"].shape == (4, 5)
    # Half of the valid tokens of each text, rounded up, with their order and positions.
    assert seen[0]["attention_mask"].sum(1).tolist() == [5, 4, 2, 1]
    for row in range(4):
        still = seen[0]["attention_mask"][row].bool()
        positions = seen[0]["position_ids"][row][still]
        assert (positions.diff() > 0).all()
        assert torch.equal(ids[row, positions], seen[0]["input_ids"][row][still])
    # Masked tokens do not affect means: the kept tokens alone have the same logits.
    state = copy.deepcopy(model.state_dict())
    plain = Transformer(SPEC, Regularization(), depth=1, width=32).eval()
    plain.load_state_dict(state)
    fewer = torch.zeros_like(ids)
    for row in range(4):
        still = seen[0]["attention_mask"][row].bool()
        positions = seen[0]["position_ids"][row][still]
        fewer[row, positions] = ids[row, positions]
    with torch.no_grad():
        torch.testing.assert_close(logits, plain(fewer))
        torch.testing.assert_close(model.eval()(ids), plain(ids))


@pytest.mark.parametrize("name", ["mpnet"])
def test_an_encoder_that_counts_positions_by_itself_refuses_token_dropout(name):
    encoder = built(name, Regularization())
    with pytest.raises(InputError, match=rf"token_dropout=0\.5 cannot tell a {name} encoder"):
        encoders.first_position(encoder, 0.5)


@pytest.mark.parametrize("name", ["mpnet", "deberta"])
def test_an_encoder_with_attention_of_its_own_refuses_dropout_of_heads(name):
    with pytest.raises(InputError, match=r"attention_head_dropout=0\.5 cannot drop the heads of"):
        encoders.set_dropouts(CONFIGS[name](), Regularization(attention_head_dropout=0.5))


def test_an_encoder_whose_attention_is_not_called_is_refused():
    encoder = BertModel(BertConfig(**SIZE | {"num_hidden_layers": 0}))
    with pytest.raises(InputError, match="the attention of a bert encoder cannot be found"):
        encoders.drop_in_attention(encoder, Regularization(attention_dropout=0.1))


def test_a_transformer_whose_layers_cannot_be_skipped_is_refused():
    encoder = BertModel(BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=2))
    encoder.encoder.layer = encoder.encoder.layer[:1]
    with pytest.raises(InputError, match=r"layer_drop=0\.5 cannot skip the layers of a bert"):
        encoders.let_layers_be_skipped(encoder, Regularization(layer_drop=0.5))


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("attention_dropout", "attention probabilities"),
        ("attention_head_dropout", "attention heads"),
        ("token_dropout", "tokens of a transformer or words of an averaging network"),
    ],
)
def test_a_model_without_attention_refuses_it_by_name(name, subject):
    for arch in ("text_cnn", "lstm"):
        with pytest.raises(ValueError, match=rf"^{name}=0\.1 drops {subject}, and this model has"):
            TextTask(SPEC, arch, width=8, reg=Regularization(**{name: 0.1}))
    task = TextTask(SPEC, "transformer", 1, 32, reg=Regularization(**{name: 0.1}))
    assert isinstance(task, ClassificationTask)


def test_an_encoder_with_attention_of_its_own_takes_attention_dropout(tmp_path):
    torch.manual_seed(0)
    AutoModel.from_config(CONFIGS["deberta"]()).save_pretrained(tmp_path)
    reg = Regularization(attention_dropout=0.3)
    task = TextTask(SPEC, "transformer", pretrained=str(tmp_path), reg=reg, optim=Optimization())
    assert {layer.p for layer in layers(task, nn.Dropout)} == {0.0, 0.3}


@pytest.mark.parametrize("checkpointing", ["ours", "theirs"])
def test_gradients_are_the_same_when_blocks_are_computed_again(checkpointing):
    reg = Regularization(
        dropout=0.1, attention_dropout=0.2, attention_head_dropout=0.3, token_dropout=0.4
    )
    ids, mask = texts()
    ids = ids * mask
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        model = Transformer(SPEC, reg, depth=2, width=32).train()
        if again and checkpointing == "theirs":
            checkpoint_blocks(model)
        torch.manual_seed(1)
        logits = recomputed(model, ids) if again and checkpointing == "ours" else model(ids)
        logits.square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_a_compiled_transformer_drops_too():
    torch._dynamo.reset()
    reg = Regularization(attention_dropout=0.2, attention_head_dropout=0.3, token_dropout=0.4)
    model = Transformer(SPEC, reg, depth=1, width=32).train()
    ids, _ = texts()
    compiled = torch.compile(model, backend="aot_eager")
    logits = compiled(ids)
    assert not torch.allclose(logits, compiled(ids))
    logits.sum().backward()
    model.eval()
    torch.testing.assert_close(compiled(ids), model(ids), rtol=1e-4, atol=1e-5)
