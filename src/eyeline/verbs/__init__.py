"""The verbs, a file each: a typed function, which the command line and the recipes call as it is."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

VERBS = ("train", "distill", "study", "remember", "look", "report", "demo")


def verb(name: str) -> Callable[..., Any]:
    """The function of that name; its file is read then, and PyTorch when it is called."""
    return getattr(import_module(f"eyeline.verbs.{name}"), name)
