from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    ElectraConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from regain import (
    AttentionDropout,
    AudioAugmentation,
    ChannelDropout,
    DropHead,
    Dropout,
    DropPath,
    EmbeddingDropout,
    KWinners,
    LayerDrop,
    LearnedDropout,
    LockedDropout,
    MaskedBatchNorm,
    Regularization,
    SubSpectralBatchNorm,
    TokenDropout,
    WeightDrop,
    tent,
)
from regain.dropout import DropoutLayer
from tasks.errors import InputError
from tasks.nlp import encoders
from tasks.nlp import models as nlp
from tasks.nlp.data import TextData, TextSpec
from tasks.nlp.task import TextTask
from tasks.speech import models as speech
from tasks.speech.data import SpeechSpec
from tasks.vision import models as vision
from tasks.vision.data import VisionSpec
from tasks.vision.models import ResidualBlock, Standardize, WideBlock

CLASSES = ["a", "b", "c"]
PATCHES = torch.eye(12).tolist()
IMAGES = VisionSpec(CLASSES, [3, 16, 16], [120.0, 130.0, 90.0], [60.0, 50.0, 70.0], True, PATCHES)
CLIPS = SpeechSpec(CLASSES, 16_000)
TEXTS = TextSpec(CLASSES, vocabulary=50, padding=0, unknown=1, special=[0])
NONE = Regularization()
BATCH = Regularization(normalization="batch")
# Each rate occurs once, so that it identifies the site of a layer.
FULL = Regularization(
    normalization="batch",
    dropout=0.12,
    dropout_kind="channel",
    input_dropout=0.11,
    head_dropout=0.13,
    drop_path=0.14,
    weight_drop=0.15,
    embedding_dropout=0.16,
    layer_drop=0.17,
    token_dropout=0.18,
    attention_head_dropout=0.19,
    attention_dropout=0.21,
)
NORMALIZATIONS = ["batch", "ghost", "renorm", "frozen", "split", "layer", "group", "rms"]
KINDS = "unit channel locked block gaussian alpha concrete variational kwinners".split()
# Small ones.
SIZES = {
    "mlp": {"depth": 2, "width": 16},
    "cnn": {"depth": 2, "width": 8},
    "resnet": {"depth": 9, "width": 8},
    "wide_resnet": {"depth": 10, "width": 1},
    "airbench": {"depth": 2, "width": 8},
    "m5": {"width": 16},
    "text_cnn": {"width": 16},
    "dan": {"depth": 2, "width": 16},
    "lstm": {"depth": 2, "width": 16},
    "transformer": {"depth": 1, "width": 32},
}
VISION, SPEECH, NLP = vision.MODELS.names(), speech.MODELS.names(), nlp.MODELS.names()
ALL = [*VISION, *SPEECH, *NLP]
NORMS = (nn.modules.batchnorm._BatchNorm, MaskedBatchNorm, SubSpectralBatchNorm, nn.GroupNorm)
DROPOUTS = (DropoutLayer, LearnedDropout, KWinners)


def built(arch, reg, rate=16_000):
    torch.manual_seed(0)
    size = SIZES.get(arch, {})
    if arch in VISION:
        return vision.MODELS.find(arch)(IMAGES, reg, **size)
    if arch in SPEECH:
        return speech.MODELS.find(arch)(SpeechSpec(CLASSES, rate), reg, AudioAugmentation(), **size)
    return nlp.MODELS.find(arch)(TEXTS, reg, **size)


def made(arch, reg, rate=16_000):
    """Build a model with the options of a regularization that it supports."""
    if arch == "transformer":
        # The encoder has its own token embedding and its own dropout layers.
        reg = replace(reg, input_dropout=0.0, embedding_dropout=0.0, dropout_kind="unit")
    return built(arch, reg, rate)


def inputs_of(arch, count=6):
    generator = torch.Generator().manual_seed(1)
    if arch in VISION:
        return torch.randint(0, 256, (count, 3, 16, 16), generator=generator).byte()
    if arch in SPEECH:
        samples = torch.randn(count, 8000, generator=generator)
        # Different spectra: clips of the same noise have nearly the same logits.
        samples[::2] = samples[::2].cumsum(dim=1) / 50
        return (samples * 2000).to(torch.int16)
    return torch.randint(2, 50, (count, 12), generator=generator)


def trained(model, *inputs):
    """Take two steps, so that no parameter or buffer has its initial value."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    labels = torch.arange(len(inputs[0])) % len(CLASSES)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(*inputs), labels).backward()
        optimizer.step()
    return model


def padded(parts, padding=0, extra=0):
    """A batch of inputs of different length, and their lengths."""
    lengths = torch.tensor([len(part) for part in parts])
    batch = parts[0].new_full((len(parts), int(lengths.max()) + extra), padding)
    for row, part in zip(batch, parts, strict=True):
        row[: len(part)] = part
    return batch, lengths


def layers(model, kinds):
    return [layer for layer in model.modules() if isinstance(layer, kinds)]


@pytest.mark.parametrize(
    ("reg", "rate"),
    [
        *((reg, rate) for reg in (NONE, BATCH) for rate in (16_000, 22_050, 8000)),
        *((Regularization(normalization=kind), 16_000) for kind in NORMALIZATIONS),
        (Regularization(dropout=0.5, dropout_kind="kwinners"), 16_000),
    ],
)
@pytest.mark.parametrize("arch", SPEECH)
def test_a_clip_has_the_same_logits_alone_and_among_longer_ones(arch, reg, rate):
    clips = inputs_of(arch)
    # Statistics that adapt within two steps: otherwise all clips have nearly the same logits.
    reg = replace(reg, norm_momentum=0.9)
    model = trained(made(arch, reg, rate), clips).eval()
    # Lengths that are multiples of all hops and strides, and lengths that are not.
    sizes = (8000, 7040, 6501, 4004, 3200, 1999)
    parts = [clip[:size] for clip, size in zip(clips, sizes, strict=True)]
    with torch.no_grad():
        together = model(*padded(parts))
        alone = torch.cat([model(part.unsqueeze(0)) for part in parts])
    assert alone.std(dim=0).min() > 5e-5
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "reg",
    [
        NONE,
        *(Regularization(normalization=kind) for kind in NORMALIZATIONS),
        Regularization(dropout=0.5, dropout_kind="kwinners"),
    ],
)
@pytest.mark.parametrize("arch", NLP)
def test_a_text_has_the_same_logits_alone_and_among_longer_ones(arch, reg):
    texts = inputs_of(arch)
    model = trained(made(arch, reg), texts).eval()
    parts = [text[:size] for text, size in zip(texts, (12, 9, 5, 3, 2, 1), strict=True)]
    with torch.no_grad():
        together = model(padded(parts)[0])
        alone = torch.cat([model(part.unsqueeze(0)) for part in parts])
    assert alone.std(dim=0).min() > 1e-4
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", [*SPEECH, *NLP])
def test_padding_does_not_affect_batch_norm_statistics(arch):
    parts = [one[: len(one) - cut] for cut, one in enumerate(inputs_of(arch))]
    outcomes = []
    for extra in (0, 4000 if arch in SPEECH else 20):
        batch, lengths = padded(parts, extra=extra)
        model = made(arch, BATCH).train()
        with torch.no_grad():
            # Twice: at the second pass, the buffers have changed.
            logits = [model(batch, lengths) if arch in SPEECH else model(batch) for _ in "12"]
        outcomes.append((logits[1], dict(model.named_buffers())))
    (short, before), (long, after) = outcomes
    torch.testing.assert_close(short, long, rtol=0, atol=1e-4)
    for name, buffer in before.items():
        if "running" in name:
            torch.testing.assert_close(after[name], buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["tc_resnet", "bc_resnet"])
def test_padded_frames_do_not_affect_statistics(arch):
    parts = [clip[: 8000 - 900 * cut] for cut, clip in enumerate(inputs_of(arch))]
    outcomes = []
    for junk in (0.0, 5.0):
        model = made(arch, BATCH).train()
        # Between convolutions the padding may have any values, but the first one must get zeros.
        for norm in layers(model, MaskedBatchNorm):
            norm.register_forward_pre_hook(lambda _, got, junk=junk: spoiled(*got, junk))
        with torch.no_grad():
            outcomes.append(model(*padded(parts)))
    torch.testing.assert_close(*outcomes, rtol=0, atol=1e-5)


def spoiled(x, mask, junk):
    outside = ~mask.view(len(mask), *(1,) * (x.dim() - 2), -1)
    return x + outside * junk, mask


@pytest.mark.parametrize("arch", SPEECH)
def test_integer_and_float_samples_have_the_same_logits(arch):
    clips = inputs_of(arch)
    model = made(arch, NONE).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(clips), model(clips.float() / 32768))


@pytest.mark.parametrize("arch", SPEECH)
def test_loudness_changes_no_logits(arch):
    clips = inputs_of(arch).float() / 32768
    model = made(arch, NONE).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(clips), model(clips * 0.5), rtol=0, atol=1e-3)


@pytest.mark.parametrize("arch", ALL)
def test_no_regularization_means_no_norm_and_no_dropout(arch):
    model = made(arch, NONE)
    assert not layers(model, (*NORMS, *DROPOUTS))
    # The encoder of a transformer has dropout layers and norms of its own.
    torchs = layers(model, (nn.modules.dropout._DropoutNd,))
    assert all(layer.p == 0.0 for layer in torchs)
    assert bool(torchs) == bool(layers(model, nn.LayerNorm)) == (arch == "transformer")
    if arch == "lstm":
        assert all(layer.dropout == 0.0 for layer in layers(model, nn.LSTM))
    model.train()
    with torch.no_grad():
        inputs = inputs_of(arch)
        assert torch.equal(model(inputs), model(inputs))


# The sites of each model. Drop path needs a residual branch. Layer drop needs a layer that keeps
# the shape of its input, which the first and the last layer of a model do not.
EXPECTED = {
    "mlp": [(Dropout, 0.11), (Dropout, 0.12)],
    "cnn": [(Dropout, 0.11), (ChannelDropout, 0.12)],
    "resnet": [(Dropout, 0.11), (ChannelDropout, 0.12), (DropPath, 0.14), (LayerDrop, 0.17)],
    "wide_resnet": [(Dropout, 0.11), (ChannelDropout, 0.12), (DropPath, 0.14), (LayerDrop, 0.17)],
    "airbench": [(Dropout, 0.11), (ChannelDropout, 0.12)],
    "tc_resnet": [(Dropout, 0.11), (ChannelDropout, 0.12), (DropPath, 0.14)],
    "bc_resnet": [(Dropout, 0.11), (ChannelDropout, 0.12), (DropPath, 0.14), (LayerDrop, 0.17)],
    "m5": [(Dropout, 0.11), (ChannelDropout, 0.12)],
    "text_cnn": [(LockedDropout, 0.11), (ChannelDropout, 0.12), (EmbeddingDropout, 0.16)],
    "dan": [
        (LockedDropout, 0.11),
        (Dropout, 0.12),
        (EmbeddingDropout, 0.16),
        (TokenDropout, 0.18),
    ],
    "lstm": [(LockedDropout, 0.11), (ChannelDropout, 0.12), (EmbeddingDropout, 0.16)],
    "transformer": [
        (DropPath, 0.14),
        (LayerDrop, 0.17),
        (TokenDropout, 0.18),
        (DropHead, 0.19),
        (AttentionDropout, 0.21),
    ],
}
EXPECTED = {arch: {*sites, (Dropout, 0.13), (WeightDrop, 0.15)} for arch, sites in EXPECTED.items()}


@pytest.mark.parametrize("arch", ALL)
def test_full_regularization_is_at_every_site_of_a_model(arch):
    model = made(arch, FULL)
    found = {(type(layer), layer.p) for layer in layers(model, DROPOUTS)}
    assert found >= EXPECTED[arch]
    paths = {layer for layer in found - EXPECTED[arch] if layer[0] is not DropPath}
    assert not paths
    assert layers(model, NORMS)
    # The mean of the words of a text has no steps to mask.
    assert bool(layers(model, MaskedBatchNorm)) == (arch not in (*VISION, "dan"))
    assert bool(layers(model, SubSpectralBatchNorm)) == (arch == "bc_resnet")
    if arch == "transformer":
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Dropout):
                # Attention uses our layers.
                assert layer.p == (0.0 if name.endswith("self.dropout") else 0.12), name


@pytest.mark.parametrize("arch", ["mlp", "cnn", "resnet", "wide_resnet", "tc_resnet", "m5", "dan"])
def test_hidden_dropout_can_drop_units(arch):
    model = made(arch, replace(FULL, dropout_kind="unit"))
    assert (Dropout, 0.12) in {(type(layer), layer.p) for layer in layers(model, DROPOUTS)}
    assert not layers(model, ChannelDropout)


@pytest.mark.parametrize("arch", ["resnet", "wide_resnet", "tc_resnet", "bc_resnet"])
def test_the_rate_of_drop_path_grows_with_depth(arch):
    rates = [layer.p for layer in layers(made(arch, FULL), DropPath)]
    steps = [0.14 * (index + 1) / len(rates) for index in range(len(rates))]
    assert rates == pytest.approx(steps)


# Sites that only some models have; all models have the others.
PLACED = {
    "drop_path": {arch for arch in ALL if (DropPath, 0.14) in EXPECTED[arch]},
    "embedding_dropout": {arch for arch in ALL if (EmbeddingDropout, 0.16) in EXPECTED[arch]},
    "input_dropout": set(ALL) - {"transformer"},
    "token_dropout": {"transformer", "dan"},
    "attention_dropout": {"transformer"},
    "attention_head_dropout": {"transformer"},
}
RATES = """input_dropout dropout head_dropout drop_path weight_drop embedding_dropout token_dropout
    attention_dropout attention_head_dropout""".split()
AT_A_SITE = [(arch, site) for site in RATES for arch in ALL if arch in PLACED.get(site, ALL)]


@pytest.mark.parametrize(("arch", "site"), AT_A_SITE)
def test_each_dropout_is_active_in_training_and_not_in_evaluation(arch, site):
    # A residual branch is initialized to zero, and dropping it then changes nothing.
    clean = trained(made(arch, NONE), inputs_of(arch))
    model = made(arch, Regularization(**{site: 0.5}))
    # A wrapper changes the names of the wrapped layers, but not their order.
    values = zip(model.state_dict().values(), clean.state_dict().values(), strict=True)
    for value, trained_value in values:
        value.copy_(trained_value)
    with torch.no_grad():
        assert torch.equal(model.eval()(inputs_of(arch)), clean.eval()(inputs_of(arch)))
        model.train()
        first, second = (model(inputs_of(arch)) for _ in range(2))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("reg", [NONE, FULL], ids=["none", "full"])
@pytest.mark.parametrize("arch", ALL)
def test_every_parameter_has_a_gradient(arch, reg):
    inputs = inputs_of(arch)
    model = made(arch, reg)
    for layer in layers(model, DROPOUTS):
        layer.p = min(layer.p, 0.01)  # A dropped branch has no gradient.
    trained(model, inputs)
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), torch.arange(6) % 3).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["batch", "group"])
@pytest.mark.parametrize("arch", ALL)
def test_one_seed_gives_the_same_weights_with_regularization_and_without(arch, kind):
    plain = dict(made(arch, NONE).named_parameters())
    reg = Regularization(normalization=kind, dropout=0.1, head_dropout=0.1, dropout_kind="unit")
    regularized = dict(made(arch, reg).named_parameters())
    assert set(regularized) - set(plain)
    for name, parameter in plain.items():
        assert name in regularized or name.endswith("bias"), name
        # Without a gamma, the last convolution of a branch is initialized to zero.
        if name in regularized and parameter.any():
            torch.testing.assert_close(parameter, regularized[name], rtol=0, atol=0)


@pytest.mark.parametrize("arch", VISION)
def test_the_bias_of_a_layer_before_a_norm_is_left_out(arch):
    previous = None
    for layer in made(arch, BATCH).modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and arch in (
            "mlp",
            "cnn",
            "airbench",
        ):
            assert previous.bias is None
        if isinstance(layer, nn.Linear | nn.Conv2d):
            previous = layer
    # The head; that of airbench has no bias.
    assert (previous.bias is None) == (arch == "airbench")
    biased = layers(made(arch, NONE), (nn.Linear, nn.Conv2d))
    shortcuts = [layer for layer in biased if getattr(layer, "kernel_size", None) == (1, 1)]
    unbiased = [layer for layer in biased if layer.bias is None and layer not in shortcuts]
    assert len(unbiased) == (arch == "airbench")


def test_images_are_standardized_by_channel():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (50, 3, 8, 8), generator=generator).byte()
    images[:, 1] //= 4
    floats = images.double()
    mean, std = floats.mean(dim=(0, 2, 3)), floats.std(dim=(0, 2, 3))
    layer = Standardize(VisionSpec(CLASSES, [3, 8, 8], mean.tolist(), std.tolist(), True))
    out = layer(images)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.std(dim=(0, 2, 3)), torch.ones(3), rtol=0, atol=1e-4)
    # Augmented images are floats in the same range.
    torch.testing.assert_close(layer(images.float()), out)


@pytest.mark.parametrize("arch", VISION)
def test_a_model_standardizes_its_images_itself(arch):
    assert len(layers(made(arch, NONE), Standardize)) == 1


@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 7, 5], [3, 33, 20]])
@pytest.mark.parametrize("arch", VISION)
def test_images_of_any_size_are_classified(arch, shape):
    patches = torch.eye(4 * shape[0]).tolist()
    spec = VisionSpec(CLASSES, shape, [100.0] * shape[0], [50.0] * shape[0], True, patches)
    model = vision.MODELS.find(arch)(spec, BATCH, **SIZES[arch])
    assert model(torch.zeros(4, *shape).byte()).shape == (4, 3)


@pytest.mark.parametrize(("depth", "blocks"), [(9, 4), (10, 4), (17, 8), (18, 8), (34, 16)])
def test_the_depth_of_a_resnet_gives_its_blocks(depth, blocks):
    model = vision.resnet(IMAGES, BATCH, depth=depth, width=2)
    found = layers(model, ResidualBlock)
    assert len(found) == blocks
    assert [block.conv1.stride[0] for block in found].count(2) == 3
    assert found[-1].conv2.out_channels == 16


@pytest.mark.parametrize(("depth", "blocks"), [(10, 3), (16, 6), (28, 12)])
def test_the_depth_of_a_wide_resnet_gives_its_blocks(depth, blocks):
    found = layers(vision.wide_resnet(IMAGES, BATCH, depth=depth, width=2), WideBlock)
    assert len(found) == blocks
    assert [block.conv1.stride[0] for block in found].count(2) == 2
    assert found[-1].conv2.out_channels == 128


@pytest.mark.parametrize(
    ("build", "depth"),
    [(vision.resnet, depth) for depth in (0, 1, 2, 8, 11, 20)]
    + [(vision.wide_resnet, depth) for depth in (0, 4, 9, 12, 15)],
)
def test_a_depth_that_makes_no_network_is_refused(build, depth):
    with pytest.raises(ValueError, match=f"depth of a .*, not {depth}"):
        build(IMAGES, NONE, depth=depth)


@pytest.mark.parametrize("reg", [NONE, BATCH], ids=["none", "batch"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("inputs", "stride"), [(4, 1), (2, 1), (2, 2)])
def test_a_residual_block_is_initialized_to_its_shortcut(reg, training, inputs, stride):
    x = torch.randn(3, inputs, 8, 8, generator=torch.Generator().manual_seed(0))
    residual = ResidualBlock(inputs, 4, stride, reg, nn.Identity()).train(training)
    kept = x[..., ::stride, ::stride]
    assert torch.equal(residual(x), residual.shortcut(kept).relu())
    wide = WideBlock(inputs, 4, stride, reg, nn.Identity()).train(training)
    shortcut = x if inputs == 4 else wide.shortcut(wide.norm1(x).relu()[..., ::stride, ::stride])
    assert torch.equal(wide(x), shortcut)


def test_dropout_of_a_wide_resnet_is_between_the_convolutions():
    block = WideBlock(4, 4, 1, FULL, nn.Identity())
    order = []
    for name in ("norm1", "conv1", "norm2", "dropout", "conv2"):
        getattr(block, name).register_forward_hook(lambda *_, name=name: order.append(name))
    block(torch.randn(2, 4, 8, 8))
    assert order == ["norm1", "conv1", "norm2", "dropout", "conv2"]


@pytest.mark.parametrize("arch", NLP)
def test_the_padding_may_have_any_id(arch):
    # Pretrained tokenizers use padding ids other than 0.
    ids = inputs_of(arch)[:, :5]
    spec = TextSpec(CLASSES, 50, padding=49, unknown=1, special=[49])
    ids[ids == 49] = 2
    model = nlp.MODELS.find(arch)(spec, NONE, **SIZES[arch]).eval()
    with torch.no_grad():
        longer = nn.functional.pad(ids, (0, 4), value=49)
        torch.testing.assert_close(model(longer), model(ids), rtol=0, atol=1e-5)


WORDS = ["good", "bad", "film", "play", "[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def encoder(tmp_path):
    """A folder with a tiny encoder and its tokenizer, like a downloaded pretrained one."""
    folder = tmp_path / "encoder"
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in names.items()}
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=WORDS.index("[PAD]"),
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


def test_a_pretrained_encoder_is_loaded_with_its_tokenizer_and_trains(tmp_path, encoder):
    rows = [f"{WORDS[index % 2]} film{' play' * (index % 3)},{index % 2}" for index in range(30)]
    (tmp_path / "films.csv").write_text("\n".join(["text,label", *rows, "good opera,0"]))
    data = TextData(
        tokenizer=str(encoder),
        source=str(tmp_path / "films.csv"),
        cache_dir=str(tmp_path / "cache"),
        batch_size=32,
    )
    spec = data.spec()
    assert (spec.vocabulary, spec.padding, spec.unknown) == (len(WORDS), 5, 4)
    # An unknown word may be inserted anywhere; the others must not change.
    assert spec.special == [5, 6, 7, 8]
    seen = {
        data.media(split, index): data.splits[split].gather(torch.tensor([index])).inputs[0]
        for split in data.splits
        for index in range(len(data.splits[split]))
    }
    assert seen["bad film"].tolist() == [1, 2]
    assert seen["good opera"].tolist() == [0, 4]

    task = TextTask(spec, "transformer", pretrained=str(encoder), reg=Regularization(dropout=0.2))
    stored = BertModel.from_pretrained(encoder).state_dict()
    for name, weight in task.model.encoder.state_dict().items():
        assert torch.equal(weight, stored[name]), name
    found = layers(task.model.encoder, (nn.Dropout, AttentionDropout))
    assert {layer.p for layer in found} == {0.0, 0.2}

    batch = next(iter(data.train_dataloader()))
    assert batch.lengths is not None
    optimizer = torch.optim.SGD(task.parameters(), 0.1)
    task.train()
    torch.manual_seed(0)
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        loss = task.training_step(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in task.parameters())
    assert losses[-1] < losses[0]


def fits(arch, kind):
    if arch == "transformer":
        # Its encoder has its own dropout layers.
        return kind == "unit"
    if kind == "block":
        return arch not in ("mlp", "dan")
    if kind == "locked":
        return arch not in (*VISION, "dan")
    return kind != "alpha" or arch == "mlp"


FITTING = [(arch, kind) for arch in ALL for kind in KINDS if fits(arch, kind)]
MISFITS = [(arch, kind) for arch in ALL for kind in KINDS if not fits(arch, kind)]


@pytest.mark.parametrize(("arch", "kind"), MISFITS)
def test_a_kind_of_dropout_is_refused_where_it_does_not_fit(arch, kind):
    reg = Regularization(dropout=0.2, dropout_kind=kind)
    with pytest.raises(ValueError, match=f"dropout_kind={kind} .*; use "):
        built(arch, reg)


@pytest.mark.parametrize(("arch", "kind"), FITTING)
def test_a_kind_of_dropout_trains_where_it_fits(arch, kind):
    reg = Regularization(dropout=0.2, dropout_kind=kind)
    model = built(arch, reg)
    inputs = inputs_of(arch)
    trained(model, inputs)
    # The weights have changed, and the layer exists and drops.
    if kind == "kwinners":
        assert all(layer.duty_cycle.unique().numel() > 1 for layer in layers(model, KWinners))
    else:
        with torch.no_grad():
            assert not torch.equal(model(inputs), model(inputs))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("arch", ALL)
def test_a_norm_of_each_kind_trains_in_each_model(arch, kind):
    model = made(arch, Regularization(normalization=kind, ghost_size=3))
    trained(model, inputs_of(arch))
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        assert model.eval()(inputs_of(arch)).isfinite().all()


@pytest.mark.parametrize(
    "kind", ["channel", "locked", "block", "gaussian", "concrete", "variational"]
)
def test_a_transformer_refuses_kinds_of_dropout_that_it_does_not_have(kind):
    reg = Regularization(dropout=0.1, dropout_kind=kind)
    with pytest.raises(ValueError, match=f"dropout_kind={kind} has no place in a transformer"):
        nlp.Transformer(TEXTS, reg, depth=1, width=32)


@pytest.mark.parametrize("arch", ["cnn", "tc_resnet", "text_cnn", "dan", "lstm"])
def test_alpha_dropout_is_for_selu_units(arch):
    with pytest.raises(ValueError, match="dropout_kind=alpha is for SELU units"):
        made(arch, Regularization(dropout=0.1, dropout_kind="alpha"))


def test_an_mlp_with_alpha_dropout_normalizes_itself():
    reg = Regularization(dropout=0.1, dropout_kind="alpha")
    model = vision.mlp(IMAGES, reg, depth=6, width=400)
    # All layers except the head; standardized noise instead of images.
    x = torch.randn(200, 3 * 16 * 16)
    for layer in list(model)[2:-2]:
        x = layer(x)
    assert not layers(model, nn.ReLU)
    assert x.mean().item() == pytest.approx(0.0, abs=0.1)
    assert x.std().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("kind", "arch"), [("locked", "cnn"), ("block", "mlp")])
def test_a_kind_of_dropout_that_does_not_fit_is_refused_with_the_reason(kind, arch):
    with pytest.raises(ValueError, match=f"dropout_kind={kind} .*; use another kind"):
        made(arch, Regularization(dropout=0.1, dropout_kind=kind))


def test_an_averaging_network_ignores_the_order_of_words_and_the_padding():
    model = made("dan", NONE).eval()
    ids = torch.tensor([[7, 3, 3, 9, 0, 0], [9, 3, 7, 3, 0, 0], [9, 3, 7, 0, 0, 0]])
    with torch.no_grad():
        logits = model(ids)
        mean = model.embedding.weight[[7, 3, 3, 9]].mean(dim=0)
        torch.testing.assert_close(logits[0], model.head(model.hidden(mean)))
    torch.testing.assert_close(logits[0], logits[1])
    # One occurrence of a word less is another text.
    assert not torch.allclose(logits[0], logits[2])


def test_the_word_dropout_of_an_averaging_network_is_of_the_words_left():
    """Every mean is that of three of the four words, without scaling."""
    model = made("dan", replace(NONE, token_dropout=0.25)).train()
    ids = torch.tensor([[7, 3, 5, 9, 0, 0]] * 20)
    words = model.embedding.weight[[7, 3, 5, 9]]
    possible = torch.stack([words[[i for i in range(4) if i != left]].mean(0) for left in range(4)])
    with torch.no_grad():
        expected, found = model.head(model.hidden(possible)), model(ids)
    nearest = (found.unsqueeze(1) - expected).abs().amax(dim=2).min(dim=1)
    assert nearest.values.max() < 1e-6
    assert nearest.indices.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("arch", ["resnet", "wide_resnet"])
def test_a_residual_branch_is_initialized_to_zero_on_request(arch):
    images = inputs_of(arch)
    for reg in (
        NONE,
        BATCH,
        replace(BATCH, norm_affine=False),
        replace(BATCH, normalization="rms"),
    ):
        for zero in (True, False):
            model = made(arch, replace(reg, zero_init_gamma=zero)).train()
            first = layers(model, (ResidualBlock, WideBlock))[0]
            branches = []
            first.drop_path.register_forward_hook(lambda *call, to=branches: to.append(call[2]))
            with torch.no_grad():
                model(images)
            assert bool(branches[0].any()) != zero


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig, ElectraConfig])
def test_a_transformer_without_its_branches_returns_its_embeddings(config):
    depth = 3
    size = {"hidden_size": 32, "num_hidden_layers": depth, "num_attention_heads": 2}
    encoder = AutoModel.from_config(config(vocab_size=30, intermediate_size=64, **size))
    encoders.let_branches_be_dropped(encoder, replace(NONE, drop_path=0.3))
    rates = [layer.p for layer in layers(encoder, DropPath)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    inputs = []
    first = encoder.encoder.layer[0]
    first.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    for layer in layers(encoder, DropPath):
        layer.p = 1 - 1e-7
    ids = torch.randint(5, 30, (4, 7))
    with torch.no_grad():
        found = encoder.train()(input_ids=ids).last_hidden_state
        kept = encoder.eval()(input_ids=ids).last_hidden_state
    # Only the norms after the additions remain, and their input is already normalized.
    expected = nn.functional.layer_norm(inputs[0], (32,), eps=1e-12)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(kept, nn.functional.layer_norm(inputs[1], (32,)), atol=1e-2)


def test_a_transformer_whose_branches_are_not_found_is_refused():
    size = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
    encoder = AutoModel.from_config(DistilBertConfig(vocab_size=30, **size))
    with pytest.raises(InputError, match=r"drop_path=0\.3 cannot drop .* a distilbert encoder"):
        encoders.let_branches_be_dropped(encoder, replace(NONE, drop_path=0.3))


def test_a_transformer_refuses_dropout_at_the_input():
    with pytest.raises(ValueError, match=r"input_dropout=0\.2 has no place in a transformer"):
        nlp.Transformer(TEXTS, replace(NONE, input_dropout=0.2))


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"model.pretrained={tmp_path} cannot be loaded"):
        nlp.Transformer(TEXTS, NONE, pretrained=str(tmp_path))
    with pytest.raises(InputError, match=f"model.pretrained={tmp_path} holds no tokenizer"):
        TextData(tokenizer=str(tmp_path), cache_dir=str(tmp_path / "cache")).setup()


@pytest.mark.parametrize("arch", ALL)
def test_tent_adapts_the_norms_of_each_model_and_nothing_else(arch):
    model = made(arch, BATCH).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = tent(model, [inputs_of(arch), inputs_of(arch).flip(0)], lr=0.1)
    norms = {name for name, layer in model.named_modules() if isinstance(layer, NORMS)}
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed
    assert all(name.rpartition(".")[0] in norms for name in changed)
    assert {name.rpartition(".")[2] for name in changed} >= {"weight", "bias", "running_mean"}
    adapted.reset()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("arch", [arch for arch in ALL if arch not in ("lstm", "transformer")])
@pytest.mark.parametrize("normalization", ["none", "group"])
def test_all_layers_but_the_last_have_standardized_weights(arch, normalization):
    reg = Regularization(normalization=normalization, weight_standardization=True)
    model = made(arch, reg)
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    *hidden, head = layers
    assert hidden
    assert not nn.utils.parametrize.is_parametrized(head)
    for layer in hidden:
        rows = layer.weight.flatten(1)
        assert rows.mean(1).abs().max() < 1e-5
    inputs = inputs_of(arch)
    loss = nn.functional.cross_entropy(model.train()(inputs), torch.arange(len(inputs)) % 3)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    # A branch that is initialized to zero learns through its gain or its norm.
    assert all(layer.parametrizations.weight[0].gain.grad is not None for layer in hidden)


@pytest.mark.parametrize("arch", ["mlp", "airbench", "resnet"])
def test_standardized_models_have_the_same_initial_weights(arch):
    plain, standard = (
        made(arch, Regularization(normalization="batch", weight_standardization=on))
        for on in (False, True)
    )
    found = {
        name.replace("parametrizations.weight.original", "weight"): value
        for name, value in standard.state_dict().items()
        if not name.endswith(".gain")
    }
    assert found.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("arch", ["lstm", "transformer"])
def test_standardization_without_a_layer_for_it_is_refused(arch):
    reg = Regularization(weight_standardization=True)
    with pytest.raises(ValueError, match=r"weight_standardization=True applies to convolutions"):
        TextTask(TEXTS, arch=arch, reg=reg)
