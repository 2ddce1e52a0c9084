"""How a target is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eyeline.losses import Target

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped


@dataclass(frozen=True)
class Encoded:
    """A target as it is stored: its ``parts`` by name, and the ``dtypes`` that its tensors come back in."""

    parts: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]

    def rows(self, indices: Int[Tensor, "m"], device: torch.device) -> Encoded:
        """Those at ``indices`` (int64 on the CPU), on a device, without waiting for it."""
        chosen = {name: part[indices] for name, part in self.parts.items()}
        if device.type == "cuda":
            chosen = {name: part.pin_memory() for name, part in chosen.items()}
        return Encoded({n: part.to(device, non_blocking=True) for n, part in chosen.items()}, self.dtypes)

    def decode(self) -> Target:
        """The target: float32 arithmetic, then the dtype it had."""
        target = {}
        for name, dtype in self.dtypes.items():
            rows = self.parts[name]
            if f"{name}/scale" in self.parts:
                rows = rows.float() * _spread(self.parts[f"{name}/scale"].float(), rows)
            elif f"{name}/step" in self.parts:
                low, step = (_spread(self.parts[f"{name}/{part}"], rows) for part in ("low", "step"))
                rows = low + rows.float() * step
            target[name] = rows.to(dtype)
        return target


def encode(target: Target, precision: str) -> Encoded:
    """Store a target's tensors ``[N, ...]``.

    * ``float32``: as they are.
    * ``float16``: each row times a power of two that brings its largest value to ``[2^14, 2^15)``, stored
      beside it; so a row of tiny values keeps 11 bits as any other: the error is at most ``2^-11 |x|``, or
      ``2^-39`` of the row's largest (from ``2^-100`` on). Tensors of 2 bytes a value (bf16) stay as they are.
    * ``uint8``: ``x = low + q step`` with ``step`` = (largest - smallest) / 255 of the row: the error is at
      most half a step; for tensors of 3 and more dimensions (maps). Others as with ``float16``.
    """
    parts = {}
    for name, tensor in target.items():
        rows = tensor.detach()
        if precision != "float32" and rows.is_floating_point():
            flat = rows.float().reshape(len(rows), -1)
            if precision == "uint8" and rows.ndim > 2:
                low, high = flat.aminmax(dim=1)
                step = parts[f"{name}/step"] = (high - low) / 255
                parts[f"{name}/low"] = low
                smallest = torch.finfo(torch.float32).tiny  # a constant row has step 0
                levels = (flat - low[:, None]) / step.clamp(min=smallest)[:, None]
                rows = levels.round().clamp(0, 255).to(torch.uint8).view(rows.shape)
            elif rows.itemsize > 2:
                # the exponent bits alone are the power of two below a number, exactly
                below = (flat.abs().amax(1).view(torch.int32) & 0x7F800000).view(torch.float32)
                scale = below.clamp(min=2.0**-100) * 2.0**-14
                parts[f"{name}/scale"] = scale.to(torch.bfloat16)
                rows = (flat / scale[:, None]).to(torch.float16).view(rows.shape)
        parts[name] = rows
    return Encoded(parts, {name: tensor.dtype for name, tensor in target.items()})


def _spread(values: Shaped[Tensor, "n"], rows: Shaped[Tensor, "n *shape"]) -> Shaped[Tensor, "n ..."]:
    """``[N]`` as ``[N, 1, ...]`` beside rows."""
    return values.view(-1, *[1] * (rows.ndim - 1))


def gathered(
    batches: Iterable[tuple[Tensor, Mapping[str, Target]]], length: int, precision: str
) -> dict[str, Encoded]:
    """Targets of all samples from those of batches, by name."""
    whole: dict[str, Encoded] = {}
    for indices, targets in batches:
        for name, target in targets.items():
            rows = encode(target, precision)
            if name not in whole:
                parts = {k: torch.empty(length, *v.shape[1:], dtype=v.dtype) for k, v in rows.parts.items()}
                whole[name] = Encoded(parts, rows.dtypes)
            for part, values in rows.parts.items():
                whole[name].parts[part][indices.cpu()] = values.cpu()
    return whole
