"""Images a second of the augmentation: whole batches from memory against torchvision's image by image."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from eyeline.data.batches import TrainingStream
from eyeline.data.preprocess import Normalization
from eyeline.data.sources import load_data
from eyeline.data.splits import MemorySplit
from eyeline.settings import Settings
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


def measure_files(images: int, batch: int, batches: int, rounds: int, device: str) -> Result:
    """Images a second of training batches of 224 from JPEG files of 500 x 375: decoded, or packed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "images")
        for i in range(images):
            path = root / "train" / str(i % 2) / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            _picture(i).save(path, quality=90)
        variants = {}
        for name, packed in (("decoded", None), ("packed", f"{folder}/packed")):
            data = load_data(f"folder:{root}", Settings(packed=packed), say=lambda line: None)
            for workers in (0, 2):
                stream = TrainingStream(
                    data.train,
                    batch_size=batch,
                    augmentation="resized-crop",
                    normalization=Normalization(data.mean, data.std),
                    device=device,
                    workers=workers,
                )
                ready = 2 * workers  # batches that a loader prepares
                steps = stream.batches(0, 1 << 40)
                variants[f"{name}, {workers} workers"] = _rate(
                    steps, ready, batch, batches, torch.get_num_threads()
                )
        samples = interleave(variants, rounds, warmup=1)
        variants.clear()  # ends the workers
    result = Result(
        f"Training batches of {images} JPEG files of 500 x 375, batch {batch}", "images/s", samples
    )
    for workers in (0, 2):
        result.ratio(f"packed, {workers} workers", f"decoded, {workers} workers")
    result.notes = ["random resized crop to 224, flip, normalise; packed with a shorter side of at most 256"]
    return result


def _picture(seed: int) -> Image.Image:
    """Soft shapes and a little noise, which a JPEG file holds as it does a photograph."""
    random = np.random.default_rng(seed)
    shapes = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    soft = np.asarray(shapes.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((soft + random.integers(-8, 9, soft.shape)).clip(0, 255).astype(np.uint8))


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
