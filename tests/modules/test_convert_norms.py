"""Norms of models of other libraries under `convert`."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regain import (
    FrozenBatchNorm,
    GhostBatchNorm,
    Regularization,
    convert,
    to_plain,
)
from tests.modules.foreignmodels import (
    BY_NAME,
    Model,
    evaluated,
    fixture_of,
    inputs_of,
    layers_of,
    logits,
    made,
    ours,
)

normed = fixture_of(choose=lambda model: model.norms)

KEPT = ("batch", "ghost", "renorm", "frozen", "split")


@pytest.mark.parametrize("kind", KEPT)
def test_a_kind_of_batch_norm_keeps_output_weights_and_statistics(normed: Model, kind: str) -> None:
    model, x = made(normed), inputs_of(normed)
    expected, state = evaluated(model, x), copy.deepcopy(model.state_dict())
    converted = convert(model, Regularization(normalization=kind))
    assert converted is model
    assert (evaluated(converted, x) - expected).abs().max() <= 1e-6 * expected.abs().max()
    if kind != "split":
        assert list(converted.state_dict()) == list(state)
        for name, value in converted.state_dict().items():
            assert torch.equal(value, state[name]), name
    # All of them, and no others.
    wanted = {"batch": 0, "ghost": normed.norms}.get(kind)
    if wanted is not None:
        assert len(layers_of(converted, GhostBatchNorm)) == wanted


@pytest.mark.parametrize("kind", KEPT)
def test_a_stock_state_dict_loads_strictly_into_a_kind_of_batch_norm(
    normed: Model, kind: str
) -> None:
    stock, x = made(normed, seed=3), inputs_of(normed)
    converted = convert(made(normed), Regularization(normalization=kind))
    converted.load_state_dict(stock.state_dict(), strict=True)
    expected = evaluated(stock, x)
    assert (evaluated(converted, x) - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_ghost_and_frozen_norms_use_other_statistics_in_training(normed: Model) -> None:
    x = inputs_of(normed)
    outputs = []
    for reg in (
        Regularization(),
        Regularization(normalization="ghost", ghost_size=4),
        Regularization(normalization="frozen"),
    ):
        converted = convert(made(normed), reg).train()
        with torch.no_grad():
            outputs.append(logits(converted, x))
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    # Frozen: training is evaluation.
    assert torch.allclose(outputs[2], evaluated(made(normed), x), atol=1e-5)


@pytest.mark.parametrize("kind", ["group", "layer", "rms"])
def test_another_kind_keeps_the_weights_and_says_that_the_output_changes(
    normed: Model, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = made(normed), inputs_of(normed)
    before, expected = dict(model.named_parameters()), evaluated(model, x)
    converted = convert(model, Regularization(normalization=kind))
    assert "outputs" in caplog.text
    assert not layers_of(converted, _BatchNorm)
    assert not torch.allclose(evaluated(converted, x), expected)
    kept = {id(parameter) for parameter in converted.parameters()}
    lost = [name for name, parameter in before.items() if id(parameter) not in kept]
    # RMS norm has no shift.
    assert len(lost) == (normed.norms if kind == "rms" else 0)
    if kind == "group":
        assert [*converted.state_dict()] == [k for k in made(normed).state_dict() if k in before]


def test_parameters_are_the_same_objects_so_that_an_optimizer_keeps_them() -> None:
    kind = BY_NAME["torchvision-resnet18"]
    model = made(kind)
    model.bn1.weight.requires_grad_(False)
    before = [*model.parameters()]
    for normalization in ("ghost", "frozen", "none"):
        convert(model, Regularization(normalization=normalization))
        assert [*map(id, model.parameters())] == [*map(id, before)]
    assert not model.bn1.weight.requires_grad


def test_eps_and_momentum_are_the_models_own_unless_they_are_set() -> None:
    kind = BY_NAME["torchvision-mobilenet"]
    model = convert(made(kind), Regularization(normalization="frozen"))
    norms = layers_of(model, FrozenBatchNorm)
    assert len(norms) == kind.norms
    for norm in norms.values():
        assert (norm.eps, norm.momentum) == (0.001, 0.01)
    back = to_plain(model)
    for norm in layers_of(back, _BatchNorm).values():
        assert (norm.eps, norm.momentum) == (0.001, 0.01)
    convert(back, Regularization(normalization="batch", norm_momentum=0.3, sync_bn=False))
    for norm in layers_of(back, _BatchNorm).values():
        assert (norm.eps, norm.momentum) == (0.001, 0.3)


def test_a_model_without_batch_norm_keeps_its_norms_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = convert(made(BY_NAME["timm-vit"]), Regularization(normalization="ghost"))
    assert not ours(model)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "normalization=ghost" in record.message
    assert "VisionTransformer" in record.message


class OwnNorm(nn.BatchNorm2d):
    """A batch norm that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("norm", "said"),
    [(OwnNorm(3), "OwnNorm"), (nn.BatchNorm2d(3, track_running_stats=False), "statistics")],
)
def test_an_unknown_batch_norm_is_refused(norm: nn.Module, said: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm)
    with pytest.raises(ValueError, match=rf"normalization=ghost.* 1, .*{said}"):
        convert(model, Regularization(normalization="ghost"))
    assert model[1] is norm
