"""eyeline: teach a small vision network to look where a large one looks.

The verbs (``train``, ``distill``, ``study``, ``remember``, ``look``, ``report``, ``demo``) do whole jobs;
``Distiller`` and ``eyeline.functional`` serve a training loop of your own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
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
    "demo": "eyeline.verbs.demo",
    "distill": "eyeline.verbs.distill",
    "load": "eyeline.verbs.load",
    "look": "eyeline.verbs.look",
    "remember": "eyeline.verbs.remember",
    "report": "eyeline.verbs.report",
    "study": "eyeline.verbs.study",
    "train": "eyeline.verbs.train",
}
_MODULES = ("attention", "functional", "losses", "models", "objective")

__all__ = [*_PUBLIC, *_MODULES]

if TYPE_CHECKING:
    from eyeline import functional as functional
    from eyeline.distiller import Distiller as Distiller
    from eyeline.errors import InputError as InputError
    from eyeline.models import create_model as create_model
    from eyeline.observe import Observation as Observation
    from eyeline.observe import Observer as Observer
    from eyeline.settings import Settings as Settings
    from eyeline.verbs.demo import demo as demo
    from eyeline.verbs.distill import distill as distill
    from eyeline.verbs.load import load as load
    from eyeline.verbs.look import look as look
    from eyeline.verbs.remember import remember as remember
    from eyeline.verbs.report import report as report
    from eyeline.verbs.study import study as study
    from eyeline.verbs.train import train as train


class _RegisterWithTimm:  # importlib.abc has the class of such, and takes longer than all of this
    """Makes our networks known to timm as soon as anybody imports timm; does not import it itself."""

    asking = False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != "timm" or self.asking:
            return None
        self.asking = True  # the finders after this one
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                importlib.import_module("eyeline.models")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    importlib.import_module("eyeline.models")
else:
    sys.meta_path.insert(0, _RegisterWithTimm())


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"eyeline.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'eyeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
