"""Attention maps and attention transfer by definition: loops over float64 scalars, slow on purpose.

Nothing here is normalised for safety, fused or vectorised. Activations are ``[N, C, H, W]``, maps
``[N, H, W]``; anything NumPy can read is taken and float64 is returned. Zagoruyko & Komodakis (2017).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, np.dtype[np.float64]]


def as_float64(values: Any) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    return np.array(values, dtype=np.float64)


# --- maps -----------------------------------------------------------------------------------------------


def attention_map(
    activation: Any, exponent: float = 2.0, reduce: str = "sum", normalize: bool = True
) -> Array:
    """Q[n,h,w] = sum (or max) over c of |A[n,c,h,w]|^p; divided by its 2-norm over (h, w) if asked."""
    a = as_float64(activation)
    n, c, h, w = a.shape
    q = np.zeros((n, h, w))
    for i in range(n):
        for y in range(h):
            for x in range(w):
                powers = [abs(float(a[i, k, y, x])) ** exponent for k in range(c)]
                q[i, y, x] = math.fsum(powers) if reduce == "sum" else max(powers)
    return normalize_map(q) if normalize else q


def norm(values: Array) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for v in values.ravel()))


def normalize_map(q: Array) -> Array:
    """Each sample's map divided by its 2-norm; an all-zero map stays zero."""
    out = np.zeros_like(q)
    for i in range(len(q)):
        length = norm(q[i])
        if length > 0:
            out[i] = q[i] / length
    return out


# --- resizing: one axis at a time, averages when it shrinks, straight lines when it grows ---------------


def resize_line(line: Array, size: int) -> Array:
    given, out = len(line), np.zeros(size)
    for i in range(size):
        if size <= given:
            first, last = (i * given) // size, -((-(i + 1) * given) // size)  # the inputs that cell i touches
            out[i] = math.fsum(line[first:last]) / (last - first)
        else:
            centre = max(0.0, (i + 0.5) * given / size - 0.5)  # align_corners=False
            left = min(int(centre), given - 1)
            right, fraction = min(left + 1, given - 1), centre - left
            out[i] = (1 - fraction) * line[left] + fraction * line[right]
    return out


def resize_map(q: Array, size: tuple[int, int]) -> Array:
    """``[N, h, w]`` to ``[N, H, W]``, every column to height H and then every row to width W."""
    n, _, w = q.shape
    tall = np.zeros((n, size[0], w))
    out = np.zeros((n, *size))
    for i in range(n):
        for x in range(w):
            tall[i, :, x] = resize_line(q[i, :, x], size[0])
        for y in range(size[0]):
            out[i, y, :] = resize_line(tall[i, y, :], size[1])
    return out


# --- the loss -------------------------------------------------------------------------------------------


def map_pair(
    student: Any, teacher: Any, exponent: float = 2.0, reduce: str = "sum"
) -> tuple[Array, Array, Array]:
    """Q_s, q_s and q_t: the teacher's raw map is resized to the student's size, *then* normalised."""
    raw_student = attention_map(student, exponent, reduce, normalize=False)
    raw_teacher = attention_map(teacher, exponent, reduce, normalize=False)
    resized = resize_map(raw_teacher, raw_student.shape[1:])
    return raw_student, normalize_map(raw_student), normalize_map(resized)


def attention_transfer_loss(
    student: Any, teacher: Any, exponent: float = 2.0, reduce: str = "sum", reduction: str = "mean_square"
) -> float:
    """mean_square: mean over batch and positions of (q_s-q_t)^2. norm: mean over batch of ||q_s-q_t||_2."""
    _, q_s, q_t = map_pair(student, teacher, exponent, reduce)
    if reduction == "mean_square":
        return math.fsum(float(v) ** 2 for v in (q_s - q_t).ravel()) / q_s.size
    return math.fsum(norm(q_s[i] - q_t[i]) for i in range(len(q_s))) / len(q_s)


def attention_transfer_gradient(
    student: Any, teacher: Any, exponent: float = 2.0, reduce: str = "sum", reduction: str = "mean_square"
) -> Array:
    """Closed form of dL/dA_s. With c = q_s . q_t (all norms are 2-norms),

    mean_square   dL/dQ = 2 (c q_s - q_t) / (N P ||Q_s||)
    norm          dL/dQ = (c q_s - q_t) / (N ||Q_s|| ||q_s - q_t||), and 0 at q_s = q_t
    then          dL/dA_c = dL/dQ  p |A_c|^(p-1) sign(A_c)   for every channel (sum), the largest only (max)
    """
    a = as_float64(student)
    raw, q_s, q_t = map_pair(student, teacher, exponent, reduce)
    n, c, h, w = a.shape
    out = np.zeros_like(a)
    for i in range(n):
        length, distance = norm(raw[i]), norm(q_s[i] - q_t[i])
        if length == 0 or distance == 0:
            continue
        cosine = math.fsum((q_s[i] * q_t[i]).ravel())
        factor = 2 / (n * h * w * length) if reduction == "mean_square" else 1 / (n * length * distance)
        for y in range(h):
            for x in range(w):
                to_map = factor * (cosine * q_s[i, y, x] - q_t[i, y, x])
                strongest = int(np.argmax(np.abs(a[i, :, y, x])))
                for k in range(c) if reduce == "sum" else [strongest]:
                    value = float(a[i, k, y, x])
                    sign = (value > 0) - (value < 0)
                    out[i, k, y, x] = to_map * exponent * abs(value) ** (exponent - 1) * sign
    return out


# --- the layered construction, as one would stack it in a layer-graph framework -------------------------


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, -x, x)


class Power(nn.Module):
    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:
        return x**self.exponent


class Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x * x).sum(dim=-1, keepdim=True).sqrt()


class LayeredMap(nn.Module):
    """reshape -> absolute value -> power -> 1x1 convolution of ones over the channels -> normalise."""

    def __init__(self, channels: int, exponent: float) -> None:
        super().__init__()
        self.reshape = nn.Flatten(start_dim=2)  # [N, C, P]
        self.absolute = Absolute()
        self.power = Power(exponent)
        self.sum = nn.Conv1d(channels, 1, kernel_size=1, bias=False, dtype=torch.float64)  # [N, 1, P]
        nn.init.ones_(self.sum.weight)
        self.normalize = Normalize()

    def forward(self, activation: Tensor) -> Tensor:
        x = self.power(self.absolute(self.reshape(activation)))
        return self.normalize(self.sum(x))


class LayeredLoss(nn.Module):
    """Two layered maps of one size and the distance between them."""

    def __init__(self, student_channels: int, teacher_channels: int, exponent: float, reduction: str) -> None:
        super().__init__()
        self.student = LayeredMap(student_channels, exponent)
        self.teacher = LayeredMap(teacher_channels, exponent)
        self.reduction = reduction

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        difference = self.student(student) - self.teacher(teacher).detach()
        if self.reduction == "mean_square":
            return (difference * difference).mean()
        return (difference * difference).sum(dim=(1, 2)).sqrt().mean()
