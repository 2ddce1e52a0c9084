"""Image files, as they are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# A file called .jpg may really be any of these, but never a format that runs a program (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


def decode(path: Path) -> Image.Image:
    """An image file, as :func:`as_rgb` makes it."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return as_rgb(image)
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(f"it has more than {most:,} pixels, too many to decode; make it smaller") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """Any image as 8-bit RGB, upright, on white; 16-bit greyscale is scaled, not clipped.

    Raises:
        ValueError: its pixels have no known range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # Pillow would clip 16-bit greyscale, or drop bits, by its version
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("32-bit pixels have no known range")
        image = Image.fromarray((pixels / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def left_out(files: Sequence[object]) -> str:
    """A line on files that could not be read."""
    named = ", ".join(map(str, files[:3])) + ", ..." * (len(files) > 3)
    return f"{len(files)} unreadable image{'s' * (len(files) > 1)} left out: {named}"
