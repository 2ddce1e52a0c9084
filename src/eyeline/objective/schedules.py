"""The weight of a term over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eyeline.errors import InputError, unknown
from eyeline.names import SCHEDULES

LEAST_SHARE = 0.1
"""Of the cross entropy among balanced losses: unfloored its weight falls to 0.02 late in training."""


@dataclass(frozen=True)
class Weight:
    """The weight of a term over training.

    ``constant``; ``linear`` and ``cosine``: from ``value`` in the first epoch to 0 in the last; ``step``: in
    proportion to the learning rate; ``loss_rate``: times the share that :func:`loss_rates` gives the term.
    """

    value: float
    schedule: str = "constant"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if not (isinstance(self.value, int | float) and math.isfinite(self.value) and self.value >= 0):
            raise InputError(f"weight is {self.value!r}; expected a finite number of at least 0")

    def at(self, epoch: int, epochs: int, learning_rate_factor: float = 1.0) -> float:
        """The weight in ``epoch`` (from 0) of ``epochs``; the factor is the learning rate over its peak."""
        done = min(1.0, epoch / (epochs - 1)) if epochs > 1 else 0.0
        match self.schedule:
            case "linear":
                return self.value * (1 - done)
            case "cosine":
                return self.value * (1 + math.cos(math.pi * done)) / 2
            case "step":
                return self.value * learning_rate_factor
        return self.value


def loss_rates(names: Sequence[str], first: Tensor, last: Tensor) -> Tensor:
    """Weights that follow how slowly each loss falls (AFT-KD, Sci. Rep. 13:18369, 2023).

    With ``r_x = L_x / L⁰_x``, the last epoch's mean loss over the first epoch's: ``r_x / mean(r)``, which has
    the mean 1. The weight of ``ce`` is at least 0.1, and the others are scaled so that the mean stays 1.

    Args:
        names: of the losses.
        first, last: mean losses ``[n]``; one whose first is not above 0 counts as one that stays as it is,
            one whose last is below 0 as 0.

    Returns:
        ``[n]``, detached.
    """
    first, last = first.detach(), last.detach()
    rates = torch.where(first > 0, last.clamp(min=0) / torch.where(first > 0, first, 1), 1)
    mean = rates.mean()
    weights = torch.where(mean > 0, rates / torch.where(mean > 0, mean, 1), 1)
    if "ce" in names and len(names) > 1 and weights[names.index("ce")] < LEAST_SHARE:
        others = torch.tensor([name != "ce" for name in names], device=weights.device)
        scale = (len(names) - LEAST_SHARE) / weights[others].sum()
        weights = torch.where(others, weights * scale, LEAST_SHARE)
    return weights
