"""The batches that the settings ask for."""

from __future__ import annotations

from collections.abc import Iterator

from eyeline.data.batches import Batch, TrainingStream, evaluation_batches
from eyeline.data.preprocess import Normalization
from eyeline.data.splits import ImageData, Split
from eyeline.device import Device
from eyeline.settings import Settings


def training_stream(data: ImageData, settings: Settings, device: Device) -> TrainingStream:
    """The training batches that the settings ask for."""
    assert settings.view_seed is not None  # they are resolved
    return TrainingStream(
        data.train,
        batch_size=settings.batch_size,
        augmentation=settings.augmentation,
        normalization=Normalization(data.mean, data.std),
        seed=settings.seed,
        view_seed=settings.view_seed,
        views=settings.views,
        device=device.torch_device,
        rank=device.fabric.global_rank,
        world=device.fabric.world_size,
        size=settings.image_size,
        workers=settings.workers,
    )


def evaluation_stream(split: Split, data: ImageData, settings: Settings, device: Device) -> Iterator[Batch]:
    """The batches of a split for evaluation."""
    # nothing is kept for a backward pass, so more images fit than in a step
    batch_size = min(500, max(1, 4 * settings.batch_size // device.fabric.world_size))
    return evaluation_batches(
        split,
        Normalization(data.mean, data.std),
        device=device.torch_device,
        batch_size=batch_size,
        size=settings.image_size,
        workers=settings.workers,
    )
