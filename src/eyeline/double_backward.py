"""Convolution and batch norm whose second derivatives run on the kernels of the first ones.

PyTorch builds the second derivative of batch norm from about forty elementwise operations and reductions, and
that of a convolution for its weight from one with kernels as large as the image. Where a step differentiates
an input gradient these take most of the time on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from eyeline.attention import in_pieces

Pair = tuple[int, int]


class _Geometry(NamedTuple):
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class TwiceDifferentiable(TorchFunctionMode):
    """Inside it ``conv2d`` and ``batch_norm`` with the statistics of the batch are this module's: of the same
    values and gradients, differentiable twice, not three times."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _OURS.get(func, func)(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv2d``."""
    if isinstance(padding, str) or input.ndim != 4:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    device = input.device.type
    if torch.is_autocast_enabled(device) and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    stride, padding, dilation = ((n, n) if isinstance(n, int) else n for n in (stride, padding, dilation))
    output: Tensor = _Convolution.apply(input, weight, bias, _Geometry(stride, padding, dilation, groups))
    return output


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.geometry = geometry
        return F.conv2d(input, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # an input gradient asks for none of the weights
        mask = [node is not None and _runs(node) for node, _ in ctx.next_functions]
        mask += [False] * (3 - len(mask))
        gradients = _ConvolutionBackward.apply(grad, *ctx.saved_tensors, ctx.geometry, mask)
        return *gradients, None


def _runs(node: torch.autograd.graph.Node) -> bool:
    """Whether the backward pass under way leads to this node."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient was asked for by name
        return True


class _ConvolutionBackward(torch.autograd.Function):
    """The gradients of a convolution, and theirs: both are linear in each of what they are made of."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        input: Tensor,
        weight: Tensor,
        geometry: _Geometry,
        mask: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(grad, input, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return _convolution_backward(grad, input, weight, geometry, mask)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_input: Tensor | None, by_weight: Tensor | None, by_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, input, weight = ctx.saved_tensors
        geometry: _Geometry = ctx.geometry
        for_grad = for_input = for_weight = None
        if by_input is not None:
            for_grad = F.conv2d(by_input, weight, None, *geometry)
            for_weight = _convolution_backward(grad, by_input, weight, geometry, (False, True, False))[1]
        if by_weight is not None:
            more = F.conv2d(input, by_weight, None, *geometry)
            for_grad = more if for_grad is None else for_grad + more
            for_input = _convolution_backward(grad, input, by_weight, geometry, (True, False, False))[0]
        if by_bias is not None:
            more = by_bias.view(1, -1, 1, 1)
            for_grad = more.expand_as(grad) if for_grad is None else for_grad + more
        return for_grad, for_input, for_weight, None, None


def _convolution_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: _Geometry,
    mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        grad, input, weight, [len(weight)], *geometry[:3], False, [0, 0], geometry.groups, mask
    )
    return gradients


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm``."""
    if not training or input.ndim != 4 or input.numel() == input.shape[1]:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    output: Tensor = _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return output


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        output, mean, inverse = torch.native_batch_norm(
            input, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(input, weight, mean, inverse)
        ctx.eps = eps
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, inverse = ctx.saved_tensors
        by_input, by_weight, by_bias = _BatchNormBackward.apply(grad, input, weight, mean, inverse, ctx.eps)
        affine = weight is not None
        return by_input, by_weight if affine else None, by_bias if affine else None, None, None, None, None


class _BatchNormBackward(torch.autograd.Function):
    """The gradients of batch norm, and theirs.

    With ``x̂ = (x - mean) / std``, M values a channel, ``<.>`` the sum over a channel and
    ``B[v] = (v - <v>/M - x̂ <v x̂>/M) / std``, which is its own adjoint, the gradients for a given ``g`` are
    ``γ B[g]``, ``<g x̂>`` and ``<g>``. Let u, a and b be what comes back for them, and
    ``t = <u B[g]> = (<u g> - <u><g>/M - <u x̂><g x̂>/M) / std``. Then

    * for g: ``γ B[u] + a x̂ + b``,
    * for γ: ``t``,
    * for x: ``-(<g x̂> γ B[u] + <u x̂> γ B[g] + γ t x̂) / (M std) + a B[g]``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        input: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        inverse: Tensor,
        eps: float,
    ) -> tuple[Tensor, ...]:
        gradients = _batch_norm_backward(grad, input, weight, mean, inverse, eps)
        ctx.save_for_backward(grad, input, weight, mean, inverse, *gradients)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return gradients

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, input, weight, mean, inverse, by_input, sum_gx, sum_g = ctx.saved_tensors
        count = input.numel() // input.shape[1]
        u = torch.zeros_like(grad) if u is None else u
        applied, sum_ux, sum_u = _batch_norm_backward(u, input, None, mean, inverse, ctx.eps)
        # the kernel's <u x̂> with grad in the place of x̂
        _, sum_ug, _ = _batch_norm_backward(
            u, grad, None, torch.zeros_like(mean), torch.ones_like(mean), ctx.eps, by_input=False
        )
        t = inverse * (sum_ug - (sum_u * sum_g + sum_ux * sum_gx) / count)
        gamma = torch.ones_like(inverse) if weight is None else weight.to(inverse.dtype)
        into_grad = [(applied, gamma)]
        into_input = [(applied, -sum_gx * gamma * inverse / count), (by_input, -sum_ux * inverse / count)]
        if a is not None:
            into_input.append((_batch_norm_backward(grad, input, None, mean, inverse, ctx.eps)[0], a))
        zero = torch.zeros_like(mean)
        a, b = (zero if given is None else given for given in (a, b))
        return (
            _combined(input, mean, inverse * a, b, into_grad),
            _combined(input, mean, -gamma * t * inverse.square() / count, zero, into_input),
            t if weight is not None else None,
            None,
            None,
            None,
        )


def _batch_norm_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    eps: float,
    by_input: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """``γ B[grad]``, ``<grad x̂>`` and ``<grad>``."""
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
        grad, input, weight, None, None, mean, inverse, True, eps, [by_input, True, True]
    )
    return gradients


def _combined(
    input: Tensor, mean: Tensor, by_input: Tensor, constant: Tensor, others: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """``by_input (input - mean) + constant + Σ factor · other``, with a factor for each channel."""

    def sum_up(input: Tensor, *others_and_factors: Tensor) -> Tensor:
        *given, mean, by_input, constant = others_and_factors
        total = input.to(mean.dtype, copy=True).sub_(mean).mul_(by_input).add_(constant)
        for other, factor in zip(given[::2], given[1::2], strict=True):
            total.addcmul_(other.to(mean.dtype), factor)
        return total

    def wide(factor: Tensor) -> Tensor:
        return factor.view(1, -1, 1, 1)

    given = [part for other, factor in others for part in (other, wide(factor))]
    return in_pieces(sum_up, input, input, *given, wide(mean), wide(by_input), wide(constant))


_OURS = {F.conv2d: _conv2d, F.batch_norm: _batch_norm}
