"""Small networks that several tests share, written as a user would write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """A stem convolution and three stages, each at half the resolution of the one before."""

    def __init__(
        self,
        channels: int = 3,
        widths: tuple[int, int, int] = (4, 6, 8),
        classes: int = 5,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.stage1 = self._stage(widths[0], widths[0], 1)
        self.stage2 = self._stage(widths[0], widths[1], 2)
        self.stage3 = self._stage(widths[1], widths[2], 2)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[2], classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.conv(x))))
        return self.fc(self.dropout(x.mean((2, 3))))


class OverwrittenLater(nn.Module):
    """``body`` answers signed values, which ``how`` then changes in place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.conv(x))
        if self.how == "relu module":
            x = self.relu(x)
        elif self.how == "relu function":
            x = F.relu_(x)
        elif self.how == "add":
            x += 1
        elif self.how == "view":
            x.flatten(1)[:, ::2] = 0
        elif self.how == "dropout module":
            x = self.drop(x)
        elif self.how == "dropout function":
            x = F.dropout(x, 0.5, self.training, inplace=True)
        return self.fc(x.mean((2, 3)))


class Answers(nn.Module):
    """A convolutional network that answers ``form(logits)`` instead of logits."""

    def __init__(self, form: object) -> None:
        super().__init__()
        self.net = Plain()
        self.form = form

    def forward(self, x: Tensor) -> object:
        return self.form(self.net(x))  # type: ignore[operator]


def perturbed(model: nn.Module) -> nn.Module:
    """Statistics, scales and biases away from 0 and 1, so that each is seen to be used."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return model


class Smooth(nn.Module):
    """Two resolutions, batch norm, smooth activations: its derivatives have no kink."""

    def __init__(
        self,
        channels: int = 2,
        widths: tuple[int, int] = (3, 4),
        classes: int = 3,
        strides: tuple[int, int] = (1, 2),
    ) -> None:
        super().__init__()
        inputs = (channels, widths[0])
        self.low, self.high = (
            nn.Sequential(nn.Conv2d(i, w, 3, stride, 1), nn.BatchNorm2d(w), activation)
            for i, w, stride, activation in zip(
                inputs, widths, strides, (nn.Softplus(), nn.Tanh()), strict=True
            )
        )
        self.head = nn.Linear(widths[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.high(self.low(x)).mean((2, 3)))
