"""Wide residual networks for small images (Zagoruyko & Komodakis 2016, arXiv 1605.07146), known to timm.

WRN-d-k has depth d = 6n + 4 and width factor k: three groups of n pre-activation blocks with 16k, 32k and 64k
channels. Attention is observed at the outputs of the groups: the residual sums, before the final BN and ReLU.
"""

from __future__ import annotations

import re
from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from eyeline.errors import InputError

# of CIFAR-10, as in the authors' code: (125.3, 123.0, 113.9) / 255 and (63.0, 62.1, 66.7) / 255
CIFAR_MEAN = (0.4914, 0.4824, 0.4467)
CIFAR_STD = (0.2471, 0.2435, 0.2616)


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


class WideResNet(nn.Module):
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

    def __init__(
        self, depth: int = 16, width: int = 1, num_classes: int = 10, in_chans: int = 3, **timm_options: Any
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise InputError(
                f"wrn_{depth}_{width} does not exist; expected a depth of 6n + 4 (10, 16, 22, 28, 40) "
                "and a width of at least 1"
            )
        for option, value in timm_options.items():
            if value and (option, value) != ("global_pool", "avg"):
                raise InputError(
                    f"wrn_{depth}_{width} has no option {option}={value!r}; expected num_classes, in_chans"
                )
        blocks = (depth - 4) // 6
        self.num_classes = num_classes
        self.num_features = 64 * width
        self.stem = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        self.group1 = self._group(16, 16 * width, blocks, 1)
        self.group2 = self._group(16 * width, 32 * width, blocks, 2)
        self.group3 = self._group(32 * width, 64 * width, blocks, 2)
        self.norm = nn.BatchNorm2d(64 * width)
        self.head = nn.Linear(64 * width, num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": 16 * width, "reduction": 1, "module": "group1"},
            {"num_chs": 32 * width, "reduction": 2, "module": "group2"},
            {"num_chs": 64 * width, "reduction": 4, "module": "group3"},
        ]
        self.apply(_initialize)

    @staticmethod
    def _group(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(in_channels, channels, stride)
        return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.apply(_initialize)

    def forward_features(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> ``[N, 64k, H/4, W/4]``, after the final BN and ReLU."""
        x = self.group3(self.group2(self.group1(self.stem(x))))
        return F.relu(self.norm(x), inplace=True)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify."""
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _config(**options: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "first_conv": "stem",
        "classifier": "head",
        "license": "mit",
        **options,
    }


SIZES = [(10, 1), (16, 1), (16, 2), (16, 4), (22, 2), (28, 2), (28, 10), (40, 1), (40, 2), (40, 4)]
default_cfgs = generate_default_cfgs({f"wrn_{depth}_{width}": _config() for depth, width in SIZES})


def _register(depth: int, width: int) -> None:
    def build(pretrained: bool = False, **options: Any) -> WideResNet:
        return build_model_with_cfg(
            WideResNet,
            f"wrn_{depth}_{width}",
            pretrained,
            feature_cfg={"out_indices": (0, 1, 2)},
            depth=depth,
            width=width,
            **options,
        )

    build.__name__ = f"wrn_{depth}_{width}"
    build.__doc__ = f"WRN-{depth}-{width} for small images."
    build.__module__ = __name__
    globals()[build.__name__] = register_model(build)


for _size in SIZES:
    _register(*_size)


def parse(name: str) -> tuple[int, int] | None:
    """(depth, width) of a name such as ``wrn_40_2``, of any size."""
    match = re.fullmatch(r"wrn_(\d+)_(\d+)", name)
    return (int(match[1]), int(match[2])) if match else None
