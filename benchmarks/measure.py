"""Interleaved measurement: every variant once a round, ratios within a round.

On a machine that others use, or whose clock moves, two figures taken one after the other cannot be compared.
Two figures of the same round can: what slows one slows the other. So a ratio is taken in each round, and its
median and quartiles over the rounds are reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Variant = Callable[[], float | None]
"""Work to be timed; answers None, or a figure that it has measured itself."""


def interleave(
    variants: Mapping[str, Variant], rounds: int, warmup: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """One figure a round for each variant: seconds, or what the variant answers. The order alternates."""
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(-warmup, rounds):
        for name in list(variants)[:: -1 if round_ % 2 else 1]:
            figure = _measure(variants[name], device)
            if round_ >= 0:
                samples[name].append(figure)
    return samples


def _measure(variant: Variant, device: str) -> float:
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        answer = variant()
        end.record()
        torch.cuda.synchronize()
        seconds = begin.elapsed_time(end) / 1000
    else:
        start = time.perf_counter()
        answer = variant()
        seconds = time.perf_counter() - start
    return seconds if answer is None else answer


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    if len(values) > 1:
        lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    else:
        lower = upper = values[0]
    return {
        "median": statistics.median(values),
        "lower_quartile": lower,
        "upper_quartile": upper,
        "min": min(values),
        "max": max(values),
    }


@dataclass
class Result:
    """The figures of one comparison."""

    title: str
    unit: str
    """``s``, ``images/s``, or ``relative``."""
    samples: Mapping[str, list[float]]
    """By variant, one figure a round."""
    ratios: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    """Figures that are no comparison, by what they are, with their unit."""
    notes: list[str] = field(default_factory=list)

    def ratio(self, over: str, *under: str, label: str | None = None) -> None:
        """Add the ratio of a variant to another, or to the sum of others."""
        if all(name in self.samples for name in (over, *under)):
            below = [sum(figures) for figures in zip(*(self.samples[name] for name in under), strict=True)]
            values = [a / b for a, b in zip(self.samples[over], below, strict=True)]
            self.ratios[f"{over} / {label or ' + '.join(under)}"] = values

    def rate(self, of: str, over: str, label: str) -> None:
        """Add how many images a second one variant does for one of another, from their times for a batch."""
        if of in self.samples and over in self.samples:
            both = zip(self.samples[of], self.samples[over], strict=True)
            self.ratios[f"images a second: {of} / {label}"] = [theirs / ours for ours, theirs in both]

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "unit": self.unit,
            "rounds": len(next(iter(self.samples.values()))),
            "values": {name: summary(values) for name, values in self.samples.items()},
            "ratios": {name: summary(values) for name, values in self.ratios.items()},
            "facts": self.facts,
            "notes": self.notes,
        }
