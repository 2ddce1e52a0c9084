"""Where data sets lie, and their download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eyeline.errors import InputError
from eyeline.settings import Settings

CACHE = Path("~/.cache/eyeline")


def data_root(settings: Settings) -> Path:
    return Path(settings.data_root or CACHE).expanduser()


def download(kind: Any, root: Path) -> None:
    """Download through torchvision, which verifies the MD5 of every archive."""
    try:
        kind(root, download=True)
    except (RuntimeError, OSError) as error:
        raise InputError(f"cannot download {kind.__name__} to {root}: {error}") from error
