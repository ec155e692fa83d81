"""Language identification on the names that `babel` carries: a data set that needs no download.

The Unicode CLDR translates the names of territories, languages, scripts, currencies, units, months
and days. Given two such names, say which language they are in. The names are short, many of the
languages are close to each other, and there are few examples of each, so models overfit.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import islice

from babel import Locale

# Written in the Latin script, and mostly with a near relative in the list.
LANGUAGES: tuple[str, ...] = (
    "af", "ca", "cs", "da", "de", "es", "et", "fi", "gl", "hr",
    "id", "it", "ms", "nb", "nl", "pt", "ro", "sk", "sl", "sv",
)  # fmt: skip

# Examples of each language, so that every split is balanced.
SIZES: dict[str, int] = {"train": 250, "validation": 40, "test": 50}


def names() -> dict[str, tuple[list[str], list[int]]]:
    """Returns the texts and labels of the splits "train", "validation" and "test".

    A text is two names with a comma between, and a label an index into `LANGUAGES`. The names of
    one entity (a territory, its languages and its currencies) are all in one split, so the entities
    of a test were not seen in training. A name that several languages share, or that is plain
    English, is in no split, and no name is in two, upper and lower case taken as the same. Every
    call returns the same examples, as long as the version of babel is the same.
    """
    splits = _splits()
    return {split: (list(texts), list(labels)) for split, (texts, labels) in splits.items()}


@cache
def _splits() -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    english = {text.casefold() for _, text in _entries("en")}
    entries = {code: list(_entries(code)) for code in LANGUAGES}
    # Untranslated names are English; they and shared names have no single right label.
    users = Counter(name for rows in entries.values() for name in {t.casefold() for _, t in rows})

    generator = random.Random(0)
    entities = sorted({entity for rows in entries.values() for entity, _ in rows})
    share = [SIZES[split] for split in SIZES]
    # Drawn with the odds of the split sizes, so that all splits have the same kinds of names.
    home = {entity: generator.choices(list(SIZES), share)[0] for entity in entities}

    examples: dict[str, list[tuple[str, int]]] = {split: [] for split in SIZES}
    for label, code in enumerate(LANGUAGES):
        pools: dict[str, list[str]] = defaultdict(list)
        seen: set[str] = set()
        for entity, text in entries[code]:
            name = text.casefold()
            if users[name] == 1 and name not in english and name not in seen:
                seen.add(name)
                pools[home[entity]].append(text)
        for split, size in SIZES.items():
            pairs = islice(_pairs(pools[split], generator), size)
            examples[split] += [(f"{first}, {second}", label) for first, second in pairs]

    splits = {}
    for split, rows in examples.items():
        generator.shuffle(rows)
        splits[split] = (tuple(text for text, _ in rows), tuple(label for _, label in rows))
    return splits


def _pairs(pool: list[str], generator: random.Random) -> Iterator[tuple[str, str]]:
    """Yields new pairs without end; every name comes once before any comes again.

    One name alone is often too little to tell close languages apart, even for a reader of both.
    """
    seen: set[tuple[str, str]] = set()
    while True:
        deck = generator.sample(pool, len(pool))
        for pair in zip(deck[::2], deck[1::2], strict=False):
            if pair not in seen:
                seen.add(pair)
                yield pair


def _entries(code: str) -> Iterator[tuple[str, str]]:
    """Yields the entity and the name of everything that a language has a word for.

    The first two letters of a CLDR code join what belongs together: FR, fr, fr_CA and FRF.
    """
    locale = Locale.parse(code)
    for table in (locale.territories, locale.languages, locale.scripts, locale.currencies):
        for key in sorted(table):
            text = " ".join(table[key].split())
            # Digits and single letters say nothing about a language.
            if len(text) > 2 and text.upper() != key and not text.isnumeric():
                yield key[:2].upper(), text
    for kind, calendar in (("month", locale.months), ("day", locale.days)):
        for context in ("format", "stand-alone"):
            for number, text in sorted(calendar[context]["wide"].items()):
                yield f"{kind} {number}", text
    for unit, forms in sorted(locale.unit_display_names.items()):
        if "long" in forms:
            yield f"unit {unit}", forms["long"]
