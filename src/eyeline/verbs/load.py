"""The network of a run. No heavy import at the top: ``eyeline --help`` reads this file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eyeline.isolation import as_found
from eyeline.kinds import as_kind

if TYPE_CHECKING:
    from torch import nn


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Rebuild the trained network of a run, in evaluation mode.

    Args:
        folder: of a run of ``train`` or ``distill``, or the name of a network whose trained weights come with
            the package (``wrn_16_2.fashion_mnist``).
        model: the network to load the weights into, for a run that was made with a Python object.

    Returns:
        The network, ``[N, C, H, W]`` -> logits ``[N, K]``. ``network.preprocess`` makes its input from PIL
        images or uint8 tensors, ``network.classes`` names its outputs.

    Raises:
        InputError: the folder holds no finished run, or its weights are damaged.
    """
    place = Path(as_kind("folder", folder, str | Path)).expanduser()
    with as_found():
        from eyeline.runs import card

        return card.load(place, model)
