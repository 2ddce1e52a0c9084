"""ShuffleNet for small images, known to timm.

V1: Zhang et al. 2017, arXiv 1707.01083; V2: Ma et al. 2018, arXiv 1807.11164. ``shufflenetv1_cifar`` has
three groups, ``shufflenetv2_cifar`` width 1. The stem is a 1x1 convolution with 24 channels, without stride
or pooling; three stages of 4, 8 and 4 units follow.

Attention is observed at the outputs of the stages, after the ReLU: the features of the common distillation
benchmark. A unit's last step is the module ``relu``, whose input is the pre-activation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eyeline.models.staged import StagedNetwork, conv_norm, register

STEM = 24
UNITS = (4, 8, 4)
GROUPS = 3


class UnitV1(nn.Module):
    """Grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; added to the input, or beside it where stride is 2.

    As in the networks of the distillation benchmark, and not in the paper, a ReLU follows the depthwise
    convolution too.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.beside = stride > 1
        made = channels - in_channels if self.beside else channels
        inner = made // 4
        first = 1 if in_channels == STEM else GROUPS  # too few channels to group
        self.branch = nn.Sequential(
            *conv_norm(in_channels, inner, 1, groups=first),
            nn.ReLU(inplace=True),
            nn.ChannelShuffle(first),
            *conv_norm(inner, inner, 3, stride, groups=inner),
            nn.ReLU(inplace=True),
            *conv_norm(inner, made, 1, groups=GROUPS),
        )
        self.shortcut = nn.AvgPool2d(3, stride, 1) if self.beside else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch, shortcut = self.branch(x), self.shortcut(x)
        return self.relu(torch.cat([branch, shortcut], 1) if self.beside else branch + shortcut)


class UnitV2(nn.Module):
    """Half of the channels pass, half are convolved, all are shuffled; of stride 2, all are convolved twice.

    The ReLU comes last, on all channels: those that pass are not negative, so it leaves them as they are, and
    it commutes with the shuffle.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.shortcut = (
            nn.Sequential(
                *conv_norm(in_channels, in_channels, 3, stride, groups=in_channels),
                *conv_norm(in_channels, half, 1),
            )
            if stride > 1
            else None
        )
        self.branch = nn.Sequential(
            *conv_norm(in_channels if stride > 1 else half, half, 1),
            nn.ReLU(inplace=True),
            *conv_norm(half, half, 3, stride, groups=half),
            *conv_norm(half, half, 1),
        )
        self.shuffle = nn.ChannelShuffle(2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        passed, convolved = x.chunk(2, 1) if self.shortcut is None else (self.shortcut(x), x)
        return self.relu(self.shuffle(torch.cat([passed, self.branch(convolved)], 1)))


class ShuffleNet(StagedNetwork):
    """A 1x1 stem and three stages of units, each beginning with one of stride 2.

    Args:
        unit: :class:`UnitV1` or :class:`UnitV2`.
        widths: channels of the stages.
        last: channels of a 1x1 convolution after them; 0 for none.
        num_classes: classes K; 0 for pooled features instead of logits.
        in_chans: channels of the images.
        timm_options: what timm's scripts pass to every network; only their neutral values are taken.

    Raises:
        InputError: an option is not known.
    """

    def __init__(
        self,
        unit: type[UnitV1 | UnitV2] = UnitV2,
        widths: tuple[int, int, int] = (116, 232, 464),
        last: int = 1024,
        num_classes: int = 10,
        in_chans: int = 3,
        **timm_options: Any,
    ) -> None:
        parts = {"stem": nn.Sequential(*conv_norm(in_chans, STEM, 1), nn.ReLU())}
        before, stages = STEM, []
        for i, (count, channels) in enumerate(zip(UNITS, widths, strict=True)):
            first = unit(before, channels, 2)
            name, before = f"stage{i + 1}", channels
            parts[name] = nn.Sequential(first, *(unit(channels, channels, 1) for _ in range(count - 1)))
            stages.append((name, channels, 2 ** (i + 1)))
        if last:
            parts["last"] = nn.Sequential(*conv_norm(before, last, 1), nn.ReLU())
        super().__init__(parts, stages, last or before, num_classes, timm_options)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """As PyTorch has it."""


register(
    __name__,
    ShuffleNet,
    {
        "shufflenetv1_cifar": {"unit": UnitV1, "widths": (240, 480, 960), "last": 0},
        "shufflenetv2_cifar": {"unit": UnitV2, "widths": (116, 232, 464), "last": 1024},
    },
)
