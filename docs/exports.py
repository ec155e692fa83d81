"""Export of each model with random weights, and the difference of its logits: docs/use.md.

`PYTHONPATH=. python docs/exports.py` prints the rows of the table "Models". It needs the extras
`export` and `timm`.
"""

import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from regain import Regularization
from tasks.data import Batch
from tasks.errors import InputError
from tasks.exporting import onnx_model, program
from tasks.exporting.agreement import batches_of, check_agreement
from tasks.exporting.deployable import (
    Deployable,
    exported_program,
    fewest_steps,
    folded,
    model_inputs,
)
from tasks.nlp import Task as TextTask
from tasks.nlp.data import TextSpec
from tasks.speech import Task as SpeechTask
from tasks.speech.data import SpeechSpec
from tasks.vision import Task as VisionTask
from tasks.vision.data import VisionSpec

CLASSES = ["a", "b", "c"]
BOTH = Regularization(normalization="batch", dropout=0.2)
TASKS: dict[str, Any] = {"image": VisionTask, "audio": SpeechTask, "text": TextTask}
SPECS = {
    "image": VisionSpec(
        CLASSES, [3, 32, 32], [120.0] * 3, [60.0] * 3, True, torch.eye(12).tolist()
    ),
    "audio": SpeechSpec(CLASSES, 16_000),
    "text": TextSpec(CLASSES, 500, 0, 1, [0], 64),
}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
BERT = {**SMALL, "vocab_size": 500, "max_position_embeddings": 80}
WAVES = {**SMALL, "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2)}
# Models of libraries; those of transformers are small ones of their families.
LIBRARIES: list[tuple[str, str, Any]] = [
    ("image", "timm/resnet18", None),
    ("image", "timm/vit_tiny_patch16_224", None),
    ("image", "timm/convnext_atto", None),
    ("image", "timm/efficientnet_b0", None),
    ("image", "torchvision/resnet18", None),
    ("image", "torchvision/mobilenet_v3_small", None),
    ("image", "torchvision/vit_b_32", None),
    ("image", "hf/vit", transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)),
    ("image", "hf/resnet", transformers.ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1])),
    ("audio", "hf/wav2vec2", transformers.Wav2Vec2Config(**WAVES, num_feat_extract_layers=2)),
    ("audio", "hf/hubert", transformers.HubertConfig(**WAVES, num_feat_extract_layers=2)),
    ("audio", "hf/audio_spectrogram_transformer", transformers.ASTConfig(**SMALL, max_length=64)),
    ("text", "hf/bert", transformers.BertConfig(**BERT)),
    ("text", "hf/roberta", transformers.RobertaConfig(**BERT)),
    ("text", "hf/distilbert", transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4)),
    ("text", "hf/albert", transformers.AlbertConfig(**BERT, embedding_size=16)),
    ("text", "hf/modernbert", transformers.ModernBertConfig(**SMALL, vocab_size=500)),
    ("text", "hf/deberta_v2", transformers.DebertaV2Config(**BERT)),
    ("text", "hf/mpnet", transformers.MPNetConfig(**BERT)),
    ("text", "hf/gpt2", transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4)),
]


def examples(kind: str) -> Batch:
    """Return eight random examples, of several lengths."""
    unused = torch.zeros(8, dtype=torch.int64)
    if kind == "image":
        return Batch(torch.randint(0, 256, (8, 3, 32, 32)).byte(), unused, unused)
    longest = 16_000 if kind == "audio" else 40
    lengths = torch.linspace(longest // 4, longest, 8).long()
    if kind == "audio":
        inputs = torch.randint(-3000, 3000, (8, longest)).to(torch.int16)
    else:
        inputs = torch.randint(1, 500, (8, longest)).int()
    inputs[torch.arange(longest) >= lengths.unsqueeze(1)] = 0
    return Batch(inputs, unused, unused, lengths)


def differences(kind: str, arch: str, folder: Path, reg: Regularization) -> list[str]:
    """Return the difference of ONNX and of the PyTorch program, or why there is none."""
    torch.manual_seed(0)
    task = TASKS[kind](SPECS[kind], arch, reg=reg).eval()
    data = SimpleNamespace(padding=0)
    predictor: Any = SimpleNamespace(task=task, temperature=1.0, kind=kind, data=data)
    batch, model = examples(kind), Deployable(predictor)
    inputs = model_inputs(predictor, batch)
    graph = exported_program(folded(model, batch)[0], model.arguments(batch), inputs, arch)
    model.fewest_steps = fewest_steps(graph, inputs)
    found = []
    for name in ("onnx", "pt2"):
        file = folder / f"model.{name}"
        try:
            if name == "onnx":
                onnx_model.write_onnx(graph, inputs, {}, file, arch)
                exported: Any = onnx_model.OnnxModel(file)
            else:
                program.write_program(graph, {}, file)
                exported = program.Program(file)
            one = check_agreement(predictor, model, exported, batches_of(batch), "random inputs")
            found.append(f"{one.difference:.0e}")
        except InputError as error:
            found.append(f"no: {error}")
    return found


def main() -> None:
    """Print one row for each model."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    own = [(kind, arch, None) for kind, task in TASKS.items() for arch in task.models.names()]
    for kind, arch, config in own + LIBRARIES:
        with tempfile.TemporaryDirectory() as folder:
            named, reg = arch, Regularization() if "/" in arch else BOTH
            if config is not None:
                config.save_pretrained(folder)
                named = f"hf/{folder}"
            found = differences(kind, named, Path(folder), reg)
        print(f"| `{arch}` | {kind} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
