"""What can be imported from `modules`, and that each layer says what a reader must know."""

import importlib
import inspect
import re

import pytest

import modules

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
    assert not [name for name in names if name not in modules.__all__]
    assert not [name for name in modules.__all__ if not hasattr(modules, name)]


@pytest.mark.parametrize("name", ["check_rate", "check_amount"])
def test_checks_of_arguments_are_not_for_users(name):
    assert not hasattr(modules, name)
    assert name not in modules.__all__
    # Where our own files find them.
    assert callable(getattr(importlib.import_module("modules.dropout"), name))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_names_its_paper_arguments_shape_and_an_example(name):
    layer = getattr(modules, name)
    text = inspect.getdoc(layer)
    assert PAPER.search(text)
    for section in ("Args:", "Shape:", "Example:"):
        assert f"\n{section}\n" in text
    assert ">>> " in text
    arguments = text.split("Args:")[1].split("Shape:")[0]
    for argument in list(inspect.signature(layer).parameters):
        assert re.search(rf"^\s+{argument}: ", arguments, re.MULTILINE), argument


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_does_or_where_that_stands(name):
    text = inspect.getdoc(getattr(modules, name))
    assert re.search(r"See\s+`\w+`", text) or "Example:" in text


@pytest.mark.parametrize("name", AROUND)
def test_a_function_around_the_layers_has_an_example(name):
    text = inspect.getdoc(getattr(modules, name))
    assert "Args:" in text
    assert "Example:\n" in text
    assert ">>> " in text
