"""Text models: each takes token ids and one `Regularization`, and is exact under padding."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regain import Regularization, mask_steps
from regain.registry import Registry
from tasks.errors import InputError
from tasks.hub_files import hub_files
from tasks.model_libraries import hub, hub_config
from tasks.nlp.data import TextSpec
from tasks.nlp.encoders import (
    drop_in_attention,
    first_position,
    let_branches_be_dropped,
    let_layers_be_skipped,
    own_attention,
    set_dropouts,
)

MODELS: Registry[Callable[..., nn.Module]] = Registry("model.arch")
LIBRARIES: Registry[Callable[..., nn.Module]] = Registry("model.arch")


def embedding(spec: TextSpec, width: int) -> nn.Embedding:
    """Make a table of random vectors as Kim (2014) does; that of the padding is zero and stays so.

    PyTorch's own start, with a standard deviation of 1, learns far more slowly.
    """
    table = nn.Embedding(spec.vocabulary, width, padding_idx=spec.padding)
    nn.init.uniform_(table.weight, -0.25, 0.25)
    with torch.no_grad():
        table.weight[spec.padding].zero_()
    return table


@MODELS.register("text_cnn")
class TextCNN(nn.Module):
    """Parallel convolutions over words and their maxima over time (Kim 2014).

    Args:
        spec: What the data is like.
        reg: Regularization; the paper has a head dropout of 0.5.
        depth: Number of kernel widths, from 3 on; 3, 4 and 5 in the paper.
        width: Features of a word; 300 in the paper.

    Shape:
        ids: (batch, tokens). The output: logits (batch, classes).
    """

    def __init__(
        self, spec: TextSpec, reg: Regularization, depth: int = 3, width: int = 300
    ) -> None:
        super().__init__()
        self.padding = spec.padding
        self.embedding = reg.embedding_layer(embedding(spec, width))
        self.input_dropout = reg.words_dropout_layer()
        # A window is valid where its centre is: one mask serves all kernel widths.
        self.convs = nn.ModuleList(
            reg.prepare_layer(nn.Conv1d(width, 100, kernel)) for kernel in range(3, 3 + depth)
        )
        self.norm = reg.masked_norm_layer(100 * depth, dims=1)
        self.dropout = reg.dropout_layer(100 * depth, dims=1, time=True)
        self.head_dropout = reg.head_dropout_layer()
        self.head = reg.weight_drop_layer(nn.Linear(100 * depth, len(spec.classes)))

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != self.padding
        words = self.input_dropout(self.embedding(ids)).transpose(1, 2)
        maps = []
        for kernel, conv in enumerate(self.convs, start=3):
            maps.append(conv(F.pad(words, ((kernel - 1) // 2, kernel // 2))))
        features = torch.cat(maps, dim=1)
        features = self.dropout(self.norm(features, mask).relu())
        # No value is below zero after the ReLU: the zeros of masked steps never are the maximum.
        pooled = mask_steps(features, mask).amax(dim=2)
        return cast(Tensor, self.head(self.head_dropout(pooled)))


@MODELS.register("dan")
class DeepAveragingNetwork(nn.Module):
    """A perceptron on the mean of the words of a text (Iyyer et al. 2015).

    It ignores word order, and trains in a fraction of the time of the other models.

    Args:
        spec: What the data is like.
        reg: Regularization. The word dropout of the paper, 0.3, is `token_dropout`: the mean is
            that of the words left.
        depth: Number of hidden layers; 3 in the paper.
        width: Features of a word, and units of each hidden layer; 300 in the paper.

    Shape:
        ids: (batch, tokens). The output: logits (batch, classes).
    """

    def __init__(
        self, spec: TextSpec, reg: Regularization, depth: int = 3, width: int = 300
    ) -> None:
        super().__init__()
        self.padding = spec.padding
        self.token_dropout = reg.token_dropout_layer()
        self.embedding = reg.embedding_layer(embedding(spec, width))
        self.input_dropout = reg.words_dropout_layer()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [
                reg.weight_drop_layer(reg.prepare_layer(nn.Linear(width, width))),
                reg.norm_layer(width, dims=0),
                nn.ReLU(),
                reg.dropout_layer(width, dims=0),
            ]
        self.hidden = nn.Sequential(*layers)
        self.head_dropout = reg.head_dropout_layer()
        self.head = reg.weight_drop_layer(nn.Linear(width, len(spec.classes)))

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != self.padding
        if self.token_dropout is not None:
            ids, mask, _ = self.token_dropout(ids, mask)
        words = self.input_dropout(self.embedding(ids)).transpose(1, 2)
        mean = mask_steps(words, mask).sum(dim=2) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return cast(Tensor, self.head(self.head_dropout(self.hidden(mean))))


@MODELS.register("lstm")
class LSTM(nn.Module):
    """A bidirectional LSTM (Hochreiter & Schmidhuber 1997) and its maxima over time.

    The dropout between its layers keeps one mask for all time steps (Gal & Ghahramani 2016) where
    `dropout_kind` is "locked" or "channel"; `weight_drop` is that of the weights from hidden state
    to hidden state (Merity et al. 2018).

    Args:
        spec: What the data is like.
        reg: Regularization.
        depth: Number of layers.
        width: Features of a word, and of each direction of a layer.

    Shape:
        ids: (batch, tokens). The output: logits (batch, classes).
    """

    def __init__(
        self, spec: TextSpec, reg: Regularization, depth: int = 1, width: int = 128
    ) -> None:
        super().__init__()
        self.padding = spec.padding
        self.embedding = reg.embedding_layer(embedding(spec, width))
        self.input_dropout = reg.words_dropout_layer()
        recurrent = ("weight_hh_l0", "weight_hh_l0_reverse")
        self.layers = nn.ModuleList(
            reg.weight_drop_layer(
                nn.LSTM(2 * width if layer else width, width, batch_first=True, bidirectional=True),
                *recurrent,
            )
            for layer in range(depth)
        )
        self.norms = nn.ModuleList(reg.masked_norm_layer(2 * width, dims=1) for _ in range(depth))
        self.dropouts = nn.ModuleList(
            reg.dropout_layer(2 * width, dims=1, time=True) for _ in range(depth)
        )
        self.head_dropout = reg.head_dropout_layer()
        self.head = nn.Linear(2 * width, len(spec.classes))

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids != self.padding
        lengths = mask.sum(dim=1).clamp(min=1).cpu()
        x = self.input_dropout(self.embedding(ids))
        for layer, norm, dropout in zip(self.layers, self.norms, self.dropouts, strict=True):
            if torch.compiler.is_exporting():
                x = lstm_for_export(getattr(layer, "layer", layer), x, mask)
            else:
                packed = nn.utils.rnn.pack_padded_sequence(
                    x, lengths, batch_first=True, enforce_sorted=False
                )
                x, _ = nn.utils.rnn.pad_packed_sequence(
                    layer(packed)[0], batch_first=True, total_length=ids.shape[1]
                )
            x = dropout(norm(x.transpose(1, 2), mask)).transpose(1, 2)
        valid = x.masked_fill(~mask.unsqueeze(-1), torch.finfo(x.dtype).min)
        return cast(Tensor, self.head(self.head_dropout(valid.amax(dim=1))))


def lstm_for_export(lstm: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Do what a bidirectional LSTM of one layer does to packed texts, in operations for export.

    `torch.export` cannot record packed sequences, and unrolls an LSTM for a fixed number of tokens.

    Shape:
        x: (batch, tokens, features). mask: (batch, tokens). The output: (batch, tokens, 2 width),
        zero at padding.
    """
    from torch._higher_order_ops.scan import scan

    steps = mask.t().unsqueeze(2)
    start = x.new_zeros(x.shape[0], lstm.hidden_size)
    outputs = []
    for suffix in ("", "_reverse"):
        inner, outer, inner_bias, outer_bias = (
            getattr(lstm, f"{name}_l0{suffix}")
            for name in ("weight_hh", "weight_ih", "bias_hh", "bias_ih")
        )
        gates = F.linear(x.transpose(0, 1), outer, outer_bias + inner_bias)

        def step(
            state: tuple[Tensor, Tensor], inputs: tuple[Tensor, Tensor], inner: Tensor = inner
        ) -> tuple[tuple[Tensor, Tensor], Tensor]:
            (hidden, cell), (gate, valid) = state, inputs
            enter, forget, new, leave = (gate + F.linear(hidden, inner)).chunk(4, dim=1)
            # The state is kept at padding, which the backward direction reads first.
            cell = torch.where(valid, forget.sigmoid() * cell + enter.sigmoid() * new.tanh(), cell)
            hidden = torch.where(valid, leave.sigmoid() * cell.tanh(), hidden)
            return (hidden, cell), hidden.clone()

        _, found = scan(step, (start, start.clone()), (gates, steps), reverse=bool(suffix))
        outputs.append(found)
    return mask_steps(torch.cat(outputs, dim=2).permute(1, 2, 0), mask).transpose(1, 2)


@MODELS.register("transformer")
class Transformer(nn.Module):
    """An encoder of `transformers`, and a head on the mean of its valid steps.

    Args:
        spec: What the data is like.
        reg: Regularization: `dropout` becomes all of the encoder's own dropouts, but for that of
            attention probabilities where `attention_dropout` is given; `drop_path` drops its
            attention and its feed-forward branches; the norm stands before the mean, over the
            valid steps.
        depth: Number of layers, from scratch.
        width: Number of features, from scratch.
        pretrained: Hub id or folder of a pretrained encoder; a BERT of the given size from scratch
            (Devlin et al. 2019) if None.
        config: Config of an encoder from scratch, instead of `depth` and `width`.

    Shape:
        ids: (batch, tokens). The output: logits (batch, classes).

    Raises:
        InputError: There is no such encoder, or it has not what a regularizer drops.
    """

    def __init__(
        self,
        spec: TextSpec,
        reg: Regularization,
        depth: int = 2,
        width: int = 128,
        pretrained: str | None = None,
        config: Any = None,
    ) -> None:
        super().__init__()
        from transformers import AutoModel, BertConfig

        for name in ("input_dropout", "embedding_dropout"):
            if getattr(reg, name):
                raise ValueError(
                    f"{name}={getattr(reg, name)} has no place in a transformer, which embeds "
                    "its tokens itself; use model.augment.word_dropout"
                )
        if reg.dropout and reg.dropout_kind != "unit":
            raise ValueError(
                f"dropout_kind={reg.dropout_kind} has no place in a transformer, whose encoder has "
                "its own dropout layers of single units; use dropout_kind=unit"
            )
        self.padding = spec.padding
        if pretrained is None and config is None:
            config = BertConfig(
                vocab_size=spec.vocabulary,
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=max(1, width // 32),
                intermediate_size=4 * width,
                max_position_embeddings=spec.max_tokens,
                pad_token_id=spec.padding,
            )
        if pretrained is None:
            set_dropouts(config, reg)
            self.encoder = AutoModel.from_config(config)
        else:
            argument = f"model.pretrained={pretrained}"
            config = hub_config(argument, pretrained, {})
            set_dropouts(config, reg)
            # In single precision, whatever precision the weights were stored in.
            if hub_files().weights_follow:
                self.encoder = AutoModel.from_config(config, dtype=torch.float32)
            else:
                # A checkpoint too can name the encoder; code that comes with it is never run.
                with hub(argument, pretrained):
                    self.encoder = AutoModel.from_pretrained(
                        pretrained, config=config, dtype=torch.float32, trust_remote_code=False
                    )
        # Unused, its weights would have no gradient, which training on several devices minds.
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None
        if own_attention(config, reg):
            drop_in_attention(self.encoder, reg)
        self.token_dropout = reg.token_dropout_layer()
        if reg.token_dropout:
            self.first_position = first_position(self.encoder, reg.token_dropout)
        if reg.drop_path:
            let_branches_be_dropped(self.encoder, reg)
        if reg.layer_drop:
            let_layers_be_skipped(self.encoder, reg)
        self.norm = reg.masked_norm_layer(config.hidden_size, dims=1)
        self.head_dropout = reg.head_dropout_layer()
        self.head = reg.weight_drop_layer(nn.Linear(config.hidden_size, len(spec.classes)))

    def forward(self, ids: Tensor) -> Tensor:
        mask, positions = ids != self.padding, {}
        if self.token_dropout is not None:
            ids, mask, indices = self.token_dropout(ids, mask)
            positions["position_ids"] = indices + self.first_position
        output = self.encoder(input_ids=ids, attention_mask=mask.long(), **positions)
        states = self.norm(output.last_hidden_state.transpose(1, 2), mask)
        pooled = mask_steps(states, mask).sum(dim=2) / mask.sum(dim=1, keepdim=True)
        return cast(Tensor, self.head(self.head_dropout(pooled)))


@LIBRARIES.register("hf")
def hub_encoder(
    name: str,
    spec: TextSpec,
    reg: Regularization,
    pretrained: bool | str | None,
    **options: Any,
) -> nn.Module:
    """Make a `Transformer` of an encoder by hub id or folder.

    Pretrained it has its own tokenizer; from scratch its config is that of the folder, with the
    vocabulary of the data. `options` are values of the config from scratch.

    Raises:
        InputError: It cannot be loaded, or its config is not of an encoder.
    """
    argument = f"model.arch=hf/{name}"
    if pretrained:
        if options:
            raise InputError(
                f"model.options.{next(iter(options))} is not for a pretrained encoder; leave it out"
            )
        return Transformer(spec, reg, pretrained=name if pretrained is True else pretrained)
    config = hub_config(argument, name, options)
    config.vocab_size = spec.vocabulary
    config.pad_token_id = spec.padding
    # Some families count positions from behind the id of the padding on.
    positions = spec.max_tokens + spec.padding + 1
    if getattr(config, "max_position_embeddings", positions) < positions:
        config.max_position_embeddings = positions
    return Transformer(spec, reg, config=config)
