"""Where a network can be seen: its layers, and the places at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Layer:
    """A module of a network, with the shape it answers for one image of the probed size."""

    name: str
    shape: tuple[int, int, int]
    """(C, H, W)."""
    overwritten: bool = False
    """A later module works in place on this layer's output."""

    @property
    def resolution(self) -> tuple[int, int]:
        return self.shape[1:]


@dataclass(frozen=True)
class Place:
    """Where a tensor can be seen: what a module answers, or what it is given."""

    module: str
    side: Literal["input", "output"]
    overwritten: bool = False
    """A later operation works in place on the tensor."""
    relu: bool = False
    """The tensor that is meant is the ReLU of what is seen, by a function that cannot be hooked."""


@dataclass(frozen=True)
class Part:
    """Some of the layers that are observed, in an order of their own: their places in an observation."""

    features: tuple[int, ...]
    pre_activations: tuple[int, ...]


@dataclass(frozen=True)
class Head:
    """A linear classifier on globally average-pooled features: logits = mean over H, W of (W A) + b."""

    classifier: str
    """The module with the weight ``[K, C]`` or ``[K, C, 1, 1]``."""
    features: Place
    """Where ``A`` ``[N, C, H, W]`` is seen."""
    shape: tuple[int, int, int]
    """(K, H, W) of the class maps, for an image of the probed size."""
