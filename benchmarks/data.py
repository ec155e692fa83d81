"""Our batches against the usual pipelines of torchvision and torchaudio, and padding of texts."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchaudio.transforms import FrequencyMasking, MelSpectrogram, TimeMasking
from torchvision.datasets import VisionDataset
from torchvision.transforms import v2

from benchmarks.measure import Row, compare
from regain import AudioAugmentation, ImageAugmentation
from tasks.data import Batches, Examples
from tasks.nlp.data import TextData
from tasks.speech.data import SpeechSpec
from tasks.speech.models import LogMel
from tasks.vision.data import VisionSpec
from tasks.vision.models import Standardize

BATCH = 128
IMAGES, CLIPS = 5_000, 600
RATE = 16_000
MEAN, STD = [125.3, 123.0, 113.9], [63.0, 62.1, 66.7]


class Pictures(VisionDataset):
    """Images as in `torchvision.datasets.CIFAR10`: one by one, through Pillow."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: nn.Module) -> None:
        super().__init__(root=".", transform=transform)
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.transform is not None
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Clips(Dataset[tuple[Tensor, int]]):
    """Clips read from files, with log-mel spectrograms computed and masked one by one."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.mel = MelSpectrogram(RATE, n_fft=512, win_length=480, hop_length=160, n_mels=40)
        self.masks = nn.Sequential(FrequencyMasking(8), TimeMasking(20))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        samples, _ = soundfile.read(self.files[index], dtype="float32")
        return self.masks((self.mel(torch.from_numpy(samples)) + 1e-6).log()), index % 10


def epoch(batches: Callable[[], Iterable[object]]) -> Callable[[], object]:
    """Return a function that iterates over all batches once."""

    def work() -> None:
        for _ in batches():
            pass

    return work


def images(count: int) -> Examples:
    """Make a split of `count` colour images of 32 x 32 pixels."""
    values = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    return Examples(values, None, torch.arange(count) % 10, torch.arange(count))


def vision_batches(split: Examples) -> Callable[[], Iterator[Tensor]]:
    """Return a function that makes our image batches, cropped, flipped and standardized."""
    names = [str(number) for number in range(10)]
    standardize = Standardize(VisionSpec(names, [3, 32, 32], MEAN, STD, True))
    augment = ImageAugmentation(crop=0.125, flip=0.5)
    batches = Batches(split, BATCH, seed=0)

    def make() -> Iterator[Tensor]:
        for batch in batches:
            changed, _ = augment(batch.inputs, batch.labels)
            yield standardize(changed)

    return make


def vision() -> list[Row]:
    """Images: crop, flip, standardize."""
    split = images(IMAGES)
    ours = epoch(vision_batches(split))
    usual = v2.Compose(
        [
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([mean / 255 for mean in MEAN], [std / 255 for std in STD]),
        ]
    )
    pictures = split.values.movedim(1, -1).contiguous().numpy()
    data = Pictures(pictures, split.labels.tolist(), usual)
    rows = []
    for workers in (0, 2):
        loader = DataLoader(
            data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        rows.append(
            compare(
                "a 32x32 image: crop, flip, standardize",
                f"torchvision and `DataLoader`, {workers or 'no'} workers",
                ours,
                epoch(lambda loader=loader: loader),
                1 / 10,
                rounds=7,
            )
        )
    return rows


def speech() -> list[Row]:
    """Audio: log-mel spectrograms with masked stripes."""
    samples = (torch.randn(CLIPS, RATE) * 3000).to(torch.int16)
    split = Examples(samples, None, torch.arange(CLIPS) % 10, torch.arange(CLIPS))
    names = [str(number) for number in range(10)]
    front = LogMel(SpeechSpec(names, RATE), AudioAugmentation(frequency_mask=8, time_mask=20))
    batches = Batches(split, BATCH, seed=0)

    def ours() -> Iterator[Tensor]:
        for batch in batches:
            yield front(batch.inputs, None)[0]

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.wav" for number in range(CLIPS)]
        for file, clip in zip(files, samples.numpy(), strict=True):
            soundfile.write(file, clip, RATE)
        rows = []
        for workers in (0, 2):
            loader = DataLoader(
                Clips(files),
                BATCH,
                shuffle=True,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
            rows.append(
                compare(
                    "a 1 s clip: log-mel, masked",
                    f"torchaudio and `DataLoader`, {workers or 'no'} workers",
                    epoch(ours),
                    epoch(lambda loader=loader: loader),
                    1 / 10,
                    "both compute an FFT per frame, which is most of our time",
                    rounds=7,
                )
            )
    return rows


def text() -> list[Row]:
    """Text: the fraction of padding, which takes as much time as words."""
    data = TextData()
    data.setup()
    split = data.splits["train"]
    lengths = split.lengths()
    assert lengths is not None

    def padding(orders: list[Tensor]) -> float:
        words = sum(int(lengths[one].sum()) for one in orders)
        return 1 - words / sum(int(lengths[one].max()) * len(one) for one in orders)

    ours = padding(Batches(split, BATCH, seed=0).order(0))
    shuffled = padding(list(torch.randperm(len(split)).split(BATCH)))
    fraction = f"{100 * ours:.1f} % of our batches is padding, target at most 10 %"
    note = f"{fraction}; {100 * shuffled:.1f} % of batches in random order"
    ratio = ours / shuffled
    return [
        Row(
            "fraction of padding, builtin texts",
            "batches in random order",
            ours,
            shuffled,
            *(ratio, ratio, ratio),
            None,
            note,
        )
    ]
