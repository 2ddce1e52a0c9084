"""Wide residual networks for small images (Zagoruyko & Komodakis 2016, arXiv 1605.07146), known to timm.

WRN-d-k has depth d = 6n + 4 and width factor k: three groups of n pre-activation blocks with 16k, 32k and 64k
channels. Attention is observed at the outputs of the groups: the residual sums, before the final BN and ReLU.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.models.staged import StagedNetwork, register
from eyeline.names import check_wide


class Block(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv; a 1x1 shortcut, from the activated input, where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, channels, 1, stride, bias=False) if in_channels != channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x), inplace=True)
        out = self.conv2(F.relu(self.norm2(self.conv1(active)), inplace=True))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(StagedNetwork):
    """WRN-d-k with a 3x3 stem, for images from about 16x16 to 64x64.

    Args:
        depth: 6n + 4: 10, 16, 22, 28, 40, ...
        width: the factor k on 16, 32 and 64 channels.
        num_classes: classes K; 0 for pooled features instead of logits.
        in_chans: channels of the images.
        timm_options: what timm's scripts pass to every network; only their neutral values are taken.

    Raises:
        InputError: the depth is not 6n + 4, the width is below 1, or an option is not known.
    """

    first_conv = "stem"

    def __init__(
        self, depth: int = 16, width: int = 1, num_classes: int = 10, in_chans: int = 3, **timm_options: Any
    ) -> None:
        check_wide(depth, width)
        blocks = (depth - 4) // 6
        parts = {
            "stem": nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False),
            "group1": self._group(16, 16 * width, blocks, 1),
            "group2": self._group(16 * width, 32 * width, blocks, 2),
            "group3": self._group(32 * width, 64 * width, blocks, 2),
            "norm": nn.BatchNorm2d(64 * width),
            "relu": nn.ReLU(inplace=True),
        }
        stages = [("group1", 16 * width, 1), ("group2", 32 * width, 2), ("group3", 64 * width, 4)]
        super().__init__(parts, stages, 64 * width, num_classes, timm_options)

    @staticmethod
    def _group(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(in_channels, channels, stride)
        return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))


SIZES = [(10, 1), (16, 1), (16, 2), (16, 4), (22, 2), (28, 2), (28, 10), (40, 1), (40, 2), (40, 4)]
register(__name__, WideResNet, {f"wrn_{d}_{k}": {"depth": d, "width": k} for d, k in SIZES})
