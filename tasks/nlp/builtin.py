"""Language identification from names in `babel`: a data set that needs no download.

The Unicode CLDR translates the names of territories, languages, scripts, currencies, units, months
and days. The input is two such names, and the label is their language. The names are short, many
languages are closely related, and there are few examples of each, so models overfit.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import islice

from babel import Locale

# Languages in the Latin script; most have a close relative in the list.
LANGUAGES: tuple[str, ...] = (
    "af", "ca", "cs", "da", "de", "es", "et", "fi", "gl", "hr",
    "id", "it", "ms", "nb", "nl", "pt", "ro", "sk", "sl", "sv",
)  # fmt: skip

# Number of examples per language in each split.
SIZES: dict[str, int] = {"train": 250, "validation": 40, "test": 50}


def names() -> dict[str, tuple[list[str], list[int]]]:
    """Return the texts and labels of the splits "train", "validation" and "test".

    A text is two names separated by a comma; a label is an index into `LANGUAGES`. All names of one
    entity (a territory, its languages and its currencies) are in one split, so that no entity of
    the test occurs in training. Names that occur in several languages or in English are left out,
    and no name is in two splits; case is ignored. Every call returns the same examples for one
    version of babel.
    """
    splits = _splits()
    return {split: (list(texts), list(labels)) for split, (texts, labels) in splits.items()}


@cache
def _splits() -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    english = {text.casefold() for _, text in _entries("en")}
    entries = {code: list(_entries(code)) for code in LANGUAGES}
    # Untranslated names are English. These and names of several languages have no unique label.
    users = Counter(name for rows in entries.values() for name in {t.casefold() for _, t in rows})

    generator = random.Random(0)
    entities = sorted({entity for rows in entries.values() for entity, _ in rows})
    sizes = list(SIZES.values())
    # Drawn in proportion to the split sizes, so that all splits have the same kinds of names.
    home = {entity: generator.choices(list(SIZES), sizes)[0] for entity in entities}

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
    """Yield distinct pairs, endlessly; every name is used once before any is used again.

    A single name is often not enough to distinguish related languages, even for a speaker of both.
    """
    seen: set[tuple[str, str]] = set()
    while True:
        deck = generator.sample(pool, len(pool))
        for pair in zip(deck[::2], deck[1::2], strict=False):
            if pair not in seen:
                seen.add(pair)
                yield pair


def _entries(code: str) -> Iterator[tuple[str, str]]:
    """Yield the entity and the name of all CLDR entries of a language.

    An entity is the first two letters of a CLDR code: FR, fr, fr_CA and FRF are one entity.
    """
    locale = Locale.parse(code)
    for table in (locale.territories, locale.languages, locale.scripts, locale.currencies):
        for key in sorted(table):
            text = " ".join(table[key].split())
            # Codes, digits and very short names do not depend on the language.
            if len(text) > 2 and text.upper() != key and not text.isnumeric():
                yield key[:2].upper(), text
    for kind, calendar in (("month", locale.months), ("day", locale.days)):
        for context in ("format", "stand-alone"):
            for number, text in sorted(calendar[context]["wide"].items()):
                yield f"{kind} {number}", text
    for unit, forms in sorted(locale.unit_display_names.items()):
        if "long" in forms:
            yield f"unit {unit}", forms["long"]
