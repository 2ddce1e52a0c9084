"""What the networks for small images share: a stem, stages, a pooled linear head, and how timm knows them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from eyeline.errors import InputError

# of CIFAR-10, as in the authors' code: (125.3, 123.0, 113.9) / 255 and (63.0, 62.1, 66.7) / 255
CIFAR_MEAN = (0.4914, 0.4824, 0.4467)
CIFAR_STD = (0.2471, 0.2435, 0.2616)


class GlobalAveragePool(nn.Module):
    """``[N, C, H, W]`` -> ``[N, C]``. Its input is what class activation maps are made of."""

    def forward(self, x: Tensor) -> Tensor:
        # as the mean over both, whose gradient would reach channels_last at a tenth of the speed
        return F.avg_pool2d(x, x.shape[-2:]).flatten(1)


class StagedNetwork(nn.Module):
    """Parts that run one after the other, global average pooling (``pool``), a linear classifier (``head``).

    Args:
        parts: the modules up to the pooling, by name, in the order of the forward pass.
        stages: ``(name, channels, reduction)`` of the parts where attention is observed.
        num_features: channels of the last part.
        num_classes: classes K; 0 for pooled features instead of logits.
        timm_options: what timm's scripts pass to every network; only their neutral values are taken.

    Raises:
        InputError: an option is not known.
    """

    first_conv: ClassVar[str] = "stem.0"

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        stages: Sequence[tuple[str, int, int]],
        num_features: int,
        num_classes: int,
        timm_options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        for option, value in timm_options.items():
            if value and (option, value) != ("global_pool", "avg"):
                raise InputError(
                    f"{type(self).__name__} has no option {option}={value!r}; expected num_classes, in_chans"
                )
        self.num_classes = num_classes
        self.num_features = num_features
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction, "module": name}
            for name, channels, reduction in stages
        ]
        self._parts = tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part)
        self.pool = GlobalAveragePool()
        self.head = nn.Linear(num_features, num_classes) if num_classes else nn.Identity()
        self.apply(self.initialize)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Weights normal with variance 2 / fan-in, biases 0 (He et al. 2015, arXiv 1502.01852)."""
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.apply(self.initialize)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` -> the last features, ``[N, num_features, H', W']``."""
        for name in self._parts:
            x = getattr(self, name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify."""
        x = self.pool(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def conv_norm(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False
) -> list[nn.Module]:
    """A convolution that keeps the size (divided by the stride), and batch norm."""
    return [
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(channels),
    ]


def fan_out(module: nn.Module) -> None:
    """Convolutions normal with variance 2 / fan-out, the classifier with 0.01 squared, biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def register(
    module: str, network: type[StagedNetwork], variants: Mapping[str, Mapping[str, Any]], stages: int = 3
) -> None:
    """Make ``network(**variants[name])``, of so many stages, known to timm as ``name``, in ``module``."""
    config = {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "first_conv": network.first_conv,
        "classifier": "head",
        "license": "mit",
    }
    there = vars(sys.modules[module])
    there.setdefault("default_cfgs", {}).update(generate_default_cfgs(dict.fromkeys(variants, config)))
    for name, settings in variants.items():
        there[name] = register_model(_entry(module, network, name, settings, stages))


def _entry(
    module: str, network: type[StagedNetwork], name: str, settings: Mapping[str, Any], stages: int
) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        return build_model_with_cfg(
            network,
            name,
            pretrained,
            feature_cfg={"out_indices": tuple(range(stages))},
            **settings,
            **options,
        )

    build.__name__ = name
    build.__doc__ = f"{name}, for small images; see :class:`{network.__name__}`."
    build.__module__ = module
    return build
