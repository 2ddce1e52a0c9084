"""Statistics of a study: means, spreads, and paired confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_ROUNDING = 1e-9


def summary(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation (none for a single value)."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> dict[str, float | int | None]:
    """Mean of ``values - baseline``, paired by position, with its Student t confidence interval.

    The pairing removes what both share (the seed's initialisation, order and images). With one pair there is
    no interval, nor where the differences are all the same, as those of a few seeds on few images may be by
    chance: ``low`` and ``high`` are then None.
    """
    from scipy import stats

    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    count, mean = len(differences), statistics.fmean(differences)
    if count < 2 or max(differences) - min(differences) < _ROUNDING:
        return {"mean": mean, "low": None, "high": None, "seeds": count}
    error = statistics.stdev(differences) / math.sqrt(count)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": count}
