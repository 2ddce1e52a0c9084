"""Views of images: which augmentation a sample gets, a pure function of (seed, epoch, sample).

Nothing here keeps a random state. The bits behind a decision are a hash of the three numbers, in int64
tensor arithmetic, which is exact on every device; so a view is the same bit for bit whatever the batch, the
order, the number of workers or of devices, and a run can resume, or a teacher be asked again, at any sample.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from eyeline.data.preprocess import centre
from eyeline.errors import InputError
from eyeline.randomness import choice, draws_apart, mix, random_bits


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
        corners = (indices * height + choice(bits, 0, offsets)) * width + choice(bits, 20, offsets)
        rows = corners.view(-1, 1) + width * torch.arange(self.height, device=indices.device)
        views = self.runs.index_select(0, rows.view(-1)).view(-1, self.height, self.width, self.channels)
        if self.flip:
            both = torch.cat([views, views.flip(2)])
            chosen = torch.arange(len(views), device=indices.device) + len(views) * choice(bits, 40, 2)
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
            *centre(size),
            v2.RandomCrop(size, padding=max(4, size // 8), padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
        ],
        "flip": [*centre(size), v2.RandomHorizontalFlip()],
        "none": centre(size),
    }[kind]
    return v2.Compose([*steps, v2.PILToTensor()])
