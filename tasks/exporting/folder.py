"""The folder of an export: all files are written elsewhere, checked, and then moved there."""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tasks
from tasks.errors import InputError
from tasks.exporting import onnx_model, program, weights
from tasks.exporting.agreement import Agreement, batches_of, check_agreement
from tasks.exporting.deployable import (
    Deployable,
    exported_program,
    fewest_steps,
    folded,
    model_inputs,
    traceable,
)
from tasks.exporting.examples import checked_examples, random_inputs
from tasks.exporting.metadata import TOKENIZER, metadata, tokenizer_text
from tasks.exporting.model_card import CARD, model_card, origin_of
from tasks.inference.opening import checkpoint_file, read_content
from tasks.inference.predictor import Predictor

log = logging.getLogger(__name__)

PREPROCESSOR = "preprocessor_config.json"
# All files that an export may write.
FILES = (
    *(CARD, onnx_model.FILE, program.FILE, weights.WEIGHTS, weights.CONFIG),
    *(PREPROCESSOR, TOKENIZER),
)


def export(
    checkpoint: str | Path,
    kind: str,
    out: Path,
    given: Sequence[str] = (),
    license_id: str | None = None,
    trusted: Collection[str] = (),
) -> Agreement | None:
    """Export a checkpoint into a folder.

    Args:
        checkpoint: A checkpoint, the folder of a run, or an http(s) address.
        kind: `onnx`, `pt2`, `safetensors` or `hf`.
        out: The folder; files of an earlier export in it are replaced.
        given: Files, folders or patterns of inputs to check the export on; by default the run's
            validation examples.
        license_id: Identifier of the license of the weights, for the model card.
        trusted: Import paths that may be imported where the checkpoint names them.

    Returns:
        Result of the check of the exported model; None if only weights are exported.

    Raises:
        InputError: The checkpoint or the folder cannot be used, the model cannot be exported, or
            the exported model gives other logits; nothing is left behind.
    """
    check_folder(out)
    predictor = tasks.load(checkpoint, trusted=trusted)
    origin = origin_of(checkpoint, predictor)
    with replaced(out) as folder:
        files: dict[str, str] = {}
        agreement = None
        if kind == "safetensors":
            inputs = model_inputs(predictor, random_inputs(predictor))
            facts = metadata(predictor, inputs, {}, 1)
        else:
            graph = Graph(predictor, given)
            facts = graph.metadata
            if kind == "pt2":
                agreement = graph.write_program(folder / program.FILE)
                files[program.FILE] = "graph and weights, for `torch.export.load`"
            else:
                agreement = _write_onnx(graph, folder, files, needed=kind == "onnx")
        if kind in ("safetensors", "hf"):
            content = read_content(checkpoint_file(checkpoint))
            weights.write_weights(content, predictor.facts["validation"], facts, folder)
            files[weights.WEIGHTS] = "weights as trained, for `tasks.load` and other programs"
            files[weights.CONFIG] = "classes, preprocessing and configuration of the run"
        if kind == "hf" and predictor.kind in ("image", "audio"):
            (folder / PREPROCESSOR).write_text(json.dumps(facts["preprocessing"], indent=1) + "\n")
            files[PREPROCESSOR] = "preprocessing of inputs"
        tokenizer = tokenizer_text(predictor.data)
        if tokenizer is not None:
            (folder / TOKENIZER).write_text(tokenizer + "\n", encoding="utf-8")
            files[TOKENIZER] = "tokenizer, for `tokenizers.Tokenizer.from_file`"
        card = model_card(predictor, facts, origin, agreement, files, license_id)
        (folder / CARD).write_text(card, encoding="utf-8")
    return agreement


def _write_onnx(
    graph: "Graph", folder: Path, files: dict[str, str], needed: bool
) -> Agreement | None:
    file = folder / onnx_model.FILE
    try:
        agreement = graph.write_onnx(file)
    except InputError as error:
        if needed:
            raise
        # For the hub the weights are what counts.
        file.unlink(missing_ok=True)
        log.warning(f"the folder holds no {onnx_model.FILE}: {error}")
        return None
    files[onnx_model.FILE] = "graph and weights, for onnxruntime"
    return agreement


class Graph:
    """The recorded graph of a checkpoint's model, and the inputs that it is checked on.

    Args:
        predictor: The predictor of the checkpoint.
        given: Files, folders or patterns of inputs, if the user gave some.
    """

    def __init__(self, predictor: Predictor, given: Sequence[str]) -> None:
        self.predictor = predictor
        batch, self.examples = checked_examples(predictor, given)
        self.batch = batch
        self.inputs = model_inputs(predictor, batch)
        self.model = Deployable(predictor)
        self.arch = str(predictor.task.hparams.get("arch", type(predictor.task.model).__name__))
        example = traceable(batch)
        inner, unfolded = folded(self.model, example)
        self.program = exported_program(
            inner, self.model.arguments(example), self.inputs, self.arch
        )
        self.model.fewest_steps = fewest_steps(self.program, self.inputs)
        self.metadata = metadata(predictor, self.inputs, unfolded, self.model.fewest_steps)

    def write_program(self, file: Path) -> Agreement:
        """Write the graph as a PyTorch program and check it.

        Raises:
            InputError: It gives other logits.
        """
        program.write_program(self.program, self.metadata, file)
        return self._check(program.Program(file))

    def write_onnx(self, file: Path) -> Agreement:
        """Write the graph as ONNX and check it.

        Raises:
            InputError: It cannot be written as ONNX, or gives other logits.
        """
        onnx_model.write_onnx(self.program, self.inputs, self.metadata, file, self.arch)
        return self._check(onnx_model.OnnxModel(file))

    def _check(self, exported: Callable[..., Any]) -> Agreement:
        batches = batches_of(self.batch)
        return check_agreement(self.predictor, self.model, exported, batches, self.examples)


def check_folder(out: Path) -> None:
    """Check that an export can be written to a folder.

    Raises:
        InputError: It is a file, or holds files that are not of an export.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"OUT={out} is a file; give a folder")
    if not out.exists():
        return
    if others := sorted(one.name for one in out.iterdir() if one.name not in FILES):
        raise InputError(f"OUT={out} holds other files ({others[0]}); give a new folder")


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """Give a temporary folder, whose files replace those of `out` if no error is raised."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, since a rename is atomic only within one file system.
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield partial
        out.mkdir(exist_ok=True)
        for name in FILES:
            if (partial / name).exists():
                (partial / name).replace(out / name)
            else:
                (out / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
