"""Models of transformers in a local folder: images, sound and text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import tasks
from regain import Dropout, Regularization
from tasks.errors import InputError
from tasks.nlp import Task as TextTask
from tasks.speech import Task as SpeechTask
from tasks.speech.data import SpeechSpec
from tasks.vision import Task
from tasks.vision.data import VisionSpec

Train = Callable[..., None]
Data = Callable[..., Path]

CLASSES = ["a", "b", "c"]
COLOUR = VisionSpec(CLASSES, [3, 12, 12], [90.0, 100.0, 110.0], [50.0, 60.0, 70.0], True)
SHORT = (
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"),
    *("--trainer.limit_test_batches=1", "--data.batch_size=16"),
)


SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (10, 8, 4),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "num_feat_extract_layers": 3,
}
WORDS = ["[PAD]", "[UNK]", *"one two three four five six red blue green".split()]


def folder(model: Any, processor: Any = None) -> str:
    model.save_pretrained("library")
    torch.save(model.state_dict(), "library/stock.pt")
    if processor is not None:
        processor.save_pretrained("library")
    return "library"


def vit() -> str:
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=5)
    processor = transformers.ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    return folder(transformers.ViTForImageClassification(config), processor)


def resnet() -> str:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5, layer_type="basic"
    )
    return folder(transformers.ResNetForImageClassification(config))


def wav2vec2(norm: str = "layer") -> str:
    config = transformers.Wav2Vec2Config(
        **SMALL, **CONVOLUTIONS, feat_extract_norm=norm, num_labels=5
    )
    return folder(
        transformers.Wav2Vec2ForSequenceClassification(config),
        transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000),
    )


def hubert() -> str:
    config = transformers.HubertConfig(**SMALL, **CONVOLUTIONS, num_labels=5)
    return folder(transformers.HubertForSequenceClassification(config))


def spectrogram_transformer() -> str:
    config = transformers.ASTConfig(
        **SMALL, max_length=32, num_mel_bins=16, patch_size=8, num_labels=5
    )
    config.frequency_stride = config.time_stride = 8
    return folder(
        transformers.ASTForAudioClassification(config),
        transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=32, mean=-3.0, std=2.0),
    )


def bert() -> str:
    config = transformers.BertConfig(
        **SMALL, vocab_size=len(WORDS), max_position_embeddings=40, pad_token_id=0
    )
    tokenizer = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=40
    )
    return folder(transformers.BertModel(config), fast)


HUB = [
    ("vision", vit, "vit.", "network"),
    ("vision", resnet, "resnet.", "network"),
    ("speech", wav2vec2, "wav2vec2.", "network"),
    ("speech", hubert, "hubert.", "network"),
    ("speech", spectrogram_transformer, "audio_spectrogram_transformer.", "network"),
    ("nlp", bert, "encoder.", "encoder"),
]
TASKS: dict[str, Any] = {"vision": Task, "speech": SpeechTask, "nlp": TextTask}


@pytest.mark.parametrize("pretrained", ["null", "true", "folder"])
@pytest.mark.parametrize(("task", "make", "body", "place"), HUB, ids=lambda value: str(value)[:20])
def test_a_model_of_a_folder_trains(
    task: str,
    make: Callable[[], str],
    body: str,
    place: str,
    pretrained: str,
    train: Train,
    small_data: Data,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Not the seed of the run.
    torch.manual_seed(6)
    name = make()
    train(
        *("--task", task, "--data", str(small_data(task)), "--reg", "none", *SHORT),
        *(f"--model.arch=hf/{name}", "--model.optim.lr=1e-12", "--trainer.precision=32"),
        *(f"--model.pretrained={name if pretrained == 'folder' else pretrained}",),
        *("--model.reg.dropout=0.1",),
    )
    opened = TASKS[task].load_from_checkpoint("run/best.ckpt")
    here = getattr(opened.model, place).state_dict()
    stored = torch.load("library/stock.pt")
    names = [key for key in stored if key.startswith(body) and "pooler" not in key]
    # The learning rate moves nothing.
    same = [torch.allclose(here[key], stored[key], atol=1e-6) for key in names if "norm" not in key]
    assert len(same) > 10 or task == "vision"
    assert all(same) == (pretrained != "null")
    # A checkpoint needs no folder and no hub.
    picture = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    clip = (np.sin(np.arange(4000) / 5), 16_000)
    raw = {"vision": picture, "speech": clip, "nlp": "one two red"}[task]
    wanted = tasks.load("run")(raw)
    Path("library").rename("moved")
    monkeypatch.setattr("tasks.model_libraries.reachable", lambda address: pytest.fail(address))
    assert tasks.load("run")(raw) == wanted
    with torch.no_grad():
        batch = tasks.load("run").encode([raw])
        assert torch.equal(tasks.load("run").task(batch.inputs), opened.eval()(batch.inputs))


def test_an_image_model_of_a_folder_gets_its_own_normalization() -> None:
    task = Task(COLOUR, arch=f"hf/{vit()}", pretrained=True).eval()
    processor = transformers.ViTImageProcessor.from_pretrained("library")
    stock = transformers.ViTForImageClassification.from_pretrained("library").eval()
    batch = torch.randint(0, 256, (2, 3, 8, 8)).byte()
    wanted = stock.vit(**processor(batch, return_tensors="pt")).last_hidden_state
    seen: list[Any] = []
    task.model.network.vit.register_forward_hook(lambda *call: seen.append(call[2]))
    task(batch)
    torch.testing.assert_close(seen[0].last_hidden_state, wanted, rtol=1e-4, atol=1e-5)


def test_a_clip_has_the_same_logits_alone_and_padded() -> None:
    task = SpeechTask(SpeechSpec(CLASSES, 16_000), arch=f"hf/{wav2vec2()}").eval()
    clips = (torch.randn(2, 4000) * 3000).to(torch.int16)
    clips[1, 2500:] = 0
    with torch.no_grad():
        together = task(clips, torch.tensor([4000, 2500]))
        alone = task(clips[1:, :2500])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    # And it is not so without a mask, which a model with the other norm was trained without.
    assert (task(clips)[1:] - alone).abs().max() > 1e-4


def test_a_spectrogram_model_gets_the_features_of_its_own_extractor() -> None:
    name = spectrogram_transformer()
    task = SpeechTask(SpeechSpec(CLASSES, 16_000), arch=f"hf/{name}", pretrained=True).eval()
    extractor = transformers.ASTFeatureExtractor.from_pretrained(name)
    clips = torch.randn(2, 4000) / 10
    lengths = torch.tensor([4000, 2500])
    wanted = extractor(
        [clip[:count].numpy() for clip, count in zip(clips, lengths, strict=True)],
        sampling_rate=16_000,
        return_tensors="pt",
    )["input_values"]
    seen: list[Tensor] = []
    task.model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task(clips, lengths)
    torch.testing.assert_close(seen[0], wanted, rtol=1e-4, atol=1e-4)


def test_a_clip_shorter_than_a_frame_is_one_frame() -> None:
    name = spectrogram_transformer()
    task = SpeechTask(SpeechSpec(CLASSES, 16_000), arch=f"hf/{name}", pretrained=True).eval()
    clips = torch.zeros(2, 4000)
    clips[:, :100] = torch.randn(100) / 10
    beside = task(clips, torch.tensor([100, 4000]))[:1]
    torch.testing.assert_close(task(clips[:1, :100]), beside)
    assert not torch.allclose(task(clips[:1, 100:200]), beside)


def test_a_model_for_other_inputs_is_refused() -> None:
    spec = SpeechSpec(CLASSES, 8000)
    with pytest.raises(InputError, match=r"trained at 16000 .* give --data.sample_rate=16000"):
        SpeechTask(spec, arch=f"hf/{wav2vec2()}", pretrained=True)
    with pytest.raises(InputError, match="hf/library"):
        Task(COLOUR, arch="hf/library")
    with pytest.raises(InputError, match=r"model.options.hiden_size is no value of the config"):
        SpeechTask(spec, arch="hf/library", options={"hiden_size": 3})


def test_the_dropouts_of_a_model_of_a_folder_are_set() -> None:
    spec = SpeechSpec(CLASSES, 16_000)
    reg = Regularization(dropout=0.3)
    network: Any = SpeechTask(spec, arch=f"hf/{wav2vec2()}", reg=reg).model.network
    rates = {layer.p for layer in network.modules() if isinstance(layer, nn.Dropout | Dropout)}
    assert rates == {0.3}
    network = SpeechTask(spec, arch="hf/library").model.network
    assert {layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)} == {0.0}
    assert not network.config.apply_spec_augment
