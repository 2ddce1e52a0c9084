"""Convolution and batch norm, differentiated twice, against PyTorch's and finite differences."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from eyeline.double_backward import TwiceDifferentiable


def normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    with TwiceDifferentiable():
        return F.batch_norm(x, None, None, weight, bias, training=True)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_first_and_second_derivatives_are_the_finite_differences(
    affine: bool, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(3, 4, 2, 3, dtype=torch.float64) * 2 + 1).contiguous(memory_format=layout)
    x.requires_grad_()
    # 0: a residual branch that starts closed
    weight = torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=torch.float64, requires_grad=True) if affine else None
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True) if affine else None
    given = [x] if weight is None or bias is None else [x, weight, bias]

    def function(*given: Any) -> Tensor:
        # squared: else the gradients for weight and bias would not depend on both
        return normalized(*given, *[None] * (3 - len(given))).square()

    assert gradcheck(function, given)
    assert gradgradcheck(function, given)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"stride": (1, 2), "padding": (0, 2), "dilation": 2}, {"groups": 2}],
    ids=str,
)
def test_derivatives_of_a_convolution_are_the_finite_differences(options: dict[str, Any], bias: bool) -> None:
    torch.manual_seed(0)
    channels = 4 // options.get("groups", 1)
    given = [torch.randn(2, 4, 5, 6), torch.randn(2, channels, 3, 2)] + bias * [torch.randn(2)]
    given = [tensor.double().requires_grad_() for tensor in given]

    def function(*given: Tensor) -> Tensor:
        with TwiceDifferentiable():
            return F.conv2d(*given, **options).square()

    assert gradcheck(function, given)
    assert gradgradcheck(function, given)
    # a second derivative by some of the inputs alone, the others being leaves that nobody asks for
    theirs, ours = (
        torch.autograd.grad(
            torch.autograd.grad(call(*given).sum(), given[0], create_graph=True)[0].sum(), given[:2]
        )
        for call in (lambda *given: F.conv2d(*given, **options).square(), function)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_gradients_reach_the_leaves_whoever_asks_for_them() -> None:
    layer = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    for ask in (
        lambda y: torch.autograd.grad(y, layer.parameters(), create_graph=True),
        lambda y: torch.autograd.grad(y, [x, layer.bias]),
        lambda y: (y.backward(create_graph=True), x.grad.clone(), layer.weight.grad.clone()),
    ):
        found = []
        for mode in (nullcontext(), TwiceDifferentiable()):
            layer.zero_grad()
            x.grad = None
            with mode:
                y = layer(x).square().sum()
            found.append([tensor for tensor in ask(y) if tensor is not None])
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_agrees_with_pytorch(dtype: torch.dtype, channels_last: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
    )
    images = torch.randn(6, 3, 12, 12)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

    def derivatives(dtype: torch.dtype, ours: bool) -> tuple[list[Tensor], list[Tensor]]:
        model = copy.deepcopy(network).to(torch.float64 if dtype == torch.float64 else torch.float32)
        x = images.to(next(model.parameters()).dtype).requires_grad_()
        low = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
        with low, TwiceDifferentiable() if ours else nullcontext():
            answer = model(x)
        (gradient,) = torch.autograd.grad(answer.double().square().sum(), x, create_graph=True)
        found = torch.autograd.grad(
            gradient.double().square().sum(), list(model.parameters()), allow_unused=True
        )
        return [f.double() for f in found if f is not None], [model[1].running_mean.double().clone()]

    exact, _ = derivatives(torch.float64, ours=False)
    (theirs, theirs_mean), (ours, ours_mean) = (derivatives(dtype, own) for own in (False, True))
    torch.testing.assert_close(ours_mean, theirs_mean)
    assert len(ours) == len(exact) == len(theirs)
    for own, their, value in zip(ours, theirs, exact, strict=True):
        # no further from the exact value than PyTorch is, but for chance
        error, allowed = (own - value).norm(), 2 * (their - value).norm() + 1e-6 * value.norm()
        assert error <= allowed


def test_everything_else_is_pytorchs() -> None:
    x = torch.randn(4, 3, 5, 5)
    for layer in (
        nn.BatchNorm2d(3).eval(),
        nn.BatchNorm2d(3, momentum=None),
        nn.BatchNorm2d(3, affine=False),
    ):
        expected = nn.Sequential(layer)(x)
        layer.reset_running_stats()
        with TwiceDifferentiable():
            assert torch.equal(layer(x), expected)
    flat = nn.BatchNorm1d(3)
    expected = flat(x.mean((2, 3)))
    with TwiceDifferentiable():
        assert torch.equal(flat(x.mean((2, 3))), expected)
        with pytest.raises(ValueError, match="more than 1 value"):
            nn.BatchNorm2d(3)(torch.randn(1, 3, 1, 1))
