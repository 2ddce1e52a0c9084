"""The shapes that annotations name are checked in the tests, and in the tests alone."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import pytest
import torch
from jaxtyping import TypeCheckError

import eyeline.memory.encoding
from eyeline import attention, functional
from eyeline.errors import InputError
from eyeline.losses import class_maps
from eyeline.observe import Observation
from shapes import MODULES

pytestmark = pytest.mark.skipif(bool(os.environ.get("EYELINE_UNCHECKED")), reason="shapes are not checked")


def annotated() -> Iterator[Callable[..., Any]]:
    """Functions and methods of the checked modules that name shapes."""
    for name in [n for n in sys.modules if n.startswith(tuple(f"eyeline.{module}" for module in MODULES))]:
        module = sys.modules[name]
        found = [module, *(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == name)]
        for place in found:
            for function in vars(place).values():
                function = inspect.unwrap(function) if callable(function) else function
                if inspect.isfunction(function) and "[Tensor, " in str(function.__annotations__):
                    yield function


def test_every_shape_can_be_read() -> None:
    """jaxtyping passes over an annotation that it cannot read."""
    functions = {function.__qualname__: function for function in annotated()}
    assert {"attention_map", "AttentionTransfer.forward", "Observer.__call__", "_spread"} <= functions.keys()
    for function in functions.values():
        get_type_hints(function)


def test_a_wrong_shape_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeCheckError, match="Observation"):
        Observation(torch.zeros(2, 3), (torch.zeros(4, 5, 6, 6),))
    with pytest.raises(TypeCheckError, match="binarized"):
        class_maps.binarized(torch.zeros(2, 3, 4, 4, 5))
    monkeypatch.setattr(attention, "_max_map", lambda activation, *_: activation)
    with pytest.raises(TypeCheckError, match="attention_map"):
        functional.attention_map(torch.ones(2, 3, 4, 5), reduce="max")


def test_what_eyeline_refuses_it_refuses_itself() -> None:
    with pytest.raises(InputError, match="has no attention map"):
        functional.attention_map(torch.zeros(3, 4))


@pytest.mark.unchecked
def test_the_check_can_be_left_out() -> None:
    Observation(torch.zeros(2, 3), (torch.zeros(4, 5, 6, 6),))


@pytest.mark.whole
def test_nothing_of_it_is_there_without_the_tests() -> None:
    code = (
        "import sys, eyeline.functional, eyeline.distiller, eyeline.memory.encoding\n"
        "assert not {'jaxtyping', 'beartype'} & set(sys.modules)\n"
        "assert not hasattr(eyeline.functional.attention_map, '__wrapped__')"
    )
    path = os.path.dirname(os.path.dirname(eyeline.__file__))
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
