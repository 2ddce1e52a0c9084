"""What several losses do to a tensor before they compare."""

from __future__ import annotations

import torch
from torch import Tensor

from eyeline.attention import normalized, relative


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divided by its Euclidean norm over ``dims``, where no square over- or underflows; zeros stay zeros."""
    return normalized(relative(tensor, dims), dims)
