"""The teacher of an experiment."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from eyeline.fingerprint import teacher_fingerprint


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher, and what it was called."""

    name: str
    network: nn.Module
    tested: dict[str, Any] = dataclasses.field(default_factory=dict)
    """On the test images, once it was asked; None for a teacher of other classes."""
    fingerprints: dict[tuple[int, int, int], dict[str, Any]] = dataclasses.field(default_factory=dict)
    """By the shape of images."""

    def fingerprint(self, shape: tuple[int, int, int]) -> dict[str, Any]:
        """By what it is known again."""
        if shape not in self.fingerprints:
            self.fingerprints[shape] = teacher_fingerprint(self.network, shape)
        return self.fingerprints[shape]
