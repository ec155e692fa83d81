"""Diagnostics of layers: variance shift and dead units."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regain import (
    Dropout,
    FrozenBatchNorm,
    MaskedBatchNorm,
    SplitBatchNorm,
    SubSpectralBatchNorm,
    batch_norm,
    dead_units,
    variance_shift,
)


def formula(p, c, v):
    """Ratio of test to training variance for inputs of mean c and variance v (Li et al. 2019)."""
    return v / ((c**2 + v) / (1 - p) - c**2)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(("c", "v"), [(0.0, 1.0), (1.0, 1.0), (2.0, 0.5), (-1.0, 3.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_dropout_before_batch_norm_shifts_the_variance_as_the_formula_says(p, c, v, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(Dropout(p), batch_norm(16, dims=0, momentum=None))
    batches = (torch.randn(20, 1000, 16) * v**0.5 + c).unbind()
    for batch in batches:
        model(batch)
    (shift,) = variance_shift(model, batches).values()
    assert shift == pytest.approx(formula(p, c, v), rel=0.02)


def test_variance_is_that_of_all_batches_together():
    norm = nn.BatchNorm2d(3).double()
    norm.running_var.copy_(torch.tensor([1.0, 2.0, 4.0]))
    batches = [torch.randn(n, 3, 4, 5, dtype=torch.float64) * n + 50 * n for n in (2, 7, 4)]
    rows = torch.cat([batch.movedim(1, -1).reshape(-1, 3) for batch in batches])
    expected = (rows.var(0, correction=0) / norm.running_var).mean().item()
    (found,) = variance_shift(norm, batches).values()
    assert found == pytest.approx(expected, rel=1e-4)


def test_padding_does_not_count():
    torch.manual_seed(0)
    norm = MaskedBatchNorm(3, dims=1, momentum=1.0)
    mask = torch.arange(50) < torch.randint(5, 50, (40, 1))
    x = torch.where(mask[:, None], torch.randn(40, 3, 50), 100.0)
    norm(x, mask)
    (shift,) = variance_shift(norm, [x], lambda batch: norm(batch, mask)).values()
    assert shift == pytest.approx(1.0, rel=0.01)
    (shift,) = variance_shift(norm, [x], lambda batch: norm(batch, mask=mask)).values()
    assert shift == pytest.approx(1.0, rel=0.01)


def test_every_norm_has_one_entry_by_its_name():
    model = nn.Sequential()
    model.add_module("plain", nn.BatchNorm2d(4))
    model.add_module("masked", MaskedBatchNorm(4, dims=2))
    model.add_module("bands", SubSpectralBatchNorm(4, bands=2, kind="sync"))
    model.add_module("split", SplitBatchNorm(4, dims=2))
    model.add_module("frozen", FrozenBatchNorm(4, dims=2))
    model.add_module("layer", batch_norm(4, 2, "layer"))
    model.add_module("of the batch", nn.BatchNorm2d(4, track_running_stats=False))
    found = variance_shift(model, [torch.randn(8, 4, 6, 5)])
    # A frozen norm has constant statistics; layer norm has no running variance.
    assert set(found) == {"plain", "masked", "bands.norm", "split"}


def test_a_channel_that_is_constant_in_both_has_no_shift():
    norm = nn.BatchNorm1d(2, momentum=1.0)
    x = torch.stack((torch.randn(1000), torch.ones(1000)), dim=1)
    norm(x)
    (shift,) = variance_shift(norm, [x]).values()
    assert shift == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("measure", [variance_shift, dead_units])
@pytest.mark.parametrize("broken", [True, False])
def test_the_model_is_not_changed(measure, broken):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), Dropout(0.5)).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())

    def forward(batch):
        y = model(batch)
        # Evaluation mode, and no gradient.
        assert not any(layer.training for layer in model.modules())
        assert not y.requires_grad
        if broken:
            raise RuntimeError("broken")

    try:
        measure(model, [torch.randn(5, 3)], forward)
        assert not broken
    except RuntimeError:
        assert broken
    assert [layer.training for layer in model] == [True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for layer in model.modules():
        assert not layer._forward_pre_hooks
        assert not layer._forward_hooks


class Activated(nn.Module):
    def __init__(self, activate):
        super().__init__()
        self.activate = activate

    def forward(self, x):
        return self.activate(x)


WAYS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "functional": Activated(F.relu),
    "functional in place": Activated(lambda x: F.relu(x, inplace=True)),
    "torch": Activated(torch.relu),
    "method": Activated(lambda x: x.relu()),
    "method in place": Activated(lambda x: x.relu_()),
    "functional relu6": Activated(F.relu6),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(), (5,), (5, 4)])
def test_a_unit_is_dead_if_no_example_of_any_batch_activates_it(way, shape):
    batches = [-torch.rand(6, 8, *shape) - 0.1 for _ in range(3)]
    # Three units are active, each at one position of one example of one batch.
    for batch, unit in enumerate((0, 3, 7)):
        batches[batch][batch, unit].view(-1)[-1] = 1.0
    assert dead_units(nn.Sequential(WAYS[way]), batches) == {"0": 5 / 8}


def test_each_relu_of_a_layer_counts_for_itself():
    def twice(x):
        return F.relu(F.relu(x) - 1)

    model = nn.Sequential(nn.Identity(), Activated(twice))
    x = torch.tensor([[0.5, 2.0, -1.0, 3.0]])
    assert dead_units(model, [x, x]) == {"1": 0.25, "1#2": 0.5}


def test_layers_within_layers_are_named_by_their_path():
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Tanh()), nn.ReLU())
    assert set(dead_units(model, [torch.randn(2, 3)])) == {"0.0", "1"}


def test_other_activations_are_ignored():
    model = nn.Sequential(nn.Tanh(), nn.GELU(), nn.Linear(3, 3), nn.Hardtanh())
    assert dead_units(model, [torch.randn(2, 3)]) == {}
