"""Images: handwritten digits, CIFAR, and any folder, file or hub data set with pictures."""

import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from tasks.data import ClassificationData, DataSpec
from tasks.data.loading import Rows, Source, encoded_input
from tasks.errors import InputError, first_line
from tasks.vision.pixels import pixel_array

CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


# Formats that Pillow decodes itself; for others it starts programs, such as Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
# Grey modes of Pillow, and those with 16 bits a pixel.
GREY = {"1", "L", "LA", "La"}
DEEP = {"I;16", "I;16B", "I;16L", "I;16N", "I"}
# Images whose patches are measured: 1,000 images of CIFAR hold about a million patches.
MEASURED = 1000
# Side of the largest image that a model is given.
LARGEST = 8192


@dataclass
class VisionSpec(DataSpec):
    """What a vision model must know of its data.

    Args:
        classes: Names of the classes.
        shape: (channels, height, width).
        mean: Mean of each channel over the training split, in [0, 255].
        std: Standard deviation of each channel, on the same scale.
        allow_flip: Whether a mirrored image keeps its class.
        patches: Covariance of patches of 2 x 2 standardized pixels, (4 channels, 4 channels); None
            in checkpoints of models that do not need it.
    """

    shape: list[int]
    mean: list[float]
    std: list[float]
    allow_flip: bool
    patches: list[list[float]] | None = None


class VisionData(ClassificationData):
    """Images of one size as bytes from 0 to 255, (batch, channels, height, width).

    Args:
        image_size: Height and width to scale images to; by default they are not scaled, and must
            all have one size.
        allow_flip: Whether a mirrored image keeps its class. Digits do not: with false, no
            augmentation mirrors them.
        **options: See `ClassificationData`.
    """

    kind: ClassVar[str] = "image"
    noun: ClassVar[str] = "image"

    def __init__(
        self, image_size: int | None = None, allow_flip: bool = True, **options: Any
    ) -> None:
        super().__init__(**options)
        if image_size is not None and not 1 <= image_size <= LARGEST:
            raise ValueError(f"image_size is at least 1 and at most {LARGEST}, not {image_size!r}")
        self.image_size = image_size
        self.allow_flip = allow_flip

    def decoding_options(self) -> dict[str, Any]:
        """Return the settings that the decoded inputs depend on."""
        return {"image_size": self.image_size}

    def read_layout(self, folder: Path) -> Source | None:
        """Read a folder that holds CIFAR as its authors pack it."""
        for name, inner in CIFAR_FOLDERS.items():
            if (folder / inner).is_dir():
                return read_cifar(name, folder)
        return None

    def decode(self, value: Any) -> Tensor:
        """Turn an array or an image, encoded or not, into a tensor (channels, height, width).

        Where a checkpoint has restored the shape of the training images, the image gets it.
        """
        if isinstance(value, np.ndarray):
            picture = Image.fromarray(value)
        else:
            # Rotated in place, and so a copy of an image of the caller.
            picture = upright(value.copy() if isinstance(value, Image.Image) else opened(value))
        if picture.mode in DEEP:
            picture = shallow(picture)
        elif picture.mode == "F":
            raise ValueError("its pixels are floating-point numbers; store them as 8 or 16 bits")
        channels, height, width = self.shape or (0, self.image_size or 0, self.image_size or 0)
        if picture.mode != "L":
            grey = picture.mode in GREY or channels == 1
            picture = picture.convert("L" if grey else "RGB")
        if height and picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(picture))
        if pixels.dim() == 2:
            return pixels.expand(channels or 1, -1, -1)
        return pixels.movedim(-1, 0).contiguous()

    def decode_input(self, value: Any) -> Tensor:
        """Decode a file, the bytes of one, a Pillow image, an array or a tensor.

        Raises:
            ValueError: It cannot be decoded; see `pixel_array` for arrays.
        """
        if isinstance(value, str | Path):
            value = {"path": str(value)}
        elif isinstance(value, bytes | bytearray):
            value = {"bytes": bytes(value)}
        elif isinstance(value, np.ndarray | Tensor):
            value = pixel_array(value)
        return self.decode(value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the shape of the training images.

        Raises:
            ValueError: It is not such a state.
        """
        super().load_state_dict(state_dict)
        if self.shape is not None and not (
            len(self.shape) == 3
            and self.shape[0] in (1, 3)
            and all(1 <= side <= LARGEST for side in self.shape[1:])
        ):
            raise ValueError(f"shape={self.shape} is not that of an image")

    def prepare(self) -> dict[str, Any]:
        """Decode the whole source; `opened` refuses large images, so Pillow need not warn."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return super().prepare()

    def arrange(self, decoded: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
        """Stack the images of each split, as RGB if any image is."""
        images = [image for split in decoded.values() for image in split]
        sizes = sorted({(image.shape[2], image.shape[1]) for image in images})
        if len(sizes) > 1:
            named = " and ".join(f"{width} x {height}" for width, height in sizes[:2])
            raise InputError(
                f"DATA={self.source}: images differ in size ({named}); "
                "give one with --data.image_size=32"
            )
        channels = max(len(image) for image in images)
        coloured = {
            split: [image.expand(channels, -1, -1) for image in split_images]
            for split, split_images in decoded.items()
        }
        return super().arrange(coloured)

    def spec(self) -> VisionSpec:
        """Return the shape, mean and standard deviation of the training images."""
        self.setup()
        train = self.splits["train"]
        # The moments of 10,000 images equal those of all to three digits.
        images = train.gather(torch.arange(min(len(train), 10_000))).inputs.float()
        mean, std = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)).clamp(min=1.0)
        shape = list(images.shape[1:])
        standard = (images[:MEASURED] - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        patches = patch_covariance(standard).tolist() if min(shape[1:]) > 1 else None
        return VisionSpec(
            self.classes, shape, mean.tolist(), std.tolist(), self.allow_flip, patches
        )

    def media(self, split: str, index: int) -> Image.Image:
        """Return the picture of one example."""
        pixels = self.splits[split].gather(torch.tensor([index])).inputs[0]
        # Pillow wants grey images without a channel dimension.
        return Image.fromarray(pixels.movedim(0, -1).squeeze(-1).numpy())


@VisionData.sources.register("builtin")
def builtin() -> Source:
    """Handwritten digits of scikit-learn: 1,797 images of 8 x 8 pixels from 13 writers.

    The images are in the order in which the writers wrote: the second half, the test split, is
    mostly by other writers than the first.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    half = len(images) // 2
    return Source(
        {
            "train": Rows(list(images[:half]), digits.target[:half].tolist()),
            "test": Rows(list(images[half:]), digits.target[half:].tolist()),
        },
        [str(name) for name in digits.target_names],
    )


@VisionData.sources.register("cifar10")
def cifar10(cache_dir: Path) -> Source:
    """CIFAR-10 (Krizhevsky 2009), downloaded by torchvision."""
    return read_cifar("cifar10", cache_dir / "torchvision", download=True)


@VisionData.sources.register("cifar100")
def cifar100(cache_dir: Path) -> Source:
    """CIFAR-100 (Krizhevsky 2009), downloaded by torchvision."""
    return read_cifar("cifar100", cache_dir / "torchvision", download=True)


def read_cifar(name: str, root: Path, download: bool = False) -> Source:
    """Read CIFAR from a folder, or download it there first.

    Raises:
        InputError: It is damaged, or cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        parts = {
            split: kind(root, train=split == "train", download=download)
            for split in ("train", "test")
        }
    except (RuntimeError, OSError) as error:
        given = name if download else root
        raise InputError(f"DATA={given}: {first_line(error)}") from error
    return Source(
        {split: Rows(list(part.data), part.targets) for split, part in parts.items()},
        parts["train"].classes,
    )


def patch_covariance(images: Tensor) -> Tensor:
    """Return the covariance of all patches of 2 x 2 pixels.

    Shape:
        images: (images, channels, height, width). The output: (4 channels, 4 channels), a patch's
        values in the order channel, row, column.

    Example:
        >>> patch_covariance(torch.randn(10, 3, 8, 8)).shape
        torch.Size([12, 12])
    """
    values = F.unfold(images, 2).movedim(1, 0).flatten(1)
    return torch.cov(values)


def opened(value: Any) -> Image.Image:
    """Open an encoded picture without decoding it.

    Raises:
        ValueError: There is none, its format is not known, or it is too large.
    """
    encoded = encoded_input(value, "image")
    try:
        picture = Image.open(
            io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS
        )
    except UnidentifiedImageError as error:
        raise ValueError(f"it is no image; formats are {', '.join(FORMATS)}") from error
    width, height = picture.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        raise ValueError(
            f"it has {width} x {height} pixels, more than {limit:,} in all; scale it down first"
        )
    return picture


def upright(picture: Image.Image) -> Image.Image:
    """Rotate a picture by its EXIF orientation."""
    # Raises if the picture is damaged; damaged EXIF data are ignored below.
    picture.load()
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def shallow(picture: Image.Image) -> Image.Image:
    """Scale 16 bits a pixel to 8; Pillow clips them instead."""
    pixels = np.array(picture).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("it has more than 16 bits a pixel; store it with 8 or 16")
    return Image.fromarray((pixels >> 8).astype(np.uint8))
