"""Network in Network (Lin et al. 2013, arXiv 1312.4400) for small images, known to timm.

Three blocks of one spatial (5x5, 5x5, 3x3) and two 1x1 convolutions, each with a ReLU; 3x3 pooling of stride
2 between them, of the maximum, then of the mean; global average pooling and a linear layer. No dropout.

==========  ===========  ===========  ===========  ========================
name        block 1      block 2      block 3      parameters at 10 classes
==========  ===========  ===========  ===========  ========================
nin_wide    192-160-96   192-192-192  192-192-192  1.0 M
nin_thin    88-72-40     88-88-88     88-88-88     0.2 M
==========  ===========  ===========  ===========  ========================

``nin_wide`` has the channels of Lin et al., but for the last convolution, which answers the classes there;
``nin_thin`` has 0.45 of them, to the nearest multiple of 8, as Zagoruyko & Komodakis (2017) tell only the two
sizes. Between convolution and ReLU there is BN, or in ``nin_wide_nobn`` and ``nin_thin_nobn`` a bias.

Attention is observed at the ends of the blocks, after the ReLU and before the pooling; a block's last ReLU is
a module of its own, whose input is the pre-activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from eyeline.models.staged import StagedNetwork, conv_norm, register

WIDE = ((192, 160, 96), (192, 192, 192), (192, 192, 192))
THIN = ((88, 72, 40), (88, 88, 88), (88, 88, 88))


class NetworkInNetwork(StagedNetwork):
    """Network in Network for images from about 16x16 to 64x64.

    Args:
        widths: channels of the three convolutions of each block.
        norm: batch norm after each convolution, instead of a bias.
        num_classes: classes K; 0 for pooled features instead of logits.
        in_chans: channels of the images.
        timm_options: what timm's scripts pass to every network; only their neutral values are taken.

    Raises:
        InputError: an option is not known.
    """

    first_conv = "stage1.0"

    def __init__(
        self,
        widths: Sequence[Sequence[int]] = WIDE,
        norm: bool = True,
        num_classes: int = 10,
        in_chans: int = 3,
        **timm_options: Any,
    ) -> None:
        # incomplete windows at the border count: 32, 16, 8
        pools = (None, nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, ceil_mode=True))
        parts: dict[str, nn.Module] = {}
        before = in_chans
        for i, (pool, side) in enumerate(zip(pools, (5, 5, 3), strict=True)):
            layers: list[nn.Module] = [pool] if pool else []
            for kernel, channels in zip((side, 1, 1), widths[i], strict=True):
                convolution = conv_norm(before, channels, kernel, bias=not norm)
                layers += [*convolution[: 1 + norm], nn.ReLU()]
                before = channels
            parts[f"stage{i + 1}"] = nn.Sequential(*layers)
        stages = [(f"stage{i + 1}", channels[-1], 2**i) for i, channels in enumerate(widths)]
        super().__init__(parts, stages, before, num_classes, timm_options)


register(
    __name__,
    NetworkInNetwork,
    {
        f"nin_{name}{suffix}": {"widths": widths, "norm": norm}
        for name, widths in (("wide", WIDE), ("thin", THIN))
        for suffix, norm in (("", True), ("_nobn", False))
    },
)
