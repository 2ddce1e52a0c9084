"""Knowledge distillation by definition: loops over float64 scalars, slow on purpose. Hinton et al. (2015)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oracles.attention import Array, as_float64


def log_probabilities(logits: Array, temperature: float) -> list[float]:
    """log of exp(z_k / T) / sum_j exp(z_j / T), for one sample."""
    scaled = [float(z) / temperature for z in logits]
    top = max(scaled)
    total = math.log(math.fsum(math.exp(z - top) for z in scaled))
    return [z - top - total for z in scaled]


def knowledge_distillation_loss(student: Any, teacher: Any, temperature: float = 4.0) -> float:
    """T^2 / N  sum over samples and classes of  p_t (log p_t - log p_s),  p = softmax(z / T)."""
    s, t = as_float64(student), as_float64(teacher)
    terms = []
    for z_s, z_t in zip(s, t, strict=True):
        for log_s, log_t in zip(
            log_probabilities(z_s, temperature), log_probabilities(z_t, temperature), strict=True
        ):
            terms.append(math.exp(log_t) * (log_t - log_s))
    return temperature**2 * math.fsum(terms) / len(s)


def knowledge_distillation_gradient(student: Any, teacher: Any, temperature: float = 4.0) -> Array:
    """dL/dz_s = T (softmax(z_s/T) - softmax(z_t/T)) / N."""
    s, t = as_float64(student), as_float64(teacher)
    out = np.zeros_like(s)
    for i in range(len(s)):
        p_s, p_t = (np.exp(log_probabilities(z[i], temperature)) for z in (s, t))
        out[i] = temperature * (p_s - p_t) / len(s)
    return out
