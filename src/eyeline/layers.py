"""Which layers of a network to observe, and which layer of the teacher goes with which of the student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eyeline.errors import InputError, unknown

PROBE_SIZES = (224, 32, 64, 28, 96, 299)


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


def find_layers(model: nn.Module, input_shape: tuple[int, int, int] | None = None) -> tuple[Layer, ...]:
    """Find the last layer of every spatial resolution, stem and 1x1 outputs excluded, from input to output.

    timm's ``feature_info`` names the candidates where the model has it; otherwise they are all modules but
    the inner ones of a block that itself answers another resolution. Their shapes come from one probe on a
    blank image, which changes neither weights, statistics, modes nor the random state.

    The stem is the resolution reached after a single convolution, or in timm's list a bare activation in
    front of the stages.

    Raises:
        InputError: no layer answers a 4-D tensor of more than one position.
    """
    calls = _probe(model, input_shape)
    listed = _timm_layers(model)
    spatial = [c for c in calls if c.shape is not None and c.shape[1] * c.shape[2] > 1 and c.convolutions > 1]
    if listed:
        spatial = [c for c in spatial if c.name in listed]
    else:
        blocks = {c.name: c for c in calls if type(c.module) is not nn.Sequential}
        spatial = [c for c in spatial if not _inside_another_resolution(c, blocks)]
    last = {c.shape[1:]: c for c in spatial if c.shape}
    found = sorted(last.values(), key=lambda c: c.order)
    if not found:
        raise InputError(
            f"no layer of {type(model).__name__} answers a feature map [N, C, H, W] larger than 1x1; "
            "attention maps need a convolutional network (or name the layers yourself)"
        )
    return tuple(c.layer() for c in found)


def named_layers(
    model: nn.Module, names: Sequence[str], input_shape: tuple[int, int, int] | None = None
) -> tuple[Layer, ...]:
    """Check layers named by their module paths.

    Raises:
        InputError: a layer does not exist, does not run, or does not answer a 4-D tensor.
    """
    if not names:
        return ()
    existing = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in existing:
            raise unknown(f"layer of {type(model).__name__}", name, existing)
    if len(set(names)) < len(names):
        raise InputError(f"layers {list(names)} name one layer twice")
    calls = {c.name: c for c in _probe(model, input_shape)}
    for name in names:
        if name not in calls:
            raise InputError(f"layer {name!r} of {type(model).__name__} exists but does not run in the forward pass")
        if calls[name].shape is None:
            raise InputError(
                f"layer {name!r} of {type(model).__name__} answers {calls[name].shown}; "
                "expected one tensor [N, C, H, W]"
            )
    return tuple(calls[name].layer() for name in names)


def pair_layers(student: Sequence[Layer], teacher: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Pair the layers of two networks that have the same resolution for the same image.

    Networks with no resolution in common but equally many layers are paired in order.

    Raises:
        InputError: no pair can be made.
    """
    by_resolution = {layer.resolution: layer for layer in teacher}
    pairs = [(layer, by_resolution[layer.resolution]) for layer in student if layer.resolution in by_resolution]
    if not pairs and len(student) == len(teacher):
        pairs = list(zip(student, teacher, strict=True))
    if not pairs:

        def shown(layers: Sequence[Layer]) -> str:
            return ", ".join(f"{layer.name} {layer.shape[1]}x{layer.shape[2]}" for layer in layers)

        raise InputError(
            f"no resolution in common: student has {shown(student)}; teacher has {shown(teacher)}; "
            "name the pairs, as in layers=['student_layer:teacher_layer']"
        )
    return pairs


def named_pairs(layers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split ``["a:b", "c"]`` into the student's names ``[a, c]`` and the teacher's ``[b, c]``."""
    student, teacher = [], []
    for entry in layers:
        left, _, right = entry.partition(":")
        student.append(left.strip())
        teacher.append((right or left).strip())
    return student, teacher


@dataclass
class _Call:
    """One module's answer in the probe."""

    name: str
    module: nn.Module
    order: int
    output: Any
    version: int
    convolutions: int
    overwritten: bool = False

    @property
    def shape(self) -> tuple[int, int, int] | None:
        if isinstance(self.output, Tensor) and self.output.ndim == 4:
            return self.output.shape[1], self.output.shape[2], self.output.shape[3]
        return None

    @property
    def shown(self) -> str:
        if isinstance(self.output, Tensor):
            return f"a tensor of shape {['N', *self.output.shape[1:]]}".replace("'", "")
        return f"a {type(self.output).__name__}"

    def layer(self) -> Layer:
        assert self.shape is not None
        return Layer(self.name, self.shape, self.overwritten)


def _inside_another_resolution(call: _Call, blocks: Mapping[str, _Call]) -> bool:
    """Whether the call belongs to a block (no plain sequence, not the network) that answers another resolution."""
    assert call.shape is not None
    parts = call.name.split(".")
    around = (blocks.get(".".join(parts[:i])) for i in range(1, len(parts)))
    return any(b is not None and b.shape is not None and b.shape[1:] != call.shape[1:] for b in around)


def input_shapes(model: nn.Module) -> list[tuple[int, int, int]]:
    """The image shapes (C, H, W) a model is likely to take, the likeliest first."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first else 3
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    sizes = [tuple(config["input_size"][1:])] if config.get("input_size") else []
    return [(channels, height, width) for height, width in [*sizes, *((s, s) for s in PROBE_SIZES)]]


def probe_output(model: nn.Module, input_shape: tuple[int, int, int] | None = None) -> tuple[int, ...]:
    """Shape of the model's output for one blank image, without the batch dimension."""
    output = next(c for c in _probe(model, input_shape) if c.name == "").output
    return tuple(output.shape[1:]) if isinstance(output, Tensor) else ()


def _probe(model: nn.Module, input_shape: tuple[int, int, int] | None) -> list[_Call]:
    """Run the model once on a blank image; every module's last answer, in the order in which they ended."""
    failure: Exception | None = None
    shapes = [input_shape] if input_shape else input_shapes(model)
    for shape in shapes:
        try:
            return _run_probe(model, shape)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            failure = error
    tried = ", ".join("x".join(map(str, shape)) for shape in shapes)
    raise InputError(
        f"{type(model).__name__} does not run on a blank image of shape {tried} ({failure}); "
        "give input_shape=(C, H, W) of your images"
    ) from failure


def _run_probe(model: nn.Module, shape: tuple[int, int, int]) -> list[_Call]:
    calls: dict[str, _Call] = {}
    count = [0]

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            count[0] += isinstance(module, nn.Conv2d)
            version = output._version if isinstance(output, Tensor) else 0
            calls.pop(name, None)  # a module used twice counts where it runs last
            calls[name] = _Call(name, module, len(calls), output, version, count[0])

        return record

    with _undisturbed(model):
        handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
        try:
            reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
            model(torch.zeros(1, *shape, device=reference.device, dtype=reference.dtype))
        finally:
            for handle in handles:
                handle.remove()
    for order, call in enumerate(calls.values()):
        call.order = order
        call.overwritten = isinstance(call.output, Tensor) and call.output._version != call.version
    return list(calls.values())


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and everything as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    # buffers a model might move even in evaluation mode
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, kept in buffers:
                if not torch.equal(buffer, kept):
                    buffer.copy_(kept)


def _timm_layers(model: nn.Module) -> set[str]:
    """Names in timm's feature_info, without a stem that is a bare activation in front of the stages."""
    info = getattr(model, "feature_info", None)
    if info is None:
        return set()
    entries = info.info if hasattr(info, "info") else info
    names = [entry["module"] for entry in entries if isinstance(entry, dict) and entry.get("module")]
    modules = dict(model.named_modules())
    names = [name for name in names if name in modules]
    stages = [name for name in names if next(modules[name].children(), None) is not None]
    if stages and names[0] not in stages:
        names = names[1:]
    return set(names)
