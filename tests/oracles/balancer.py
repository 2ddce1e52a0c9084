"""Weights that follow the rates of the losses, by definition: plain numbers, one at a time. AFT-KD (2023)."""

from __future__ import annotations

from collections.abc import Sequence


def weights(names: Sequence[str], first: Sequence[float], last: Sequence[float]) -> list[float]:
    """r_x = L_x / L0_x, weight_x = r_x / mean(r); that of ``ce`` at least 0.1, the mean still 1."""
    count = len(names)
    rates = [max(b, 0.0) / a if a > 0 else 1.0 for a, b in zip(first, last, strict=True)]
    total = sum(rates)
    if total == 0:
        return [1.0] * count
    found = [count * rate / total for rate in rates]
    if "ce" in names and found[names.index("ce")] < 0.1:
        rest = sum(weight for name, weight in zip(names, found, strict=True) if name != "ce")
        found = [
            0.1 if name == "ce" else weight * (count - 0.1) / rest
            for name, weight in zip(names, found, strict=True)
        ]
    return found


def undetached_gradient(
    names: Sequence[str], first: Sequence[float], losses: Sequence[float], step: float = 1e-6
) -> list[float]:
    """d/dL_x of sum_y weight_y(L) L_y, the wrong way: as if the weights were functions to differentiate."""

    def total(values: Sequence[float]) -> float:
        return sum(w * v for w, v in zip(weights(names, first, values), values, strict=True))

    found = []
    for i in range(len(losses)):
        up, down = list(losses), list(losses)
        up[i] += step
        down[i] -= step
        found.append((total(up) - total(down)) / (2 * step))
    return found
