"""A residual network as plain arithmetic on its state dict (He et al. 2015, arXiv 1512.03385), in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles.wrn import State, convolve, normalize, positive


def resnet(state: State, images: Tensor, training: bool = False) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Logits ``[N, K]``, the outputs of the stages, and what their last ReLU started from."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        return normalize(convolve(x, state[f"{conv}.weight"], stride), state, norm, training)

    x = positive(layer(images.double(), "stem.0", "stem.1"))
    outputs, sums = [], []
    stage = 1
    while f"stage{stage}.0.branch.0.weight" in state:
        block = 0
        while f"stage{stage}.{block}.branch.0.weight" in state:
            name = f"stage{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            if f"{name}.branch.6.weight" in state:  # 1x1, 3x3, 1x1: the 3x3 convolution strides
                out = positive(layer(x, f"{name}.branch.0", f"{name}.branch.1"))
                out = positive(layer(out, f"{name}.branch.3", f"{name}.branch.4", stride))
                out = layer(out, f"{name}.branch.6", f"{name}.branch.7")
            else:
                out = positive(layer(x, f"{name}.branch.0", f"{name}.branch.1", stride))
                out = layer(out, f"{name}.branch.3", f"{name}.branch.4")
            if f"{name}.shortcut.0.weight" in state:
                x = layer(x, f"{name}.shortcut.0", f"{name}.shortcut.1", stride)
            total = out + x
            x = positive(total)
            block += 1
        outputs.append(x)
        sums.append(total)
        stage += 1
    pooled = torch.stack([feature.flatten(1).sum(1) for feature in x.unbind(1)], 1) / (
        x.shape[2] * x.shape[3]
    )
    return pooled @ state["head.weight"].T + state["head.bias"], outputs, sums
