"""Builds the model of a task: a registered one, the user's own, or one of a library.

A model is a class or function that is called with `(spec, reg, **options)` and returns an
`nn.Module`:

- `spec` describes the data: `spec.classes`, the names of the classes, and the fields that the
  `spec` of the task documents, such as `shape` of images, `sample_rate` of clips, `vocabulary` and
  `padding` of texts.
- `reg`, a `regain.Regularization`, makes layers (`reg.norm_layer(64, dims=2)`), or is passed to
  `regain.convert`.
- `options` are the keys of `model.options`; `model.depth`, `model.width` and `model.pretrained` are
  passed by these names. In speech, a model with an argument `augment` gets the augmentation of
  spectrograms.

The module is called with the inputs of a batch: images (batch, channels, height, width) as bytes or
floats from 0 to 255, waveforms (batch, samples) as 16-bit integers or floats in [-1, 1), or ids
(batch, tokens). If its `forward` has an argument `lengths`, it gets the lengths of the examples
(batch,) there, or None if no example of the batch is padded. It returns logits (batch, classes).
"""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from regain import Regularization
from regain.registry import Registry, is_import_path, locate, unknown
from tasks.data import DataSpec
from tasks.errors import InputError, first_line
from tasks.hub_files import recorded
from tasks.run.yaml_files import read_configuration, read_yaml

log = logging.getLogger(__name__)

Factory = Callable[..., nn.Module]

CONTRACT = "a model is a class or function that takes (spec, reg, **options)"
SIZES = ("depth", "width")


def build_model(
    models: Registry[Factory],
    arch: str,
    spec: DataSpec,
    reg: Regularization,
    options: Mapping[str, Any] | None = None,
    *,
    depth: int | None = None,
    width: int | None = None,
    pretrained: bool | str | None = None,
    libraries: Registry[Factory] | None = None,
    **offered: Any,
) -> nn.Module:
    """Build a model by name.

    Args:
        models: Models of the task.
        arch: Name in `models`, `package.module:Name`, `path/to/file.py:Name`, or `LIBRARY/NAME`
            with a library of `libraries`.
        spec: What the model must know of the data.
        reg: Regularization inside the model.
        options: Further keyword arguments of the model.
        depth: Keyword argument `depth`; the model's default if None.
        width: Keyword argument `width`, likewise.
        pretrained: Keyword argument `pretrained`, likewise; False is as None.
        libraries: Functions `(name, spec, reg, pretrained, **options)` that build a library's
            model.
        **offered: Keyword arguments for models that have them; others do without.

    Raises:
        InputError: There is no such model, it has no such option, or it cannot be built.
        ValueError: A model of ours refuses a value.
    """
    given = {**(options or {})}
    if pretrained is False or pretrained == "":
        pretrained = None
    sizes = {"depth": depth, "width": width}
    for name, value in sizes.items():
        if value is None:
            continue
        if name in given:
            raise InputError(f"model.{name} and model.options.{name} are both given; leave one out")
        if value < 1:
            raise ValueError(f"{name} is at least 1, not {value!r}")
        given[name] = value
    library, slash, inner = arch.partition("/")
    own = is_import_path(arch)
    if slash and not own and libraries is not None and library in libraries.names():
        for name, value in sizes.items():
            if value is not None:
                raise InputError(
                    f"model.{name}={value} is not for model.arch={arch}, which has its own {name}; "
                    "leave it out"
                )
        factory = libraries.find(library)
        arguments: tuple[Any, ...] = (inner, spec, reg, pretrained)
    else:
        if not own and arch not in models.names():
            further = [] if libraries is None else [f"{one}/NAME" for one in libraries.names()]
            raise InputError(unknown(models.kind, arch, [*models.names(), *further]))
        factory = find_model(models, arch)
        arguments = (spec, reg)
        takes = option_names(factory)
        if pretrained is not None:
            if takes is not None and "pretrained" not in takes:
                raise InputError(f"model.pretrained={pretrained} is not for model.arch={arch}")
            given["pretrained"] = pretrained
        if takes is not None:
            _check_options(arch, [name for name in takes if name not in offered], given)
        given |= {name: value for name, value in offered.items() if name in (takes or ())}
        with suppress(ValueError):
            signature = inspect.signature(factory)
            try:
                signature.bind(*arguments, **given)
            except TypeError as error:
                raise InputError(f"model.arch={arch}: {error}; {CONTRACT}") from error
    try:
        with recorded() as files:
            model = factory(*arguments, **given)
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and not own:
            raise
        reason = locate(error, _file_of(factory)) if own else first_line(error)
        raise InputError(f"model.arch={arch}: {reason}") from error
    built = checked(model, arch)
    # For checkpoints; see `ClassificationTask.on_save_checkpoint`.
    built.hub_files = files  # type: ignore[assignment]
    return built


def option_names(factory: Factory) -> list[str] | None:
    """Return the names of a model's keyword arguments; None if it takes any.

    Example:
        >>> def net(spec, reg, hidden=64, *, bias=True): ...
        >>> option_names(net), option_names(lambda spec, reg, **options: None)
        (['hidden', 'bias'], None)
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except ValueError:
        return None
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    free = [one for one in parameters if one.kind in positional][2:]
    free += [one for one in parameters if one.kind is one.KEYWORD_ONLY]
    return [one.name for one in free]


def find_model(models: Registry[Factory], arch: str) -> Factory:
    """Find a model by name or import path.

    Raises:
        InputError: It is not there, or its file raises an error.
    """
    try:
        return models.find(arch)
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_options(arch: str, takes: list[str], given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in takes:
            key = f"model.{name}" if name in SIZES else f"model.options.{name}"
            known = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise InputError(f"{key} is no option of model.arch={arch}; {known}")


def _file_of(factory: Factory) -> str | None:
    with suppress(TypeError):
        return inspect.getsourcefile(factory)
    return None


def checked(model: Any, arch: str) -> nn.Module:
    """Return a model that can be trained.

    Raises:
        InputError: It is no module, has nothing to train, or has parameters without a size.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model.arch={arch} returns {type(model).__name__}, which is no torch.nn.Module; "
            f"{CONTRACT} and returns a module"
        )
    parameters = [one for one in model.parameters() if one.requires_grad]
    if not parameters:
        raise InputError(f"model.arch={arch} has no parameters to train")
    if any(is_lazy(one) for one in parameters):
        raise InputError(
            f"model.arch={arch} has lazy layers, which get their sizes from the first batch; give "
            "sizes, which spec holds"
        )
    return model


def takes_lengths(model: nn.Module) -> bool:
    """Whether the lengths of the examples are passed to a model.

    Example:
        >>> takes_lengths(nn.Flatten())
        False
    """
    return "lengths" in inspect.signature(model.forward).parameters


def check_logits(logits: Any, examples: int, classes: int, model: nn.Module) -> None:
    """Check the output of a model.

    Raises:
        InputError: It is not logits (batch, classes).
    """
    if isinstance(logits, Tensor) and logits.shape == (examples, classes):
        return
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    raise InputError(
        f"the model {type(model).__name__} returned {found}, where logits of shape (batch, "
        f"classes) = ({examples}, {classes}) are needed"
    )


def without_sizes(task: type, arguments: Sequence[str]) -> list[str]:
    """Return arguments that unset the sizes of the configured model if another one is chosen.

    `model.depth` and `model.width` of the configurations are of the model that they choose; one
    that is given by import path or from a library keeps its own, unless `arguments` give some.

    Args:
        task: Class of the task.
        arguments: What the user gave, after the configurations of the project.
    """
    arch = None
    for index, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        value = value if equals else "".join(arguments[index + 1 : index + 2])
        if key == "--model.arch":
            arch = value
        elif key in ("--config", "--model") and value:
            arch = _arch_of(key, value) or arch
    known = inspect.signature(task).parameters
    if arch is None or not (is_import_path(arch) or "/" in arch):
        return []
    unset = [name for name in SIZES if name in known and known[name].default is None]
    return [f"--model.{name}=null" for name in unset]


def _arch_of(key: str, value: str) -> str | None:
    content = None
    # The parser reports its errors.
    with suppress(InputError):
        content = read_configuration(value)[1] if key == "--config" else read_yaml(value, key)
    model = content.get("model") if key == "--config" and isinstance(content, dict) else content
    arch = model.get("arch") if isinstance(model, dict) else None
    return arch if isinstance(arch, str) else None
