"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchvision import datasets

from eyeline.data.packed import Progress
from eyeline.data.sources.downloads import data_root, download
from eyeline.data.sources.registry import Listed, at_once, source
from eyeline.data.splits import MemorySplit, in_memory_data
from eyeline.errors import InputError
from eyeline.settings import Settings

_CIFAR = {
    "cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@source("cifar10", "cifar100")
def cifar(name: str, settings: Settings, say: Callable[[str], None], progress: Progress) -> Listed:
    """From their published files, verified."""
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root = data_root(settings)
    folder = root / kind.base_folder
    if settings.download:
        download(kind, root)
    elif not folder.is_dir():
        raise InputError(
            f"{name} is not in {root}; give the folder that holds {kind.base_folder} with --data_root, "
            "or download it with --download true"
        )
    try:  # these files are pickles: torchvision verifies the MD5 of each before it opens it
        parts = [kind(root, train=train) for train in (True, False)]
    except RuntimeError as error:
        raise InputError(
            f"{folder} is not {name} as published (a file is missing or has a wrong checksum); "
            "fetch it again, for example with --download true"
        ) from error
    train, test = (
        MemorySplit(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return at_once(in_memory_data(name, parts[0].classes, _CIFAR[name], train, None, test, settings))
