"""Attention maps: where the activations of a network are strong.

Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928), section 3.1.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from eyeline.errors import InputError, unknown

Reduce = Literal["sum", "max"]


def attention_map(
    activation: Tensor, exponent: float = 2.0, reduce: Reduce = "sum", normalize: bool = True
) -> Tensor:
    """Reduce an activation to its spatial attention map.

    ``Q = Σ_c |A_c|^p`` (``reduce="sum"``) or ``Q = max_c |A_c|^p`` (``reduce="max"``), then, with
    ``normalize``, ``Q / ||Q||_2`` for each sample. A larger exponent concentrates the map on the strongest
    positions; ``sum`` favours positions where many channels are active, ``max`` looks at one channel only.

    The normalised map is computed from ``A / max|A|``, so neither value nor gradient over- or underflows at
    any scale or precision of ``A``; an all-zero activation gives an all-zero map with zero gradient.

    Args:
        activation: ``[N, C, H, W]``, any floating dtype, any memory format.
        exponent: ``p >= 1``. (Below 1 the gradient is infinite where the activation is 0.)
        reduce: ``"sum"`` or ``"max"`` over the channels.
        normalize: divide each map by its Euclidean norm.

    Returns:
        ``[N, H, W]``, non-negative; float64 for float64 input, float32 otherwise, also under autocast.

    Raises:
        InputError: the activation is not a floating 4-D tensor, ``exponent < 1``, or ``reduce`` is unknown.

    Example:
        >>> attention_map(torch.randn(8, 64, 16, 12)).shape
        torch.Size([8, 16, 12])
    """
    check_map_arguments(exponent, reduce)
    _check_activation(activation)
    with torch.autocast(activation.device.type, enabled=False):
        if normalize:
            return normalized(_relative_map(activation, exponent, reduce))
        one = torch.ones((1, 1, 1, 1), dtype=_map_dtype(activation), device=activation.device)
        return _reduce(activation, one, exponent, reduce)


def normalized(maps: Tensor) -> Tensor:
    """Divide each map ``[N, H, W]`` by its Euclidean norm; a map of zeros stays as it is."""
    # the norm has no derivative at 0, not even a second one that a where() behind it could hide
    empty = maps.detach().amax((1, 2), keepdim=True) == 0
    return maps / torch.linalg.vector_norm(torch.where(empty, 1, maps), dim=(1, 2), keepdim=True)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps ``[N, H, W]`` to ``size``, each axis on its own: area average down, bilinear up."""
    if maps.shape[1:] == size:
        return maps
    height, width = size
    maps = maps.unsqueeze(1)
    maps = F.interpolate(maps, (min(height, maps.shape[2]), min(width, maps.shape[3])), mode="area")
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False).squeeze(1)


def check_map_arguments(exponent: float, reduce: str) -> None:
    """Raise InputError for an exponent below 1 or an unknown reduction."""
    if not exponent >= 1:
        raise InputError(
            f"exponent is {exponent}; expected at least 1 (below 1 the gradient is infinite at 0)"
        )
    if reduce not in get_args(Reduce):
        raise unknown("reduce", reduce, get_args(Reduce))


def _check_activation(activation: Tensor) -> None:
    if activation.ndim != 4 or not activation.is_floating_point():
        raise InputError(
            f"an activation of {activation.dtype} {list(activation.shape)} has no attention map; "
            "expected a floating tensor [N, C, H, W]"
        )


def _map_dtype(activation: Tensor) -> torch.dtype:
    return torch.float64 if activation.dtype == torch.float64 else torch.float32


def _relative_map(activation: Tensor, exponent: float, reduce: Reduce) -> Tensor:
    """The map of ``A / max|A|``: proportional to that of A for each sample, and of moderate size."""
    peak = activation.detach().abs().amax((1, 2, 3), keepdim=True).to(_map_dtype(activation))
    return _reduce(activation, torch.where(peak > 0, peak, 1), exponent, reduce)


def _reduce(activation: Tensor, scale: Tensor, exponent: float, reduce: Reduce) -> Tensor:
    if reduce == "sum":
        return _PowerSum.apply(activation, scale, exponent)
    # max, unlike amax, sends the whole gradient through one channel where several are equally strong
    return (activation.abs().max(1).values / scale.view(-1, 1, 1)).pow(exponent)


class _PowerSum(torch.autograd.Function):
    """``Σ_c |A_c / scale|^p`` with the scale held constant, keeping only A for the backward pass.

    Autograd would keep and re-read four float32 copies of the activation; the closed form reads A once:
    ``dL/dA_c = dL/dQ · p |A_c|^(p-1) sign(A_c)``, here with ``A / scale`` in the place of A.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(activation: Tensor, scale: Tensor, exponent: float) -> Tensor:
        relative = activation / scale  # float32 for half-precision activations, as the scale is float32
        if exponent == 2:
            return relative.square_().sum(1)
        if exponent == 1:
            return relative.abs_().sum(1)
        return relative.abs_().pow_(exponent).sum(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        activation, scale, ctx.exponent = inputs
        ctx.save_for_backward(activation, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        activation, scale = ctx.saved_tensors
        relative = activation / scale
        grad = grad.unsqueeze(1) * ctx.exponent / scale
        if ctx.exponent == 2:
            slope = relative
        elif ctx.exponent == 1:
            slope = relative.sign()
        else:
            slope = relative.abs().pow(ctx.exponent - 1) * relative.sign()
        return (slope * grad).to(activation.dtype), None, None
