"""A tokenizer trained on the training texts, without tokens that are too rare to train."""

from collections import Counter
from typing import Literal

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

PADDING, UNKNOWN = "[PAD]", "[UNK]"
# Minimum number of occurrences of a token in the training texts: rarer ones are hardly trained.
FEWEST_USES = 2
# More distinct words than any text data set has.
MOST_WORDS = 2**31


def train_tokenizer(
    texts: list[str],
    vocabulary: int,
    lowercase: bool,
    tokens: Literal["pieces", "words"] = "pieces",
) -> Tokenizer:
    """Train a tokenizer with id 0 for padding and 1 for the unknown token.

    Each other token occurs at least twice in the tokenized training texts.

    Args:
        texts: Training texts.
        vocabulary: Largest number of tokens.
        lowercase: Whether texts are lowercased.
        tokens: `pieces` splits rare words into frequent pieces (WordPiece, Schuster & Nakajima
            2012); a word with a character that occurs once becomes the unknown token. `words`
            keeps words whole; each rare word becomes the unknown token.

    Example:
        >>> tokenizer = train_tokenizer(["red car", "red cart", "a car"], 100, lowercase=True)
        >>> [tokenizer.encode(text).tokens for text in ("red car", "a cart")]
        [['red', 'car'], ['[UNK]', '[UNK]']]
    """
    if tokens == "words":
        return _trained_words(texts, vocabulary, lowercase, FEWEST_USES, [PADDING, UNKNOWN])
    blank = _word_pieces({}, lowercase)
    normalized = (blank.normalizer.normalize_str(text) for text in texts)
    letters = sorted({letter for text in normalized for letter in text if not letter.isspace()})
    # The trainer numbers the letters inside words in the order of a hash table, and breaks ties
    # between merges by these numbers, so the vocabulary would differ between processes. Special
    # tokens fix the numbers.
    numbered = [PADDING, UNKNOWN, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=FEWEST_USES,
        special_tokens=numbered,
        show_progress=False,
    )
    blank.train_from_iterator(texts, trainer)
    # Special tokens are matched anywhere in a text. In a new tokenizer the letters are pieces.
    tokenizer = _word_pieces(blank.get_vocab(), lowercase)
    words = _word_uses(texts, lowercase)
    # Single letters last: words whose pieces were removed are split into letters.
    for longer_than in (1, 0):
        tokenizer = _without_rare(tokenizer, words, lowercase, longer_than)
    return tokenizer


def _word_pieces(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _word_uses(texts: list[str], lowercase: bool) -> dict[str, int]:
    """Count the occurrences of each word, up to `FEWEST_USES`."""
    uses: dict[str, int] = {}
    for count in range(1, FEWEST_USES + 1):
        # Much faster than a Python loop over words.
        words = _trained_words(texts, MOST_WORDS, lowercase, count, [])
        uses |= dict.fromkeys(words.get_vocab(), count)
    return uses


def _trained_words(
    texts: list[str], vocabulary: int, lowercase: bool, uses: int, special: list[str]
) -> Tokenizer:
    """Create a tokenizer of the most frequent words with at least `uses` occurrences."""
    tokenizer = _word_pieces({}, lowercase)
    tokenizer.model = models.WordLevel(unk_token=UNKNOWN)
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocabulary, min_frequency=uses, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _without_rare(
    tokenizer: Tokenizer, words: dict[str, int], lowercase: bool, longer_than: int
) -> Tokenizer:
    """Remove rare pieces with more than `longer_than` letters.

    Removal changes how words are split, so it is repeated until all pieces are frequent.
    """
    while True:
        uses: Counter[str] = Counter()
        for encoded, count in zip(tokenizer.encode_batch(list(words)), words.values(), strict=True):
            for piece in encoded.tokens:
                uses[piece] += count
        pieces = tokenizer.get_vocab()
        kept = [
            piece
            for piece in sorted(pieces, key=pieces.__getitem__)
            if piece in (PADDING, UNKNOWN)
            or uses[piece] >= FEWEST_USES
            or len(piece.removeprefix("##")) <= longer_than
        ]
        if len(kept) == len(pieces):
            return tokenizer
        tokenizer = _word_pieces({piece: number for number, piece in enumerate(kept)}, lowercase)
