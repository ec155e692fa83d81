"""Vision models: each takes images as bytes and one `Regularization`."""

from collections.abc import Callable
from itertools import chain, islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regain import CheckpointedBlock, Regularization, recomputed
from regain.registry import Registry
from tasks.vision.data import VisionSpec

MODELS: Registry[Callable[..., nn.Module]] = Registry("model.arch")

# Added to the variance of patches along their axes, of standardized pixels.
WHITENING_EPS = 5e-4
# The backward pass of a strided 1 x 1 convolution of fewer channels than a vector register holds
# corrupts the memory of the process (oneDNN in torch 2.14, AVX2, channels last). Of as few
# channels, positions are left out before the convolution instead, which has the same result.
NARROW = 16


class Standardize(nn.Module):
    """Shifts and scales images from 0 to 255 to mean 0 and standard deviation 1 a channel.

    Shape:
        (batch, channels, height, width), bytes or floats; the output are floats of the same shape.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        standard = (images.to(self.mean.dtype) - self.mean) / self.std
        # The layout that convolutions are fastest in, on CPU and GPU.
        return standard.contiguous(memory_format=torch.channels_last)


@MODELS.register("mlp")
def mlp(spec: VisionSpec, reg: Regularization, depth: int = 3, width: int = 500) -> nn.Module:
    """Make a perceptron of `depth` hidden layers of `width` units: linear, norm, ReLU, dropout.

    With alpha dropout it is a self-normalizing network (Klambauer et al. 2017), of SELU units.
    """
    selu = reg.dropout_kind == "alpha"
    channels, height, rows = spec.shape
    layers: list[nn.Module] = [Standardize(spec), nn.Flatten(), reg.input_dropout_layer()]
    features = channels * height * rows
    for _ in range(depth):
        linear = nn.Linear(features, width)
        if selu:
            # Outputs of variance 1 for inputs of variance 1, where SELU has its fixed point.
            nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
        layers += [
            reg.weight_drop_layer(reg.prepare_layer(linear)),
            reg.norm_layer(width, dims=0),
            nn.SELU() if selu else nn.ReLU(),
            reg.dropout_layer(width, dims=0, selu=selu),
        ]
        features = width
    head = reg.weight_drop_layer(nn.Linear(width, len(spec.classes)))
    return nn.Sequential(*layers, reg.head_dropout_layer(), head)


def subsample(x: Tensor, step: int) -> Tensor:
    """Keep every `step`-th row and column."""
    return x if step == 1 else x[..., ::step, ::step]


def conv3x3(inputs: int, outputs: int, reg: Regularization, stride: int = 1) -> nn.Conv2d:
    """Make a 3 x 3 convolution; a batch norm after it takes the place of its bias."""
    return reg.prepare_layer(nn.Conv2d(inputs, outputs, 3, stride, padding=1))


@MODELS.register("cnn")
def cnn(spec: VisionSpec, reg: Regularization, depth: int = 3, width: int = 32) -> nn.Module:
    """Make a small network of VGG's shape (Simonyan & Zisserman 2015).

    `depth` stages of two 3 x 3 convolutions and a pooling each; `width` channels in the first
    stage, twice as many in each further one.
    """
    channels = spec.shape[0]
    stages = []
    for stage in range(depth):
        features = width * 2**stage
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                conv3x3(channels, features, reg),
                reg.norm_layer(features, dims=2),
                nn.ReLU(inplace=True),
            ]
            channels = features
        # Pooling pads odd sides, so that no image is too small for the depth.
        layers += [nn.MaxPool2d(2, ceil_mode=True), reg.dropout_layer(channels, dims=2)]
        stages.append(layers)
    stem = [Standardize(spec), reg.input_dropout_layer()]
    return Stages(stem, stages, pooled_head(channels, spec, reg))


class Stages(nn.Sequential):
    """Layers one after the other, each stage of which can be computed again by itself.

    Args:
        stem: What stands before the stages.
        stages: The layers of each.
        head: What stands behind them.
    """

    checkpointing = False

    def __init__(
        self, stem: list[nn.Module], stages: list[list[nn.Module]], head: list[nn.Module]
    ) -> None:
        super().__init__(*stem, *chain(*stages), *head)
        self.sizes = [len(stem), *map(len, stages), len(head)]

    def forward(self, x: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        layers = iter(self)
        stem, *stages, head = (nn.Sequential(*islice(layers, size)) for size in self.sizes)
        x = stem(x)
        for stage in stages:
            x = recomputed(stage, x)
        return cast(Tensor, head(x))


def pooled_head(channels: int, spec: VisionSpec, reg: Regularization) -> list[nn.Module]:
    """Make what follows the last convolution: mean over positions, dropout, linear layer."""
    head = reg.weight_drop_layer(nn.Linear(channels, len(spec.classes)))
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), reg.head_dropout_layer(), head]


def start_at_zero(layer: nn.Module) -> None:
    """Set the parameters of a layer to zero, so that the branch it ends begins as nothing."""
    for name, parameter in layer.named_parameters():
        # Standardized weights keep their scale; the gain behind them is what has one.
        if not name.endswith(".original"):
            nn.init.zeros_(parameter)


class ResidualBlock(CheckpointedBlock):
    """Two convolutions around a shortcut (He et al. 2016), the branch under drop path.

    The last gamma begins at zero, so that a block begins as its shortcut (Goyal et al. 2017); where
    there is no gamma the last convolution does.

    Shape:
        (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, reg: Regularization, drop_path: nn.Module
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, reg, stride)
        self.norm1 = reg.norm_layer(outputs, dims=2)
        self.dropout = reg.dropout_layer(outputs, dims=2)
        self.conv2 = conv3x3(outputs, outputs, reg)
        self.norm2 = reg.norm_layer(outputs, dims=2)
        self.drop_path = drop_path
        self.shortcut: nn.Module = nn.Identity()
        self.subsampling = stride if inputs < NARROW else 1
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                reg.prepare_layer(nn.Conv2d(inputs, outputs, 1, stride // self.subsampling)),
                reg.norm_layer(outputs, dims=2),
            )
        if reg.zero_init_gamma:
            start_at_zero(self.norm2 if list(self.norm2.parameters()) else self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.dropout(self.norm1(self.conv1(x)).relu())
        branch = self.drop_path(self.norm2(self.conv2(branch)))
        return torch.relu(self.shortcut(subsample(x, self.subsampling)) + branch)


class WideBlock(CheckpointedBlock):
    """A pre-activation block with dropout between its convolutions (Zagoruyko & Komodakis 2016).

    Shape:
        (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, reg: Regularization, drop_path: nn.Module
    ) -> None:
        super().__init__()
        self.norm1 = reg.norm_layer(inputs, dims=2)
        self.conv1 = conv3x3(inputs, outputs, reg, stride)
        self.norm2 = reg.norm_layer(outputs, dims=2)
        self.dropout = reg.dropout_layer(outputs, dims=2)
        self.conv2 = reg.standardized(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.drop_path = drop_path
        self.shortcut: nn.Module = nn.Identity()
        self.subsampling = stride if inputs < NARROW else 1
        if stride > 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride // self.subsampling, bias=False)
            self.shortcut = reg.standardized(convolution)
        # The last norm stands before the last convolution here, and its gamma scales what that one
        # gets: the convolution itself begins at zero.
        if reg.zero_init_gamma:
            start_at_zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        active = self.norm1(x).relu()
        skipped = x if isinstance(self.shortcut, nn.Identity) else active
        shortcut = self.shortcut(subsample(skipped, self.subsampling))
        branch = self.dropout(self.norm2(self.conv1(active)).relu())
        branch = self.drop_path(self.conv2(branch))
        return torch.add(shortcut, branch)


@MODELS.register("resnet")
def resnet(spec: VisionSpec, reg: Regularization, depth: int = 9, width: int = 64) -> nn.Module:
    """Make a residual network for small images (He et al. 2016).

    ResNet-9 has one block in each of its 4 stages, ResNet-18 two, ResNet-34 and deeper more evenly
    spread ones: `depth` is 8 b + 1 or 8 b + 2 for b blocks a stage.

    Raises:
        ValueError: `depth` is not of that form.
    """
    if depth < 9 or depth % 8 not in (1, 2):
        raise ValueError(f"depth of a resnet is 9, 10, 17, 18, 25, 26 ..., not {depth!r}")
    stages = [width * 2**stage for stage in range(4)]
    stem = [
        conv3x3(spec.shape[0], width, reg),
        reg.norm_layer(width, dims=2),
        nn.ReLU(inplace=True),
    ]
    return _residual(spec, reg, ResidualBlock, stem, width, stages, blocks=depth // 8)


@MODELS.register("wide_resnet")
def wide_resnet(
    spec: VisionSpec, reg: Regularization, depth: int = 16, width: int = 4
) -> nn.Module:
    """Make a wide residual network (Zagoruyko & Komodakis 2016): WRN-`depth`-`width`.

    Raises:
        ValueError: `depth` is not 6 b + 4 for b blocks a stage.
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth of a wide_resnet is 10, 16, 22, 28 ..., not {depth!r}")
    stages = [16 * width * 2**stage for stage in range(3)]
    stem: list[nn.Module] = [conv3x3(spec.shape[0], 16, reg)]
    return _residual(spec, reg, WideBlock, stem, 16, stages, blocks=(depth - 4) // 6)


def _residual(
    spec: VisionSpec,
    reg: Regularization,
    block: type[ResidualBlock] | type[WideBlock],
    stem: list[nn.Module],
    channels: int,
    stages: list[int],
    blocks: int,
) -> nn.Module:
    layers: list[nn.Module] = [Standardize(spec), reg.input_dropout_layer(), *stem]
    for stage, features in enumerate(stages):
        for place in range(blocks):
            stride = 2 if stage > 0 and place == 0 else 1
            drop_path = reg.drop_path_layer(stage * blocks + place, len(stages) * blocks)
            layer: nn.Module = block(channels, features, stride, reg, drop_path)
            same = stride == 1 and channels == features
            layers.append(reg.layer_drop_layer(layer) if same else layer)
            channels = features
    if block is WideBlock:
        layers += [reg.norm_layer(channels, dims=2), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *pooled_head(channels, spec, reg))


class Whitening(nn.Module):
    """Projects patches of 2 x 2 pixels on their principal axes, scaled to variance 1 (Jordan 2024).

    The weights are those of the training images and stay: each axis with both signs, because what
    follows rectifies. Only the bias is learnt.

    Shape:
        (batch, channels, height, width) to (batch, 8 x channels, height - 1, width - 1).

    Raises:
        ValueError: The data has not been measured for it.
    """

    weight: Tensor

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        if spec.patches is None:
            raise ValueError(
                "arch=airbench needs images of 2 x 2 pixels or more, whose patches it whitens"
            )
        variances, axes = torch.linalg.eigh(torch.tensor(spec.patches, dtype=torch.float64))
        filters = (axes / (variances.clamp(min=0.0) + WHITENING_EPS).sqrt()).T.float()
        filters = filters.reshape(-1, spec.shape[0], 2, 2)
        self.register_buffer("weight", torch.cat((filters, -filters)))
        self.bias = nn.Parameter(torch.zeros(len(self.weight)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class Halve(nn.Module):
    """Max pooling of 2 x 2 positions, which leaves a single position as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, ceil_mode=min(x.shape[2:]) < 2)


class Times(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:.3g}"


@MODELS.register("airbench")
def airbench(spec: VisionSpec, reg: Regularization, depth: int = 3, width: int = 64) -> nn.Module:
    """Make a network that trains in few epochs, after airbench94 (Jordan 2024, arXiv 2404.00498).

    A fixed whitening of patches, then `depth` stages of two 3 x 3 convolutions, of `width` channels
    in the first and four times as many in the others. Each convolution begins by handing its input
    on, and the logits are scaled down.
    """
    stem = [Standardize(spec), reg.input_dropout_layer(), Whitening(spec), nn.GELU()]
    stages, channels = [], 8 * spec.shape[0]
    for stage in range(depth):
        features = width if stage == 0 else 4 * width
        layers: list[nn.Module] = []
        for place in range(2):
            convolution = nn.Conv2d(channels, features, 3, padding=1)
            with torch.no_grad():
                nn.init.dirac_(convolution.weight[: min(channels, features)])
            convolution = reg.prepare_layer(convolution)
            pool = Halve() if place == 0 else nn.Identity()
            layers += [convolution, pool, reg.norm_layer(features, dims=2), nn.GELU()]
            channels = features
        stages.append([*layers, reg.dropout_layer(channels, dims=2)])
    linear = reg.weight_drop_layer(nn.Linear(channels, len(spec.classes), bias=False))
    head = [nn.AdaptiveMaxPool2d(1), nn.Flatten(), reg.head_dropout_layer(), linear, Times(1 / 9)]
    return Stages(stem, stages, head)
