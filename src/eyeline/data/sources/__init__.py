"""What data: named data sets, folders of images and Python objects, all as one ``ImageData``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from eyeline.data.packed import Progress, silent
from eyeline.data.preprocess import shorter_side
from eyeline.data.sources import cifar, fashion_mnist, folder  # noqa: F401 (they register themselves)
from eyeline.data.sources.objects import from_objects
from eyeline.data.sources.registry import Listed, at_once, named_source
from eyeline.data.splits import FileSplit, ImageData, with_train_size
from eyeline.errors import InputError
from eyeline.names import check_data
from eyeline.settings import Settings


def load_data(
    data: Any,
    settings: Settings | None = None,
    *,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> ImageData:
    """Load ``data`` and divide it into train, validation and test as ``settings`` says.

    ``data`` is one of

    * ``"fashion_mnist"``, ``"cifar10"``, ``"cifar100"``: looked for in ``data_root``, checksums verified,
      downloaded through torchvision with ``download``;
    * ``"fashion_mnist_sample"``: 2,000 + 1,000 + 5,000 images that come with the package;
    * ``"folder:PATH"``: PATH/{train,val,test}/CLASS/IMAGE, or PATH/CLASS/IMAGE;
    * an ``ImageData``, or a map-style data set of (image, label), or a mapping of such with the keys train
      and, if there are any, validation and test. Images are PIL images, or uint8 ``[C,H,W]`` or ``[H,W]``;
      float images are taken only if they are uint8 / 255, as torchvision's ``ToTensor`` gives them, since
      eyeline augments and normalises by itself. A data set with uint8 ``.images`` and ``.labels`` is taken
      as it is. Mean and standard deviation are those of the train images given.

    Where there is no validation split, ``validation_size`` training images (default 10 %) are held out, in
    proportion to the classes. After that ``train_size`` keeps a subset of train, equal over the classes. Both
    depend on ``split_seed`` alone, and the smaller of two sizes is always part of the larger.

    With ``packed`` the images of a folder are decoded once and read from there. ``say`` takes a line for the
    user, ``progress`` shows how the packing goes.

    Raises ``InputError`` for data that is unknown, not there, damaged or not consistent.
    """
    return list_data(data, settings or Settings(), say=say, progress=progress)[1]()


def list_data(
    data: Any, settings: Settings, *, say: Callable[[str], None] = print, progress: Progress = silent
) -> Listed:
    """As :func:`load_data`, in two steps: a folder as it is listed, and what then decodes its images.

    Both are the same but for unreadable images that are left out, and packed pixels.
    """
    named = os.fspath(data) if isinstance(data, str | os.PathLike) else ""
    if settings.packed is not None and not named.startswith("folder:"):
        raise InputError("packed is for data='folder:PATH', whose images are decoded; this data is in memory")
    if isinstance(data, str | os.PathLike):
        check_data(named)
        return named_source(named)(named, settings, say, progress)
    if not isinstance(data, ImageData):
        return at_once(from_objects(data, settings))
    side = shorter_side(settings.image_size)
    packed = [split.pixels for split in data.splits.values() if isinstance(split, FileSplit)]
    if any(pixels is not None and pixels.side != side for pixels in packed):
        raise InputError(f"{data.name} was packed for another image_size; load it anew with this one")
    return at_once(with_train_size(data, settings))
