"""Small models of torchvision, timm and transformers, and what the tests of `convert` ask them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regain import (
    Regularization,
    conversions,
)

FULL = Regularization(normalization="ghost", dropout=0.2, head_dropout=0.2, weight_drop=0.1)

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 5,
}
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def images() -> Tensor:
    return torch.randn(8, 3, 32, 32)


def words() -> Tensor:
    return torch.randint(1, 30, (8, 7))


def waves() -> Tensor:
    return torch.randn(8, 400)


def tiny_vit(**options: Any) -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5, **options)


def small_vgg() -> nn.Module:
    """VGG with fewer channels, and the structure of `vgg11_bn`."""
    layers = torchvision.models.vgg.make_layers([8, "M", 16, "M", 16, "M"], batch_norm=True)
    with torch.device("meta"):
        model = torchvision.models.VGG(nn.Sequential(), num_classes=5, init_weights=False)
    model.features = layers
    model.classifier[0] = nn.Linear(16 * 7 * 7, 32)
    model.classifier[3] = nn.Linear(32, 32)
    model.classifier[6] = nn.Linear(32, 5)
    return model


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **options)


def wav2vec2(**options: Any) -> nn.Module:
    config = transformers.Wav2Vec2Config(
        **SMALL,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        # It masks at random too.
        apply_spec_augment=False,
        **options,
    )
    return transformers.Wav2Vec2ForSequenceClassification(config)


@dataclass(frozen=True)
class Model:
    """A model of another library.

    Attributes:
        name: How the tests call it.
        make: Make it.
        inputs: Make a batch of eight.
        head: Name of its classifier, or of the model's own dropout before it.
        norms: How many batch norms it has.
        branches: Parameters in its residual branches, a pattern; None if these are not known.
        own: Whether it has dropout layers of its own in hidden layers.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    head: str
    norms: int = 0
    branches: str | None = None
    own: bool = False


MODELS = [
    Model(
        "torchvision-resnet18",
        lambda: torchvision.models.resnet18(num_classes=5),
        images,
        "fc",
        20,
        r"layer\d\.\d\.(conv|bn)",
    ),
    Model(
        "torchvision-bottlenecks",
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5
        ),
        images,
        "fc",
        17,
        r"layer\d\.\d\.(conv|bn)",
    ),
    Model(
        "torchvision-vit",
        tiny_vit,
        images,
        "heads.head",
        branches="self_attention|mlp",
        own=True,
    ),
    Model(
        "torchvision-mobilenet",
        lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
        images,
        "classifier.2",
        34,
    ),
    Model(
        "torchvision-vgg",
        small_vgg,
        images,
        "classifier.5",
        3,
        own=True,
    ),
    Model(
        "torchvision-densenet",
        lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5),
        images,
        "classifier",
        11,
    ),
    Model(
        "torchvision-swin",
        lambda: torchvision.models.SwinTransformer(
            [4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=5, stochastic_depth_prob=0.2
        ),
        images,
        "head",
        branches=r"attn\.(qkv|proj)|mlp",
        own=True,
    ),
    Model(
        "timm-resnet18",
        timm_model("resnet18", channels=(16, 16, 32, 32)),
        images,
        "fc",
        21,
        r"layer\d\.\d\.(conv|bn)",
    ),
    # Its batch norms hold their activations.
    Model(
        "timm-mobilenet",
        timm_model("mobilenetv3_small_050", drop_path_rate=0.1),
        images,
        "classifier",
        34,
    ),
    Model(
        "timm-vit",
        timm_model(
            "vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=2, img_size=32, patch_size=8
        ),
        images,
        "head_drop",
        branches=r"blocks\.\d\.(attn|mlp)",
        own=True,
    ),
    Model(
        "timm-convnext",
        timm_model("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 8, 16, 16)),
        images,
        "head.drop",
        branches=r"blocks\.\d\.(conv_dw|mlp)",
        own=True,
    ),
    Model(
        "bert",
        lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=30, **SMALL)
        ),
        words,
        "dropout",
        branches=r"layer\.\d\.(attention\.(self|output\.dense)|intermediate|output\.dense)",
        own=True,
    ),
    Model(
        "distilbert",
        lambda: transformers.DistilBertForSequenceClassification(
            transformers.DistilBertConfig(
                vocab_size=30, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=5
            )
        ),
        words,
        "dropout",
        branches=r"layer\.\d\.(attention|ffn)",
        own=True,
    ),
    Model(
        "hf-vit",
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(image_size=32, patch_size=8, **SMALL)
        ),
        images,
        "classifier",
        branches=r"layers\.\d\.(attention|mlp)",
        own=True,
    ),
    Model(
        "wav2vec2",
        wav2vec2,
        waves,
        "classifier",
        branches=r"layers\.\d\.(attention|feed_forward)",
        own=True,
    ),
]
BY_NAME = {model.name: model for model in MODELS}


def fixture_of(*names: str, choose: Callable[[Model], object] = lambda model: True) -> Any:
    chosen = [BY_NAME[name] for name in names] or [model for model in MODELS if choose(model)]

    @pytest.fixture(params=chosen, ids=lambda model: model.name)
    def give(request: pytest.FixtureRequest) -> Model:
        return request.param

    return give


def made(kind: Model, seed: int = 0) -> nn.Module:
    """Make a model, all of whose weights and statistics matter."""
    torch.manual_seed(seed)
    model = kind.make()
    with torch.no_grad():
        for parameter in model.parameters():
            # Some begin at zero, which hides what stands before them.
            parameter.add_(0.02 * torch.randn_like(parameter))
        for norm in model.modules():
            if isinstance(norm, _BatchNorm):
                norm.running_mean.normal_(0.0, 0.1)
                norm.running_var.uniform_(0.5, 2.0)
                norm.num_batches_tracked.fill_(7)
    return model.eval()


def inputs_of(kind: Model) -> Tensor:
    torch.manual_seed(1)
    return kind.inputs()


def logits(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    return output if isinstance(output, Tensor) else output.logits


@torch.no_grad()
def evaluated(model: nn.Module, x: Tensor) -> Tensor:
    training = model.training
    found = logits(model.eval(), x)
    model.train(training)
    return found


@torch.no_grad()
def differ(model: nn.Module, x: Tensor) -> bool:
    """Whether two passes differ that have the same statistics and gradients."""
    return not torch.equal(logits(model, x), logits(model, x))


def layers_of(model: nn.Module, kind: type) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kind)}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def ours(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if type(m).__module__.startswith("regain")]


def report(model: nn.Module) -> str:
    return "\n".join(map(str, conversions(model)))
