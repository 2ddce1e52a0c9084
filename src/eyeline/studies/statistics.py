"""Statistics of a study: means, spreads, and what its differences allow to say about new seeds and images."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_EXACT = 14
"""Seeds of which every pattern of signs is tried; of more, as many patterns by chance."""


def summary(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation (none for a single value)."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def paired_difference(right: np.ndarray, baseline: np.ndarray, confidence: float = 0.95) -> dict[str, Any]:
    """The mean of ``right - baseline``, paired by seed and image, with an interval and two tests against 0.

    Seeds and images are two crossed random samples: ``d_si = mean + S_s + I_i + E_si``. With the mean squares
    ``MS`` of the two-way analysis of variance of ``d``, the variance of its mean is
    ``(MS_S + max(MS_I - MS_E, 0)) / (seeds · images)``; the interval is Student's t with Satterthwaite's
    degrees of freedom for that sum of two. So it holds for new seeds and new images, where one over seeds
    alone takes the images as given. Source: Satterthwaite (Biometrics 2, 1946); for such data Hillis
    (Statistics in Medicine 26, 2007) and Owen (Annals of Applied Statistics 1, 2007).

    Args:
        right, baseline: bool ``[seeds, images]``: whether each image is answered right.

    Returns:
        ``mean, low, high`` as fractions; ``p``, two-sided, of the t-test of that interval; ``p_flips``,
        two-sided, of the permutation test that flips the signs of the seeds' differences (there the images
        are given). Interval and both p are None where nothing can be estimated: for one seed, or where all
        seeds differ by the same, as a few seeds on few images may by chance. ``p_holm``: see :func:`correct`.
    """
    from scipy import stats

    d = right.astype(np.int8) - baseline.astype(np.int8)
    seeds, images = d.shape
    of_seed, of_image = d.sum(1), d.sum(0)
    mean = float(of_seed.sum()) / d.size
    found: dict[str, Any] = {"mean": mean, "low": None, "high": None, "seeds": seeds, "images": images}
    found |= {"p": None, "p_holm": None, "p_flips": None}
    if seeds < 2 or images < 2 or np.ptp(of_seed) == 0:
        return found
    # sums of squares: exact, as the numbers are whole
    squares = (
        float((of_seed**2).sum()) / images - d.size * mean**2,
        float((of_image**2).sum()) / seeds - d.size * mean**2,
        float((d**2).sum()) - d.size * mean**2,
    )
    ms_seed, ms_image = squares[0] / (seeds - 1), squares[1] / (images - 1)
    ms_rest = (squares[2] - squares[0] - squares[1]) / ((seeds - 1) * (images - 1))
    of_images = max(ms_image - ms_rest, 0)
    total = ms_seed + of_images
    error = math.sqrt(total / d.size)
    degrees = total**2 / (ms_seed**2 / (seeds - 1) + of_images**2 / (images - 1))
    half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, degrees))
    return found | {"low": mean - half, "high": mean + half, "p": p, "p_flips": _flips(of_seed)}


def _flips(differences: np.ndarray) -> float:
    """p of the sign-flip test, two-sided: exact up to 14 seeds, else of as many patterns by chance."""
    if len(differences) <= _EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    else:
        signs = np.random.default_rng(0).choice((1, -1), (2**_EXACT, len(differences)))
        signs[0] = 1  # what was seen is one of them
    return float(np.mean(abs(signs @ differences) >= abs(differences.sum())))


def correct(differences: Iterable[dict[str, Any]]) -> None:
    """Set ``p_holm``: the ``p`` of a study's differences after Holm's correction over those that have one."""
    tested = [difference for difference in differences if difference["p"] is not None]
    for difference, p in zip(tested, holm([difference["p"] for difference in tested]), strict=True):
        difference["p_holm"] = p


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: to call all at most α significant is wrong anywhere with probability α at most.

    ``p_(k)`` of m, in rising order, becomes the largest ``min(1, (m + 1 - j) p_(j))`` of ``j ≤ k``.
    Source: Holm (Scandinavian Journal of Statistics 6, 1979).
    """
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1, np.arange(len(p), 0, -1) * np.asarray(p, dtype=float)[order])
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()
