"""Residual networks for small images (He et al. 2015, arXiv 1512.03385), known to timm.

``resnet20`` to ``resnet110`` have depth 6n + 2: three stages of n basic blocks; ``resnet8x4`` and
``resnet32x4`` are four times as wide, with a stem of twice the width. ``resnet50_cifar`` is the ImageNet
network with a 3x3 stem of stride 1 and without its max-pooling. Where the shape changes, the shortcut is a
1x1 convolution with BN.

Attention is observed at the outputs of the stages, after the ReLU: the features of the common distillation
benchmark. A block's last ReLU is the module ``relu``, whose input is the pre-activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from eyeline.models.staged import StagedNetwork, conv_norm, register


class Block(nn.Module):
    """ReLU(branch + shortcut)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*self.layers(in_channels, channels, stride))
        self.shortcut = (
            nn.Sequential(*conv_norm(in_channels, channels, 1, stride))
            if stride > 1 or in_channels != channels
            else nn.Identity()
        )
        self.relu = nn.ReLU()

    def layers(self, in_channels: int, channels: int, stride: int) -> list[nn.Module]:
        """The branch, up to its last BN."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


class Basic(Block):
    """Two 3x3 convolutions."""

    def layers(self, in_channels: int, channels: int, stride: int) -> list[nn.Module]:
        return [
            *conv_norm(in_channels, channels, 3, stride),
            nn.ReLU(inplace=True),
            *conv_norm(channels, channels, 3),
        ]


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions, the inner ones with a quarter of the channels."""

    def layers(self, in_channels: int, channels: int, stride: int) -> list[nn.Module]:
        inner = channels // 4
        return [
            *conv_norm(in_channels, inner, 1),
            nn.ReLU(inplace=True),
            *conv_norm(inner, inner, 3, stride),
            nn.ReLU(inplace=True),
            *conv_norm(inner, channels, 1),
        ]


class ResNet(StagedNetwork):
    """A 3x3 stem and stages of residual blocks, each after the first at half the resolution.

    Args:
        blocks: blocks of each stage.
        widths: channels of the stem and of each stage.
        block: :class:`Basic` or :class:`Bottleneck`.
        num_classes: classes K; 0 for pooled features instead of logits.
        in_chans: channels of the images.
        timm_options: what timm's scripts pass to every network; only their neutral values are taken.

    Raises:
        InputError: an option is not known.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 16, 32, 64),
        block: type[Block] = Basic,
        num_classes: int = 10,
        in_chans: int = 3,
        **timm_options: Any,
    ) -> None:
        parts = {"stem": nn.Sequential(*conv_norm(in_chans, widths[0], 3), nn.ReLU())}
        stages = []
        for i, (count, (before, channels)) in enumerate(zip(blocks, pairwise(widths), strict=True)):
            first = block(before, channels, 2 if i else 1)
            name = f"stage{i + 1}"
            parts[name] = nn.Sequential(first, *(block(channels, channels, 1) for _ in range(count - 1)))
            stages.append((name, channels, 2**i))
        super().__init__(parts, stages, widths[-1], num_classes, timm_options)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Convolutions normal with variance 2 / fan-out; the classifier as PyTorch has it."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")


register(__name__, ResNet, {f"resnet{6 * n + 2}": {"blocks": (n, n, n)} for n in (3, 5, 9, 18)})
register(
    __name__,
    ResNet,
    {f"resnet{6 * n + 2}x4": {"blocks": (n, n, n), "widths": (32, 64, 128, 256)} for n in (1, 5)},
)
register(
    __name__,
    ResNet,
    {
        "resnet50_cifar": {
            "blocks": (3, 4, 6, 3),
            "widths": (64, 256, 512, 1024, 2048),
            "block": Bottleneck,
        }
    },
    stages=4,
)
