"""Images to look at: files, folders, PIL images, or some of a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from eyeline.data.packed import each_decoded
from eyeline.errors import InputError
from eyeline.names import check_images
from eyeline.settings import Settings

if TYPE_CHECKING:
    from eyeline.data.preprocess import Preprocess
from eyeline.data.sources import load_data
from eyeline.data.sources.folder import image_files
from eyeline.data.splits import MemorySplit, balanced_subset

_Named = tuple[str, Image.Image]


def read_images(
    images: Any, preprocess: Preprocess, count: int, settings: Settings | None = None
) -> tuple[Tensor, list[str], list[Path]]:
    """Read images to look at, in the size a model takes.

    ``images`` is an image file, a folder of images, a PIL image or a list of them, or a data set as in
    ``load_data``, of which test images (validation images if it has no test split) are taken, equally many of
    each class. Returns the first ``count`` at most, uint8 ``[N, C, H, W]``, their names (of the file, or the
    class), and the files that were left out.
    Raises ``InputError`` if there are none, or one cannot be read and is not to be skipped.
    """
    pictures, bad = _pictures(images, count, settings or Settings())
    pixels = torch.stack([preprocess.pixels(picture) for _, picture in pictures])
    return pixels, [name for name, _ in pictures], bad


def _pictures(images: Any, count: int, settings: Settings) -> tuple[list[_Named], list[Path]]:
    if isinstance(images, Image.Image):
        return [("", images)], []
    if isinstance(images, list | tuple) and images and isinstance(images[0], Image.Image):
        return [("", image) for image in images[:count]], []
    path = Path(images).expanduser() if isinstance(images, str | os.PathLike) else None
    if path is not None and path.exists():
        return _first_pictures(
            image_files(path) if path.is_dir() else [path], count, settings.skip_bad_images
        )
    named = os.fspath(images) if isinstance(images, str | os.PathLike) else ""
    if named:
        check_images(named)
    data = load_data(images, settings)
    split = data.test or data.validation
    chosen = split.subset(balanced_subset(split.labels, count, seed=0))
    names = [data.classes[label] for label in chosen.labels.tolist()]
    if isinstance(chosen, MemorySplit):
        return list(zip(names, map(to_pil_image, chosen.images), strict=True)), []
    pictures = [chosen.load(i) for i in range(len(chosen))]
    return list(zip(names, pictures, strict=True)), [Path(name) for name in data.skipped]


def _first_pictures(
    files: Sequence[Path], count: int, skip_bad_images: bool
) -> tuple[list[_Named], list[Path]]:
    """The first ``count`` pictures, and the files before the last of them that cannot be read."""
    pictures: list[_Named] = []
    bad: list[Path] = []
    with closing(each_decoded(files, None, lambda image: image)) as decoded:
        for file, picture in zip(files, decoded, strict=False):
            if isinstance(picture, Image.Image):
                pictures.append((_shortened(file.name), picture))
            elif skip_bad_images:
                bad.append(file)
            else:
                hint = "; --skip_bad_images leaves such files out" if len(files) > 1 else ""
                raise InputError(f"{file} cannot be read: {picture}{hint}")
            if len(pictures) == count:
                break
    if not pictures:
        raise InputError(f"none of {len(files):,} image files in {files[0].parent} can be read")
    return pictures, bad


def _shortened(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:9]}…{name[-10:]}"
