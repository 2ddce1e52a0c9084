"""What was seen of one network on one batch, and how it is seen: forward hooks, by module path."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.double_backward import TwiceDifferentiable
from eyeline.errors import InputError
from eyeline.observe.layer import Head, Layer, Part, Place
from eyeline.observe.probe import Probe

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Observation:
    """What one network showed on one batch of N images."""

    logits: Float[Tensor, "n k"]
    """``[N, K]``."""
    features: tuple[Float[Tensor, "n _ _ _"], ...] = ()
    """``[N, C, H, W]`` for each observed layer, in the order of ``Observer.layers``."""
    pre_activations: tuple[Float[Tensor, "n _ _ _"], ...] = ()
    """``[N, C, H, W]`` for each observed layer: the feature before its activation function."""
    class_maps: Float[Tensor, "n k _ _"] | None = None
    """``[N, K, H, W]``: the classifier's weights on the features that it averages, without its bias."""
    images: Float[Tensor, "n _ _ _"] | None = None
    """``[N, C, H, W]``: what the network was given."""
    labels: Tensor | None = None
    """``[N]`` int64, of the images."""
    observer: Observer | None = None
    """Who saw it."""
    part: Part | None = None
    """Which of the layers that were seen these are; none: all."""

    def only(self, part: Part | None) -> Observation:
        """The same of some of the observed layers; of all where there is no part."""
        if part is None:
            return self
        return Observation(
            self.logits,
            tuple(self.features[place] for place in part.features),
            tuple(self.pre_activations[place] for place in part.pre_activations),
            self.class_maps,
            self.images,
            self.labels,
            self.observer,
            part,
        )

    def again(self, images: Float[Tensor, "n c h w"]) -> Observation:
        """What the network shows of other images ``[N, C, H, W]`` of the same labels, in another pass."""
        assert self.observer is not None
        return self.observer(images, self.labels).only(self.part)


@dataclass
class _Recording:
    """What the hooks of an observer have seen in a pass."""

    on: bool = False
    seen: dict[Place, Tensor] = field(default_factory=dict)
    versions: dict[Place, int] = field(default_factory=dict)


class Observer:
    """Runs a network and answers what it showed, without touching its code.

    Args:
        model: any ``nn.Module`` that maps ``[N, C, H, W]`` to logits ``[N, K]``.
        layers: ``"auto"`` (the last layer of every spatial resolution, stem excluded), module paths (a list,
            or one string with commas), or nothing (``()``), which observes the logits alone.
        input_shape: ``(C, H, W)`` of an image, for the probe that finds and checks the layers; by default
            taken from the model (timm's ``pretrained_cfg``) or tried out.
        pre_activations: see what the layers' activation functions are given as well; or of which layers.
        class_maps: see the class-activation maps as well.
        probe: of this network, or of one that it is a copy of, where it was made already.

    Raises:
        InputError: a layer does not exist or does not answer a 4-D tensor; no layer can be found; there are
            no class maps or pre-activations where they are asked for. When called: the model answers no
            logits ``[N, K]``, an observed layer did not run, or its answer was overwritten.

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
        *,
        pre_activations: bool | Collection[str] = False,
        class_maps: bool = False,
        probe: Probe | None = None,
    ) -> None:
        self.model = model
        self.layers: tuple[Layer, ...] = ()
        self.activated: tuple[str, ...] = ()
        """The layers whose pre-activations are seen."""
        self._pre_activations: tuple[Place, ...] = ()
        self.head: Head | None = None
        if layers or class_maps:
            probe = probe or Probe(model, input_shape)
            self.layers = probe.layers if layers == "auto" else probe.named(_names(layers))
            asked = {layer.name for layer in self.layers} if pre_activations is True else pre_activations
            activated = [layer for layer in self.layers if asked and layer.name in asked]
            self.activated = tuple(layer.name for layer in activated)
            self._pre_activations = probe.pre_activations(activated) if activated else ()
            self.head = probe.head if class_maps else None
        self._features = tuple(Place(layer.name, "output", layer.overwritten) for layer in self.layers)
        self._recording = _Recording()
        modules = dict(model.named_modules())
        self._handles = {}
        heads = () if self.head is None else (self.head.features,)
        for place in dict.fromkeys((*self._features, *self._pre_activations, *heads)):
            module, hook = modules[place.module], self._hook(place)
            self._handles[place] = (
                module.register_forward_hook(hook)
                if place.side == "output"
                else module.register_forward_pre_hook(hook)
            )
        self._classifier = None if self.head is None else modules[self.head.classifier]

    def _hook(self, place: Place) -> Callable[..., None]:
        # partials of methods rather than closures: an observed model can be copied and pickled whole
        return functools.partial(self._record_output if place.side == "output" else self._record_input, place)

    def of_replica(self, model: nn.Module) -> Observer:
        """The same, of a copy that ``nn.DataParallel`` made of the model: its hooks still report here."""
        other = copy.copy(self)
        other.model, other._recording = model, _Recording()
        modules = dict(model.named_modules())
        for place, handle in self._handles.items():
            hooks = "_forward_hooks" if place.side == "output" else "_forward_pre_hooks"
            theirs = OrderedDict(getattr(modules[place.module], hooks))  # shared with the model's own
            theirs[handle.id] = other._hook(place)
            setattr(modules[place.module], hooks, theirs)
        other._classifier = None if self.head is None else modules[self.head.classifier]
        return other

    def _record_output(self, place: Place, module: nn.Module, args: Any, output: Tensor) -> None:
        self._record(place, output)

    def _record_input(self, place: Place, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._record(place, args[0])

    def _record(self, place: Place, tensor: Tensor) -> None:
        recording = self._recording
        if recording.on:
            # a later in-place operation would change what is seen
            recording.seen[place] = tensor.clone() if place.overwritten else tensor
            if not torch.compiler.is_compiling() and not tensor.is_inference():
                recording.versions[place] = recording.seen[place]._version

    def __call__(self, images: Float[Tensor, "n c h w"], labels: Tensor | None = None) -> Observation:
        """Run the model on ``images`` ``[N, C, H, W]``; their ``labels`` ``[N]`` are handed on."""
        self._recording.on = True
        try:
            with TwiceDifferentiable() if images.requires_grad else nullcontext():
                logits = self.model(images)
            features = tuple(self._tensor(place) for place in self._features)
            pre_activations = tuple(self._tensor(place) for place in self._pre_activations)
            class_maps = self._class_maps()
        finally:
            self._recording.on = False
            self._recording.seen.clear()
            self._recording.versions.clear()
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            shown = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"the model answers {shown}; expected logits [N, K] in one tensor")
        return Observation(logits, features, pre_activations, class_maps, images, labels, self)

    def _class_maps(self) -> Tensor | None:
        if self.head is None:
            return None
        features = self._tensor(self.head.features)
        if self.head.features.relu:
            features = F.relu(features)
        weight = self._classifier.weight  # type: ignore[union-attr]
        return F.conv2d(features, weight.reshape(*weight.shape[:2], 1, 1))

    def _tensor(self, place: Place) -> Tensor:
        tensor, versions = self._recording.seen.get(place), self._recording.versions
        if tensor is None:
            raise InputError(
                f"layer {place.module!r} did not run in this forward pass, or was not seen: a compiled model "
                "must be observed before its first call"
            )
        if place in versions and tensor._version != versions[place]:
            raise InputError(
                f"the {place.side} of layer {place.module!r} was overwritten in place later in the forward "
                "pass (not so in evaluation mode); observe another layer, or set inplace=False on what "
                "follows it"
            )
        return tensor

    def part(self, names: Sequence[str], pre_activations: bool) -> Part | None:
        """Where these layers, and their pre-activations if asked, are in an observation; none: all of it."""
        observed = [layer.name for layer in self.layers]
        if [*names] == observed and (not pre_activations or (*names,) == self.activated):
            return None
        before = map(self.activated.index, names) if pre_activations else ()
        return Part(tuple(map(observed.index, names)), tuple(before))

    def only(self, part: Part) -> Observer:
        """The same of some of the observed layers, with the same hooks."""
        other = copy.copy(self)
        other.layers = tuple(self.layers[place] for place in part.features)
        other._features = tuple(self._features[place] for place in part.features)
        other.activated = tuple(self.activated[place] for place in part.pre_activations)
        other._pre_activations = tuple(self._pre_activations[place] for place in part.pre_activations)
        return other

    def close(self) -> None:
        """Take the hooks off the model; leaving a ``with`` does it too."""
        for handle in self._handles.values():
            handle.remove()

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _names(layers: str | Sequence[str]) -> Sequence[str]:
    return [name.strip() for name in layers.split(",")] if isinstance(layers, str) else layers
