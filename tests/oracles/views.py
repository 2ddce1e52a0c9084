"""Views of images as one would write them from the definition: Python integers, one image at a time."""

from __future__ import annotations

import numpy as np


def hash64(*numbers: int) -> int:
    """Chained splitmix64: add the number and the golden gamma, then two rounds of xor-shift and multiply."""
    z = 0
    for number in numbers:
        z = (z + number + 11400714819323198485) % 2**64
        z = ((z ^ (z // 2**30)) * 13787848793156543929) % 2**64
        z = ((z ^ (z // 2**27)) * 10723151780598845931) % 2**64
        z = z ^ (z // 2**31)
    return z


def decisions(seed: int, epoch: int, index: int, padding: int) -> tuple[int, int, bool]:
    """Offset of the crop on each axis, and whether to flip: from three fields of 20 bits of the hash."""
    bits = hash64(seed, epoch, index)
    fields = [(bits // 2**shift) % 2**20 / 2**20 for shift in (0, 20, 40)]
    places = 2 * padding + 1
    return int(fields[0] * places), int(fields[1] * places), fields[2] >= 0.5


def view(image: np.ndarray, seed: int, epoch: int, index: int, padding: int, flip: bool) -> np.ndarray:
    """One view ``[C, H, W]`` of one image: pad by reflection, crop, flip."""
    _, height, width = image.shape
    top, left, flipped = decisions(seed, epoch, index, padding)
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    crop = padded[:, top : top + height, left : left + width]
    return crop[:, :, ::-1] if flip and flipped else crop
