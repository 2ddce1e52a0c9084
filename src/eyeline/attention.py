"""Attention maps: where the activations of a network are strong.

Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928), section 3.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from eyeline.errors import InputError, unknown

if TYPE_CHECKING:
    from jaxtyping import Float

Reduce = Literal["sum", "max"]


def attention_map(
    activation: Float[Tensor, "n c h w"],
    exponent: float = 2.0,
    reduce: Reduce = "sum",
    normalize: bool = True,
) -> Float[Tensor, "n h w"]:
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
    if reduce == "sum":
        maps: Tensor = _SumMap.apply(activation, exponent, normalize)[0]
        return maps
    return _max_map(activation, exponent, normalize)


def normalized(maps: Float[Tensor, "*maps"], dim: tuple[int, ...] = (1, 2)) -> Float[Tensor, "*maps"]:
    """Divide each map ``[N, H, W]`` by its Euclidean norm over ``dim``; a map of zeros stays as it is."""
    # the norm has no derivative at 0, not even a second one that a where() behind it could hide
    empty = maps.detach().abs().amax(dim, keepdim=True) == 0
    return maps / torch.linalg.vector_norm(torch.where(empty, 1, maps), dim=dim, keepdim=True)


def relative(tensor: Float[Tensor, "*shape"], dims: tuple[int, ...]) -> Float[Tensor, "*shape"]:
    """Divided by its strongest absolute value over ``dims``, held constant; zeros stay zeros."""
    peak = tensor.detach().abs().amax(dims, keepdim=True)
    return tensor / torch.where(peak > 0, peak, 1)


def resized(
    maps: Float[Tensor, "n *c _ _"], size: tuple[int, int]
) -> Float[Tensor, "n *c {size[0]} {size[1]}"]:
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


def _max_map(
    activation: Float[Tensor, "n c h w"], exponent: float, normalize: bool
) -> Float[Tensor, "n h w"]:
    # max, unlike amax, sends the whole gradient through one channel where several are equally strong
    strongest = activation.abs().max(1).values.to(_map_dtype(activation))
    if not normalize:
        return strongest.pow(exponent)
    return normalized(relative(strongest, (1, 2)).pow(exponent))


PIECE = 1 << 19
"""Elements that a CPU takes at once: their float copies stay in its cache."""


def in_pieces(function: Callable[..., Tensor], like: Tensor, *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, of the shape and dtype of ``like``; on a CPU some samples of a large batch at
    a time."""
    large = tensors[0]
    whole = large.device.type != "cpu" or large.numel() <= PIECE
    if whole or torch.compiler.is_compiling() or torch.is_grad_enabled():
        return function(*tensors).to(like.dtype)
    result = torch.empty_like(like)
    samples = max(1, PIECE // large[0].numel())
    expanded = (t.expand(len(large), *t.shape[1:]) for t in (result, *tensors))
    for target, *piece in zip(*(t.split(samples) for t in expanded), strict=True):
        target.copy_(function(*piece))
    return result


class _SumMap(torch.autograd.Function):
    """The map of ``Σ_c |A_c / scale|^p``, its norm where it is normalised, and the scale, held constant.

    Autograd would keep and re-read four float32 copies of the activation; the closed form reads A once:
    ``dL/dA_c = dL/dQ · p |A_c|^(p-1) sign(A_c)``, here with ``A / scale`` in the place of A, where for
    ``q = Q / ||Q||`` it is ``dL/dQ = (dL/dq - <dL/dq, q> q) / ||Q|| + dL/d||Q|| q``. A norm and a scale
    without dimensions are 1.
    """

    @staticmethod
    def forward(activation: Tensor, exponent: float, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _map_dtype(activation)
        samples, _, height, width = activation.shape
        power_sum = functools.partial(_power_sum, exponent=exponent)
        one = activation.new_ones((), dtype=dtype)
        like = one.expand(samples, height, width)
        if not normalize:
            return in_pieces(power_sum, like, activation), one, one.clone()
        if activation.device.type == "cpu" and not torch.compiler.is_compiling():
            # of moderate size as they are, mostly; on a CPU it costs nothing to look
            maps = in_pieces(power_sum, like, activation)
            norm = torch.linalg.vector_norm(maps, dim=(1, 2), keepdim=True)
            low, high = norm.aminmax()
            if low > 1e-12 and high < 1e12:
                return maps.div_(norm), norm, one
        peak = activation.abs().amax((1, 2, 3), keepdim=True).to(dtype)
        scale = torch.where(peak > 0, peak, 1)
        maps = in_pieces(lambda a, s: power_sum(a / s), like, activation, scale)
        norm = torch.linalg.vector_norm(maps, dim=(1, 2), keepdim=True)
        # a map of zeros stays one
        norm = torch.where(norm == 0, 1, norm)
        return maps.div_(norm), norm, scale

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, float, bool], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        activation, ctx.exponent, normalize = inputs
        ctx.mark_non_differentiable(*output[2 if normalize else 1 :])
        ctx.save_for_backward(activation, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_norm: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        activation, maps, norm, scale = ctx.saved_tensors
        exponent = ctx.exponent
        if norm.ndim:
            along = (grad * maps).sum((1, 2), keepdim=True)
            grad = torch.addcmul(grad, maps, grad_norm * norm - along) / norm
        factor = grad.unsqueeze(1) * (exponent / scale)

        def slope(relative: Tensor, factor: Tensor) -> Tensor:
            relative = relative.to(factor.dtype, copy=True)
            if exponent == 1:
                relative = relative.sign()
            elif exponent != 2:
                relative = relative.abs().pow(exponent - 1) * relative.sign()
            return relative.mul_(factor)

        if scale.ndim == 0:
            return in_pieces(slope, activation, activation, factor), None, None
        return in_pieces(lambda a, s, f: slope(a / s, f), activation, activation, scale, factor), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], activation: Tensor, exponent: float, normalize: bool
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        dim = in_dims[0]
        assert dim is not None  # else there is nothing to map over
        activation = activation.movedim(dim, 0)
        outputs = _SumMap.apply(activation.flatten(0, 1), exponent, normalize)
        unflatten = functools.partial(torch.unflatten, dim=0, sizes=activation.shape[:2])
        return tuple(unflatten(o) if o.ndim else o for o in outputs), tuple(
            0 if o.ndim else None for o in outputs
        )


def _power_sum(activation: Tensor, exponent: float) -> Tensor:
    """``Σ_c |A_c|^p``, in the precision of maps."""
    size = activation.to(_map_dtype(activation), copy=True)
    match exponent:
        case 2:
            return size.square_().sum(1)
        case 1:
            return size.abs_().sum(1)
    return size.abs_().pow_(exponent).sum(1)
