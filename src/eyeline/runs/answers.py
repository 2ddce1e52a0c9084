"""The file of a network's answers to the test images, by which networks are compared image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from eyeline.errors import InputError
from eyeline.files import write_atomically


def write_answers(path: Path, classes: Tensor, labels: Tensor) -> None:
    """Keep what was answered, in the order of the split.

    The file (safetensors) has ``classes``: the class answered for each image, uint8, or int16 or int32 where
    there are many; and ``right``: whether it is the label, eight images a byte, the first in the highest bit.

    Args:
        classes, labels: ``[N]`` whole numbers.
    """
    given, wanted = classes.cpu().numpy(), labels.cpu().numpy()
    most = int(max(given.max(), wanted.max()))
    kind = next(k for k in (np.uint8, np.int16, np.int32) if most <= np.iinfo(k).max)
    write_atomically(path, save({"classes": given.astype(kind), "right": np.packbits(given == wanted)}))


def read_answers(path: Path) -> tuple[Tensor, np.ndarray]:
    """The classes answered, int64 ``[N]``, and whether each is right, bool ``[N]``.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        content = load(path.read_bytes())
        classes = content["classes"]
        right = np.unpackbits(content["right"], count=len(classes)).astype(bool)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected the answers of a finished run") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); expected the answers of a finished run") from error
    return torch.from_numpy(classes.astype(np.int64)), right
