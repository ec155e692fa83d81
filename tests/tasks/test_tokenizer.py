"""The tokenizer trained on the training texts."""

import random
from collections import Counter

import pytest

from tasks.nlp.tokenizer import _word_uses, train_tokenizer


def sentences(seed: int, count: int = 60) -> list[str]:
    """Texts whose words have common stems, with some rare letters."""
    rng = random.Random(seed)
    stems = ["play", "low", "Test", "règl", "быстр", "x"]
    endings = ["", "ed", "er", "est", "ing", "s", "ß", "7", "-", "!?"]
    words = [
        rng.choice(stems) + rng.choice(endings) + rng.choice(endings) for _ in range(3 * count)
    ]
    return [" ".join(words[3 * n : 3 * n + 3]) + chr(0x4E00 + n) for n in range(count)]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("vocabulary", [100, 1000])
@pytest.mark.parametrize("tokens", ["pieces", "words"])
def test_each_token_occurs_at_least_twice_in_the_training_texts(tokens, vocabulary, lowercase):
    texts = sentences(seed=vocabulary)
    tokenizer = train_tokenizer(texts, vocabulary, lowercase, tokens)
    assert tokenizer.get_vocab_size() <= vocabulary
    uses = Counter(piece for text in texts for piece in tokenizer.encode(text).tokens)
    pieces = set(tokenizer.get_vocab()) - {"[PAD]", "[UNK]"}
    assert len(pieces) > 10
    assert {piece: uses[piece] for piece in pieces if uses[piece] < 2} == {}
    # Words that occur once become unknown, so that this embedding is trained too.
    assert uses["[UNK]"] >= 2


def test_a_rare_word_is_spelled_with_frequent_pieces():
    texts = ["play plays", "play player", "plays low lower", "slower slow slows"]
    tokens = train_tokenizer(texts, 1000, lowercase=True).encode("player").tokens
    assert tokens[0] == "play"
    assert "".join(token.removeprefix("##") for token in tokens) == "player"


def test_uses_of_words_are_counted_up_to_two():
    uses = _word_uses(["a b, a c", "A d!", "b b b"], lowercase=True)
    assert uses == {"a": 2, "b": 2, ",": 1, "c": 1, "d": 1, "!": 1}


def test_words_stay_whole_and_rare_ones_are_unknown():
    tokenizer = train_tokenizer(["a b", "A c!", "play", "play b"], 100, True, tokens="words")
    assert tokenizer.encode("Play a c!").tokens == ["play", "a", "[UNK]", "[UNK]"]
    assert [tokenizer.token_to_id(token) for token in ("[PAD]", "[UNK]")] == [0, 1]
