"""Which layers of a network to observe, and which layer of the teacher goes with which of the student."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from eyeline.errors import InputError
from eyeline.observe.layer import Layer
from eyeline.observe.passes import Call, one_pass


def spatial_layers(model: nn.Module, calls: Sequence[Call]) -> list[Call]:
    """The calls of layers that may be chosen: see :func:`~eyeline.observe.probe.find_layers`."""
    listed = _timm_layers(model)
    spatial = [c for c in calls if c.shape is not None and c.shape[1] * c.shape[2] > 1 and c.convolutions > 1]
    if listed:
        spatial = [c for c in spatial if c.name in listed]
    else:
        blocks = {c.name: c for c in calls if type(c.module) is not nn.Sequential}
        spatial = [
            c
            for c in spatial
            if not isinstance(c.module, nn.LayerNorm) and not _inside_another_resolution(c, blocks)
        ]
    return [c for c in spatial if c.name.partition(".")[0] != "stem"] or spatial


def channels_in_front(model: nn.Module, calls: Sequence[Call]) -> dict[str, bool]:
    """Whether the calls' answers ``[N, a, b, c]`` are ``[N, C, H, W]``, by name, of those that can be told.

    Told by number: an image of another size has another H and W, and the same C. Where this does not tell, as
    in a network that takes one size only: what changes with the upper or the lower half of an image shows
    along b, not along a, and what changes with the left or the right half along c, not along b.
    """
    if not calls:
        return {}
    image = calls[0].image
    resized: dict[str, tuple[int, int, int] | None] = {}
    for height, width in ((image[1] // 2, image[2] // 2), (2 * image[1], 2 * image[2])):
        with suppress(Exception):  # a network may refuse a shape in any way
            resized = {c.name: c.shape for c in one_pass(model, (image[0], height, width))}
            image = image[0], height, width
            break
    told: dict[str, bool] = {}
    for call in calls:
        shape, other = call.shape, resized.get(call.name)
        if shape and other:
            a, b, c = (one != another for one, another in zip(shape, other, strict=True))
            if b and c and not a:
                told[call.name] = True
            elif not c and (a or shape[:2] == (1, 1) != shape[1:]):
                told[call.name] = False
    untold = {c.name for c in calls} - set(told)
    if untold:
        with suppress(Exception):
            for call in one_pass(model, image, halves=True):
                if call.name in untold and call.seen is not None and len(call.seen) == 8:
                    rows, columns = _shown_by_halves(call.seen)
                    if min(rows, columns) > 0.5 or max(rows, columns) < -0.5:
                        told[call.name] = rows > 0
    return told


def _shown_by_halves(answers: Tensor) -> tuple[float, float]:
    """How much more top and bottom show along b than along a, and left and right along c than along b.

    In [-1, 1], of the answers ``[8, a, b, c]`` to the probe by halves.
    """
    one, other, top, left = answers.float().unflatten(0, (4, 2))

    def apart(mixed: Tensor, axis: int) -> float:
        """How far the changes by the two halves lie apart along an axis, in [0, 1]."""
        rest = [i for i in range(4) if i != axis]
        by_halves = [(mixed - whole).abs().sum(rest) for whole in (one, other)]
        return float(torch.sub(*(change / change.sum() for change in by_halves)).abs().sum() / 2)

    return apart(top, 2) - apart(top, 1), apart(left, 3) - apart(left, 2)


def pair_layers(student: Sequence[Layer], teacher: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Pair the layers of two networks that have the same resolution for the same image.

    Networks with no resolution in common are paired in order if they have equally many layers, else by the
    nearest resolution, at most a quarter off on each axis.

    Raises:
        InputError: no pair can be made.
    """
    by_resolution = {layer.resolution: layer for layer in teacher}
    pairs = [
        (layer, by_resolution[layer.resolution]) for layer in student if layer.resolution in by_resolution
    ]
    if not pairs and len(student) == len(teacher):
        pairs = list(zip(student, teacher, strict=True))
    if not pairs:
        for layer in student:
            nearest = min(teacher, key=functools.partial(_apart, layer))
            if _apart(layer, nearest) <= math.log(1.25):
                pairs.append((layer, nearest))
    if not pairs:

        def shown(layers: Sequence[Layer]) -> str:
            return ", ".join(f"{layer.name} {layer.shape[1]}x{layer.shape[2]}" for layer in layers)

        raise InputError(
            f"no resolution in common: student has {shown(student)}; teacher has {shown(teacher)}; "
            "name the pairs, as in layers=['student_layer:teacher_layer']"
        )
    return pairs


def _apart(one: Layer, other: Layer) -> float:
    """How far two resolutions are apart: the larger logarithm of their ratios on the two axes."""
    return max(abs(math.log(a / b)) for a, b in zip(one.shape[1:], other.shape[1:], strict=True))


def named_pairs(layers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split ``["a:b", "c"]`` into the student's names ``[a, c]`` and the teacher's ``[b, c]``."""
    student, teacher = [], []
    for entry in layers:
        left, _, right = entry.partition(":")
        student.append(left.strip())
        teacher.append((right or left).strip())
    return student, teacher


def _inside_another_resolution(call: Call, blocks: Mapping[str, Call]) -> bool:
    """Whether the call belongs to a block (no plain sequence) that answers another resolution."""
    assert call.shape is not None
    parts = call.name.split(".")
    around = (blocks.get(".".join(parts[:i])) for i in range(1, len(parts)))
    return any(b is not None and b.shape is not None and b.shape[1:] != call.shape[1:] for b in around)


def _timm_layers(model: nn.Module) -> dict[str, int | None]:
    """Names in timm's feature_info, without a stem that is a bare activation in front of the stages, and the
    number of channels it tells."""
    info = getattr(model, "feature_info", None)
    if info is None:
        return {}
    entries = info.info if hasattr(info, "info") else info
    modules = dict(model.named_modules())
    channels = {
        e["module"]: e.get("num_chs") for e in entries if isinstance(e, dict) and e.get("module") in modules
    }
    names = list(channels)
    stages = [name for name in names if next(modules[name].children(), None) is not None]
    if stages and names[0] not in stages:
        del channels[names[0]]
    return channels
