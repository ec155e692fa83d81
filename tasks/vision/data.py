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
from tasks.errors import InputError, first_line
from tasks.sources import Rows, Source, encoded_input

CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


# Formats that Pillow decodes by itself: for others it would start programs, such as Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
# Modes of Pillow that hold shades of grey, and those of them with 16 bits a pixel.
GREY = {"1", "L", "LA", "La"}
DEEP = {"I;16", "I;16B", "I;16L", "I;16N", "I"}
# Images whose patches are measured: a thousand hold most of a million patches.
MEASURED = 1000
# Side of the largest image that a model is given.
LARGEST = 8192


@dataclass
class VisionSpec(DataSpec):
    """What a vision model must know of its images.

    Args:
        classes: Names of the classes.
        shape: (channels, height, width).
        mean: Mean of each channel over the training split, of values from 0 to 255.
        std: Standard deviation of each channel, likewise.
        mirror: Whether a mirrored image is still one of its class.
        patches: Covariance of patches of 2 x 2 standardized pixels, (4 channels, 4 channels); None
            in checkpoints of models that do not need it.
    """

    shape: list[int]
    mean: list[float]
    std: list[float]
    mirror: bool
    patches: list[list[float]] | None = None


class VisionData(ClassificationData):
    """Images of one size as bytes from 0 to 255, (batch, channels, height, width).

    Args:
        image_size: Height and width that images are scaled to; if not given, those of the first
            training image, and the others must have them too.
        mirror: Whether a mirrored image is still one of its class; if not, as with digits, no
            augmentation mirrors it.
        **options: See `ClassificationData`.
    """

    kind: ClassVar[str] = "image"
    noun: ClassVar[str] = "image"

    def __init__(self, image_size: int | None = None, mirror: bool = True, **options: Any) -> None:
        super().__init__(**options)
        if image_size is not None and not 1 <= image_size <= LARGEST:
            raise ValueError(f"image_size is at least 1 and at most {LARGEST}, not {image_size!r}")
        self.image_size = image_size
        self.mirror = mirror

    def decoding_options(self) -> dict[str, Any]:
        """Name what the decoded inputs depend on, besides the source."""
        return {"image_size": self.image_size}

    def builtin(self) -> Source:
        """Handwritten digits of scikit-learn: 1,797 images of 8 x 8 pixels from 13 writers.

        The images lie in the order in which the writers wrote, so that the second half, the test
        split, is mostly by other writers than the first.
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

    def canonical(self) -> Source | None:
        """CIFAR through torchvision, downloaded by name or from a folder of its layout."""
        from torchvision.datasets import CIFAR10, CIFAR100

        path = Path(self.source).expanduser()
        for name, folder in CIFAR_FOLDERS.items():
            if self.source != name and not (path / folder).is_dir():
                continue
            kind = CIFAR10 if name == "cifar10" else CIFAR100
            download = self.source == name
            root = self.cache_dir / "torchvision" if download else path
            try:
                parts = {
                    split: kind(root, train=split == "train", download=download)
                    for split in ("train", "test")
                }
            except (RuntimeError, OSError) as error:
                raise InputError(f"DATA={self.source}: {first_line(error)}") from error
            return Source(
                {split: Rows(list(part.data), part.targets) for split, part in parts.items()},
                parts["train"].classes,
            )
        return None

    def decode(self, value: Any) -> Tensor:
        """Turn an array or an encoded picture into a tensor (channels, height, width)."""
        is_array = isinstance(value, np.ndarray)
        picture = Image.fromarray(value) if is_array else upright(opened(value))
        if picture.mode in DEEP:
            picture = shallow(picture)
        elif picture.mode == "F":
            raise ValueError("its pixels are floating-point numbers; store them as 8 or 16 bits")
        if picture.mode != "L":
            picture = picture.convert("L" if picture.mode in GREY else "RGB")
        if self.image_size and picture.size != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(picture))
        return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.movedim(-1, 0).contiguous()

    def prepare(self) -> dict[str, Any]:
        """Decode the whole source; an image that is too large is refused and not warned of."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return super().prepare()

    def arrange(self, decoded: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
        """Stack the images of each split; in colour where any image is."""
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
        """Tell a model the shape, mean and standard deviation of the training images."""
        self.setup()
        train = self.splits["train"]
        # The moments of 10,000 images are those of all to three digits.
        images = train.gather(torch.arange(min(len(train), 10_000))).inputs.float()
        mean, std = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)).clamp(min=1.0)
        shape = list(images.shape[1:])
        standard = (images[:MEASURED] - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        patches = patch_covariance(standard).tolist() if min(shape[1:]) > 1 else None
        return VisionSpec(self.classes, shape, mean.tolist(), std.tolist(), self.mirror, patches)

    def media(self, split: str, index: int) -> Image.Image:
        """Make the picture of one example."""
        pixels = self.splits[split].gather(torch.tensor([index])).inputs[0]
        # Of one channel: grey, without a dimension for it.
        return Image.fromarray(pixels.movedim(0, -1).squeeze(-1).numpy())


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
    """Turn a picture as the camera that took it says in its EXIF data."""
    # A damaged picture is refused here, while damaged EXIF data turn nothing.
    picture.load()
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def shallow(picture: Image.Image) -> Image.Image:
    """Make 8 bits a pixel of 16; Pillow itself would make white of all but the darkest."""
    pixels = np.array(picture).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("it has more than 16 bits a pixel; store it with 8 or 16")
    return Image.fromarray((pixels >> 8).astype(np.uint8))
