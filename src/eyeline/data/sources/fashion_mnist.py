"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), whole or the sample that comes with the package."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from eyeline.data.packed import Progress
from eyeline.data.sources.downloads import CACHE, data_root, download
from eyeline.data.sources.registry import Listed, at_once, source
from eyeline.data.splits import MemorySplit, in_memory_data
from eyeline.errors import InputError
from eyeline.settings import Settings

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

_FASHION_MNIST = (0.2860,), (0.3530,)

# SHA-256 of the unpacked files, because Debian packs the same files anew: its .gz differ from torchvision's.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@source("fashion_mnist")
def fashion_mnist(name: str, settings: Settings, say: Callable[[str], None], progress: Progress) -> Listed:
    """From its published files, packed or not, verified."""
    root = data_root(settings)
    raw = Path("FashionMNIST", "raw")  # where torchvision puts the files
    folders = [root, root / raw, root / "fashion_mnist", _DEBIAN, CACHE.expanduser() / raw]
    found = next((f for f in folders if any(_idx_path(f, name) for name in FASHION_MNIST_SHA256)), None)
    if settings.download and found in (None, root / raw):  # does nothing where the download is complete
        download(datasets.FashionMNIST, root)
        found = root / raw
    if found is None:
        raise InputError(
            f"fashion_mnist is not in {', '.join(map(str, folders[:4]))}; "
            "`apt install dataset-fashion-mnist`, give its folder with --data_root, or download it "
            "with --download true (a small part comes with the package: fashion_mnist_sample)"
        )
    train, test = (
        MemorySplit(
            torch.from_numpy(_idx(found, f"{part}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)),
            torch.from_numpy(_idx(found, f"{part}-labels-idx1-ubyte", 8)).long(),
        )
        for part in ("train", "t10k")
    )
    classes = datasets.FashionMNIST.classes
    return at_once(in_memory_data(name, classes, _FASHION_MNIST, train, None, test, settings))


def _idx_path(folder: Path, name: str) -> Path | None:
    """The file ``name``, packed or not, if it is in ``folder``."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _idx(folder: Path, name: str, header: int) -> np.ndarray:
    """The bytes of an IDX file after its header, once the checksum of the whole is verified."""
    path = _idx_path(folder, name)
    if path is None:
        raise InputError(f"{folder} has no {name}.gz, but has other files of Fashion-MNIST")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}; fetch it again") from error
    if hashlib.sha256(content).hexdigest() != FASHION_MNIST_SHA256[name]:
        raise InputError(
            f"{path} is not Fashion-MNIST's file (wrong checksum): truncated, or of another data set"
        )
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=header)


@source("fashion_mnist_sample")
def fashion_mnist_sample(
    name: str, settings: Settings, say: Callable[[str], None], progress: Progress
) -> Listed:
    """2,000 + 1,000 + 5,000 images, from the package."""
    content = resources.files("eyeline.data").joinpath("assets/fashion_mnist_sample.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        train, validation, test = (
            MemorySplit(
                torch.from_numpy(arrays[f"{part}_images"])[:, None],
                torch.from_numpy(arrays[f"{part}_labels"]).long(),
            )
            for part in ("train", "validation", "test")
        )
    classes = datasets.FashionMNIST.classes
    return at_once(in_memory_data(name, classes, _FASHION_MNIST, train, validation, test, settings))
