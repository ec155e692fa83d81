"""`TrainingRegularization`, and the check that a model supports its regularization."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from torch import nn

from regain import (
    AttentionDropout,
    DropHead,
    DropPath,
    EmbeddingDropout,
    LayerDrop,
    Regularization,
    TokenDropout,
    WeightStandardization,
    conversions,
    dropout_rates,
)
from regain.checks import check_amount, check_rate
from regain.inference import moving_norms

Schedule = Literal["constant", "linear", "curriculum", "early", "late"]


@dataclass(frozen=True)
class TrainingRegularization:
    """Regularization in the training loop: penalties, limits and schedules; none by default.

    `Regularization` has the options for the layers of a model.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> TrainingRegularization(weight_decay=0.1, early_stopping=3).r_drop
        0.0
    """

    dropout_schedule: Schedule = "constant"
    """How all dropout rates change during training, as in `regain.DropoutSchedule`."""
    dropout_schedule_fraction: float = 0.5
    """Fraction of all steps, in (0, 1], after which the schedule is complete."""
    weight_decay: float = 0.0
    """Weight decay by the optimizer, at least 0; not of norms, biases and embeddings."""
    l1: float = 0.0
    """Factor of the sum of absolute weights in the loss, at least 0."""
    l2: float = 0.0
    """Factor of half the sum of squared weights in the loss, at least 0."""
    max_norm: float = 0.0
    """Largest norm of the weights into a unit; 0 for no limit."""
    adaptive_clip: float = 0.0
    """Largest norm of a unit's gradient relative to the norm of its weights, except in the last
    layer; 0 for no limit."""
    r_drop: float = 0.0
    """Factor of the divergence between two passes under dropout (R-Drop), at least 0."""
    sam: float = 0.0
    """Distance at which sharpness-aware minimization evaluates the gradient; 0 turns it off."""
    sam_adaptive: bool = False
    """Whether this distance is relative to the size of each weight (ASAM)."""
    label_smoothing: float = 0.0
    """Fraction of the target spread evenly over the classes, in [0, 1)."""
    early_stopping: int = 0
    """Validations without a better accuracy after which training stops; 0 for never. Mostly, one
    epoch has one validation."""
    norm_recompute: int = 0
    """Batches from which running statistics are recomputed before each validation (precise batch
    norm); 0 for never."""

    def __post_init__(self) -> None:
        if self.dropout_schedule not in get_args(Schedule):
            names = " or ".join(map(repr, get_args(Schedule)))
            raise ValueError(f"dropout_schedule is {names}, not {self.dropout_schedule!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name} is true or false, not {value!r}")
            if field.type is float:
                check_amount(field.name, value)
        check_rate("label_smoothing", self.label_smoothing)
        if not 0.0 < self.dropout_schedule_fraction <= 1.0:
            raise ValueError(
                f"dropout_schedule_fraction is in (0, 1], not {self.dropout_schedule_fraction!r}"
            )
        for name in ("early_stopping", "norm_recompute"):
            check_amount(name, getattr(self, name), whole=True)
        if self.sam_adaptive and not self.sam:
            raise ValueError("sam_adaptive=true needs a distance, and sam is 0; set sam=0.5")


# Options, the layers that they need and what they drop. No model has all of these layers.
SITES: tuple[tuple[str, type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
    ("drop_path", DropPath, "residual branches"),
    ("layer_drop", LayerDrop, "layers that keep their input's shape"),
    ("embedding_dropout", EmbeddingDropout, "words of an embedding"),
    ("token_dropout", TokenDropout, "tokens of a transformer or words of an averaging network"),
    ("attention_head_dropout", DropHead, "attention heads"),
    # The attention of some encoders uses PyTorch's layer.
    ("attention_dropout", (AttentionDropout, nn.Dropout), "attention probabilities"),
)


def check_model(model: nn.Module, reg: Regularization, training: TrainingRegularization) -> None:
    """Check that a model has the layers that the regularization options apply to.

    Raises:
        ValueError: The model has no layer that an option applies to.
    """
    layers = list(model.modules())
    # `convert` has refused what has no place, and may set a rate that no layer of a class holds.
    converted = any(conversions(layer) for layer in layers)
    for name, kind, subject in () if converted else SITES:
        rate = getattr(reg, name)
        if rate and not any(isinstance(layer, kind) for layer in layers):
            raise ValueError(
                f"{name}={rate} drops {subject}, and this model has none; leave it at 0"
            )
    if reg.weight_standardization and not any(
        isinstance(layer, WeightStandardization) for layer in layers
    ):
        raise ValueError(
            "weight_standardization=True applies to convolutions and hidden linear layers, and "
            "this model has none; leave it at false"
        )
    if training.norm_recompute and not moving_norms(model):
        raise ValueError(
            f"norm_recompute={training.norm_recompute} recomputes running statistics, and this "
            "model keeps none; leave it at 0, or use normalization=batch"
        )
    if training.dropout_schedule != "constant" and not dropout_rates(model):
        raise ValueError(
            f"dropout_schedule={training.dropout_schedule} changes dropout rates, and this model "
            "has no dropout with a fixed rate; set a rate, or leave the schedule at constant"
        )
