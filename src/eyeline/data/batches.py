"""In which batches a network sees its images: the steps of training, and the batches of an evaluation."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eyeline.cores import own_cores
from eyeline.data.preprocess import Normalization
from eyeline.data.splits import FileSplit, MemorySplit, Split
from eyeline.data.views import CropFlip, SeededTransform, train_transform
from eyeline.errors import InputError
from eyeline.isolation import warn_in_a_line
from eyeline.randomness import epoch_order


@dataclass(frozen=True)
class Batch:
    """One step's images, as a network takes them."""

    images: Tensor
    """``[B, C, H, W]`` float32, normalised, channels_last."""
    labels: Tensor
    """``[B]`` int64."""
    indices: Tensor
    """``[B]`` int64: which samples of the split."""
    view: int = 0
    """Which view of them."""


class TrainingStream:
    """The batches of a whole run, from any step on.

    Each epoch visits every image once, in an order that depends on (seed, epoch) alone, in batches as equal
    as possible (so no last batch of one image). The view of a sample depends on (view_seed, view, index)
    alone, where the view is the number of the epoch, or with ``views`` that number modulo ``views``.

    Args:
        split: the training images.
        batch_size: images a step over all processes; the batches are not larger.
        augmentation: ``crop+flip``, ``flip``, ``none``, ``resized-crop`` (files only).
        normalization: applied on the device.
        seed: of the order.
        view_seed: of the views.
        views: distinct views of a sample, seen in turn; by default each epoch has its own.
        device: where the batches go.
        rank, world: this process and their number; each takes its share of every batch.
        size: side of the crop, for files.
        workers: processes that decode files.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        augmentation: str,
        normalization: Normalization,
        seed: int = 0,
        view_seed: int = 0,
        views: int | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        size: int = 224,
        workers: int | None = None,
    ) -> None:
        self.split = split
        self.steps_per_epoch = -(-len(split) // batch_size)
        if len(split) // self.steps_per_epoch < world:
            raise InputError(
                f"{len(split)} images in batches of {batch_size} leave one of {world} devices without any"
            )
        self.normalization, self.seed = normalization, seed
        self.view_seed, self.views = view_seed, views
        self.device, self.rank, self.world = torch.device(device), rank, world
        self.augmentation, self.size, self.workers = augmentation, size, workers
        self.labels = split.labels.to(self.device)
        if isinstance(split, MemorySplit):
            padding = 4 if augmentation == "crop+flip" else 0
            self.view = CropFlip(split.images.to(self.device), padding, flip=augmentation != "none")

    def indices(self, step: int) -> tuple[int, Tensor]:
        """The view of a step, and the samples that this process sees in it."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.seed, epoch, len(self.split))
        view = epoch % self.views if self.views else epoch
        # the first `larger` batches have one image more: tensor_split, without making every slice to use one
        size, larger = divmod(len(self.split), self.steps_per_epoch)
        first = position * size + min(position, larger)
        batch = order[first : first + size + (position < larger)]
        return view, batch[self.rank :: self.world]

    def of_view(self, view: int) -> Iterator[Batch]:
        """Every sample once, in one view: the batches of that epoch of a run whose seed is ``view_seed``.

        So the batches of a view are always the same, whatever the seed and the step of the run that asks.
        """
        ordered = copy.copy(self)  # shares the images
        ordered.seed = self.view_seed
        return ordered.batches(view * self.steps_per_epoch, (view + 1) * self.steps_per_epoch)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps ``start ... stop - 1``."""
        if isinstance(self.split, MemorySplit):
            for step in range(start, stop):
                view, indices = self.indices(step)
                indices = indices.to(self.device, non_blocking=True)
                images = self.normalization(self.view(indices, self.view_seed, view))
                yield Batch(images, self.labels[indices], indices, view)
            return
        transform = SeededTransform(train_transform(self.augmentation, self.size))
        files = _Files(self.split, transform, self.view_seed)
        loader = _loader(files, _Steps(self, start, stop), self.workers, self.device)
        for step, (images, indices) in zip(range(start, stop), loader, strict=True):
            indices = indices.to(self.device, non_blocking=True)
            images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            yield Batch(self.normalization(images), self.labels[indices], indices, self.indices(step)[0])


def evaluation_batches(
    split: Split,
    normalization: Normalization,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 500,
    size: int = 224,
    workers: int | None = None,
) -> Iterator[Batch]:
    """The images of a split once, in their order, as they are (files: the central crop).

    Also the view of :class:`~eyeline.data.preprocess.Preprocess`, bit for bit.
    """
    device = torch.device(device)
    chunks = torch.arange(len(split)).split(batch_size)
    if isinstance(split, MemorySplit):
        for indices in chunks:
            images = split.images[indices].to(device, non_blocking=True)
            images = images.contiguous(memory_format=torch.channels_last)
            yield Batch(normalization(images), split.labels[indices].to(device), indices.to(device))
        return
    files = _Files(split, SeededTransform(train_transform("none", size)), 0)
    steps = [[(0, i) for i in indices.tolist()] for indices in chunks]
    for images, indices in _loader(files, steps, workers, device):
        images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        yield Batch(normalization(images), split.labels[indices].to(device), indices.to(device))


class _Files(Dataset[tuple[Tensor, int]]):
    """Decodes and transforms one file for (view, index)."""

    def __init__(self, split: FileSplit, transform: SeededTransform, seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        view, index = key
        return self.transform(self.split.load(index), self.seed, view, index), index


class _Steps:
    """The (view, index) keys of the batches of some steps, made when they are asked for."""

    def __init__(self, stream: TrainingStream, start: int, stop: int) -> None:
        self.stream, self.start, self.stop = stream, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            view, indices = self.stream.indices(step)
            yield [(view, i) for i in indices.tolist()]


def _loader(
    files: _Files, steps: _Steps | list[list[tuple[int, int]]], workers: int | None, device: torch.device
) -> Any:
    workers = own_cores() if workers is None else workers
    return DataLoader(
        files,
        batch_sampler=steps,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # or it would draw its workers' seeds from the caller's
    )


def _begin_worker(worker: int) -> None:
    warn_in_a_line()  # one that is not forked knows nothing of its parent's
    # a terminal sends Ctrl-C to the workers too; the training loop ends them, after its checkpoint
    signal.signal(signal.SIGINT, signal.SIG_IGN)
