"""The module that is exported: a trained model for inference, with all preprocessing of batches."""

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regain.folding import fold_batchnorm, unfolded_norms
from tasks.data import Batch
from tasks.errors import InputError, first_line
from tasks.inference.predictor import Predictor

log = logging.getLogger(__name__)

OUTPUTS = ("logits", "probabilities")
# For each kind of data, the name of the input, and of its second dimension if that has any size.
INPUTS = {"image": "images", "audio": "waveforms", "text": "ids"}
STEPS = {"audio": "samples", "text": "tokens"}

aten = torch.ops.aten
DROPOUTS = (
    *(aten.dropout.default, aten.feature_dropout.default),
    *(aten.alpha_dropout.default, aten.feature_alpha_dropout.default),
)


@dataclass(frozen=True)
class ModelInput:
    """One input of an exported model.

    Args:
        name: Its name.
        dtype: Type of its numbers, such as `uint8`.
        shape: Size of each dimension, or the name of one of any size.
        content: What it holds.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    content: str

    @property
    def dynamic(self) -> dict[int, Any]:
        """The dimensions of any size, as `torch.export` takes them."""
        dims = (dim for dim, size in enumerate(self.shape) if isinstance(size, str))
        return dict.fromkeys(dims, torch.export.Dim.DYNAMIC)


class Deployable(nn.Module):
    """A trained model that returns logits and calibrated probabilities.

    Args:
        predictor: The predictor of a checkpoint; its model is copied.

    Shape:
        As `model_inputs` lists. The output: logits and probabilities, both (batch, classes).
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.task = copy.deepcopy(predictor.task).cpu().eval().requires_grad_(False)
        bake_parametrizations(self.task)
        self.temperature = predictor.temperature
        self.takes_lengths = self.task.takes_lengths
        self.padding = predictor.data.padding
        # Shorter inputs are padded to this many steps; set when the graph has been recorded.
        self.fewest_steps = 1

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        unused = torch.zeros(inputs.shape[0], dtype=torch.int64)
        logits = self.task.evaluate(Batch(inputs, unused, unused, lengths)).float()
        return logits, (logits / self.temperature).softmax(1)

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return a batch as the arguments of `forward`; lengths are given without padding too."""
        inputs, lengths = batch.inputs, batch.lengths
        if self.takes_lengths and lengths is None:
            lengths = torch.full(inputs.shape[:1], inputs.shape[1])
        if inputs.dim() > 1 and inputs.shape[1] < self.fewest_steps:
            rest = (0, 0) * (inputs.dim() - 2)
            missing = self.fewest_steps - inputs.shape[1]
            inputs = nn.functional.pad(inputs, (*rest, 0, missing), value=self.padding)
        if inputs.dtype == torch.int32:
            # Ids, as tokenizers give them.
            inputs = inputs.long()
        return (inputs, lengths) if self.takes_lengths and lengths is not None else (inputs,)


def bake_parametrizations(model: nn.Module) -> None:
    """Replace the computed weights of a model, such as standardized ones, by their values."""
    for module in [*model.modules()]:
        if not parametrize.is_parametrized(module):
            continue
        parts: Any = module.parametrizations
        values = {name: getattr(module, name).detach().clone() for name in parts}
        # `remove_parametrizations` would change the class, which a copied module shares with the
        # original one.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))


def model_inputs(predictor: Predictor, batch: Batch) -> list[ModelInput]:
    """List the inputs of the exported model, in order.

    Args:
        predictor: The predictor of the checkpoint.
        batch: Some inputs, as its `encode` returns them.
    """
    kind, takes_lengths = predictor.kind, predictor.task.takes_lengths
    content = {
        "image": "pixels from 0 to 255, channels first",
        "audio": "16-bit samples of one channel, padded with 0 at the end",
        "text": f"token ids, padded with {predictor.data.padding} at the end",
    }
    steps = steps_name(predictor)
    inner: list[int | str] = [*batch.inputs.shape[1:]]
    if steps:
        inner[0] = steps
    dtype = "int64" if kind == "text" else str(batch.inputs.dtype).removeprefix("torch.")
    first = ModelInput(
        INPUTS.get(kind, "inputs"),
        dtype,
        ("batch", *inner),
        content.get(kind, "decoded inputs, as the data module returns them"),
    )
    if not takes_lengths:
        return [first]
    return [first, ModelInput("lengths", "int64", ("batch",), f"{steps} before the padding")]


def steps_name(predictor: Predictor) -> str | None:
    """Return the name of the dimension in which inputs differ in size; None if none differ."""
    return STEPS.get(predictor.kind, "steps" if predictor.task.takes_lengths else None)


def traceable(batch: Batch) -> Batch:
    """Return a batch of at least two examples, as the graph of any batch size is recorded with."""
    if len(batch.inputs) > 1:
        return batch
    rows = torch.zeros(2, dtype=torch.int64)
    lengths = None if batch.lengths is None else batch.lengths[rows]
    return Batch(batch.inputs[rows], batch.labels[rows], batch.indices[rows], lengths)


def folded(model: Deployable, batch: Batch) -> tuple[nn.Module, dict[str, str]]:
    """Fold the batch norms of a model.

    Args:
        model: The model.
        batch: Some inputs.

    Returns:
        The model for export, and the batch norms that stay in it, each with the reason.
    """
    example = model.arguments(batch)
    left = unfolded_norms(model, *example)
    try:
        return fold_batchnorm(model, *example), left
    except RuntimeError as error:
        log.warning(f"batch norms are not folded: {first_line(error)}")
        return model, {"all": first_line(error)}


def exported_program(
    model: nn.Module, arguments: tuple[Tensor, ...], inputs: list[ModelInput], arch: str
) -> Any:
    """Record the graph of a model for any batch size and length.

    Raises:
        InputError: The model runs Python that a graph cannot hold.
    """
    try:
        program = torch.export.export(
            model, arguments, dynamic_shapes=tuple(one.dynamic for one in inputs), strict=False
        )
        return without_dropout(program)
    except Exception as error:
        # Of PyTorch, and of the code of the model.
        raise InputError(
            f"model.arch={arch} cannot be exported as a graph ({first_line(error)}); "
            "use FORMAT=safetensors, which exports the weights"
        ) from error


def fewest_steps(program: Any, inputs: list[ModelInput]) -> int:
    """Return the smallest number of steps that a recorded graph accepts; 1 without steps."""
    if 1 not in inputs[0].dynamic:
        return 1
    name = program.graph_signature.user_inputs[0]
    first = next(node for node in program.graph.nodes if node.name == name)
    symbol = first.meta["val"].shape[1].node.expr
    return max(1, int(program.range_constraints[symbol].lower))


def without_dropout(program: Any) -> Any:
    """Remove the dropout operations of a recorded graph, which do nothing in evaluation."""
    for node in program.graph.nodes:
        if node.target in DROPOUTS:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program
