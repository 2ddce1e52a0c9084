"""Attention maps: where the activations of a network are strong.

Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928), section 3.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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
            return normalized(_reduce(activation, exponent, reduce, relative=True))
        return _reduce(activation, exponent, reduce, relative=False)


def normalized(maps: Tensor, dim: tuple[int, ...] = (1, 2)) -> Tensor:
    """Divide each map ``[N, H, W]`` by its Euclidean norm over ``dim``; a map of zeros stays as it is."""
    # the norm has no derivative at 0, not even a second one that a where() behind it could hide
    empty = maps.detach().abs().amax(dim, keepdim=True) == 0
    return maps / torch.linalg.vector_norm(torch.where(empty, 1, maps), dim=dim, keepdim=True)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps ``[N, H, W]``, or ``[N, C, H, W]``, to ``size``, each axis on its own: area average down,
    bilinear up."""
    if maps.shape[-2:] == size:
        return maps
    if maps.ndim == 3:
        return resized(maps.unsqueeze(1), size).squeeze(1)
    height, width = size
    maps = F.interpolate(maps, (min(height, maps.shape[2]), min(width, maps.shape[3])), mode="area")
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)


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


def _reduce(activation: Tensor, exponent: float, reduce: Reduce, relative: bool) -> Tensor:
    """``Q``; ``relative``: only in proportion to it for each sample, and of moderate size."""
    if reduce == "sum":
        return _PowerSum.apply(activation, exponent, relative)[0]
    # max, unlike amax, sends the whole gradient through one channel where several are equally strong
    strongest = activation.abs().max(1).values.to(_map_dtype(activation))
    if relative:
        peak = strongest.detach().amax((1, 2), keepdim=True)
        strongest = strongest / torch.where(peak > 0, peak, 1)
    return strongest.pow(exponent)


PIECE = 1 << 19
"""Elements that a CPU takes at once: their float copies stay in its cache."""


def _in_pieces(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, on a CPU some samples of a large batch at a time."""
    large = tensors[0]
    if large.device.type != "cpu" or torch.compiler.is_compiling() or large.numel() <= PIECE:
        return function(*tensors)
    samples = max(1, PIECE // large[0].numel())
    expanded = (t.expand(len(large), *t.shape[1:]) for t in tensors)
    return torch.cat([function(*piece) for piece in zip(*(t.split(samples) for t in expanded), strict=True)])


class _PowerSum(torch.autograd.Function):
    """``Σ_c |A_c / scale|^p`` and the scale, which is held constant; keeps only A for the backward pass.

    Autograd would keep and re-read four float32 copies of the activation; the closed form reads A once:
    ``dL/dA_c = dL/dQ · p |A_c|^(p-1) sign(A_c)``, here with ``A / scale`` in the place of A. A scale without
    dimensions is 1.
    """

    @staticmethod
    def forward(activation: Tensor, exponent: float, relative: bool) -> tuple[Tensor, Tensor]:
        one = activation.new_ones((), dtype=_map_dtype(activation))
        power_sum = functools.partial(_power_sum, exponent=exponent)
        if not relative:
            return _in_pieces(power_sum, activation), one
        if activation.device.type == "cpu" and not torch.compiler.is_compiling():
            # of moderate size as they are, mostly; on a CPU it costs nothing to look
            maps = _in_pieces(power_sum, activation)
            low, high = maps.amax((1, 2)).aminmax()
            if low > 1e-12 and high < 1e12:
                return maps, one
        peak = activation.abs().amax((1, 2, 3), keepdim=True).to(one.dtype)
        scale = torch.where(peak > 0, peak, 1)
        return _in_pieces(lambda a, s: power_sum(a / s), activation, scale), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, bool], output: tuple[Tensor, Tensor]) -> None:
        activation, ctx.exponent, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(activation, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        activation, scale = ctx.saved_tensors
        factor = grad.unsqueeze(1) * ctx.exponent

        def slope(relative: Tensor, factor: Tensor) -> Tensor:
            if ctx.exponent == 1:
                relative = relative.sign()
            elif ctx.exponent != 2:
                relative = relative.to(factor.dtype)
                relative = relative.abs().pow(ctx.exponent - 1) * relative.sign()
            return (relative * factor).to(activation.dtype)

        if scale.ndim == 0:
            return _in_pieces(slope, activation, factor), None, None
        return _in_pieces(lambda a, s, f: slope(a / s, f), activation, scale, factor / scale), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], activation: Tensor, exponent: float, relative: bool
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        dim = in_dims[0]
        assert dim is not None  # else there is nothing to map over
        activation = activation.movedim(dim, 0)
        maps, scale = _PowerSum.apply(activation.flatten(0, 1), exponent, relative)
        batch = activation.shape[:2]
        return (maps.unflatten(0, batch), scale.expand(batch.numel(), 1, 1, 1).unflatten(0, batch)), (0, 0)


def _power_sum(activation: Tensor, exponent: float) -> Tensor:
    """``Σ_c |A_c|^p``, in the precision of maps."""
    size = activation.to(_map_dtype(activation), copy=True)
    match exponent:
        case 2:
            return size.square_().sum(1)
        case 1:
            return size.abs_().sum(1)
    return size.abs_().pow_(exponent).sum(1)
