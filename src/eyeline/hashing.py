"""Hashes of networks and tensors, and when two records of a network are of one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

NEAR = 1e-3
"""How far answers may be apart, as a share of their size: rounding adds up to some 1e-5."""


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of a network's structure as it prints itself, and of its parameters and buffers, by name."""
    # an object that has no text of its own prints its address
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(network)).encode())
    tensors = {**network.state_dict(), **dict(network.named_buffers())}  # those that are not saved, too
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, Tensor):
            update(digest, name, tensor)
    return digest.hexdigest()


def update(digest: Any, name: str, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())


def same(one: Any, other: Any) -> bool:
    """Whether two records are of one thing; lists are answers of a network, which may differ by rounding."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, str) and isinstance(other, Mapping) and "weights" in other:
        return one == other["weights"]  # an earlier version's record
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        ours, theirs = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
        return bool((ours - theirs).norm() <= NEAR * max(ours.norm(), theirs.norm()))
    return one == other
