"""Slow references of the methods, as loops over their definitions."""

from __future__ import annotations

import math

import numpy as np


def gradient_distance(first: np.ndarray, second: np.ndarray | None, squared: bool) -> float:
    """½ · mean over samples of ||J_1 - J_2||, or of its square."""
    total = 0.0
    for n in range(len(first)):
        square = 0.0
        for index in np.ndindex(*first.shape[1:]):
            other = 0.0 if second is None else second[(n, *index)]
            square += (first[(n, *index)] - other) ** 2
        total += square if squared else math.sqrt(square)
    return total / len(first) / 2


def full_activation(student: np.ndarray, teacher: np.ndarray, reduction: str) -> float:
    """Of one resolution: distance of activations of unit norm."""
    squares = []
    for ours, theirs in zip(student, teacher, strict=True):
        a, b = (x / math.sqrt(sum(v * v for v in x.flat)) for x in (ours, theirs))
        squares.append(sum((u - v) ** 2 for u, v in zip(a.flat, b.flat, strict=True)))
    if reduction == "norm":
        return sum(math.sqrt(square) for square in squares) / len(squares)
    return sum(squares) / student.size


def class_activation_maps(features: np.ndarray, weight: np.ndarray) -> np.ndarray:
    samples, channels, height, width = features.shape
    maps = np.zeros((samples, len(weight), height, width))
    for n, k, y, x in np.ndindex(*maps.shape):
        maps[n, k, y, x] = sum(weight[k, c] * features[n, c, y, x] for c in range(channels))
    return maps


def class_activation_map_loss(student: np.ndarray, teacher: np.ndarray, min_max: bool) -> float:
    def unit(single: np.ndarray) -> np.ndarray:
        if min_max:
            single = (single - single.min()) / (single.max() - single.min())
        return single / math.sqrt(sum(v * v for v in single.flat))

    total = 0.0
    for n, k in np.ndindex(*student.shape[:2]):
        total += sum((unit(student[n, k]) - unit(teacher[n, k])).flat ** np.array(2.0))
    return total / student.size


def class_attention(
    student: np.ndarray, teacher: np.ndarray, resolution: int, normalize: bool, binarize: bool
) -> float:
    """For sides that are multiples of the resolution."""

    def pooled(single: np.ndarray) -> np.ndarray:
        step_y, step_x = (side // resolution for side in single.shape)
        out = np.zeros((resolution, resolution))
        for i, j in np.ndindex(resolution, resolution):
            out[i, j] = single[i * step_y : (i + 1) * step_y, j * step_x : (j + 1) * step_x].mean()
        return out / math.sqrt((out**2).sum()) if normalize else out

    total = 0.0
    for n, k in np.ndindex(*student.shape[:2]):
        theirs = teacher[n, k]
        if binarize:
            theirs = (theirs > np.abs(theirs).mean()).astype(float)
        total += ((pooled(student[n, k]) - pooled(theirs)) ** 2).sum()
    return total / (student.shape[0] * student.shape[1] * resolution**2)


def loss_rates(names: list[str], first: list[float], last: list[float]) -> list[float]:
    rates = [b / a for a, b in zip(first, last, strict=True)]
    weights = [rate / (sum(rates) / len(rates)) for rate in rates]
    if "ce" in names and weights[names.index("ce")] < 0.1:
        others = sum(w for name, w in zip(names, weights, strict=True) if name != "ce")
        weights = [
            0.1 if name == "ce" else w * (len(names) - 0.1) / others
            for name, w in zip(names, weights, strict=True)
        ]
    return weights
