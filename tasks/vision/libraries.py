"""Image classifiers of timm, torchvision and transformers.

A model keeps its own layers, such as a first convolution of stride 2, for small images too. It gets
images as its config says:

- Size. A pretrained model, and one that is built for one size (a ViT), get images scaled to the
  size of its config; others get them as they are. `model.options.input_size` chooses another side,
  for which a ViT is then built.
- Channels. timm and transformers build a model for grey images; a pretrained model and those of
  torchvision get them repeated as three channels.
- Normalization. A pretrained model gets its own mean and standard deviation, another one those of
  the data.
"""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from regain import Regularization, convert
from regain.registry import Registry, unknown
from tasks.building import Factory
from tasks.errors import InputError, first_line
from tasks.hub_files import hub_files
from tasks.model_libraries import (
    hub,
    hub_config,
    hub_model,
    load_weights,
    logits_of,
    preprocessor,
    reachable,
    read_weights,
)
from tasks.vision.data import VisionSpec
from tasks.vision.models import Standardize

log = logging.getLogger(__name__)

LIBRARIES: Registry[Factory] = Registry("model.arch")

# Models of torchvision that are built for one size, by the beginning of their names, and what their
# argument for it is.
SIZED = {"vit_": "image_size", "maxvit_": "input_size"}


@dataclass
class Inputs:
    """What a model expects of its images."""

    channels: int
    """Number of channels."""
    size: tuple[int, int] | None = None
    """Height and width; any if None."""
    mean: list[float] | None = None
    """Mean of each channel, of values from 0 to 1; that of the data if None."""
    std: list[float] | None = None
    """Standard deviation, likewise."""


class LibraryModel(nn.Module):
    """A model of a library that takes images from 0 to 255 of any size.

    Shape:
        images: (batch, channels, height, width), bytes or floats. The output: logits (batch,
        classes).
    """

    def __init__(self, network: nn.Module, spec: VisionSpec, inputs: Inputs) -> None:
        super().__init__()
        self.channels = inputs.channels
        self.size = inputs.size
        if inputs.mean is not None and inputs.std is not None:
            mean, std = ([255 * value for value in one] for one in (inputs.mean, inputs.std))
            spec = replace(spec, mean=mean, std=std)
        self.standardize = Standardize(spec)
        self.network = network
        if inputs.size not in (None, tuple(spec.shape[1:])):
            log.info(f"images are scaled to {self.size}, which the model is built for")

    def forward(self, images: Tensor) -> Tensor:
        x = images
        if x.shape[1] != self.channels:
            x = x.expand(-1, self.channels, -1, -1)
        x = self.standardize(x)
        if self.size is not None and x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        return logits_of(self.network(x))


def side(options: dict[str, Any], *names: str) -> tuple[int, int] | None:
    """Take the input size out of a model's options.

    Raises:
        InputError: It is no size.
    """
    found = None
    for name in ("input_size", *names):
        value = options.pop(name, None)
        if value is None:
            continue
        sides = (value, value) if isinstance(value, int) else value
        if not (
            isinstance(sides, list | tuple)
            and len(sides) == 2
            and all(isinstance(one, int) and one > 0 for one in sides)
        ):
            raise InputError(f"model.options.{name} is a side in pixels, not {value!r}")
        found = (sides[0], sides[1])
    return found


def check_name(library: str, name: str, names: list[str]) -> None:
    """Check that a library has a model of this name.

    Raises:
        InputError: It is not among `names`.
    """
    if name not in names:
        known = [f"{library}/{one}" for one in names]
        raise InputError(unknown(LIBRARIES.kind, f"{library}/{name}", known))


@LIBRARIES.register("timm")
def timm_model(
    name: str,
    spec: VisionSpec,
    reg: Regularization,
    pretrained: bool | str | None,
    **options: Any,
) -> nn.Module:
    """Build a model of timm; `options` are arguments of `timm.create_model`.

    Raises:
        InputError: timm is not installed, or knows no such model or option.
    """
    argument = f"model.arch=timm/{name}"
    try:
        import timm
    except ImportError as error:
        raise InputError(f"{argument} needs timm: pip install timm") from error
    if not name.startswith("hf-hub:"):
        check_name("timm", name, timm.list_models() + timm.list_pretrained())
    classes = len(spec.classes)
    size = side(options, "img_size")
    config = timm.models.get_pretrained_cfg(name)
    sized = config is not None and config.fixed_input_size
    if size is not None and sized:
        options["img_size"] = size
    channels = 3 if pretrained else spec.shape[0]
    loads = pretrained is True and not hub_files().weights_follow
    with hub(argument, name) if loads else nullcontext():
        network = timm.create_model(name, loads, num_classes=classes, in_chans=channels, **options)
    if isinstance(pretrained, str):
        load_file(network, pretrained, classes)
    known: Any = network.pretrained_cfg
    if size is None and (pretrained or known["fixed_input_size"]):
        size = tuple(known["input_size"][1:])
    inputs = Inputs(channels, size)
    if pretrained:
        inputs = replace(inputs, mean=list(known["mean"]), std=list(known["std"]))
    return LibraryModel(convert(network, reg), spec, inputs)


@LIBRARIES.register("torchvision")
def torchvision_model(
    name: str,
    spec: VisionSpec,
    reg: Regularization,
    pretrained: bool | str | None,
    **options: Any,
) -> nn.Module:
    """Build a classifier of torchvision; `options` are arguments of its function.

    Raises:
        InputError: torchvision has no such classifier or option, or weights cannot be had.
    """
    from torchvision import models

    argument = f"model.arch=torchvision/{name}"
    check_name("torchvision", name, models.list_models(module=models))
    classes = len(spec.classes)
    size_name = next((key for begin, key in SIZED.items() if name.startswith(begin)), None)
    size = side(options, *([size_name] if size_name else []))
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    if size is None and (pretrained or size_name):
        size = (preset.crop_size[0],) * 2
    if size_name == "image_size" and size is not None:
        if size[0] != size[1]:
            raise InputError(f"model.options.input_size of {argument} is one side, not {size}")
        options["image_size"] = size[0]
    elif size_name:
        options[size_name] = size
    network = models.get_model(name, weights=None, num_classes=classes, **options)
    if pretrained is True:
        if not hub_files().weights_follow:
            load_weights(network, torchvision_weights(weights, argument), classes, argument)
    elif pretrained:
        load_file(network, pretrained, classes)
    inputs = Inputs(3, size)
    if pretrained:
        inputs = replace(inputs, mean=list(preset.mean), std=list(preset.std))
    return LibraryModel(convert(network, reg), spec, inputs)


def torchvision_weights(weights: Any, argument: str) -> dict[str, Tensor]:
    """Download the weights of torchvision, or take them from the cache of PyTorch.

    Raises:
        InputError: They are not in the cache, and the server cannot be reached.
    """
    from torch.hub import get_dir

    cached = Path(get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not cached.exists() and not reachable(weights.url):
        raise InputError(
            f"{argument} cannot be loaded: {weights.url} cannot be reached; download it elsewhere "
            "and give the file as model.pretrained"
        )
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{argument} cannot be loaded ({first_line(error)})") from error
    return state


def load_file(network: nn.Module, file: str, classes: int) -> None:
    """Load weights from a local file or folder, unless those of a checkpoint follow."""
    if hub_files().weights_follow:
        return
    argument = f"model.pretrained={file}"
    state = read_weights(Path(file).expanduser(), argument)
    load_weights(network, state, classes, argument)


@LIBRARIES.register("hf")
def hub_image_model(
    name: str,
    spec: VisionSpec,
    reg: Regularization,
    pretrained: bool | str | None,
    **options: Any,
) -> nn.Module:
    """Build an image classifier of transformers; `options` are values of its config.

    Raises:
        InputError: It cannot be loaded, or its config is not of an image classifier.
    """
    from transformers import AutoModelForImageClassification

    argument = f"model.arch=hf/{name}"
    size = side(options, "image_size")
    config = hub_config(argument, name, options)
    source = name if pretrained is True else pretrained or None
    channels = 3 if pretrained else spec.shape[0]
    if hasattr(config, "num_channels"):
        channels = config.num_channels if pretrained else channels
        config.num_channels = channels
    sized = getattr(config, "image_size", None)
    preprocessing = preprocessor(source) if source else {}
    if size is not None and sized is not None:
        config.image_size = size[0] if size[0] == size[1] else size
    elif size is None and sized is not None:
        size = (sized, sized) if isinstance(sized, int) else (sized[0], sized[1])
    elif size is None:
        size = stated_size(preprocessing.get("size"))
    network = hub_model(
        AutoModelForImageClassification, argument, config, source, len(spec.classes)
    )
    inputs = Inputs(channels, size)
    if preprocessing.get("image_mean") and preprocessing.get("image_std"):
        inputs = replace(inputs, mean=preprocessing["image_mean"], std=preprocessing["image_std"])
    elif source:
        log.warning(f"{argument} has no image_mean and image_std; those of the data are used")
    return LibraryModel(convert(network, reg), spec, inputs)


def stated_size(size: Any) -> tuple[int, int] | None:
    """Return the input size in a preprocessor's config; None if there is none.

    Example:
        >>> stated_size({"height": 32, "width": 48}), stated_size({"shortest_edge": 224})
        ((32, 48), (224, 224))
    """
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        height, width = size.get("height", edge), size.get("width", edge)
    else:
        height = width = size
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
