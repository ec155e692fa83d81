"""Measure how many test examples of the recorded studies the searches for their rates had read.

`python docs/overlap.py ../shared/data` reads the movie reviews (`mr`) and SST-2 (`sst2`). When
those runs were made, each seed held out test examples of its own: the search, with seed 100,
trained or validated on most of what the seeds 0 to 4 tested.
"""

import re
import sys

from tasks.nlp import Data
from tasks.sources import Source, label_ids
from tasks.splits import stratified_order

SEARCH, SEEDS, FRACTION = 100, range(5), 0.1


def read(folder: str) -> Source:
    """Read a data set as the runs did."""
    return Data(source=folder).read()


def plain(text: object) -> str:
    """Leave only the letters and digits, which the two data sets write alike."""
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
