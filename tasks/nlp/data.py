"""Texts: names in many languages, and any folder, file or hub data set with sentences."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tasks.data import Batch, ClassificationData, DataSpec, lay_out, whole_batch
from tasks.data.loading import Rows, Source, read_source
from tasks.errors import InputError, first_line
from tasks.nlp.tokenizer import train_tokenizer


@dataclass
class TextSpec(DataSpec):
    """What a text model must know of its data.

    Args:
        classes: Names of the classes.
        vocabulary: Number of token ids.
        padding: Id that pads shorter texts of a batch.
        unknown: Id of the unknown token, which replaces dropped tokens.
        special: Ids that augmentation does not change, including the padding.
        max_tokens: Tokens in the longest text.
    """

    vocabulary: int
    padding: int
    unknown: int
    special: list[int]
    max_tokens: int = 512


class TextData(ClassificationData):
    """Texts as token ids, (batch, tokens), padded to the longest one of the batch.

    Args:
        vocabulary: Largest number of tokens, at least 100, of the tokenizer that is trained on the
            training split.
        lowercase: Whether that tokenizer ignores case.
        tokens: Whether its tokens are `pieces` of words or whole `words`; see `train_tokenizer`.
        tokenizer: Hub id or folder of a pretrained tokenizer; by default one is trained.
        max_tokens: Length to truncate texts to.
        **options: See `ClassificationData`.
    """

    kind: ClassVar[str] = "text"
    noun: ClassVar[str] = "text"

    def __init__(
        self,
        vocabulary: int = 16_000,
        lowercase: bool = True,
        tokens: Literal["pieces", "words"] = "pieces",
        tokenizer: str | None = None,
        max_tokens: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if vocabulary < 100:
            raise ValueError(f"vocabulary is at least 100 tokens, not {vocabulary!r}")
        if max_tokens < 1:
            raise ValueError(f"max_tokens is at least 1, not {max_tokens!r}")
        self.vocabulary = vocabulary
        self.lowercase = lowercase
        self.tokens = tokens
        self.tokenizer_name = tokenizer
        self.max_tokens = max_tokens
        self.tokenizer: Tokenizer
        self.special: list[int] = []
        self.unknown = 0
        self.texts: dict[str, list[str]] = {}

    def decode(self, value: Any) -> str:
        """Check that an input is a text and not empty."""
        if not isinstance(value, str):
            raise ValueError(f"it is {type(value).__name__}, not text")
        if not value.strip():
            raise ValueError("the text is empty")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("it holds half of a surrogate pair, which is no character")
        return value

    def arrange(self, decoded: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
        """Keep the texts: the tokenizer needs the training split, which depends on the seed."""
        return {split: {"texts": texts} for split, texts in decoded.items()}

    def encode(self, stores: dict[str, dict[str, Any]], training: Tensor) -> None:
        """Turn the texts into token ids, by a tokenizer trained on the training split alone."""
        if self.tokenizer_name is None:
            texts = [stores["train"]["texts"][index] for index in training.tolist()]
            self.tokenizer = train_tokenizer(texts, self.vocabulary, self.lowercase, self.tokens)
            self.padding, self.unknown, self.special = 0, 1, [0]
        else:
            self._load_tokenizer(self.tokenizer_name)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_tokens)
        for split, store in stores.items():
            self.texts[split] = store["texts"]
            store.update(lay_out(self._ids(store["texts"])))

    def _ids(self, texts: list[str]) -> list[Tensor]:
        encoded = self.tokenizer.encode_batch(texts)
        # A text without any known character becomes one unknown token.
        return [torch.tensor(one.ids or [self.unknown], dtype=torch.int32) for one in encoded]

    def decode_input(self, value: Any) -> str:
        """Check that an input is a text."""
        return self.decode(value)

    def batch(self, decoded: list[Any]) -> Batch:
        """Return texts as one batch of token ids.

        Raises:
            InputError: The tokenizer has ids that the model does not know.
        """
        store: Any = lay_out(self._ids(decoded))
        if int(store["values"].max()) >= self.vocabulary:
            raise InputError(f"the tokenizer has ids beyond the vocabulary of {self.vocabulary}")
        return whole_batch(store["values"], store["offsets"], self.padding)

    def _load_tokenizer(self, name: str) -> None:
        from transformers import AutoTokenizer

        try:
            loaded: Any = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise InputError(f"model.pretrained={name} holds no tokenizer ({reason})") from error
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None or loaded.pad_token_id is None:
            raise InputError(
                f"model.pretrained={name}: its tokenizer has no fast form or no padding"
            )
        self.tokenizer = Tokenizer.from_str(backend.to_str())
        # The encoder has no more position embeddings.
        self.max_tokens = min(self.max_tokens, loaded.model_max_length)
        self.padding = loaded.pad_token_id
        mask = loaded.mask_token_id if loaded.unk_token_id is None else loaded.unk_token_id
        self.unknown = self.padding if mask is None else mask
        self.special = sorted(set(loaded.all_special_ids) - {self.unknown} | {self.padding})

    def spec(self) -> TextSpec:
        """Return the size of the vocabulary and the special ids."""
        self.setup()
        return TextSpec(
            self.classes,
            self.tokenizer.get_vocab_size(),
            self.padding,
            self.unknown,
            self.special,
            self.max_tokens,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the tokenizer and its special ids."""
        return {
            "tokenizer": self.tokenizer.to_str(),
            "padding": self.padding,
            "unknown": self.unknown,
            "special": self.special,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the tokenizer, which truncates texts as in the training.

        Raises:
            ValueError: It is no tokenizer, or its ids are no numbers.
        """
        written = state_dict.get("tokenizer")
        try:
            tokenizer = Tokenizer.from_str(
                written if isinstance(written, str) else json.dumps(written)
            )
            number = tokenizer.get_vocab_size()
        except Exception as error:
            # The library raises exceptions without a type of their own.
            raise ValueError(f"its tokenizer cannot be read ({first_line(error)})") from error
        # Older checkpoints, from which a run can only resume, have the tokenizer alone.
        ids = [state_dict.get("padding", self.padding), state_dict.get("unknown", self.unknown)]
        special = state_dict.get("special", self.special)
        for one in [*ids, *(special if isinstance(special, list) else [special])]:
            if type(one) is not int or not 0 <= one < number:
                raise ValueError(f"{one!r:.60} is no id of its tokenizer")
        self.tokenizer = tokenizer
        self.padding, self.unknown, self.special = *ids, special

    def restore(self, state_dict: dict[str, Any], spec: Any) -> None:
        """Restore the tokenizer for a model that knows `spec.vocabulary` ids.

        Raises:
            ValueError: They are not such a state and such properties.
        """
        super().restore(state_dict, spec)
        self.vocabulary = spec.vocabulary

    def media(self, split: str, index: int) -> str:
        """Return the text of one example."""
        origin = split if split in self.texts else "train"
        return self.texts[origin][int(self.splits[split].chosen[index])]


@TextData.sources.register("builtin")
def builtin() -> Source:
    """Pairs of names in twenty languages from the CLDR data of babel."""
    from tasks.nlp.builtin import LANGUAGES, names

    return Source(
        {split: Rows(texts, labels) for split, (texts, labels) in names().items()},
        list(LANGUAGES),
    )


@TextData.sources.register("sst2")
def sst2(cache_dir: Path, input_column: str | None, label_column: str | None) -> Source:
    """Stanford Sentiment Treebank (Socher et al. 2013), two classes."""
    columns = input_column or "text", label_column or "label"
    return read_source("SetFit/sst2", "text", *columns, cache_dir)


@TextData.sources.register("ag_news")
def ag_news(cache_dir: Path, input_column: str | None, label_column: str | None) -> Source:
    """AG News (Zhang et al. 2015), four topics."""
    columns = input_column or "text", label_column or "label"
    return read_source("fancyzhx/ag_news", "text", *columns, cache_dir)


@TextData.sources.register("trec")
def trec(cache_dir: Path, input_column: str | None, label_column: str | None) -> Source:
    """TREC (Li & Roth 2002), questions by what they ask for."""
    columns = input_column or "text", label_column or "coarse_label"
    # The data set's own loader is a script, which `datasets` no longer runs; the hub has converted
    # its output to Parquet.
    return read_source("CogComp/trec", "text", *columns, cache_dir, "refs/convert/parquet")
