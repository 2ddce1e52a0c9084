"""eyeline: teach a small vision network to look where a large one looks.

The verbs (``train``, ``distill``, ``study``, ``look``, ``report``, ``demo``) do whole jobs; ``Distiller`` and
``eyeline.functional`` serve a training loop of your own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# imported when first used: the command line answers --help without loading PyTorch
_PUBLIC = {
    "Distiller": "eyeline.distiller",
    "InputError": "eyeline.errors",
    "Observation": "eyeline.observe",
    "Observer": "eyeline.observe",
    "Settings": "eyeline.settings",
    "create_model": "eyeline.models",
    "demo": "eyeline.api",
    "distill": "eyeline.api",
    "load": "eyeline.api",
    "look": "eyeline.api",
    "report": "eyeline.api",
    "study": "eyeline.api",
    "train": "eyeline.api",
}
_MODULES = ("attention", "functional", "losses", "models", "objective")

__all__ = [*_PUBLIC, *_MODULES]  # noqa: PLE0604

if TYPE_CHECKING:
    from eyeline import functional as functional
    from eyeline.api import demo, distill, load, look, report, study, train
    from eyeline.distiller import Distiller
    from eyeline.errors import InputError
    from eyeline.models import create_model
    from eyeline.observe import Observation, Observer
    from eyeline.settings import Settings


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"eyeline.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'eyeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
