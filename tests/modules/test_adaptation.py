"""Adaptation to a shifted domain: it helps, changes only the norms, and can be undone."""

import copy

import pytest
import torch
from torch import nn

from regain import (
    BatchRenorm,
    Dropout,
    FrozenBatchNorm,
    GhostBatchNorm,
    MaskedBatchNorm,
    SplitBatchNorm,
    Tent,
    adabn,
    mask_steps,
    tent,
)
from regain.torchnorm import BATCH_NORMS

CLASSES, FEATURES, STEPS = 3, 6, 7


class Padded(nn.Module):
    """A classifier of padded sequences."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv1d(FEATURES, 12, 1), norm, Dropout(0.3)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, batch):
        x, mask = batch
        hidden = self.drop(mask_steps(self.norm(self.conv(x), mask).relu(), mask))
        return self.head(hidden.sum(2) / mask.sum(1, keepdim=True))


class Unmasked(Padded):
    """The same with a norm without masks, for sequences without padding."""

    def forward(self, batch):
        x, _ = batch
        return self.head(self.drop(self.norm(self.conv(x)).relu()).mean(2))


def examples(count, shifted, seed, full=False):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, 1, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(CLASSES, (count,), generator=generator)
    x = centres[labels] + 0.7 * torch.randn(count, FEATURES, STEPS, generator=generator)
    lengths = torch.randint(2, STEPS + 1, (count, 1), generator=generator)
    mask = torch.arange(STEPS) < (torch.full_like(lengths, STEPS) if full else lengths)
    if shifted:
        scale = torch.linspace(0.5, 2.0, FEATURES)[:, None]
        x = x * scale + 3.0
    # Values of the padding must have no effect.
    return (torch.where(mask[:, None], x, 1e3), mask), labels


def accuracy(model, batch, labels):
    with torch.no_grad():
        return (model.eval()(batch).argmax(1) == labels).float().mean().item()


MODELS = {
    "masked": lambda: Padded(MaskedBatchNorm(12)),
    "ghost": lambda: Padded(GhostBatchNorm(12, 1, size=16)),
    "split": lambda: Padded(SplitBatchNorm(12, 1)),
    "renorm": lambda: Padded(MaskedBatchNorm(12, 1, "renorm")),
    "plain": lambda: Unmasked(nn.BatchNorm1d(12)),
    "plain renorm": lambda: Unmasked(BatchRenorm(12, 1, warmup=10)),
}


@pytest.fixture(params=MODELS)
def trained(request):
    """A model that is trained on the source domain."""
    torch.manual_seed(0)
    model = MODELS[request.param]()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    full = "plain" in request.param
    for step in range(80):
        batch, labels = examples(64, False, step, full)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
    test = examples(400, False, 1000, full)
    assert accuracy(model, *test) > 0.9
    return model.train(), full


def target(full, count=8):
    return [examples(64, True, 2000 + number, full)[0] for number in range(count)]


def state_of(model):
    model.head.weight.requires_grad_(False)
    model.drop.eval()
    model.conv.bias.grad = torch.ones_like(model.conv.bias)
    norms = [norm.get_parameter("weight") for norm in norms_of(model)]
    norms[0].grad = torch.full_like(norms[0], 2.0)
    modes = [layer.training for layer in model.modules()]
    return modes, [(p.requires_grad, p.grad) for p in model.parameters()], kept(model)


def norms_of(model):
    return [layer for layer in model.modules() if isinstance(layer, BATCH_NORMS)]


def kept(model):
    """All tensors that adaptation must not change."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, BATCH_NORMS)]
    state = copy.deepcopy(model.state_dict())
    return {k: v for k, v in state.items() if k.rpartition(".")[0] not in names or "num" in k}


def assert_all_else_is_as_before(model, before):
    modes, gradients, tensors = before
    assert [layer.training for layer in model.modules()] == modes
    for parameter, (required, gradient) in zip(model.parameters(), gradients, strict=True):
        assert parameter.requires_grad == required
        assert parameter.grad is gradient
    for name, value in kept(model).items():
        assert torch.equal(value, tensors[name]), name


def test_adabn_raises_accuracy_and_changes_statistics_alone(trained):
    model, full = trained
    test = examples(400, True, 3000, full)
    lost = accuracy(copy.deepcopy(model), *test)
    before = state_of(model)
    weights = copy.deepcopy(dict(model.named_parameters()))
    adabn(model, target(full))
    assert_all_else_is_as_before(model, before)
    for name, value in model.named_parameters():
        assert torch.equal(value, weights[name])
    assert accuracy(model, *test) > lost + 0.15


@pytest.mark.parametrize("epochs", [1, 3])
def test_tent_raises_accuracy_changes_norms_alone_and_is_undone(trained, epochs):
    model, full = trained
    test = examples(400, True, 3000, full)
    lost = accuracy(copy.deepcopy(model), *test)
    before, whole = state_of(model), copy.deepcopy(model.state_dict())
    # An iterator, which can be read once.
    adapted = tent(model, iter(target(full)), lr=0.01, epochs=epochs)
    assert_all_else_is_as_before(model, before)
    assert not torch.equal(norms_of(model)[0].weight, whole_weight(model, whole))
    assert accuracy(copy.deepcopy(model), *test) > lost + 0.15
    adapted.reset()
    assert_all_else_is_as_before(model, before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def whole_weight(model, state):
    name = next(name for name, layer in model.named_modules() if isinstance(layer, BATCH_NORMS))
    return state[f"{name}.weight"]


def test_tent_online_predicts_better_than_before(trained):
    model, full = trained
    lost = accuracy(copy.deepcopy(model), *examples(400, True, 3000, full))
    before, whole = state_of(model), copy.deepcopy(model.state_dict())
    online = Tent(model, lr=0.01)
    hits = []
    for number in range(10):
        batch, labels = examples(64, True, 4000 + number, full)
        hits.append((online(batch).argmax(1) == labels).float().mean().item())
    assert_all_else_is_as_before(model, before)
    assert sum(hits) / len(hits) > lost + 0.15
    online.reset()
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_tent_minimizes_the_entropy_of_batch_normalized_predictions():
    torch.manual_seed(0)
    model = Unmasked(nn.BatchNorm1d(12))
    batch, _ = examples(64, True, 0, full=True)
    twin = copy.deepcopy(model)
    twin.drop.eval()
    p = twin(batch).softmax(1)
    (-(p * p.log()).sum(1).mean()).backward()
    online = Tent(model, lr=0.01)
    logits = online(batch)
    assert not logits.requires_grad
    torch.testing.assert_close(logits.softmax(1), p.detach())
    # The first step of Adam is the sign of the gradient times the learning rate.
    for name in ("weight", "bias"):
        moved = getattr(model.norm, name) - getattr(Tent(twin).norms[0], name)
        torch.testing.assert_close(
            moved, -0.01 * getattr(twin.norm, name).grad.sign(), atol=1e-4, rtol=0
        )
    # With more steps on the batch its entropy falls.
    entropies = []
    for _ in range(20):
        q = online(batch).softmax(1)
        entropies.append(-(q * q.log()).sum(1).mean().item())
    assert entropies[-1] < entropies[0] < 1.1


def test_frozen_norms_and_recurrent_dropout_stay_as_they_are():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = FrozenBatchNorm(FEATURES, 1)
            self.norm = nn.BatchNorm1d(FEATURES)
            self.lstm = nn.LSTM(FEATURES, 8, num_layers=2, dropout=0.5, batch_first=True)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x):
            return self.head(self.lstm(self.norm(self.frozen(x)).mT)[0][:, -1])

    model = Recurrent().eval()
    frozen = copy.deepcopy(model.frozen.state_dict())
    x = torch.randn(16, FEATURES, STEPS)
    first = Tent(model)(x)
    assert torch.equal(Tent(copy.deepcopy(model))(x), Tent(copy.deepcopy(model))(x))
    assert first.isfinite().all()
    assert model.lstm.dropout == 0.5
    assert not model.lstm.training
    for name, value in model.frozen.state_dict().items():
        assert torch.equal(value, frozen[name])


def test_an_empty_batch_changes_nothing():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    assert Tent(model)(torch.randn(0, 4)).shape == (0, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: Tent(model, lr=0.0), "lr is more than 0, not 0.0"),
        (lambda model: Tent(model, lr=-1.0), "lr is .* -1.0"),
        (lambda model: tent(model, [], epochs=0), "epochs is at least 1, not 0"),
        (lambda model: tent(model, [], epochs=1.5), "epochs is .* 1.5"),
        (lambda model: tent(model, []), "there is no batch"),
        (lambda model: adabn(model, []), "there is no batch"),
        (lambda model: Tent(nn.Linear(4, 3)), "no batch norm with a scale"),
        (lambda model: Tent(nn.BatchNorm1d(4, affine=False)), "no batch norm with a scale"),
        (lambda model: adabn(nn.Linear(4, 3), []), "no batch norm with running statistics"),
    ],
)
def test_what_cannot_be_is_refused_by_value(call, message):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=message):
        call(model)


def test_after_an_error_the_model_is_as_before():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        tent(model, [torch.randn(8, 4), torch.randn(8, 5)])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(layer.training for layer in model.modules())
