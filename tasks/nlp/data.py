"""Texts: names in many languages, and any folder, file or hub data set with sentences."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tasks.data import ClassificationData, DataSpec, lay_out
from tasks.errors import InputError, first_line
from tasks.nlp.tokenizer import train_tokenizer
from tasks.sources import Rows, Source, read_source

# Where each canonical name lies on the hub: id, columns of inputs and labels, revision.
HUB = {
    "sst2": ("SetFit/sst2", "text", "label", None),
    "ag_news": ("fancyzhx/ag_news", "text", "label", None),
    # Its own loader is a script, which is no longer run; this is what the hub made of it.
    "trec": ("CogComp/trec", "text", "coarse_label", "refs/convert/parquet"),
}


@dataclass
class TextSpec(DataSpec):
    """What a text model must know of its tokens.

    Args:
        classes: Names of the classes.
        vocabulary: Number of token ids.
        padding: Id that fills up the shorter texts of a batch.
        unknown: Id of the unknown token, which stands in for a dropped one.
        special: Ids that augmentation leaves alone, the padding among them.
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
        vocabulary: Largest number of tokens of a tokenizer trained on the training split.
        lowercase: Whether that tokenizer takes upper case for lower case.
        tokens: Whether that tokenizer has `pieces` of words, or whole `words`; see
            `train_tokenizer`.
        tokenizer: Hub id or folder of a pretrained tokenizer; one is trained if not given.
        max_tokens: Longer texts are cut.
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

    def builtin(self) -> Source:
        """Pairs of names in twenty languages from the CLDR data of babel."""
        from tasks.nlp.builtin import LANGUAGES, names

        return Source(
            {split: Rows(texts, labels) for split, (texts, labels) in names().items()},
            list(LANGUAGES),
        )

    def canonical(self) -> Source | None:
        """Stanford Sentiment Treebank, AG News and TREC by their short names, from the hub."""
        if self.source not in HUB:
            return None
        hub_id, text, label, revision = HUB[self.source]
        return read_source(
            hub_id,
            self.kind,
            self.input_column or text,
            self.label_column or label,
            self.cache_dir,
            revision,
        )

    def decode(self, value: Any) -> str:
        """Check that it is a text with anything in it."""
        if not isinstance(value, str):
            raise ValueError(f"it is {type(value).__name__}, not text")
        if not value.strip():
            raise ValueError("the text is empty")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("it holds half of a surrogate pair, which is no character")
        return value

    def arrange(self, decoded: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
        """Keep the texts: tokens depend on the training split, which is not known yet."""
        return {split: {"texts": texts} for split, texts in decoded.items()}

    def encode(self, stores: dict[str, dict[str, Any]], training: Tensor) -> None:
        """Turn the texts into token ids, by a tokenizer that has seen the training split alone."""
        if self.tokenizer_name is None:
            texts = [stores["train"]["texts"][place] for place in training.tolist()]
            self.tokenizer = train_tokenizer(texts, self.vocabulary, self.lowercase, self.tokens)
            self.padding, self.unknown, self.special = 0, 1, [0]
        else:
            self._load_tokenizer(self.tokenizer_name)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_tokens)
        for split, store in stores.items():
            self.texts[split] = store["texts"]
            encoded = self.tokenizer.encode_batch(store["texts"])
            # A text of characters that no token covers is one unknown token.
            ids = [torch.tensor(one.ids or [self.unknown], dtype=torch.int32) for one in encoded]
            store.update(lay_out(ids))

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
        # An encoder has places for no more tokens than that.
        self.max_tokens = min(self.max_tokens, loaded.model_max_length)
        self.padding = loaded.pad_token_id
        mask = loaded.mask_token_id if loaded.unk_token_id is None else loaded.unk_token_id
        self.unknown = self.padding if mask is None else mask
        self.special = sorted(set(loaded.all_special_ids) - {self.unknown} | {self.padding})

    def spec(self) -> TextSpec:
        """Tell a model the size of the vocabulary and the ids with a meaning of their own."""
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
        """Give the tokenizer into the checkpoint, which is of no use without it."""
        return {"tokenizer": json.loads(self.tokenizer.to_str())}

    def media(self, split: str, index: int) -> str:
        """Give the text of one example."""
        origin = split if split in self.texts else "train"
        return self.texts[origin][int(self.splits[split].chosen[index])]
