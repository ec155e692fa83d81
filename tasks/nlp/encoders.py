"""How an encoder of `transformers` is regularized: its dropouts, attention, layers and tokens."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from regain import AttentionDropout, Regularization
from tasks.errors import InputError

# Under which `transformers` knows the attention with our dropout.
NAME = "regain"
# What the families of encoders call their dropouts.
HIDDEN_DROPOUTS = (
    "hidden_dropout_prob",
    "hidden_dropout",
    "dropout",
    "dropout_rate",
    "resid_pdrop",
    "embd_pdrop",
    "embedding_dropout",
    "mlp_dropout",
    "activation_dropout",
)
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


def can_be_replaced(config: Any) -> bool:
    """Whether an encoder lets its attention be replaced by `scaled_dot_product_attention`."""
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        return False
    kind = MODEL_MAPPING[type(config)]
    # Some encoders take other attention functions, and not this one.
    return bool(getattr(kind, "_supports_attention_backend", False)) and bool(
        getattr(kind, "_supports_sdpa", False)
    )


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention with the dropout layers that `drop_in_attention` gave to a module."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    # Not `dropout`: it is the encoder's own, which is off in evaluation, as under MC dropout.
    layer = module.attention_drop
    active = isinstance(layer, AttentionDropout) and layer.training
    output, _ = sdpa_attention_forward(
        *(module, query, key, value, attention_mask), dropout=layer.p if active else 0.0, **options
    )
    return module.drop_head(output), None


def drop_in_attention(encoder: Any, reg: Regularization) -> None:
    """Put dropout of probabilities and of heads into the attention of an encoder.

    The layers are ours, so that schedules and MC dropout find them.

    Raises:
        InputError: No layer of the encoder uses the attention that is set.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    found: dict[nn.Module, None] = {}

    def record(module: nn.Module, *inputs: Any, **options: Any) -> Any:
        found[module] = None
        return sdpa_attention_forward(module, *inputs, **options)

    # Which of its modules call it depends on the family: one call shows them.
    AttentionInterface.register(NAME, record)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    encoder.set_attn_implementation(NAME)
    states_of(encoder, [True] * 4)
    AttentionInterface.register(NAME, attend)
    if not found:
        raise InputError(
            f"the attention of a {encoder.config.model_type} encoder cannot be found; leave "
            "attention_dropout and attention_head_dropout out"
        )
    for module in found:
        module.add_module("attention_drop", reg.attention_dropout_layer())
        # Its output is (batch, tokens, heads, features).
        module.add_module("drop_head", reg.attention_head_dropout_layer(dim=2))


@torch.no_grad()
def states_of(encoder: Any, kept: list[bool], **options: Any) -> Tensor:
    """Return the states of some of four different tokens; the encoder is in evaluation mode."""
    config, training = encoder.config, encoder.training
    tokens = [token for token in range(min(5, config.vocab_size)) if token != config.pad_token_id]
    ids = torch.tensor([(4 * tokens)[:4]])
    mask = torch.tensor([kept])
    encoder.eval()
    try:
        if "position_ids" in options:
            # The others are removed; without positions they are masked.
            ids, mask = ids[:, kept], mask[:, kept]
        output = encoder(input_ids=ids, attention_mask=mask.long(), **options)
    finally:
        encoder.train(training)
    states: Tensor = output.last_hidden_state
    return states[mask]


def first_position(encoder: Any, p: float) -> int:
    """Find which position an encoder gives to the first token, to be told those of kept tokens.

    Raises:
        InputError: Its states are others when it is told positions and does not see all tokens.
    """
    kept = [True, False, True, True]
    if "position_ids" in signature(encoder.forward).parameters:
        wanted = states_of(encoder, kept)
        positions = torch.tensor([[0, 2, 3]])
        # Some families count from behind the id of the padding on.
        for first in (0, (encoder.config.pad_token_id or 0) + 1):
            found = states_of(encoder, kept, position_ids=positions + first)
            if (found - wanted).abs().max() <= 3e-5 * wanted.abs().max():
                return first
    raise InputError(
        f"token_dropout={p} cannot tell a {encoder.config.model_type} encoder the positions of the "
        "tokens that are left; leave it at 0"
    )


def let_layers_be_skipped(encoder: Any, reg: Regularization) -> None:
    """Put each layer of an encoder under layer drop.

    Raises:
        InputError: Its layers are not found, or give more than their input's successor.
    """
    depth = encoder.config.num_hidden_layers
    stacks = (
        module
        for module in encoder.modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    )
    stack = next(stacks, None)
    plain = stack is not None and all(
        signature(layer.forward).return_annotation is Tensor for layer in stack
    )
    if stack is None or not plain:
        raise InputError(
            f"layer_drop={reg.layer_drop} cannot skip the layers of a "
            f"{encoder.config.model_type} encoder; leave it at 0"
        )
    for index, layer in enumerate(stack):
        stack[index] = reg.layer_drop_layer(layer)


def let_branches_be_dropped(encoder: Any, reg: Regularization) -> None:
    """Put the two residual branches of each layer of an encoder under drop path.

    In BERT and its relatives a branch ends in a module that projects it, drops units of it, adds
    the input and normalizes. A branch is dropped after its units.

    Raises:
        InputError: The layers have no such branches.
    """
    depth = encoder.config.num_hidden_layers
    ends = [
        module
        for module in encoder.modules()
        if {"dense", "dropout", "LayerNorm"} <= {name for name, _ in module.named_children()}
        and [*signature(module.forward).parameters][:2] == ["hidden_states", "input_tensor"]
    ]
    if len(ends) != 2 * depth:
        raise InputError(
            f"drop_path={reg.drop_path} cannot drop the residual branches of a "
            f"{encoder.config.model_type} encoder; leave it at 0"
        )
    for index, end in enumerate(ends):
        end.dropout = nn.Sequential(end.dropout, reg.drop_path_layer(index // 2, depth))


def own_attention(config: Any, reg: Regularization) -> bool:
    """Whether the dropout inside of the attention is done by our layers."""
    dropped = reg.attention_dropout_layer(), reg.attention_head_dropout_layer(dim=2)
    off = all(isinstance(layer, nn.Identity) for layer in dropped)
    return not off and can_be_replaced(config)


def set_dropouts(config: Any, reg: Regularization) -> None:
    """Set every dropout that the configuration of an encoder has.

    Those of attention probabilities are set to zero where our own layers drop these.

    Raises:
        InputError: It has none of a known name, and the rate is not zero.
    """
    if reg.attention_head_dropout and not can_be_replaced(config):
        raise InputError(
            f"attention_head_dropout={reg.attention_head_dropout} cannot drop the heads of a "
            f"{config.model_type} encoder, which computes attention by itself; leave it at 0"
        )
    # Aliases answer to hasattr too; the plain dictionary has the names that count.
    known = config.to_dict()
    inside = getattr(reg.attention_dropout_layer(), "p", 0.0)
    rates = dict.fromkeys(HIDDEN_DROPOUTS, reg.dropout) | dict.fromkeys(ATTENTION_DROPOUTS, inside)
    rates = {name: p for name, p in rates.items() if isinstance(known.get(name), int | float)}
    if reg.dropout and not rates:
        raise InputError(
            f"a {config.model_type} encoder has no dropout that could be set to {reg.dropout}"
        )
    own = own_attention(config, reg)
    if reg.attention_dropout and not own and not set(ATTENTION_DROPOUTS) & set(rates):
        raise InputError(
            f"a {config.model_type} encoder has no attention dropout that could be set to "
            f"{reg.attention_dropout}"
        )
    for name, p in rates.items():
        setattr(config, name, 0.0 if own and name in ATTENTION_DROPOUTS else p)
