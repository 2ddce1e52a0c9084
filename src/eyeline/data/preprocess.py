"""The evaluation view: from an image as it comes to what a network takes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from eyeline.data.images import as_rgb
from eyeline.errors import InputError


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


CENTRAL = 7 / 8
"""Share of the shorter side that the evaluation view of a file keeps, as usual on ImageNet."""


def centre(size: int | tuple[int, int], share: float = CENTRAL) -> list[Any]:
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
        image = v2.Compose(centre(self.size, self.central))(image)
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
