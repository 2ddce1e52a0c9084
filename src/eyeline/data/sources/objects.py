"""Python objects as data."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eyeline.data.images import as_rgb
from eyeline.data.splits import ImageData, MemorySplit, channels_last, in_memory_data
from eyeline.errors import InputError, unknown
from eyeline.names import DATA
from eyeline.settings import Settings

_MEMORY_LIMIT = 2 * 1024**3


def from_objects(data: Any, settings: Settings) -> ImageData:
    parts = data if isinstance(data, Mapping) else {"train": data}
    for key in parts:
        if key not in ("train", "validation", "test"):
            raise unknown("split", key, ("train", "validation", "test"))
    if parts.get("train") is None:
        raise InputError(
            "the data has no 'train'; expected a mapping with train, and validation and test if any"
        )
    splits = {name: _in_memory(part, name) for name, part in parts.items() if part is not None}
    labels = splits["train"].labels
    if not len(labels):
        raise InputError("the train data has no images")
    if int(labels.min()) < 0:
        raise InputError(f"a train label is {int(labels.min())}; expected classes numbered from 0")
    names = getattr(parts["train"], "classes", None)
    if names is None:
        counts = torch.bincount(labels)
        if not counts.all():
            raise InputError(f"class {int(counts.argmin())} has no training images; expected labels 0 to K-1")
        names = map(str, range(len(counts)))
    images = splits["train"].images
    statistics = _statistics(images)
    return in_memory_data(
        "custom",
        tuple(map(str, names)),
        statistics,
        splits["train"],
        splits.get("validation"),
        splits.get("test"),
        settings,
    )


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 ``[M,C,H,W]``, exact, in [0, 1]."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean.append(float(share @ values))
        std.append(float(share @ (values - mean[-1]) ** 2) ** 0.5 or 1.0)  # a constant channel is not scaled
    return tuple(mean), tuple(std)


def _in_memory(dataset: Any, name: str) -> MemorySplit:
    """The whole of a data set as one tensor."""
    if isinstance(dataset, MemorySplit):
        return dataset
    images, labels = getattr(dataset, "images", None), getattr(dataset, "labels", None)
    if isinstance(images, Tensor) and isinstance(labels, Tensor) and images.dtype == torch.uint8:
        images = images[:, None] if images.ndim == 3 else images
        return MemorySplit(images, torch.tensor([_label(y, i) for i, y in enumerate(labels.tolist())]))
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise InputError(
            f"the {name} data is {type(dataset).__name__}; expected a data set name ({', '.join(DATA)}), "
            "an ImageData, or a map-style data set of (image, label)"
        )
    count = len(dataset)
    stacked, labels = torch.empty(0, dtype=torch.uint8), []
    for index in range(count):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(
                f"item {index} of the {name} data is {type(item).__name__}; expected (image, label)"
            )
        image = _pixels(item[0], index)
        labels.append(_label(item[1], index))
        if index == 0:
            if count * image.numel() > _MEMORY_LIMIT:
                raise InputError(
                    f"the {name} data is over 2 GiB in memory; save it as image files and use folder:PATH"
                )
            stacked = torch.empty(count, *image.shape, dtype=torch.uint8)
        if image.shape != stacked.shape[1:]:
            raise InputError(
                f"image {index} of the {name} data is {list(image.shape)}, the first is "
                f"{list(stacked.shape[1:])}; for images of different sizes use folder:PATH"
            )
        stacked[index] = image
    if not count:
        raise InputError(f"the {name} data has no images")
    return MemorySplit(stacked, torch.tensor(labels))


def _label(label: Any, index: int) -> int:
    """The label of sample ``index`` as an int; a float, bool, vector or name is refused."""
    try:
        if not isinstance(label, bool):
            return operator.index(label)
    except TypeError:
        pass
    raise InputError(f"label {index} is {label!r}; expected a whole number from 0 to K-1")


def _pixels(image: Any, index: int) -> Tensor:
    """One image as uint8 ``[C,H,W]``: greyscale stays one channel, every other PIL mode becomes RGB."""
    if isinstance(image, Image.Image):
        array = np.array(as_rgb(image).convert("L" if image.mode == "L" else "RGB"))
        return torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1)
    if not isinstance(image, Tensor | np.ndarray):
        raise InputError(f"image {index} is {type(image).__name__}; expected a PIL image, or uint8 [C, H, W]")
    pixels = image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or channels_last(pixels.shape):
        raise InputError(
            f"image {index} is {list(pixels.shape)}; expected [C, H, W] (channels first) or [H, W]"
        )
    if pixels.is_floating_point():
        exact = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
        if torch.allclose(exact.to(pixels.dtype) / 255, pixels, rtol=0, atol=1e-5):
            return exact
    if pixels.dtype != torch.uint8:
        raise InputError(
            f"image {index} is {pixels.dtype} and not uint8 / 255; expected uint8 images, or ToTensor's, "
            "neither normalised nor augmented: eyeline does both"
        )
    return pixels
