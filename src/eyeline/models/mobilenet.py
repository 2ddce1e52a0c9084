"""MobileNetV2 for small images (Sandler et al. 2018, arXiv 1801.04381), known to timm.

``mobilenetv2_half_cifar`` has half the width and expansion 6, and none of the strides of the paper's table 2
but those of the stem and of the rows with 32, 64 and 160 channels. The rows of one resolution form a stage.
Attention is observed at the outputs of the stages: linear bottlenecks, signed, with no ReLU after them, so
they are the pre-activations too.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from eyeline.models.staged import StagedNetwork, conv_norm, fan_out, register

# for each stage its rows: expansion, channels at full width, blocks, stride of the first
STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
LAST = 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection; added to the input where the shape is the same."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.branch = nn.Sequential(
            *conv_norm(in_channels, inner, 1),
            nn.ReLU(inplace=True),
            *conv_norm(inner, inner, 3, stride, groups=inner),
            nn.ReLU(inplace=True),
            *conv_norm(inner, channels, 1),
        )
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


class MobileNetV2(StagedNetwork):
    """MobileNetV2 with a stem of stride 2, for images from about 16x16 to 64x64.

    Args:
        width: factor on the channels, but for the last 1280.
        num_classes: classes K; 0 for pooled features instead of logits.
        in_chans: channels of the images.
        timm_options: what timm's scripts pass to every network; only their neutral values are taken.

    Raises:
        InputError: an option is not known.
    """

    initialize = staticmethod(fan_out)

    def __init__(
        self, width: float = 1, num_classes: int = 10, in_chans: int = 3, **timm_options: Any
    ) -> None:
        before = int(32 * width)
        parts = {"stem": nn.Sequential(*conv_norm(in_chans, before, 3, 2), nn.ReLU())}
        stages = []
        for i, rows in enumerate(STAGES):
            blocks = []
            for expansion, full, count, stride in rows:
                for j in range(count):
                    blocks.append(InvertedResidual(before, int(full * width), 1 if j else stride, expansion))
                    before = int(full * width)
            name = f"stage{i + 1}"
            parts[name] = nn.Sequential(*blocks)
            stages.append((name, before, 2 ** (i + 1)))
        parts["last"] = nn.Sequential(*conv_norm(before, LAST, 1), nn.ReLU())
        super().__init__(parts, stages, LAST, num_classes, timm_options)


register(__name__, MobileNetV2, {"mobilenetv2_half_cifar": {"width": 0.5}}, stages=4)
