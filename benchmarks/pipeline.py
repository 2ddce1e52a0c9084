"""Images a second of the augmentation: whole batches from memory against torchvision's image by image."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from eyeline.data.loaders import TrainingStream
from eyeline.data.sources import MemorySplit
from eyeline.data.views import Normalization
from measure import Result, Variant, interleave

SETTLE = 0.2
"""Seconds in which the workers of a loader fill their queue and fall asleep."""


class PerImage(Dataset[tuple[Tensor, int]]):
    """The papers' pipeline: reflect-pad 4, random crop, flip, to tensor, normalise, on PIL images."""

    def __init__(self, split: MemorySplit, normalization: Normalization) -> None:
        self.images = split.images.permute(0, 2, 3, 1).squeeze(3).numpy()
        self.labels = split.labels.tolist()
        side = self.images.shape[1]
        self.transform = transforms.Compose(
            [
                transforms.Pad(4, padding_mode="reflect"),
                transforms.RandomCrop(side),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(normalization.mean, normalization.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def measure_augmentation(
    channels: int, images: int, side: int, batch: int, batches: int, rounds: int, device: str
) -> Result:
    """Images a second, each figure from ``batches`` batches in the steady state."""
    torch.manual_seed(0)
    shape = (images, channels, side, side)
    split = MemorySplit(
        torch.randint(0, 256, shape, dtype=torch.uint8), torch.randint(0, 10, (images,), dtype=torch.int64)
    )
    normalization = Normalization((0.5,) * channels, (0.25,) * channels)
    stream = TrainingStream(
        split, batch_size=batch, augmentation="crop+flip", normalization=normalization, device=device
    )
    threads = torch.get_num_threads()
    loaders = {
        f"torchvision, {count} worker{'s' * (count != 1)}": DataLoader(
            PerImage(split, normalization), batch, shuffle=True, drop_last=True, num_workers=count
        )
        for count in (0, 1, 2)
    }
    variants = {
        "eyeline": _rate(stream.batches(0, 1 << 40), 1, batch, batches, threads),
        "eyeline, 1 thread": _rate(stream.batches(0, 1 << 40), 1, batch, batches, 1),
    }
    for name, loader in loaders.items():
        queued = loader.num_workers * (loader.prefetch_factor or 0)
        variants[name] = _rate(_endless(loader, device), queued, batch, batches, threads)
    samples = interleave(variants, rounds, warmup=1)
    result = Result(f"Augmentation, {channels} x {side} x {side}, batch {batch}", "images/s", samples)
    for name in loaders:
        result.ratio("eyeline", name)
    result.ratio("eyeline, 1 thread", "torchvision, 0 workers")
    result.notes = ["pad by reflection, crop, flip, normalise; torchvision on PIL images, as in the papers"]
    return result


def _endless(loader: DataLoader[Any], device: str) -> Iterator[Any]:
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield [part.to(device, non_blocking=True) for part in batch]


def _rate(stream: Iterator[Any], queued: int, batch: int, batches: int, threads: int) -> Variant:
    """Images a second of an endless stream of batches; those ready before the clock starts do not count."""

    def run() -> float:
        usual = torch.get_num_threads()
        torch.set_num_threads(threads)
        for _ in range(queued):
            next(stream)
        _synchronize()
        start = time.perf_counter()
        for _ in range(batches):
            next(stream)
        _synchronize()
        seconds = time.perf_counter() - start
        torch.set_num_threads(usual)
        if queued:
            time.sleep(SETTLE)
        return batch * batches / seconds

    return run


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
