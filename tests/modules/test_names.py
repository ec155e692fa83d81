"""What can be imported from `regain`, and that each layer says what a reader must know."""

import importlib
import inspect
import re

import pytest
from torch import nn

import regain

LAYERS = """Dropout ChannelDropout AlphaDropout GaussianDropout LockedDropout WordDropout
    EmbeddingDropout WeightDrop DropBlock DropPath LayerDrop ConcreteDropout KWinners TokenDropout
    AttentionDropout DropHead VariationalDropout VariationalLinear VariationalConv2d
    MaskedBatchNorm GhostBatchNorm BatchRenorm SyncBatchNorm SubSpectralBatchNorm FrozenBatchNorm
    SplitBatchNorm ChannelNorm MaskedGroupNorm WeightStandardization""".split()
# Their lower-case twins.
FUNCTIONS = """dropout channel_dropout alpha_dropout gaussian_dropout locked_dropout word_dropout
    embedding_dropout weight_drop drop_block drop_path layer_drop concrete_dropout
    k_winners token_dropout attention_dropout drop_head variational_dropout log_uniform_kl
    sam_perturbation weight_standardization""".split()
AROUND = """recompute_statistics fold_batchnorm unfolded_norms average_buffers mc_dropout mc_predict
    variance_shift dead_units l1_penalty l2_penalty elastic max_norm_ r_drop_loss
    parameter_groups SharpnessAware mixup cutmix cutout random_crop adabn tent
    adaptive_clip_""".split()
PAPER = re.compile(r"[A-Z]\w+[^()]{0,40}\b(19|20)\d\d\b")


def test_all_names_are_there():
    names = [*LAYERS, *FUNCTIONS, *AROUND, "DropoutSchedule", "Regularization", "batch_norm"]
    assert not [name for name in names if name not in regain.__all__]
    assert not [name for name in regain.__all__ if not hasattr(regain, name)]


@pytest.mark.parametrize("name", ["check_rate", "check_amount"])
def test_checks_of_arguments_are_not_for_users(name):
    assert not hasattr(regain, name)
    assert name not in regain.__all__
    # Where our own files find them.
    assert callable(getattr(importlib.import_module("regain.dropout"), name))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_names_its_paper_arguments_shape_and_an_example(name):
    layer = getattr(regain, name)
    text = inspect.getdoc(layer)
    assert PAPER.search(text)
    for section in ("Args:", "Shape:", "Example:"):
        assert f"\n{section}\n" in text
    assert ">>> " in text
    arguments = text.split("Args:")[1].split("Shape:")[0]
    for argument in list(inspect.signature(layer).parameters):
        assert re.search(rf"^\s+{argument}: ", arguments, re.MULTILINE), argument


def documented(name):
    """The names of the arguments that a docstring describes; None without a section for them."""
    text = inspect.getdoc(getattr(regain, name))
    if "\nArgs:\n" not in text:
        return None
    section = re.split(r"\n(?=\S)", text.split("\nArgs:\n")[1])[0]
    return re.findall(r"^ {4}\*{0,2}(\w+): ", section, re.MULTILINE)


def parameters(name):
    return list(inspect.signature(getattr(regain, name)).parameters)


# Fields of results and specifications are described where they are defined.
RECORDS = [
    name
    for name in regain.__all__
    if hasattr(getattr(regain, name), "_fields") or name == "Regularization"
]
# Without arguments: a base class, and a layer that takes those of `nn.Identity` and ignores them.
BARE = ["CheckpointedBlock", "LearnedDropout", "MaskedIdentity"]
# The same arguments as another function, to which the docstring refers.
TWINS = {"masked_norm": "batch_norm"}
REFERRING = [
    name
    for name in regain.__all__
    if re.search(r"See\s+`\w+`", inspect.getdoc(getattr(regain, name))) and not documented(name)
]
DESCRIBED = [name for name in regain.__all__ if name not in {*RECORDS, *BARE, *TWINS, *REFERRING}]


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_arguments_of_a_docstring_are_those_of_the_signature(name):
    assert documented(name) == parameters(name)


@pytest.mark.parametrize(("name", "other"), TWINS.items())
def test_a_function_with_the_arguments_of_another_has_the_same_signature(name, other):
    assert f"those of `{other}`" in inspect.getdoc(getattr(regain, name))
    assert inspect.signature(getattr(regain, name)) == inspect.signature(getattr(regain, other))


@pytest.mark.parametrize("name", REFERRING)
def test_a_function_refers_to_a_layer_that_describes_its_arguments(name):
    other = re.search(r"See\s+`(\w+)`", inspect.getdoc(getattr(regain, name)))[1]
    assert other in regain.__all__
    assert documented(other)


@pytest.mark.parametrize("name", RECORDS)
def test_each_field_of_a_record_is_described(name):
    record = getattr(regain, name)
    source = inspect.getsource(record)
    for field in getattr(record, "_fields", None) or parameters(name):
        beneath = re.search(rf'^    {field}: .*\n    """\w', source, re.MULTILINE)
        assert beneath or f"`{field}`" in inspect.getdoc(record), field


ABSTRACT = ["CheckpointedBlock", "LearnedDropout"]


@pytest.mark.parametrize(
    "name",
    [name for name in regain.__all__ if name not in {*RECORDS, *REFERRING, *ABSTRACT}],
)
def test_a_public_name_has_an_example(name):
    text = inspect.getdoc(getattr(regain, name))
    assert "\nExample:\n" in text
    assert ">>> " in text


@pytest.mark.parametrize(
    "name", [name for name in LAYERS if "p" in parameters(name) and name != "DropPath"]
)
def test_a_layer_refuses_a_rate_above_1_and_documents_the_error(name):
    layer, given = getattr(regain, name), {"p": 2.0}
    signature = inspect.signature(layer).parameters
    values = {"features": 4, "layer": nn.LSTM(2, 2), "names": ["weight_hh_l0"], "dim": 1}
    values |= {"table": nn.Embedding(3, 2), "replacement": 1, "embedding": nn.Embedding(3, 2)}
    given |= {key: values[key] for key in values if key in signature}
    with pytest.raises(ValueError, match=r"^p is .*not 2\.0"):
        layer(**given)
    assert "\nRaises:\n    ValueError: " in inspect.getdoc(layer)
