"""What was seen of one network on one batch, and how it is seen: forward hooks, by module path."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eyeline.errors import InputError
from eyeline.layers import Layer, find_layers, named_layers


@dataclass(frozen=True)
class Observation:
    """What one network showed on one batch of N images."""

    logits: Tensor
    """``[N, K]``."""
    features: tuple[Tensor, ...] = ()
    """``[N, C, H, W]`` for each observed layer, in the order of ``Observer.layers``."""


class Observer:
    """Runs a network and answers what it showed, without touching its code.

    Args:
        model: any ``nn.Module`` that maps ``[N, C, H, W]`` to logits ``[N, K]``.
        layers: ``"auto"`` (the last layer of every spatial resolution, stem excluded), module paths (a list,
            or one string with commas), or nothing (``()``), which observes the logits alone.
        input_shape: ``(C, H, W)`` of an image, for the probe that finds and checks the layers; by default
            taken from the model (timm's ``pretrained_cfg``) or tried out.

    Raises:
        InputError: a layer does not exist or does not answer a 4-D tensor; no layer can be found. When
            called: the model answers no logits ``[N, K]``, an observed layer did not run, or its answer was
            overwritten.

    The hooks stay on the model until :meth:`close`; they hold nothing between calls and are silent when the
    model is called by others. Of a layer that runs several times the last answer is seen. A model may be
    compiled (``model.compile()``) before or after, but must not have been called compiled before.

    Example:
        >>> observer = Observer(create_model("wrn_16_1", num_classes=10))
        >>> [layer.name for layer in observer.layers]
        ['group1', 'group2', 'group3']
        >>> [tuple(f.shape) for f in observer(torch.randn(2, 3, 32, 32)).features]
        [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] = "auto",
        input_shape: tuple[int, int, int] | None = None,
    ) -> None:
        self.model = model
        self.layers: tuple[Layer, ...]
        if layers == "auto":
            self.layers = find_layers(model, input_shape)
        else:
            names = [name.strip() for name in layers.split(",")] if isinstance(layers, str) else layers
            self.layers = named_layers(model, names, input_shape)
        self._seen: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._recording = False
        modules = dict(model.named_modules())
        # bound methods rather than closures: an observed model can be copied and pickled whole
        self._handles = [
            modules[layer.name].register_forward_hook(functools.partial(self._record, layer))
            for layer in self.layers
        ]

    def _record(self, layer: Layer, module: nn.Module, args: Any, output: Tensor) -> None:
        if self._recording:
            # a later in-place operation would change what is seen
            self._seen[layer.name] = output.clone() if layer.overwritten else output
            if not torch.compiler.is_compiling() and not output.is_inference():
                self._versions[layer.name] = self._seen[layer.name]._version

    def __call__(self, images: Tensor) -> Observation:
        """Run the model on ``images`` ``[N, C, H, W]``."""
        self._recording = True
        try:
            logits = self.model(images)
            features = tuple(self._feature(layer) for layer in self.layers)
        finally:
            self._recording = False
            self._seen.clear()
            self._versions.clear()
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shown = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"the model answers {shown}; expected logits [N, K] in one tensor")
        return Observation(logits, features)

    def _feature(self, layer: Layer) -> Tensor:
        feature = self._seen.get(layer.name)
        if feature is None:
            raise InputError(
                f"layer {layer.name!r} did not run in this forward pass, or was not seen: a compiled model "
                "must be observed before its first call"
            )
        if layer.name in self._versions and feature._version != self._versions[layer.name]:
            raise InputError(
                f"the output of layer {layer.name!r} was overwritten in place later in the forward pass "
                "(not so in evaluation mode); observe another layer, or set inplace=False on what follows it"
            )
        return feature

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
