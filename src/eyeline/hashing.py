"""Hashes of networks and tensors."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn


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
