"""Gradient attention by definition: a plain network of loops, differentiated by complex steps.

``f(x + ih) = f(x) + ih f'(x) + O(h^2)``: with h = 1e-30 the imaginary part is the derivative to the last
digit of float64, and autograd has no part in it. Zagoruyko & Komodakis (2017), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from oracles.attention import Array, as_float64, attention_transfer_loss

Values = np.ndarray[Any, Any]


# --- a network: 3x3 convolution, batch norm, activation, twice; the mean over positions; a classifier -------


def convolution(x: Values, weight: Array, bias: Array, stride: int) -> Values:
    n, _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((n, len(weight), -(-h // stride), -(-w // stride)), dtype=x.dtype)
    for i, k, y, z in np.ndindex(*out.shape):
        window = padded[i, :, y * stride : y * stride + 3, z * stride : z * stride + 3]
        out[i, k, y, z] = (window * weight[k]).sum() + bias[k]
    return out


def batch_norm(x: Values, norm: Any, running: bool) -> Values:
    out = np.zeros_like(x)
    scale, shift = as_float64(norm.weight), as_float64(norm.bias)
    for k in range(x.shape[1]):
        mean = as_float64(norm.running_mean)[k] if running else x[:, k].sum() / x[:, k].size
        variance = (
            as_float64(norm.running_var)[k] if running else ((x[:, k] - mean) ** 2).sum() / x[:, k].size
        )
        out[:, k] = (x[:, k] - mean) / np.sqrt(variance + norm.eps) * scale[k] + shift[k]
    return out


class PlainNetwork:
    """Reads the weights of a ``networks.Smooth``."""

    def __init__(self, network: Any, running: bool) -> None:
        self.network, self.running = network, running

    def stage(self, number: int, x: Values) -> Values:
        block = (self.network.low, self.network.high)[number]
        x = convolution(x, as_float64(block[0].weight), as_float64(block[0].bias), block[0].stride[0])
        x = batch_norm(x, block[1], self.running)
        return np.log(1 + np.exp(x)) if number == 0 else np.tanh(x)

    def features(self, images: Any) -> list[Array]:
        low = self.stage(0, as_float64(images))
        return [low, self.stage(1, low)]

    def logits(self, x: Values, first: int = 0) -> Values:
        """From the images, or from what stage ``first - 1`` answered."""
        for number in range(first, 2):
            x = self.stage(number, x)
        pooled = x.sum(axis=(2, 3)) / (x.shape[2] * x.shape[3])
        return pooled @ as_float64(self.network.head.weight).T + as_float64(self.network.head.bias)


# --- the definition ---------------------------------------------------------------------------------------


def cross_entropy(logits: Values, labels: Any) -> Any:
    """Summed over the samples."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        top = max(row.real)
        total = total + np.log(np.exp(row - top).sum()) + top - row[int(label)]
    return total


def derivative(function: Callable[[Values], Any], at: Array) -> Array:
    out = np.zeros(at.shape)
    for index in np.ndindex(*at.shape):
        moved = at.astype(complex)
        moved[index] += 1e-30j
        out[index] = function(moved).imag / 1e-30
    return out


def loss_gradient(network: PlainNetwork, images: Any, labels: Any, where: str = "input") -> list[Array]:
    """J = dL/dx for the images, or for each stage's answer."""
    given = [as_float64(images)] if where == "input" else network.features(images)
    first = 0 if where == "input" else 1
    return [
        derivative(lambda x, i=i: cross_entropy(network.logits(x, first + i), labels), values)
        for i, values in enumerate(given)
    ]


def gradient_distance(first: Any, second: Any, squared: bool) -> float:
    """1/2 mean over the samples of the 2-norm over everything else, or of its square."""
    a, b = as_float64(first), as_float64(second)
    total = 0.0
    for i in range(len(a)):
        square = math.fsum(float(v) ** 2 for v in (a[i] - b[i]).ravel())
        total += square if squared else math.sqrt(square)
    return total / (2 * len(a))


def gradient_attention_transfer(
    student: PlainNetwork,
    teacher: PlainNetwork,
    images: Any,
    labels: Any,
    where: str,
    compare: str,
    squared: bool,
) -> float:
    ours = loss_gradient(student, images, labels, where)
    theirs = loss_gradient(teacher, images, labels, where)
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if compare == "map":
            total += attention_transfer_loss(a, b, 2.0, "sum", "norm")
        else:
            total += gradient_distance(a, b, squared)
    return total


def flip(values: Array) -> Array:
    out = np.zeros_like(values)
    width = values.shape[3]
    for column in range(width):
        out[:, :, :, column] = values[:, :, :, width - 1 - column]
    return out


def flip_symmetry(
    student: PlainNetwork, images: Any, labels: Any, squared: bool, outputs: float = 0.0
) -> float:
    x = as_float64(images)
    (ours,), (mirrored,) = (loss_gradient(student, given, labels) for given in (x, flip(x)))
    loss = gradient_distance(ours, flip(mirrored), squared)
    return loss + outputs * gradient_distance(student.logits(x), student.logits(flip(x)), True)


def input_gradient_penalty(student: PlainNetwork, images: Any, labels: Any, squared: bool) -> float:
    (gradient,) = loss_gradient(student, images, labels)
    return gradient_distance(gradient, np.zeros_like(gradient), squared)
