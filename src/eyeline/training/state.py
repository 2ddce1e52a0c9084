"""The state of a run: what a checkpoint holds is written and read here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

FORMAT = 2
NEVER = torch.iinfo(torch.int64).max


class Part(Protocol):
    """What has a state of its own: a network, the losses, the optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass
class RunState:
    """Where a run is. All else that a step depends on is a function of its number."""

    parts: Mapping[str, Part]
    """By the name under which a checkpoint holds them."""
    names: Sequence[str]
    """Of the figures of an epoch."""
    device: torch.device
    step: int = 0
    """Steps done."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """Of ``metrics.csv``, one an epoch."""
    saved: int | None = None
    """The step of the last checkpoint."""

    def __post_init__(self) -> None:
        self.sums = torch.zeros(len(self.names) + 1, dtype=torch.float64, device=self.device)
        """Of the figures over the epoch; last, the images."""
        self.first_bad = torch.full_like(self.sums, NEVER, dtype=torch.int64)
        """The step in which a figure was first not finite."""
        self._seconds, self._began = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """That the epoch has taken."""
        return self._seconds + time.perf_counter() - self._began

    def begin_epoch(self) -> None:
        """Nothing of the epoch is done."""
        self.sums.zero_()
        self.restart_clock()

    def tick(self) -> None:
        """The clock of the epoch goes on from here, from what a checkpoint says that it took."""
        self._began = time.perf_counter()

    def restart_clock(self) -> None:
        """No time of an epoch has passed."""
        self._seconds, self._began = 0.0, time.perf_counter()

    def add(self, values: Tensor) -> None:
        """Take the figures of a step, which is done now."""
        bad = torch.where(torch.isfinite(values), NEVER, self.step)
        torch.minimum(self.first_bad, bad, out=self.first_bad)
        self.sums += values
        self.step += 1

    def checkpoint(self, sums: Tensor) -> dict[str, Any]:
        """What is kept of it; ``sums``: those of all processes."""
        return {
            "format": FORMAT,
            "step": self.step,
            "epoch_seconds": self.seconds,
            **{name: part.state_dict() for name, part in self.parts.items()},
            "sums": sums,
        }

    def resume(self, checkpoint: Mapping[str, Any] | None, *, first: bool) -> None:
        """Go on from a checkpoint, if there is one; of several processes the ``first`` has the sums of all.

        Raises:
            KeyError, RuntimeError, ValueError: it is of another network, method or optimizer.
        """
        if checkpoint is not None:
            for name, part in self.parts.items():
                part.load_state_dict(checkpoint[name])
            if first:
                self.sums.copy_(checkpoint["sums"])
            self.step = self.saved = checkpoint["step"]
            self._seconds = checkpoint["epoch_seconds"]
        self.rows = [row for row in self.rows if row["step"] <= self.step]
