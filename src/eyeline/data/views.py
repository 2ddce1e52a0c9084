"""Views of images: which augmentation a sample gets, a pure function of (seed, epoch, sample).

Nothing here keeps a random state. The bits behind a decision are a hash of the three numbers, in int64
tensor arithmetic, which is exact on every device; so a view is the same bit for bit whatever the batch, the
order, the number of workers or of devices, and a run can resume, or a teacher be asked again, at any sample.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from eyeline.errors import InputError
from eyeline.randomness import draws_apart

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(*numbers: int) -> int:
    """Hash whole numbers into 64 bits (the finaliser of splitmix64, Steele et al. 2014, chained)."""
    state = 0
    for number in numbers:
        state = (state + number + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _MIX1) & _MASK
        state = ((state ^ (state >> 27)) * _MIX2) & _MASK
        state ^= state >> 31
    return state


def random_bits(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """``mix(seed, epoch, index)`` for every index: ``[B]`` int64 -> ``[B]`` int64 of 64 random bits each."""
    state = indices + _signed(mix(seed, epoch) + _GOLDEN)
    state = (state ^ _shifted(state, 30)) * _signed(_MIX1)
    state = (state ^ _shifted(state, 27)) * _signed(_MIX2)
    return state ^ _shifted(state, 31)


def _signed(number: int) -> int:
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _choice(bits: Tensor, lowest: int, choices: int) -> Tensor:
    """A number below ``choices`` from the 20 bits that start at ``lowest``."""
    return (((bits >> lowest) & 0xFFFFF) * choices) >> 20


@functools.lru_cache(maxsize=4)  # of this epoch and of the next, which a loader prepares
def epoch_order(seed: int, epoch: int, length: int) -> Tensor:
    """The order in which an epoch visits its samples: a permutation of ``range(length)``."""
    generator = torch.Generator().manual_seed(mix(seed, epoch, 0x6F72646572) >> 1)
    return torch.randperm(length, generator=generator)


@dataclass(frozen=True)
class Normalization:
    """From bytes to the numbers a network takes: ``(x / 255 - mean) / std`` by channel, float32."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """``[N, C, H, W]`` uint8 -> float32, in the same memory format."""
        mean, std = _on_device(self.mean, self.std, images.device)
        # spread over one image in its memory format, torch works on whole rows: six times as fast on a CPU
        # as with one number a channel
        spread = torch.empty_like(images[:1], dtype=torch.float32)
        return images.float().sub_(spread.copy_(mean)).div_(spread.copy_(std))


@functools.lru_cache(maxsize=32)
def _on_device(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    # kept, because to copy them in every step would let the host wait for the device
    return tuple(torch.tensor([255 * x for x in v], device=device).view(1, -1, 1, 1) for v in (mean, std))  # type: ignore[return-value]


class CropFlip:
    """Reflect-pad, crop at random, flip horizontally at random: a whole batch from images in memory.

    Args:
        images: ``[M, C, H, W]`` uint8, the whole split; kept padded, on the device it lies on.
        padding: pixels on each side; the crop's offset is uniform over ``0 ... 2 * padding`` on each axis.
        flip: flip half of the views.
    """

    def __init__(self, images: Tensor, padding: int = 4, flip: bool = True) -> None:
        self.count, self.channels, self.height, self.width = images.shape
        if padding >= min(self.height, self.width):
            raise InputError(
                f"padding of {padding} by reflection needs images larger than that; they are "
                f"{self.height}x{self.width}"
            )
        self.padding, self.flip = padding, flip
        rows, columns = (_reflected(length, padding).to(images.device) for length in images.shape[2:])
        # channels last: a row of a crop is then one contiguous piece, and a crop is gathered row by row
        self.padded = images.permute(0, 2, 3, 1)[:, rows][:, :, columns].contiguous()
        runs = self.padded[..., 0].numel() - self.width + 1
        self.runs = self.padded.as_strided((runs, self.width * self.channels), (self.channels, 1))

    def __call__(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """``[B]`` int64 -> ``[B, C, H, W]`` uint8, channels_last."""
        bits = random_bits(seed, epoch, indices)
        offsets = 2 * self.padding + 1
        height, width = self.padded.shape[1:3]
        corners = (indices * height + _choice(bits, 0, offsets)) * width + _choice(bits, 20, offsets)
        rows = corners.view(-1, 1) + width * torch.arange(self.height, device=indices.device)
        views = self.runs.index_select(0, rows.view(-1)).view(-1, self.height, self.width, self.channels)
        if self.flip:
            both = torch.cat([views, views.flip(2)])
            chosen = torch.arange(len(views), device=indices.device) + len(views) * _choice(bits, 40, 2)
            views = both.index_select(0, chosen)
        return views.permute(0, 3, 1, 2)


def _reflected(length: int, padding: int) -> Tensor:
    """Indices that pad an axis by reflection, the edge not repeated."""
    index = torch.arange(-padding, length + padding).abs()
    return length - 1 - (length - 1 - index).abs()


class SeededTransform:
    """A random image transform made a function of (seed, epoch, sample): these three seed its draws.

    Args:
        transform: a torchvision v2 transform, PIL image -> uint8 tensor ``[C, H, W]``; or anything else whose
            draws come from torch's global generator.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image, seed: int, epoch: int, index: int) -> Tensor:
        """One view of one image."""
        with draws_apart(seed=mix(seed, epoch, index) >> 1):
            return self.transform(image)


def train_transform(kind: str, size: int) -> Any:
    """The augmentation of large images: PIL image -> ``[3, size, size]`` uint8."""
    steps: list[Any] = {
        "resized-crop": [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()],
        "crop+flip": [
            *_centre(size),
            v2.RandomCrop(size, padding=max(4, size // 8), padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
        ],
        "flip": [*_centre(size), v2.RandomHorizontalFlip()],
        "none": _centre(size),
    }[kind]
    return v2.Compose([*steps, v2.PILToTensor()])


CENTRAL = 7 / 8
"""Share of the shorter side that the evaluation view of a file keeps, as usual on ImageNet."""


def _centre(size: int | tuple[int, int], share: float = CENTRAL) -> list[Any]:
    if isinstance(size, int) or size[0] == size[1]:
        side = size if isinstance(size, int) else size[0]
        return [resize(shorter_side(side, share)), v2.CenterCrop(size)]
    return [functools.partial(_covering, size=size, share=share), v2.CenterCrop(size)]


def _covering(image: Image.Image, size: tuple[int, int], share: float) -> Image.Image:
    """Resized so that it covers ``size / share`` ``(H, W)`` and no more, its proportions kept."""
    scale = max(size[0] / image.height, size[1] / image.width) / share
    resized = [
        max(wanted, round(given * scale)) for wanted, given in zip(size, image.size[::-1], strict=True)
    ]
    return v2.Resize(resized, antialias=True)(image)


def shorter_side(size: int, share: float = CENTRAL) -> int:
    """To how many pixels the evaluation view of a file brings its shorter side, before the central crop."""
    return round(size / share)


def resize(side: int) -> Any:
    """The resize of the evaluation view: PIL image -> PIL image whose shorter side is ``side``."""
    return v2.Resize(side, antialias=True)


# A file called .jpg may really be any of these, but never a format that runs a program (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


def decode(path: Path) -> Image.Image:
    """An image file, as :func:`as_rgb` makes it."""
    with Image.open(path, formats=FORMATS) as image:
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB, upright, on white; 16-bit greyscale is scaled, not clipped.

    Raises:
        ValueError: its pixels have no known range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # Pillow would clip 16-bit greyscale, or drop bits, by its version
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("32-bit pixels have no known range")
        image = Image.fromarray((pixels / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """The evaluation view of a model: from images as they come to the batch it takes.

    Attributes:
        channels: 1 or 3.
        size: ``(H, W)``; images of another size are resized and centre-cropped to it.
        mean, std: by channel, in [0, 1].
        central: share of the shorter side that the crop keeps; 1 leaves an image of the right size as it is.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    central: float = 1.0

    def pixels(self, image: Image.Image) -> Tensor:
        """``[C, H, W]`` uint8."""
        if self.channels not in (1, 3):
            raise InputError(
                f"a picture has 1 or 3 channels, the network takes {self.channels}; expected uint8 tensors "
                f"[N, {self.channels}, H, W]"
            )
        height, width = self.size
        image = as_rgb(image).convert("L" if self.channels == 1 else "RGB")
        image = v2.Compose(_centre(self.size, self.central))(image)
        return (
            torch.from_numpy(np.array(image, dtype=np.uint8))
            .view(height, width, self.channels)
            .permute(2, 0, 1)
        )

    def __call__(self, images: Image.Image | Tensor | Sequence[Image.Image]) -> Tensor:
        """A PIL image, several, or a uint8 tensor ``[N, C, H, W]`` -> float32 ``[N, C, H, W]``.

        Raises:
            InputError: a tensor of another type or number of channels.
        """
        if isinstance(images, Tensor):
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
                raise InputError(
                    f"images of shape {list(images.shape)} and dtype {images.dtype}; "
                    f"expected uint8 [N, {self.channels}, H, W]"
                )
            batch = images
        else:
            listed = [images] if isinstance(images, Image.Image) else list(images)
            batch = torch.stack([self.pixels(image) for image in listed])
        return Normalization(self.mean, self.std)(batch)
