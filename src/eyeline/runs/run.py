"""A finished run, as the verbs answer it. No heavy import: the command line reads this file."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eyeline.isolation import as_found

if TYPE_CHECKING:
    from torch import nn


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, and the figures of its ``result.json``."""

    folder: Path
    result: dict[str, Any]
    network: nn.Module | None = dataclasses.field(default=None, repr=False)
    """Of a run that was made with a Python object."""

    def load(self) -> nn.Module:
        """The trained network, see :func:`load`."""
        with as_found():
            from eyeline.runs.card import load

            return load(self.folder, None if self.network is None else copy.deepcopy(self.network))
