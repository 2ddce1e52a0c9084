"""A data set, divided: its splits, its classes and how its pixels are normalised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eyeline.data.images import decode
from eyeline.data.packed import Pixels
from eyeline.errors import InputError
from eyeline.settings import Settings

HELD_OUT = 0.1  # fraction of the images held out where nobody says how many


@dataclass(frozen=True, eq=False)
class MemorySplit:
    """Small images of one size, all in memory.

    ``images`` is uint8 ``[M, C, H, W]``, ``labels`` int64 ``[M]``. Raises ``InputError`` for anything else.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            given = f"{self.images.dtype} {list(self.images.shape)}"
            raise InputError(f"images are {given}; expected torch.uint8 [M, C, H, W]")
        if channels_last(self.images.shape):
            raise InputError(f"images are {list(self.images.shape)}; expected [M, C, H, W] (channels first)")
        _check_labels(self.labels, len(self.images))
        object.__setattr__(self, "images", self.images.cpu())  # a batch at a time goes to the device
        object.__setattr__(self, "labels", self.labels.cpu())

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> MemorySplit:
        """The samples at ``indices``, in that order."""
        return MemorySplit(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Images decoded when they are needed, or once (``pixels``): ``paths`` and ``labels``, int64 ``[M]``."""

    paths: tuple[Path, ...]
    labels: Tensor
    pixels: Pixels | None = None

    def __post_init__(self) -> None:
        _check_labels(self.labels, len(self.paths))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> FileSplit:
        """The samples at ``indices``, in that order."""
        pixels = self.pixels and self.pixels.subset(indices)
        return FileSplit(tuple(self.paths[i] for i in indices.tolist()), self.labels[indices], pixels)

    def load(self, index: int) -> Image.Image:
        """Decode image ``index``, always to mode RGB.

        EXIF orientation is applied, transparency is composited on white, 16-bit greyscale is scaled to 8 bits
        (not clipped), and of an animation the first frame is taken. From a packed copy it comes smaller.
        """
        if self.pixels is None:
            return decode(self.paths[index])
        return self.pixels.load(index, self.paths[index])


Split = MemorySplit | FileSplit


@dataclass(frozen=True, eq=False)
class ImageData:
    """A classification data set: its splits, its classes and how its pixels are normalised.

    ``mean`` and ``std`` are per channel, in ``[0, 1]``; ``size`` is (H, W), or None for files;
    ``skipped`` names the unreadable images left out. Raises ``InputError`` where the parts do not
    fit each other.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    test: Split | None
    channels: int
    size: tuple[int, int] | None
    skipped: tuple[str, ...] = ()
    _hashes: dict[tuple[str | None, bool], str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise InputError(f"{self.name} has the classes {self.classes}; expected at least two")
        if not len(self.mean) == len(self.std) == self.channels:
            raise InputError(f"{self.name} has mean {self.mean}, std {self.std} for {self.channels} channels")
        for name, split in self.splits.items():
            if not len(split):
                raise InputError(f"{self.name} has no {name} images")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.classes):
                last = len(self.classes) - 1
                raise InputError(
                    f"the {name} labels of {self.name} are {low} to {high}; expected 0 to {last}"
                )
            if isinstance(split, MemorySplit):
                given, expected = list(split.images.shape[1:]), [self.channels, *(self.size or ())]
                if given != expected:
                    raise InputError(f"the {name} images of {self.name} are {given}; expected {expected}")

    @property
    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def fingerprint(self, only: str | None = None, *, times: bool = False) -> str:
        """16 hexadecimal digits that change with the classes, labels or images of any split, or of one.

        SHA-256 over class names, labels and pixels; files count by CLASS/FILE name and size in bytes, so a
        folder may be moved or copied. ``times``: also by the second of their last change, which a copy may
        lose. Computed once; ``dataclasses.replace`` makes one that computes it again.
        """
        if (only, times) not in self._hashes:
            self._hashes[only, times] = self._hash(only, times)
        return self._hashes[only, times]

    def _hash(self, only: str | None, times: bool) -> str:
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name, split in self.splits.items():
            if only not in (None, name):
                continue
            digest.update(f"{name} {len(split)}\n".encode())
            digest.update(split.labels.numpy().tobytes())
            if isinstance(split, MemorySplit):
                digest.update(f"{list(split.images.shape)}\n".encode())
                digest.update(split.images.numpy().tobytes())
            else:
                for path in split.paths:
                    facts = path.stat()
                    changed = f" {int(facts.st_mtime)}" * times
                    digest.update(f"{path.parent.name}/{path.name} {facts.st_size}{changed}\n".encode())
        return digest.hexdigest()[:16]


def held_out(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide samples into those kept and ``size`` held out, in proportion to the classes (stratified).

    ``labels`` is int64 ``[M]``; returns two sorted int64 index tensors. For one seed a smaller held-out set
    is part of a larger one. Raises ``InputError`` if a class would lose all its samples.
    """
    if not 0 < size < len(labels):
        raise InputError(
            f"cannot hold out {size:,} of {len(labels):,} images; expected 1 to {len(labels) - 1:,}"
        )
    order = _order(labels, seed, proportional=True)
    kept, held = order[size:].sort().values, order[:size].sort().values
    if len(labels[kept].unique()) < len(labels.unique()):
        raise InputError(
            f"holding out {size:,} of {len(labels):,} images leaves a class without training images"
        )
    return kept, held


def balanced_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """Choose ``size`` samples, as equally many of each class as there are.

    ``labels`` is int64 ``[M]``; returns sorted int64 indices ``[size]``. For one seed a smaller subset is
    part of a larger one.
    """
    return _order(labels, seed, proportional=False)[:size].sort().values


def _order(labels: Tensor, seed: int, *, proportional: bool) -> Tensor:
    """A seeded order of the samples of which every beginning is balanced, equally or in proportion."""
    # RandomState because NumPy promises never to change its stream, unlike default_rng and torch.randperm.
    permutation = np.random.RandomState(seed % 2**32).permutation(len(labels))
    shuffled = torch.from_numpy(permutation.astype(np.int64))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    label, counts = labels[by_class], torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[label]
    return by_class[((rank.double() + 0.5) / (counts[label] if proportional else 1)).argsort(stable=True)]


def with_train_size(data: ImageData, settings: Settings) -> ImageData:
    """Keep ``train_size`` training images."""
    size, available = settings.train_size, len(data.train)
    if size is None:
        return data
    if size > available:
        raise InputError(
            f"train_size is {size:,}; expected at most {available:,}, the training images of {data.name} "
            "without those held out for validation"
        )
    if size < len(data.classes):
        raise InputError(
            f"train_size is {size:,}; expected one or more for each of {len(data.classes)} classes"
        )
    return replace(
        data, train=data.train.subset(balanced_subset(data.train.labels, size, settings.split_seed))
    )


def with_validation(train: Split, validation: Split | None, settings: Settings) -> tuple[Split, Split]:
    """Hold out validation images from ``train`` where there are none."""
    if validation is not None:
        return train, validation
    size = settings.validation_size or max(1, round(HELD_OUT * len(train)))
    kept, held = held_out(train.labels, size, settings.split_seed)
    return train.subset(kept), train.subset(held)


def _check_labels(labels: Tensor, count: int) -> None:
    if not isinstance(labels, Tensor):
        raise InputError(f"labels are {type(labels).__name__}; expected torch.int64 [{count}]")
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise InputError(f"labels are {labels.dtype} {list(labels.shape)}; expected torch.int64 [{count}]")


def in_memory_data(
    name: str,
    classes: Sequence[str],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    train: MemorySplit,
    validation: Split | None,
    test: Split | None,
    settings: Settings,
) -> ImageData:
    """Images in memory, with their usual names and statistics."""
    kept, validation = with_validation(train, validation, settings)
    channels, height, width = train.images.shape[1:]
    data = ImageData(name, tuple(classes), *statistics, kept, validation, test, channels, (height, width))
    return with_train_size(data, settings)


def channels_last(shape: Sequence[int]) -> bool:
    return shape[-1] <= 4 < shape[-3]
