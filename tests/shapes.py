"""The check of the shapes that annotations name, as jaxtyping's import hook wants it."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import beartype

MODULES = ("attention", "losses", "observe.observer", "memory.encoding")


def check_shapes() -> None:
    """From now on what is imported of ``MODULES`` is checked in every call."""
    for name in ("Float", "Int", "Shaped"):
        # eyeline imports them for type checkers alone, so here they are known everywhere
        setattr(builtins, name, getattr(jaxtyping, name))
    jaxtyping.install_import_hook([f"eyeline.{name}" for name in MODULES], "shapes.of_tensors")


def of_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the annotated shapes, once a call has been answered: what eyeline refuses, it refuses itself.

    jaxtyping asks for two functions of a signature: one that it calls before, with no answer, and one after.
    """
    if function.__annotations__.get("return") is Any:
        return function
    function.__annotations__ = {n: kind for n, kind in function.__annotations__.items() if _is_shape(kind)}
    return beartype(function)


def _is_shape(kind: Any) -> bool:
    return hasattr(kind, "dim_str") or any(map(_is_shape, get_args(kind)))
