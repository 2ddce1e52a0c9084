"""Feature, class-map and attention-feature losses by definition: loops over float64 scalars, slow on purpose.

Zagoruyko & Komodakis (2017), Romero et al. (2015), Zhou et al. (2016), Guo et al. (2023).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.attention import Array, as_float64, norm, resize_map


def resize(features: Array, size: tuple[int, int]) -> Array:
    """``[N, C, h, w]`` to ``[N, C, H, W]``, every channel as a map."""
    if features.shape[2:] == size:
        return features
    return np.stack([resize_map(features[:, c], size) for c in range(features.shape[1])], axis=1)


def mean_square(a: Array, b: Array) -> float:
    return math.fsum((float(x) - float(y)) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True)) / a.size


def unit(values: Array) -> Array:
    length = norm(values)
    return values / length if length > 0 else np.zeros_like(values)


# --- features -------------------------------------------------------------------------------------------


def full_activation_loss(student: Any, teacher: Any, reduction: str = "mean_square") -> float:
    """f = vec(F) / ||vec(F)||_2 for each sample; mean of (f_s - f_t)^2, or batch mean of ||f_s - f_t||_2."""
    s = as_float64(student)
    t = resize(as_float64(teacher), s.shape[2:])
    f_s, f_t = (np.stack([unit(sample) for sample in side]) for side in (s, t))
    if reduction == "mean_square":
        return mean_square(f_s, f_t)
    return math.fsum(norm(a - b) for a, b in zip(f_s, f_t, strict=True)) / len(s)


def hint_loss(student: Any, teacher: Any) -> float:
    s = as_float64(student)
    return mean_square(s, resize(as_float64(teacher), s.shape[2:]))


def convolved(features: Any, weight: Any, bias: Any = None) -> Array:
    """A 1x1 convolution: out[n,k,h,w] = sum over c of W[k,c] F[n,c,h,w] + b[k]."""
    f, w = as_float64(features), as_float64(weight)
    w = w.reshape(w.shape[:2])
    b = np.zeros(len(w)) if bias is None else as_float64(bias)
    n, c, height, width = f.shape
    out = np.zeros((n, len(w), height, width))
    for i in range(n):
        for k in range(len(w)):
            for y in range(height):
                for x in range(width):
                    out[i, k, y, x] = b[k] + math.fsum(w[k, j] * f[i, j, y, x] for j in range(c))
    return out


# --- class maps -----------------------------------------------------------------------------------------


def stretched(plane: Array) -> Array:
    span = plane.max() - plane.min()
    return (plane - plane.min()) / span if span > 0 else np.zeros_like(plane)


def class_activation_map_loss(student: Any, teacher: Any, min_max: bool = False) -> float:
    """Mean over batch, classes and positions of (n(CAM_s) - n(CAM_t))^2."""
    s = as_float64(student)
    t = resize(as_float64(teacher), s.shape[2:])
    both = []
    for maps in (s, t):
        out = np.zeros_like(maps)
        for i in range(maps.shape[0]):
            for k in range(maps.shape[1]):
                out[i, k] = unit(stretched(maps[i, k]) if min_max else maps[i, k])
        both.append(out)
    return mean_square(*both)


def pooled(plane: Array, size: tuple[int, int]) -> Array:
    """Adaptive average pooling: cell i of r averages the inputs floor(i h / r) to ceil((i+1) h / r)."""
    out = np.zeros(size)
    h, w = plane.shape
    for y in range(size[0]):
        for x in range(size[1]):
            top, bottom = y * h // size[0], -(-(y + 1) * h // size[0])
            left, right = x * w // size[1], -(-(x + 1) * w // size[1])
            out[y, x] = math.fsum(plane[top:bottom, left:right].ravel()) / ((bottom - top) * (right - left))
    return out


def above_mean(plane: Array) -> Array:
    """1[x > mean |x|]."""
    return (plane > math.fsum(abs(float(v)) for v in plane.ravel()) / plane.size).astype(np.float64)


def class_attention_loss(
    student: Any, teacher: Any, resolution: int = 2, normalize: bool = False, binarize: bool = False
) -> float:
    both = []
    for side, maps in enumerate((as_float64(student), as_float64(teacher))):
        out = np.zeros((*maps.shape[:2], resolution, resolution))
        for i in range(maps.shape[0]):
            for k in range(maps.shape[1]):
                plane = above_mean(maps[i, k]) if binarize and side == 1 else maps[i, k]
                plane = pooled(plane, (resolution, resolution))
                out[i, k] = unit(plane) if normalize else plane
        both.append(out)
    return mean_square(*both)


def highest(logits: Any, number: int) -> list[list[int]]:
    """The classes of each sample's ``number`` highest logits; lowest, if it is negative."""
    return [
        sorted(range(len(row)), key=lambda k: row[k], reverse=number > 0)[: abs(number)]
        for row in as_float64(logits).tolist()
    ]


def chosen(maps: Any, classes: list[list[int]]) -> Array:
    return np.stack([as_float64(m)[k] for m, k in zip(maps, classes, strict=True)])


# --- attention and feature transfer ---------------------------------------------------------------------


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def attention_feature(maps: Any, pre_activation: Any, binary: str = "sigmoid") -> Array:
    """Binary(u) + max(Pre, 0)."""
    u, pre = as_float64(maps), as_float64(pre_activation)
    out = np.zeros_like(u)
    for index in np.ndindex(*u.shape):
        plane = u[index[0], index[1]]
        if binary == "mean":
            seen = above_mean(plane)[index[2], index[3]]
        else:
            seen = sigmoid(u[index])
            seen = float(seen > 0.5) if binary == "sigmoid" else seen
        out[index] = seen + max(pre[index], 0.0)
    return out


def slope(maps: Any) -> Array:
    """The derivative of the sigmoid, which stands for that of Binary."""
    u = as_float64(maps)
    return np.vectorize(lambda v: sigmoid(v) * (1 - sigmoid(v)))(u)


def pooled_to(features: Array, size: tuple[int, int]) -> Array:
    return np.stack([np.stack([pooled(plane, size) for plane in sample]) for sample in features])


def attention_feature_loss(student: Any, teacher: Any, align: Any, embed: Any, binary: str) -> float:
    """One pair; ``align`` and ``embed`` are (weight, bias)."""
    s, t = as_float64(student), as_float64(teacher)
    size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
    s, t = convolved(pooled_to(s, size), *align), pooled_to(t, size)
    ours, theirs = (attention_feature(convolved(side, *embed), side, binary) for side in (s, t))
    return mean_square(ours, theirs)
