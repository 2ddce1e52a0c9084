"""One pass of an image through a network, and what every module showed in it. Nothing is changed by it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eyeline.observe.layer import Layer
from eyeline.randomness import draws_apart

PROBE_SIZES = (224, 32, 64, 28, 96, 299)


@dataclass
class Call:
    """A module's last answer in a pass. Its tensors are gone after :meth:`release`."""

    name: str
    module: nn.Module
    order: int
    output: Any
    version: int
    convolutions: int
    """Before it, or in it."""
    image: tuple[int, int, int]
    """(C, H, W) of the image that was shown."""
    activated: bool
    """The output is that of an activation, a module's or a function's."""
    argument: Tensor | None
    """The first argument."""
    argument_version: int
    given: Tensor | None
    """A copy of it."""
    seen: Tensor | None
    """A copy of the output, as it was before any later operation in place."""
    overwritten: bool = False
    """A later operation works in place on the output."""
    given_overwritten: bool = False
    """... on the first argument."""

    def __post_init__(self) -> None:
        one = isinstance(self.output, Tensor) and self.output.ndim == 4 and len(self.output) == 1
        self.shape: tuple[int, int, int] | None = tuple(self.output.shape[1:]) if one else None
        """(C, H, W) of an answer ``[1, C, H, W]``."""
        self.shown = f"a {type(self.output).__name__}"
        """What the answer is, in words."""
        if isinstance(self.output, Tensor):
            images = ["N" if n == 1 else f"{n} N" for n in self.output.shape[:1]]
            self.shown = f"a tensor of shape {[*images, *self.output.shape[1:]]}".replace("'", "")

    def release(self) -> None:
        """Let go of the tensors."""
        self.output = self.argument = self.given = self.seen = None

    def layer(self) -> Layer:
        """As a layer to observe."""
        assert self.shape is not None
        return Layer(self.name, self.shape, self.overwritten)


def one_pass(model: nn.Module, shape: tuple[int, int, int], *, halves: bool = False) -> list[Call]:
    """Run the model once on an image ``(C, H, W)`` of noise: every module's last answer, in the order in
    which they ended. Neither weights, statistics, modes nor the random state change.

    ``halves``: on two images, two others, and the two with the upper, then the left halves of those.
    """
    calls: dict[str, Call] = {}
    given: dict[str, tuple[Tensor, int, Tensor]] = {}
    watch = FunctionWatch()
    overwritten_in_training: set[int] = set()

    def keep_given(name: str, module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor):
            given[name] = args[0], args[0]._version, args[0].clone()

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        tensor = output if isinstance(output, Tensor) else None
        version = 0 if tensor is None else tensor._version
        activated = any(t is output and v == version for t, v in watch.activated)
        calls.pop(name, None)  # a module used twice counts where it runs last
        argument, argument_version, kept = given.get(name, (None, 0, None))
        calls[name] = Call(
            *(name, module, len(calls), output, version, watch.convolutions, shape, activated),
            argument=argument,
            argument_version=argument_version,
            given=kept,
            seen=None if tensor is None else tensor.clone(),
        )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.inplace and tensor is not None:
            overwritten_in_training.add(tensor.untyped_storage().data_ptr())

    with undisturbed(model), watch:
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(functools.partial(record, name)))
            handles.append(module.register_forward_pre_hook(functools.partial(keep_given, name)))
        try:
            model(_images(model, shape, halves))
        finally:
            for handle in handles:
                handle.remove()

    def overwritten(tensor: Any, version: int) -> bool:
        return isinstance(tensor, Tensor) and (
            tensor._version != version or tensor.untyped_storage().data_ptr() in overwritten_in_training
        )

    for order, call in enumerate(calls.values()):
        call.order = order
        call.overwritten = overwritten(call.output, call.version)
        call.given_overwritten = overwritten(call.argument, call.argument_version)
    return list(calls.values())


def _images(model: nn.Module, shape: tuple[int, int, int], halves: bool) -> Tensor:
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    images = torch.empty(8 if halves else 1, *shape, device=reference.device, dtype=reference.dtype)
    images.normal_(generator=torch.Generator(images.device).manual_seed(0))
    if halves:
        one, other, top, left = images.unflatten(0, (4, 2))
        top[:], left[:] = one, one
        top[:, :, : shape[1] // 2] = other[:, :, : shape[1] // 2]
        left[..., : shape[2] // 2] = other[..., : shape[2] // 2]
    return images


class FunctionWatch(TorchFunctionMode):
    """Counts convolutions and keeps what activations answer, whether a module or a function computes them."""

    CONVOLUTIONS = frozenset({torch.conv2d, torch.conv_transpose2d})
    ACTIVATIONS = frozenset(
        {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish"}
        | {"softplus", "hardswish", "hardtanh", "clamp"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0
        self.activated: list[tuple[Tensor, int]] = []
        """Each with its version."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.convolutions += func in self.CONVOLUTIONS
        answer = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "").rstrip("_") in self.ACTIVATIONS and isinstance(answer, Tensor):
            self.activated.append((answer, answer._version))
        return answer


def input_shapes(model: nn.Module) -> list[tuple[int, int, int]]:
    """The image shapes (C, H, W) a model is likely to take, the likeliest first."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    sizes = dict.fromkeys([*configured_sizes(model), *((s, s) for s in PROBE_SIZES)])
    channels = dict.fromkeys((first.in_channels, 3) if first else (3,))
    return [(c, height, width) for height, width in sizes for c in channels]


def configured_sizes(model: nn.Module) -> list[tuple[int, int]]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    return [(size[1], size[2])] if size else []


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it had, whatever its parent's."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Afterwards a network lies where, and in the memory format that, it did; its parts have their modes and
    hooks, its parameters are frozen or not. Their values are left to whoever changes them."""
    modules = list(model.modules())
    tensors = [(module, dict(module._parameters), dict(module._buffers)) for module in modules]
    parameters = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    hooks = [
        (all_of_a_kind, set(all_of_a_kind))
        for module in modules
        for all_of_a_kind in (module._forward_hooks, module._forward_pre_hooks)
    ]
    modes = [module.training for module in modules]
    try:
        yield
    finally:
        for module, own, buffers in tensors:
            module._parameters.update(own)
            module._buffers.update(buffers)
        for parameter, data, learns in parameters:
            parameter.data = data
            parameter.requires_grad_(learns)
        for all_of_a_kind, before in hooks:
            for added in all_of_a_kind.keys() - before:
                del all_of_a_kind[added]
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or compilation, and everything as it was afterwards."""
    with (
        buffers_kept(model),  # a model might move them even in evaluation mode
        evaluation_mode(model),
        draws_apart(*{tensor.device for tensor in [*model.parameters(), *model.buffers()]}),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every buffer, moved or replaced meanwhile, is what it was."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, kept in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, kept):
                    buffer.copy_(kept)
