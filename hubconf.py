"""Entry points of `torch.hub`: classifiers of `tasks` with randomly initialized weights.

    torch.hub.load("path/to/clone", "tc_resnet", source="local", reg={"dropout": 0.2})

All of them take:

Args:
    classes: Number of classes, at least 2.
    reg: Fields of `regain.Regularization`, such as `{"normalization": "batch"}`; none if None.
    depth: Layers, as the docstring of the model in `tasks` counts them; its default if None.
    width: Channels or units, likewise.

Those for images also take `shape`, (channels, height, width), and with one value for each channel
`mean` (127.5 if None) and `std` (64 if None) of the training images, whose values are 0 to 255.
"""

import importlib.util
import pathlib
import sys
import typing

# Modules only: torch.hub.list shows every callable whose name begins without an underscore.
import torch
from torch import nn

# Names of imports; installed by the extra `train`.
dependencies = """torch PIL huggingface_hub lightning lightning_utilities numpy rich safetensors
    scipy soundfile tokenizers torchaudio torchmetrics transformers yaml""".split()

_ROOT = pathlib.Path(__file__).resolve().parent


def _import_clone() -> None:
    """Import the clone's `tasks`, and its `modules` as `regain`.

    The link `regain` is a text file in a zip archive of the repository, which is what torch.hub
    downloads.

    Raises:
        ImportError: Another package named `tasks` is imported already.
    """
    if "regain" not in sys.modules:
        folder = _ROOT / "modules"
        spec = importlib.util.spec_from_file_location(
            "regain", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["regain"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    import tasks

    if _ROOT not in pathlib.Path(tasks.__file__ or "").resolve().parents:
        raise ImportError(
            f"another package named tasks is imported already ({tasks.__file__}); load the model "
            "in another process"
        )


def _names(classes: int) -> list[str]:
    if classes < 2:
        raise ValueError(f"classes is at least 2, not {classes!r}")
    return [str(number) for number in range(classes)]


def _model(
    task: str,
    arch: str,
    spec: typing.Any,
    reg: dict[str, typing.Any] | None,
    depth: int | None,
    width: int | None,
) -> nn.Module:
    from regain import Regularization
    from tasks.building import build_model

    models = importlib.import_module(f"tasks.{task}.models").MODELS
    found = Regularization(**(reg or {}))
    model: nn.Module = build_model(models, arch, spec, found, depth=depth, width=width)
    return model


def _image_model(
    arch: str,
    classes: int,
    shape: tuple[int, int, int],
    mean: list[float] | None,
    std: list[float] | None,
    reg: dict[str, typing.Any] | None,
    depth: int | None,
    width: int | None,
    patches: list[list[float]] | None = None,
) -> nn.Module:
    _import_clone()
    from tasks.vision.data import VisionSpec

    channels = shape[0]
    mean, std = mean or [127.5] * channels, std or [64.0] * channels
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} has one value for each of {channels} channels, not {values}")
    spec = VisionSpec(_names(classes), list(shape), mean, std, allow_flip=True, patches=patches)
    return _model("vision", arch, spec, reg, depth, width)


def _speech_model(
    arch: str,
    classes: int,
    sample_rate: int,
    reg: dict[str, typing.Any] | None,
    depth: int | None,
    width: int | None,
) -> nn.Module:
    _import_clone()
    from tasks.speech.data import SpeechSpec

    spec = SpeechSpec(_names(classes), sample_rate)
    return _model("speech", arch, spec, reg, depth, width)


def _text_model(
    arch: str,
    classes: int,
    vocabulary: int,
    padding: int,
    reg: dict[str, typing.Any] | None,
    depth: int | None,
    width: int | None,
) -> nn.Module:
    _import_clone()
    from tasks.nlp.data import TextSpec

    # Only the data's own augmentation replaces tokens by the unknown one.
    spec = TextSpec(_names(classes), vocabulary, padding, unknown=padding, special=[padding])
    return _model("nlp", arch, spec, reg, depth, width)


def mlp(
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    mean: list[float] | None = None,
    std: list[float] | None = None,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make a perceptron of linear layer, norm, ReLU and dropout.

    Shape:
        images: (batch, channels, height, width), bytes or floats from 0 to 255. The output: logits
        (batch, classes).

    Example:
        >>> mlp(shape=(1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    return _image_model("mlp", classes, shape, mean, std, reg, depth, width)


def cnn(
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    mean: list[float] | None = None,
    std: list[float] | None = None,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make a small VGG (Simonyan & Zisserman 2015).

    Shape:
        images: (batch, channels, height, width), bytes or floats from 0 to 255. The output: logits
        (batch, classes).

    Example:
        >>> cnn(reg={"dropout": 0.2})(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return _image_model("cnn", classes, shape, mean, std, reg, depth, width)


def resnet(
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    mean: list[float] | None = None,
    std: list[float] | None = None,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make a residual network for small images (He et al. 2016): `depth` is 9, 10, 17, 18 ...

    Shape:
        images: (batch, channels, height, width), bytes or floats from 0 to 255. The output: logits
        (batch, classes).

    Example:
        >>> resnet(100, depth=18, width=16)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 100])
    """
    return _image_model("resnet", classes, shape, mean, std, reg, depth, width)


def wide_resnet(
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    mean: list[float] | None = None,
    std: list[float] | None = None,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make a wide residual network (Zagoruyko & Komodakis 2016).

    Shape:
        images: (batch, channels, height, width), bytes or floats from 0 to 255. The output: logits
        (batch, classes).

    Example:
        >>> wide_resnet(reg={"normalization": "batch"})(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return _image_model("wide_resnet", classes, shape, mean, std, reg, depth, width)


def airbench(
    classes: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    mean: list[float] | None = None,
    std: list[float] | None = None,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
    patches: list[list[float]] | None = None,
) -> nn.Module:
    """Make a network that trains in few epochs, after airbench94 (Jordan 2024).

    `patches` is the covariance of patches of 2 x 2 standardized pixels, of 4 x channels rows, which
    a first layer whitens; the identity if None.

    Shape:
        images: (batch, channels, height, width), bytes or floats from 0 to 255. The output: logits
        (batch, classes).

    Example:
        >>> airbench()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    patches = patches or torch.eye(4 * shape[0]).tolist()
    return _image_model("airbench", classes, shape, mean, std, reg, depth, width, patches)


def tc_resnet(
    classes: int = 35,
    sample_rate: int = 16_000,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make a TC-ResNet (Choi et al. 2019) on log-mel spectrograms.

    Shape:
        waveforms: (batch, samples), floats or 16-bit integers. lengths: (batch,), in samples, or
        None if no clip is padded. The output: logits (batch, classes).

    Example:
        >>> tc_resnet()(torch.zeros(2, 16_000)).shape
        torch.Size([2, 35])
    """
    return _speech_model("tc_resnet", classes, sample_rate, reg, depth, width)


def bc_resnet(
    classes: int = 35,
    sample_rate: int = 16_000,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make a BC-ResNet (Kim et al. 2021) on log-mel spectrograms.

    Shape:
        waveforms: (batch, samples), floats or 16-bit integers. lengths: (batch,), in samples, or
        None if no clip is padded. The output: logits (batch, classes).

    Example:
        >>> bc_resnet(reg={"dropout": 0.1})(torch.zeros(2, 16_000)).shape
        torch.Size([2, 35])
    """
    return _speech_model("bc_resnet", classes, sample_rate, reg, depth, width)


def m5(
    classes: int = 35,
    sample_rate: int = 16_000,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make M5 (Dai et al. 2017), convolutions on the waveform.

    Shape:
        waveforms: (batch, samples), floats or 16-bit integers. lengths: (batch,), in samples, or
        None if no clip is padded. The output: logits (batch, classes).

    Example:
        >>> m5(sample_rate=8_000)(torch.zeros(2, 8_000)).shape
        torch.Size([2, 35])
    """
    return _speech_model("m5", classes, sample_rate, reg, depth, width)


def text_cnn(
    classes: int = 2,
    vocabulary: int = 8_000,
    padding: int = 0,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make parallel convolutions over words and their maxima over time (Kim 2014).

    Shape:
        ids: (batch, tokens), below `vocabulary`; `padding` fills up shorter texts. The output:
        logits (batch, classes).

    Example:
        >>> text_cnn()(torch.ones(2, 12, dtype=torch.long)).shape
        torch.Size([2, 2])
    """
    return _text_model("text_cnn", classes, vocabulary, padding, reg, depth, width)


def dan(
    classes: int = 2,
    vocabulary: int = 8_000,
    padding: int = 0,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make a deep averaging network (Iyyer et al. 2015), a perceptron on the mean of the words.

    Shape:
        ids: (batch, tokens), below `vocabulary`; `padding` fills up shorter texts. The output:
        logits (batch, classes).

    Example:
        >>> dan()(torch.ones(2, 12, dtype=torch.long)).shape
        torch.Size([2, 2])
    """
    return _text_model("dan", classes, vocabulary, padding, reg, depth, width)


def lstm(
    classes: int = 2,
    vocabulary: int = 8_000,
    padding: int = 0,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make a bidirectional LSTM (Hochreiter & Schmidhuber 1997) and its maxima over time.

    Shape:
        ids: (batch, tokens), below `vocabulary`; `padding` fills up shorter texts. The output:
        logits (batch, classes).

    Example:
        >>> lstm()(torch.ones(2, 12, dtype=torch.long)).shape
        torch.Size([2, 2])
    """
    return _text_model("lstm", classes, vocabulary, padding, reg, depth, width)


def transformer(
    classes: int = 2,
    vocabulary: int = 8_000,
    padding: int = 0,
    reg: dict[str, typing.Any] | None = None,
    depth: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Make a BERT encoder (Devlin et al. 2019) and a head on the mean of its states.

    Shape:
        ids: (batch, tokens), below `vocabulary`; `padding` fills up shorter texts. The output:
        logits (batch, classes).

    Example:
        >>> transformer()(torch.ones(2, 12, dtype=torch.long)).shape
        torch.Size([2, 2])
    """
    return _text_model("transformer", classes, vocabulary, padding, reg, depth, width)
