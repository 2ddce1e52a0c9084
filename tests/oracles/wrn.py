"""A wide residual network as plain arithmetic on its state dict: no modules, batch norm written out.

Zagoruyko & Komodakis (2016), arXiv 1605.07146: pre-activation blocks; where the shape changes, the 1x1
shortcut starts from the activated input. Works in float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Cross-correlation with zero padding that keeps the size, as a sum over the positions of the kernel."""
    side = weight.shape[2]
    reach = side // 2
    n, c, h, w = x.shape
    padded = x.new_zeros(n, c, h + 2 * reach, w + 2 * reach)
    padded[:, :, reach : reach + h, reach : reach + w] = x
    total: Tensor | None = None
    for i in range(side):
        for j in range(side):
            window = padded[:, :, i : i + h : stride, j : j + w : stride]
            part = torch.einsum("nchw,oc->nohw", window, weight[:, :, i, j])
            total = part if total is None else total + part
    assert total is not None
    return total


def normalize(x: Tensor, state: State, name: str, training: bool) -> Tensor:
    """Batch norm, eps 1e-5: with the batch's statistics (biased variance), or the running ones."""
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        mean = x.mean((0, 2, 3))
        variance = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
    x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5) ** 0.5
    return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def wide_resnet(state: State, images: Tensor, training: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Logits ``[N, K]`` and the three group outputs: the residual sums, before the last batch norm."""
    state = {name: tensor.double() for name, tensor in state.items()}
    x = convolve(images.double(), state["stem.weight"], 1)
    groups = []
    for group in (1, 2, 3):
        block = 0
        while f"group{group}.{block}.conv1.weight" in state:
            name = f"group{group}.{block}"
            stride = 2 if group > 1 and block == 0 else 1
            active = positive(normalize(x, state, f"{name}.norm1", training))
            out = convolve(active, state[f"{name}.conv1.weight"], stride)
            out = convolve(
                positive(normalize(out, state, f"{name}.norm2", training)), state[f"{name}.conv2.weight"], 1
            )
            if f"{name}.shortcut.weight" in state:
                x = out + convolve(active, state[f"{name}.shortcut.weight"], stride)
            else:
                x = out + x
            block += 1
        groups.append(x)
    pooled = positive(normalize(x, state, "norm", training)).mean((2, 3))
    return pooled @ state["head.weight"].T + state["head.bias"], groups
