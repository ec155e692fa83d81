"""Predictions of a trained model for new inputs.

`python -m tasks.predict --ckpt runs/vision-builtin-both-s0 --input photos` prints the class of each
image in a folder; `--out predictions.csv` writes the probabilities of all classes.
"""

import argparse
import io
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import tasks
from tasks.errors import InputError
from tasks.inference.inputs import Inputs
from tasks.inference.options import add_trust_option
from tasks.inference.outputs import (
    Columns,
    Lines,
    Row,
    Screen,
    Terminal,
    check_output,
    output_file,
)
from tasks.inference.predictor import Predictor
from tasks.inference.runs import required_checkpoint
from tasks.inference.tables import RawInput
from tasks.run.cores import usable_cores
from tasks.run.plain_text import printable
from tasks.run.process import error_exits, prepare_process

# Unreadable inputs that are named; a file of predictions names all.
NAMED = 10


class Tally:
    """Counts of predictions, for the summary."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = set(classes)
        self.count = self.read = self.sure = self.foreign = 0
        # Whether each labelled prediction is sure, and right.
        self.labelled: Counter[tuple[bool, bool]] = Counter()
        self.unreadable: list[str] = []

    def add(self, rows: Sequence[Row]) -> None:
        """Count rows."""
        self.count += len(rows)
        for row in rows:
            found = row.prediction
            if found is None:
                if len(self.unreadable) < NAMED:
                    self.unreadable.append(f"{row.raw.name}: {row.error}")
                continue
            self.read += 1
            self.sure += found.sure
            if row.raw.label in self.classes:
                self.labelled[found.sure, row.raw.label == found.label] += 1
            elif row.raw.label is not None:
                self.foreign += 1

    def summary(self) -> Iterator[str]:
        """Describe the counts, line by line."""
        unsure = f", {self.read - self.sure:,} of them not sure" if self.sure < self.read else ""
        yield f"predicted {self.read:,} of {self.count:,} inputs{unsure}"
        sure = {right: count for (sure, right), count in self.labelled.items() if sure}
        if count := self.labelled.total():
            right = self.labelled[True, True] + self.labelled[False, True]
            yield f"accuracy {100 * right / count:.2f} % on {count:,} labelled inputs"
            if 0 < sum(sure.values()) < count:
                part = 100 * sure.get(True, 0) / sum(sure.values())
                yield f"accuracy {part:.2f} % on the {sum(sure.values()):,} of them that are sure"
        if self.foreign:
            yield f"warning: the labels of {self.foreign:,} inputs are not classes of the model"
        if bad := self.count - self.read:
            yield f"warning: {bad:,} of {self.count:,} inputs could not be read:"
            yield from (f"  {printable(line)}" for line in self.unreadable)
            if bad > NAMED:
                yield f"  and {bad - NAMED:,} more; OUT=predictions.csv names all"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.predict",
        description="Predict the classes of new inputs with a trained model.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--ckpt", help="checkpoint, its http(s) address, or folder of a run or of runs [required]")
    add(
        "--input",
        nargs="+",
        default=[],
        action="extend",
        help="files, folders, quoted patterns, tables (.csv, .tsv, .json, .jsonl, .parquet), or - "
        "for standard input: a text or the path of a file in each line",
    )
    add("--text", action="append", default=[], help="a text to classify; may be repeated")
    add("--input-column", help="column of a table with the inputs [by type and name]")
    add("--label-column", help="column of a table with the labels [label, if it exists]")
    add("--out", type=Path, help="file to write: .csv, .jsonl or .parquet")
    add("--top", type=_whole, default=2, help="classes to show for each input [2]")
    add(
        "--mc",
        type=_whole,
        metavar="PASSES",
        help="Monte Carlo dropout: number of passes, such as 20 [off]",
    )
    add(
        "--temperature",
        type=_positive,
        help="temperature that divides the logits; 1 turns scaling off [fitted on validation data]",
    )
    add(
        "--threshold",
        type=_positive,
        help="entropy in nats above which the model is not sure [chosen on validation data]",
    )
    add("--device", help="cpu, cuda, cuda:1, ... [cuda if there is one]")
    add("--batch-size", type=_whole, default=64, help="inputs in memory at once [64]")
    add_trust_option(parser)
    return parser.parse_args(arguments)


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def in_batches(inputs: Iterable[RawInput], size: int) -> Iterator[list[RawInput]]:
    """Yield lists of `size` inputs; the last may be shorter."""
    left = iter(inputs)
    while batch := list(islice(left, size)):
        yield batch


def predicted(
    predictor: Predictor, batch: Sequence[RawInput], mc: int, pool: ThreadPoolExecutor
) -> list[Row]:
    """Decode and predict one batch; an input that cannot be classified has no prediction."""

    def decoded(raw: RawInput) -> Any:
        try:
            return predictor.decode(raw.value) if raw.error is None else InputError(raw.error)
        except InputError as error:
            return error

    found = list(pool.map(decoded, batch))
    readable = [one for one in found if not isinstance(one, InputError)]
    left = iter(predictor.predict(predictor.data.batch(readable), mc) if readable else [])

    def row(raw: RawInput, one: Any) -> Row:
        if isinstance(one, InputError):
            return Row(raw, None, str(one))
        prediction = next(left)
        # Without this check, such an input would get any class.
        if not math.isfinite(prediction.confidence):
            return Row(raw, None, "the model returns NaN for it; check its numbers")
        return Row(raw, prediction)

    return [row(raw, one) for raw, one in zip(batch, found, strict=True)]


def rows_of(predictor: Predictor, inputs: Inputs, size: int, mc: int) -> Iterator[list[Row]]:
    """Predict all inputs, with a progress bar on a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("Predicting"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with ThreadPoolExecutor(usable_cores()) as pool, bar:
        step = bar.add_task("", total=inputs.total)
        for batch in in_batches(inputs, size):
            yield predicted(predictor, batch, mc, pool)
            bar.advance(step, len(batch))


def predict(options: argparse.Namespace) -> None:
    """Predict all inputs, batch by batch, and write and show the results.

    Raises:
        InputError: The checkpoint or an option cannot be used, or no input can be read.
    """
    checkpoint = required_checkpoint(options.ckpt)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    predictor = tasks.load(checkpoint, device=device, trusted=tuple(options.trust))
    if options.temperature:
        predictor.temperature = predictor.mc_temperature = options.temperature
    if options.threshold is not None:
        predictor.threshold = predictor.mc_threshold = options.threshold
    inputs = Inputs(
        options.input, predictor.kind, options.text, options.input_column, options.label_column
    )
    columns = Columns(
        predictor.classes, predictor.kind == "text", inputs.labelled, options.mc is not None
    )
    if options.out:
        check_output(options.out, inputs.files)
    if sys.stdout.isatty():
        screen: Screen = Terminal(columns, options.top, saved=options.out is not None)
    else:
        screen = Lines(columns, options.top)
    tally = Tally(predictor.classes)
    with ExitStack() as opened:
        writer = opened.enter_context(output_file(options.out, columns)) if options.out else None
        try:
            for rows in rows_of(predictor, inputs, options.batch_size, options.mc or 0):
                tally.add(rows)
                if writer is not None:
                    writer.write(rows)
                screen.show(rows)
                if screen.closed and writer is None:
                    return
        finally:
            screen.close()
        if not tally.count:
            raise InputError(f"INPUT={' '.join(options.input)}: there is no input in it")
        if not tally.read:
            raise InputError(
                f"none of {tally.count:,} inputs could be read; the first is {tally.unreadable[0]}"
            )
    for line in tally.summary():
        print(line, file=sys.stderr)
    if options.out:
        print(f"predictions in {options.out}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error that the user can fix is one line and exit code 2."""
    with error_exits():
        prepare_process()
        options = parse(arguments)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A name of a class that the terminal's encoding does not have is escaped.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            predict(options)
        except KeyboardInterrupt as error:
            print("; ".join(("interrupted", *map(str, error.args))), file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
