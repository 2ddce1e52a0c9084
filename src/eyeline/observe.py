"""What was seen of one network on one batch, and how it is seen: forward hooks, by module path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        layers: ``"auto"`` (the last layer of every spatial resolution, stem excluded), module paths, or
            nothing (``()``), which observes the logits alone.
        input_shape: ``(C, H, W)`` of an image, for the probe that finds and checks the layers; by default
            taken from the model (timm's ``pretrained_cfg``) or tried out.

    Raises:
        InputError: a layer does not exist or does not answer a 4-D tensor; no layer can be found.

    The hooks stay on the model until :meth:`close`; they hold nothing between calls and are silent when the
    model is called by others.

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
            self.layers = named_layers(model, [layers] if isinstance(layers, str) else list(layers), input_shape)
        self._seen: dict[str, Tensor] = {}
        self._recording = False
        modules = dict(model.named_modules())
        self._handles = [modules[layer.name].register_forward_hook(self._hook(layer)) for layer in self.layers]

    def _hook(self, layer: Layer) -> Any:
        def record(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._recording:
                # a later in-place operation would change what is seen
                self._seen[layer.name] = output.clone() if layer.overwritten else output

        return record

    def __call__(self, images: Tensor) -> Observation:
        """Run the model on ``images`` ``[N, C, H, W]``."""
        self._recording = True
        try:
            logits = self.model(images)
            features = tuple(self._seen[layer.name] for layer in self.layers)
        finally:
            self._recording = False
            self._seen.clear()
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shown = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"the model answers {shown}; expected logits [N, K] in one tensor")
        return Observation(logits, features)

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
