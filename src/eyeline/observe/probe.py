"""What passes of one image tell of a network: its layers, its classifier, what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from eyeline.errors import InputError, unknown
from eyeline.observe.discover import channels_in_front, spatial_layers
from eyeline.observe.heads import linear_head, pre_activations
from eyeline.observe.layer import Head, Layer, Place
from eyeline.observe.passes import Call, configured_sizes, input_shapes, one_pass


class Probe:
    """One pass of an image of noise through a network, and what follows from it; no tensor of it is kept.

    It changes neither weights, statistics, modes nor the random state of the network. It tells names and
    shapes, so it serves a copy of the network as well, and the network after training.

    Args:
        model: any ``nn.Module`` that takes images ``[N, C, H, W]``.
        input_shape: ``(C, H, W)`` of an image; by default taken from the model (timm's ``pretrained_cfg``) or
            tried out.

    Raises:
        InputError: the model does not run on such an image.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int] | None = None) -> None:
        self.model = model
        self.network = type(model).__name__
        calls = self._first_pass([input_shape] if input_shape else input_shapes(model))
        self.calls = {call.name: call for call in calls}
        answer = self.calls[""].output
        self.answer: tuple[int, ...] = tuple(answer.shape[1:]) if isinstance(answer, Tensor) else ()
        """Shape of what the model answers for an image, without the batch dimension; none for no tensor."""
        self.finite = not isinstance(answer, Tensor) or bool(torch.isfinite(answer).all())
        """Whether the answer is."""
        self._head = linear_head(calls) if self.finite else None
        self._pre_activations = pre_activations(calls)
        for call in calls:
            call.release()

    def _first_pass(self, shapes: Sequence[tuple[int, int, int]]) -> list[Call]:
        failure: Exception | None = None
        for shape in shapes:
            try:
                return one_pass(self.model, shape)
            except Exception as error:  # any way to refuse a shape; the likeliest one's reason is told
                failure = failure or error
        tried = ", ".join("x".join(map(str, shape)) for shape in shapes[:4])
        hint = "; give input_shape=(C, H, W) of your images" if len(shapes) > 1 else ""
        raise InputError(
            f"{self.network} does not run on an image of shape {tried}{', ...' if len(shapes) > 4 else ''} "
            f"({str(failure)[:200]}){hint}"
        ) from failure

    @cached_property
    def _in_front(self) -> dict[str, bool]:
        """Whether an answer of several positions has its channels in front, where that can be told."""
        maps = [c for c in self.calls.values() if c.shape and c.shape[1] * c.shape[2] > 1]
        return channels_in_front(self.model, maps)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The last layer of every spatial resolution, see :func:`find_layers`.

        Raises:
            InputError: there is none.
        """
        chosen = spatial_layers(self.model, list(self.calls.values()))
        last = {c.shape[1:]: c for c in chosen if c.shape and self._in_front.get(c.name, True)}
        if not last:
            raise InputError(
                f"no layer of {self.network} answers a feature map [N, C, H, W] larger than 1x1; "
                "attention maps need a convolutional network (or name the layers yourself)"
            )
        return tuple(c.layer() for c in sorted(last.values(), key=lambda c: c.order))

    def named(self, names: Sequence[str]) -> tuple[Layer, ...]:
        """The layers of these module paths.

        Raises:
            InputError: a layer does not exist, does not run, does not answer a 4-D tensor, or has its
                channels behind the positions.
        """
        existing = [name for name, _ in self.model.named_modules() if name]
        for name in names:
            if name not in existing:
                try:
                    found = [layer.name for layer in self.layers]
                except InputError:
                    found = None
                raise unknown(f"layer of {self.network}", name, existing, listed=found)
        if len(set(names)) < len(names):
            raise InputError(f"layers {list(names)} name one layer twice")
        return tuple(self._named(name) for name in names)

    def _named(self, name: str) -> Layer:
        call = self.calls.get(name)
        if call is None:
            raise InputError(f"layer {name!r} of {self.network} exists but does not run in the forward pass")
        if call.shape is None:
            raise InputError(
                f"layer {name!r} of {self.network} answers {call.shown}; expected one tensor [N, C, H, W]"
            )
        if not self._in_front.get(name, True):
            raise InputError(
                f"layer {name!r} of {self.network} answers {call.shown}, with the channels behind the "
                f"positions as in [N, H, W, C]; expected [N, C, H, W]{self._nearest(call)}"
            )
        return call.layer()

    def _nearest(self, call: Call) -> str:
        """The hint at what answers ``[N, C, H, W]``: a block around the layer, or what runs next to it."""
        near = min(
            (c for c in self.calls.values() if c.name and self._in_front.get(c.name)),
            key=lambda c: (not call.name.startswith(f"{c.name}."), abs(c.order - call.order)),
            default=None,
        )
        if near is None:
            return "; the network has no such layer"
        return f"; the nearest layer of that kind is {near.name!r}"

    def pre_activations(self, layers: Sequence[Layer]) -> tuple[Place, ...]:
        """Where the feature before each layer's activation function is seen.

        Raises:
            InputError: a layer answers activated values, and no module answers them that is an activation.
        """
        self._check_finite()
        for layer in layers:
            if layer.name not in self._pre_activations:
                raise InputError(
                    f"layer {layer.name!r} of {self.network} answers activated values, but does not end "
                    "in an activation module (torch.nn.ReLU and the like) whose input could be observed; "
                    "name layers that do, or whose answers come before the activation, as in "
                    "layers=['layer1.1.bn2']"
                )
        return tuple(self._pre_activations[layer.name] for layer in layers)

    @property
    def head(self) -> Head:
        """The classifier and the features that it averages, see :class:`~eyeline.observe.layer.Head`.

        Raises:
            InputError: there is no such head: more than one linear layer, a norm or an activation behind the
                pooling, another pooling, or features of one position.
        """
        self._check_finite()
        if self._head is not None:
            return self._head
        channels, height, width = self.calls[""].image
        for factor in (2, 4, 8):  # features of one position are more in a larger image
            try:
                larger = linear_head(one_pass(self.model, (channels, factor * height, factor * width)))
            except Exception:  # a network may refuse a shape in any way
                continue
            if larger is not None:
                raise InputError(
                    f"{self.network} has no class maps for images of {height}x{width}: its last features "
                    f"have one position; images of {factor * height}x{factor * width} would have "
                    f"{larger.shape[1]}x{larger.shape[2]} (a larger image_size, or a network for small "
                    "images)"
                )
        raise InputError(
            f"{self.network} has no class maps: they need one linear classifier (or 1x1 convolution) on "
            "features that are averaged over more than one position, with nothing between but dropout, so "
            "that mean(class map) + bias = logit"
        )

    def _check_finite(self) -> None:
        if not self.finite:
            raise InputError(
                f"{self.network} answers values that are not finite for an image of noise: "
                "its weights are not finite, or too large"
            )


def find_layers(model: nn.Module, input_shape: tuple[int, int, int] | None = None) -> tuple[Layer, ...]:
    """Find the last layer of every spatial resolution, stem and 1x1 outputs excluded, from input to output.

    timm's ``feature_info`` names the candidates where the model has it; otherwise they are all modules but
    the inner ones of a block that itself answers another resolution, and layer norms (over the channels, they
    leave a flat attention map). Their shapes come from a :class:`Probe`.

    The stem is the resolution reached after a single convolution, a module called ``stem``, or in timm's list
    a bare activation in front of the stages.

    Raises:
        InputError: no layer answers a 4-D tensor of more than one position.
    """
    return Probe(model, input_shape).layers


def shared_input_shape(student: nn.Module, teacher: nn.Module) -> tuple[int, int, int] | None:
    """An image shape (C, H, W) that both networks take, so that their resolutions can be compared.

    None if there is none among the likely ones.
    """
    shapes = [input_shapes(student), input_shapes(teacher)]
    configured = [
        given[0] for model, given in zip((student, teacher), shapes, strict=True) if configured_sizes(model)
    ]
    for shape in dict.fromkeys([*configured, *shapes[0], *shapes[1]]):
        try:
            one_pass(student, shape)
            one_pass(teacher, shape)
        except Exception:  # a network may refuse a shape in any way
            continue
        return shape
    return None
