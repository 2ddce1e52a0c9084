"""VGG with batch norm for small images (Simonyan & Zisserman 2014, arXiv 1409.1556), known to timm.

Five runs of 3x3 convolutions with 64, 128, 256, 512 and 512 channels, of one convolution each in
``vgg8_cifar`` and of two in ``vgg13_cifar``; 2x2 max-pooling before the second, third and fourth run, none
before the fifth; one linear layer. The first run is the stem, the others are the stages.

Attention is observed at the outputs of the stages, after the ReLU and before the pooling: the features of the
common distillation benchmark. A stage's last ReLU is a module of its own, whose input is the pre-activation.
Stages 3 and 4 have one resolution: stage 4 is the one found by itself.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from eyeline.models.staged import StagedNetwork, conv_norm, fan_out, register

WIDTHS = (64, 128, 256, 512, 512)


class VGG(StagedNetwork):
    """VGG for images from about 16x16 to 64x64.

    Args:
        convolutions: of each run.
        num_classes: classes K; 0 for pooled features instead of logits.
        in_chans: channels of the images.
        timm_options: what timm's scripts pass to every network; only their neutral values are taken.

    Raises:
        InputError: an option is not known.
    """

    initialize = staticmethod(fan_out)

    def __init__(
        self, convolutions: int = 1, num_classes: int = 10, in_chans: int = 3, **timm_options: Any
    ) -> None:
        parts: dict[str, nn.Module] = {}
        before = in_chans
        for i, channels in enumerate(WIDTHS):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if 0 < i < 4 else []
            for _ in range(convolutions):
                layers += [*conv_norm(before, channels, 3, bias=True), nn.ReLU()]
                before = channels
            parts[f"stage{i}" if i else "stem"] = nn.Sequential(*layers)
        stages = [(f"stage{i}", WIDTHS[i], 2 ** min(i, 3)) for i in (1, 2, 3, 4)]
        super().__init__(parts, stages, WIDTHS[-1], num_classes, timm_options)


register(__name__, VGG, {"vgg8_cifar": {"convolutions": 1}, "vgg13_cifar": {"convolutions": 2}}, stages=4)
