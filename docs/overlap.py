"""Count the test examples of recorded studies that the searches for their rates had used.

`PYTHONPATH=. python docs/overlap.py ../shared/data` reads the movie reviews (`mr`) and SST-2
(`sst2`). In those runs each seed held out its own test examples: the search, with seed 100, trained
or validated on most of the test examples of seeds 0 to 4.
"""

import re
import sys

from tasks.data.labels import label_ids
from tasks.data.loading import Source
from tasks.data.splits import stratified_order
from tasks.nlp import Data

SEARCH, SEEDS, FRACTION = 100, range(5), 0.1


def read(folder: str) -> Source:
    """Read a data set as in the runs."""
    return Data(source=folder).read()


def plain(text: object) -> str:
    """Keep letters and digits only; the two data sets differ in the rest."""
    return re.sub(r"[^a-z0-9]", "", str(text).lower())


def main(folder: str) -> None:
    """Print the fractions."""
    reviews = read(f"{folder}/mr")
    labels = label_ids(reviews)[0]["train"]
    size = round(FRACTION * len(labels))
    searched = set(stratified_order(labels, SEARCH)[size:].tolist())
    for seed in SEEDS:
        tested = stratified_order(labels, seed)[:size].tolist()
        known = sum(index in searched for index in tested)
        print(f"mr, seed {seed}: {known} of {size} test examples, {100 * known / size:.1f} %")
    texts = reviews.splits["train"].inputs
    known_texts = {plain(texts[index]) for index in searched}
    sentences = read(f"{folder}/sst2").splits["test"].inputs
    known = sum(plain(sentence) in known_texts for sentence in sentences)
    print(f"sst2: {known} of {len(sentences)} test examples, {100 * known / len(sentences):.1f} %")


if __name__ == "__main__":
    main(sys.argv[1])
