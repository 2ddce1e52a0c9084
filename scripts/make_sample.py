"""Make the Fashion-MNIST sample that comes with the package, from the full data set.

python scripts/make_sample.py

Classes are balanced. The validation images are those that `fashion_mnist` holds out at validation_size 1,000,
and the training images are part of those it trains on at the default size. So under the same split_seed a
teacher trained on the full set has never seen a validation or test image of the sample.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import FashionMNIST

import eyeline.data
from eyeline.data.sources import load_data
from eyeline.data.sources.fashion_mnist import FASHION_MNIST_SHA256
from eyeline.data.splits import MemorySplit, balanced_subset
from eyeline.settings import Settings

SEED, TRAIN, VALIDATION, TEST = 0, 2000, 1000, 5000
ASSETS = Path(eyeline.data.__file__).parent / "assets"


def main() -> None:
    """Write fashion_mnist_sample.npz and .json into the package's assets."""
    full = load_data("fashion_mnist", Settings(train_size=TRAIN, split_seed=SEED))
    held_out = load_data("fashion_mnist", Settings(validation_size=VALIDATION, split_seed=SEED))
    assert full.test is not None
    splits = {
        "train": full.train,
        "validation": held_out.validation,
        "test": full.test.subset(balanced_subset(full.test.labels, TEST, SEED)),
    }
    arrays: dict[str, Any] = {}
    for name, split in splits.items():
        assert isinstance(split, MemorySplit)
        arrays[f"{name}_images"] = split.images[:, 0].numpy()
        arrays[f"{name}_labels"] = split.labels.numpy().astype(np.uint8)
    np.savez_compressed(ASSETS / "fashion_mnist_sample.npz", **arrays)

    about = {
        "source": "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT, see FASHION_MNIST_LICENSE",
        "command": "python scripts/make_sample.py",
        "seed": SEED,
        "images": {name: len(split) for name, split in splits.items()},
        "source_md5": dict(FashionMNIST.resources),
        "unpacked_sha256": FASHION_MNIST_SHA256,
    }
    (ASSETS / "fashion_mnist_sample.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
