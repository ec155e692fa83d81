"""Weights and configs of library models, from a file or the network."""

import logging
import pickle
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tasks.errors import InputError, first_line
from tasks.hub_files import hub_files

log = logging.getLogger(__name__)

# Timeout of the check whether a server can be reached, in seconds.
TIMEOUT = 5.0
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Where training scripts put the weights in a checkpoint.
WRAPPERS = ("state_dict", "model", "model_state_dict")
# Names in a message.
MAX_NAMES = 6


def reachable(address: str) -> bool:
    """Whether a server answers; its refusals are answers too."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT)
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def hub(argument: str, source: str) -> Iterator[None]:
    """Load from a folder or the Hugging Face hub; without a network from its cache, at once.

    Otherwise `huggingface_hub` would repeat each request for most of a minute.

    Args:
        argument: What the user gave, for errors.
        source: Folder or hub id that is loaded.

    Raises:
        InputError: It cannot be loaded.
    """
    from huggingface_hub import constants
    from transformers.utils import logging as transformers_log

    local = Path(source).expanduser().is_dir()
    offline = constants.HF_HUB_OFFLINE or (not local and not reachable(constants.ENDPOINT))
    loud = transformers_log.get_verbosity()
    # It reports each weight of another shape; `load_weights` and `hub_model` name them.
    transformers_log.set_verbosity_error()
    try:
        with patch.object(constants, "HF_HUB_OFFLINE", offline):
            yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if local or not offline:
            raise InputError(f"{argument} cannot be loaded ({first_line(error)})") from error
        raise InputError(
            f"{argument} cannot be loaded: {source} is no folder, is not in the cache of "
            "Hugging Face, and the hub cannot be reached; give a local folder or file"
        ) from error
    finally:
        transformers_log.set_verbosity(loud)


def read_weights(file: Path, argument: str) -> dict[str, Tensor]:
    """Read the state dict of a model from a file, or from a folder of a hub's model.

    Args:
        file: `.safetensors`, or what `torch.save` has written; nothing in it is run.
        argument: What the user gave, for errors.

    Raises:
        InputError: It cannot be read, or holds no state dict.
    """
    if file.is_dir():
        found = [file / name for name in WEIGHT_FILES if (file / name).is_file()]
        if not found:
            raise InputError(f"{argument} holds no {' or '.join(WEIGHT_FILES)}")
        file = found[0]
    if not file.is_file():
        raise InputError(f"{argument} is no file or folder")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{argument} contains more than tensors and plain data, and is not opened"
        ) from error
    except Exception as error:
        raise InputError(f"{argument} is incomplete ({first_line(error)})") from error
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(one, Tensor) for one in state.values()):
        raise InputError(f"{argument} holds no state dict of a model")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def load_weights(
    network: nn.Module, state: Mapping[str, Tensor], classes: int, argument: str
) -> None:
    """Load weights in place; a classifier of another number of classes stays as it is.

    Args:
        network: The model, whose classifier has `classes` outputs.
        state: Its weights by name.
        classes: Number of classes.
        argument: What the user gave, for errors and the log.

    Raises:
        InputError: The weights are those of another model.
    """
    own = network.state_dict()
    other = [
        name
        for name, value in own.items()
        if name in state and is_classifier(value.shape, state[name].shape, classes)
    ]
    kept = {name: value for name, value in state.items() if name not in other}
    unknown = [name for name in kept if name not in own]
    missing = [name for name in own if name not in kept and name not in other]
    wrong = [name for name in kept if name in own and own[name].shape != kept[name].shape]
    for what, names in (("lack", missing), ("have also", unknown), ("have other sizes of", wrong)):
        if names:
            raise InputError(f"{argument} are weights of another model: they {what} {short(names)}")
    network.load_state_dict(kept, strict=False)
    if other:
        log.info(f"{argument}: new classifier of {classes} classes ({short(other)})")


def is_classifier(own: torch.Size, other: torch.Size, classes: int) -> bool:
    """Whether two shapes of one parameter differ in the number of classes alone.

    Example:
        >>> is_classifier(torch.Size([10, 64]), torch.Size([1000, 64]), 10)
        True
    """
    return len(own) > 0 and own != other and own[0] == classes and own[1:] == other[1:]


def short(names: list[str]) -> str:
    """Return the first names of a list.

    Example:
        >>> short(["a", "b"])
        'a, b'
    """
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def hub_config(argument: str, name: str, options: Mapping[str, Any]) -> Any:
    """Load the config of a model of `transformers`, with some of its values replaced.

    Args:
        argument: What the user gave, for errors.
        name: Folder or hub id.
        options: Values of the config.

    Raises:
        InputError: There is none, or it has no such value.
    """
    from transformers import AutoConfig

    if not name:
        raise InputError(f"{argument} needs a folder or hub id, such as hf/google/vit-base")
    files = hub_files()
    if name in files.configs:
        config = AutoConfig.for_model(**files.configs[name])
    else:
        with hub(argument, name):
            # Code that comes with a model is never run.
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        files.configs[name] = config.to_dict()
    known = config.to_dict()
    for key, value in options.items():
        if key not in known:
            raise InputError(
                f"model.options.{key} is no value of the config of {argument}; it has "
                f"{', '.join(sorted(known))}"
            )
        setattr(config, key, value)
    return config


def hub_model(
    auto: Any, argument: str, config: Any, pretrained: str | None, classes: int
) -> nn.Module:
    """Build a classifier of `transformers`.

    Args:
        auto: Its class of models, such as `AutoModelForImageClassification`.
        argument: What the user gave, for errors and the log.
        config: Config of the model.
        pretrained: Folder or hub id of its weights; initialized if None, or if those of a
            checkpoint follow.
        classes: Number of classes.

    Raises:
        InputError: The config is not of such a model, or the weights are of another one.
    """
    config.num_labels = classes
    if hub_files().weights_follow:
        # In single precision, whatever precision the config names.
        return cast(nn.Module, auto.from_config(config, dtype=torch.float32))
    with hub(argument, pretrained or "."):
        if pretrained is None:
            return cast(nn.Module, auto.from_config(config))
        network, found = auto.from_pretrained(
            pretrained,
            config=config,
            # In single precision, whatever precision the weights were stored in.
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    wrong = [
        name
        for name, other, own in found["mismatched_keys"]
        if not is_classifier(torch.Size(own), torch.Size(other), classes)
    ]
    body = f"{getattr(network, 'base_model_prefix', '')}."
    lost = [name for name in found["missing_keys"] if name.startswith(body)]
    if wrong or lost:
        raise InputError(f"{argument}: {pretrained} holds no weights for {short([*wrong, *lost])}")
    new = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if new:
        log.info(f"{argument}: new classifier of {classes} classes ({short(new)})")
    return cast(nn.Module, network.train())


def preprocessor(name: str) -> dict[str, Any]:
    """Return what `preprocessor_config.json` of a folder or hub id holds; nothing if it is not."""
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    files = hub_files()
    if name not in files.preprocessors and not files.weights_follow:
        files.preprocessors[name] = {}
        with suppress(InputError), hub(name, name):
            files.preprocessors[name] = FeatureExtractionMixin.get_feature_extractor_dict(name)[0]
    return files.preprocessors.get(name, {})


def logits_of(output: Any) -> Tensor:
    """Return the logits of what a model of a library returns: a tensor, or several by name."""
    logits: Tensor = getattr(output, "logits", output)
    return logits
