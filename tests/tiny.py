"""A tiny network and tiny data, which tests of whole runs can afford. As a script: a run that is cut off."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from eyeline.data.splits import ImageData, MemorySplit
from eyeline.settings import Settings

torch.set_num_threads(1)  # on a busy machine more threads wait for each other


class TinyNet(nn.Module):
    """Two resolutions, batch norm, dropout."""

    def __init__(self, classes: int = 3, width: int = 6, dropout: float = 0.3) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.high = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.high(self.low(images)).mean((2, 3))))


def tiny_net(seed: int = 0, **options: Any) -> TinyNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNet(**options)


def tiny_split(size: int, seed: int, side: int = 12) -> MemorySplit:
    """Noise, with a bright square whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 90, (size, 1, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.arange(size) % 3
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 3 * label : 3 * label + 4, 3 * label : 3 * label + 4] += 120
    return MemorySplit(images, labels)


def tiny_data(train: int = 50, test: int | None = 20) -> ImageData:
    splits = tiny_split(train, 1), tiny_split(21, 2), None if test is None else tiny_split(test, 3)
    return ImageData("tiny", ("a", "b", "c"), (0.25,), (0.2,), *splits, channels=1, size=(12, 12))


def save_tiny_data(folder: Path, train: int = 60) -> str:
    """Write the images as files, and name them as the command line does."""
    data = tiny_data(train)
    for name, split in data.splits.items():
        for index, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            place = folder / name / data.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(place / f"{index}.png")
    return f"folder:{folder}"


SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 8,
    "learning_rate": 0.05,
    "checkpoint_every": 2,
    "accelerator": "cpu",
    "progress": False,
}
"""Of a run of 4 epochs of 7 steps."""


def resolved(**settings: Any) -> Settings:
    """As the verbs resolve them for images in memory."""
    from eyeline.device import resolved

    return resolved(Settings.of(**settings), files=False)


def cut_off(saves: int, how: str) -> None:
    """Let this process be ended at its checkpoint number ``saves``: after it, within it, or by a signal."""
    from eyeline.runs.folder import RunFolder

    save, done = RunFolder.save_checkpoint, 0

    def counted(self: RunFolder, state: Any) -> None:
        nonlocal done
        done += 1
        if done == saves and how == "within":
            (self.path / f".last.ckpt.{os.getpid()}.part").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, state)
        if done == saves:
            os.kill(os.getpid(), {"after": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[how])

    RunFolder.save_checkpoint = counted  # type: ignore[method-assign]


if __name__ == "__main__":  # tiny.py THREADS SAVES HOW VERB ...: the command line, cut off
    threads, saves, how, *words = sys.argv[1:]
    torch.set_num_threads(int(threads))
    cut_off(int(saves), how)
    if words[0] != "dropout":
        from eyeline.cli import main

        sys.exit(main(words))
    import eyeline

    sys.modules["tiny"] = sys.modules["__main__"]
    TinyNet.__module__ = "tiny"
    eyeline.distill(tiny_net(1), tiny_net(2), tiny_data(), words[1], **SETTINGS)
