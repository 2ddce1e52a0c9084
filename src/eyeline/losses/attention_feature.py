"""Attention and feature transfer (AFT-KD, Scientific Reports 13:18369, 2023): our reading of its abstract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.errors import unknown
from eyeline.losses._common import wide
from eyeline.losses.base import Loss, Target, register
from eyeline.observe import Observation, Observer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Binary = Literal["sigmoid", "mean", "soft"]


def attention_feature(
    maps: Float[Tensor, "n c h w"], pre_activation: Float[Tensor, "n c h w"], binary: Binary = "sigmoid"
) -> Float[Tensor, "n c h w"]:
    """``AFB = Binary(maps) + ReLU(Pre)``: where a network attends, on top of what it sees there.

    ``Binary(u)`` is ``1[sigmoid(u) > 0.5]`` (``"sigmoid"``), ``1[u > mean over H, W of |u|]`` (``"mean"``),
    or the sigmoid itself (``"soft"``). Its gradient is the sigmoid's in every case (straight through).

    Args:
        maps: ``u`` ``[N, C, H, W]``.
        pre_activation: the feature before its ReLU, ``[N, C, H, W]``.
        binary: ``"sigmoid"``, ``"mean"`` or ``"soft"``.

    Returns:
        ``[N, C, H, W]``.

    Raises:
        InputError: ``binary`` is unknown.
    """
    check_binary(binary)
    soft = maps.sigmoid()
    if binary == "sigmoid":
        hard = (maps > 0).to(soft.dtype)
    elif binary == "mean":
        hard = (maps > maps.abs().mean((2, 3), keepdim=True)).to(soft.dtype)
    else:
        hard = soft
    # the value of hard, the gradient of soft
    return hard.detach() + (soft - soft.detach()) + F.relu(pre_activation)


def check_binary(binary: str) -> None:
    """Raise InputError for an unknown way to make maps binary."""
    if binary not in get_args(Binary):
        raise unknown("binary", binary, get_args(Binary))


@register
class AttentionFeatureTransfer(Loss):
    """Mean squared difference of :func:`attention_feature` of student and teacher, summed over the pairs.

    ``maps = g(Pre)`` with one learnable 1x1 convolution ``g`` for each pair, shared by both networks; on the
    teacher's side it is held constant, as learnable parts on both sides would collapse. Both pre-activations
    are first pooled to the smaller height and width; the student's goes through a learnable 1x1 convolution
    to the teacher's channels. By default its weight and that of ``ce`` follow the losses' own rates (schedule
    ``loss_rate``).

    Args:
        binary: ``"sigmoid"``, ``"mean"`` (as in CAT-KD) or ``"soft"``.
    """

    name = "aft"
    needs = frozenset({"pre_activations"})
    remembers = False
    default_schedule = "loss_rate"
    default_schedule_with_kd = "loss_rate"

    def __init__(self, binary: Binary = "sigmoid") -> None:
        super().__init__()
        check_binary(binary)
        self.binary: Binary = binary

    def setup(self, student: Observer, teacher: Observer | None) -> None:
        assert teacher is not None
        channels = [
            (ours.shape[0], theirs.shape[0])
            for ours, theirs in zip(student.layers, teacher.layers, strict=True)
        ]
        self.align = nn.ModuleList(nn.Conv2d(ours, theirs, 1) for ours, theirs in channels)
        self.embed = nn.ModuleList(nn.Conv2d(theirs, theirs, 1) for _, theirs in channels)

    def target(self, teacher: Observation) -> Target:
        return {f"pre{i}": pre.detach() for i, pre in enumerate(teacher.pre_activations)}

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        losses = []
        for i, ours in enumerate(student.pre_activations):
            theirs = target[f"pre{i}"]
            size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
            ours = self.align[i](F.adaptive_avg_pool2d(ours, size))
            theirs = F.adaptive_avg_pool2d(theirs, size)
            with torch.no_grad():
                expected = attention_feature(wide(self.embed[i](theirs)), wide(theirs), self.binary)
            seen = attention_feature(wide(self.embed[i](ours)), wide(ours), self.binary)
            losses.append(F.mse_loss(seen, expected))
        return torch.stack(losses).sum()
