"""ShuffleNet V1 and V2 as plain arithmetic on their state dicts, in float64.

Zhang et al. 2017 (arXiv 1707.01083) and Ma et al. 2018 (arXiv 1807.11164). V2 is written in the order of its
paper: each half has its own ReLU, then they are joined, then shuffled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oracles.wrn import State, convolve, normalize, positive


def grouped(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Each group of output channels sees its own group of input channels."""
    groups = x.shape[1] // weight.shape[1]
    each = len(weight) // groups
    return torch.cat(
        [
            convolve(part, weight[i * each : (i + 1) * each], stride)
            for i, part in enumerate(x.chunk(groups, 1))
        ],
        1,
    )


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel j of group i becomes channel j * groups + i."""
    each = x.shape[1] // groups
    return torch.stack([x[:, i * each + j] for j in range(each) for i in range(groups)], 1)


def mean_of_nine(x: Tensor) -> Tensor:
    """3x3 windows at every second position; zeros beyond the border count."""
    return grouped(x, x.new_full((x.shape[1], 1, 3, 3), 1 / 9), 2)


def shufflenet(
    version: int, state: State, images: Tensor, training: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Logits ``[N, K]`` and the outputs of the three stages."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def layer(x: Tensor, name: str, first: int, stride: int = 1) -> Tensor:
        x = grouped(x, state[f"{name}.{first}.weight"], stride)
        return normalize(x, state, f"{name}.{first + 1}", training)

    def unit1(x: Tensor, name: str, stride: int) -> Tensor:
        first = x.shape[1] // state[f"{name}.branch.0.weight"].shape[1]
        out = shuffle(positive(layer(x, f"{name}.branch", 0)), first)
        out = layer(positive(layer(out, f"{name}.branch", 4, stride)), f"{name}.branch", 7)
        return positive(torch.cat([out, mean_of_nine(x)], 1) if stride == 2 else out + x)

    def unit2(x: Tensor, name: str, stride: int) -> Tensor:
        left, right = (x, x) if stride == 2 else x.chunk(2, 1)
        out = layer(positive(layer(right, f"{name}.branch", 0)), f"{name}.branch", 3, stride)
        right = positive(layer(out, f"{name}.branch", 5))
        if stride == 2:
            left = positive(layer(layer(left, f"{name}.shortcut", 0, 2), f"{name}.shortcut", 2))
        return shuffle(torch.cat([left, right], 1), 2)

    unit = {1: unit1, 2: unit2}[version]
    x = positive(layer(images.double(), "stem", 0))
    stages = []
    for stage, units in ((1, 4), (2, 8), (3, 4)):
        for i in range(units):
            x = unit(x, f"stage{stage}.{i}", 1 if i else 2)
        stages.append(x)
    if version == 2:
        x = positive(layer(x, "last", 0))
    return x.mean((2, 3)) @ state["head.weight"].T + state["head.bias"], stages
