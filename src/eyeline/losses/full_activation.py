"""The features themselves: full-activation transfer (the baseline of Zagoruyko & Komodakis, ICLR 2017) and
FitNets hints (Romero et al., ICLR 2015, arXiv 1412.6550)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.attention import resized
from eyeline.errors import InputError
from eyeline.losses._common import unit, wide
from eyeline.losses.attention_transfer import Reduction, check_reduction, default_weight, distance
from eyeline.losses.base import Loss, Target, register
from eyeline.observe import Observation, Observer

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def full_activation_loss(
    student: Float[Tensor, "n c h w"],
    teacher: Float[Tensor, "n c h_t w_t"],
    reduction: Reduction = "mean_square",
) -> Float[Tensor, ""]:
    """Distance between the L2-normalised activations of one pair, unweighted.

    With ``f = vec(F) / ||vec(F)||_2`` for each sample and ``d = f_s - f_t``: the mean of ``d²`` over batch,
    channels and positions (``mean_square``), or the batch mean of ``||d||_2`` (``norm``).

    Where the resolutions differ the teacher's activation is resized to the student's, as maps are.

    Args:
        student, teacher: ``[N, C, H, W]`` of the same number of channels; no gradient reaches the teacher.
        reduction: ``"mean_square"`` or ``"norm"``.

    Returns:
        A scalar >= 0; float64 for float64 activations, float32 otherwise.

    Raises:
        InputError: the number of channels differs, or the reduction is unknown.
    """
    check_reduction(reduction)
    _check_channels(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        target = resized(wide(teacher.detach()), (student.shape[2], student.shape[3]))
        dims = (1, 2, 3)
        return distance(unit(wide(student), dims), unit(target, dims), reduction)


def hint_loss(student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h_t w_t"]) -> Float[Tensor, ""]:
    """``MSE(F_s, F_t)``: mean of the squared difference over batch, channels and positions, unweighted.

    Where the resolutions differ the teacher's activation is resized to the student's.

    Args:
        student: ``[N, C, H, W]``, behind the regressor.
        teacher: ``[N, C, H, W]``; no gradient reaches it.

    Returns:
        A scalar >= 0; float64 for float64 activations, float32 otherwise.

    Raises:
        InputError: the number of channels differs.
    """
    _check_channels(student, teacher)
    target = resized(wide(teacher.detach()), (student.shape[2], student.shape[3]))
    return F.mse_loss(wide(student), target)


def _check_channels(student: Tensor, teacher: Tensor) -> None:
    if student.shape[:2] != teacher.shape[:2]:
        raise InputError(
            f"activations of shape {list(student.shape)} and {list(teacher.shape)}; expected the same images "
            "and channels (a 1x1 convolution on the student's can make them equal)"
        )


@register
class FullActivationTransfer(Loss):
    """:func:`full_activation_loss` summed over the pairs, the student's activation behind a learnable 1x1
    convolution where the channels differ. Its weight falls linearly to 0 by default."""

    name = "act"
    not_in_target = frozenset({"reduction"})
    needs = frozenset({"features"})
    default_schedule = "linear"
    default_schedule_with_kd = "linear"

    def __init__(self, reduction: Reduction = "mean_square") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction: Reduction = reduction

    @property
    def default_weight(self) -> float:
        return default_weight(self.reduction)

    def setup(self, student: Observer, teacher: Observer | None) -> None:
        assert teacher is not None
        self.connectors = nn.ModuleList(
            nn.Identity()
            if ours.shape[0] == theirs.shape[0]
            else nn.Conv2d(ours.shape[0], theirs.shape[0], 1)
            for ours, theirs in zip(student.layers, teacher.layers, strict=True)
        )

    def target(self, teacher: Observation) -> Target:
        return {f"feature{i}": feature.detach() for i, feature in enumerate(teacher.features)}

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        losses = [
            full_activation_loss(connect(feature), target[f"feature{i}"], self.reduction)
            for i, (connect, feature) in enumerate(zip(self.connectors, student.features, strict=True))
        ]
        return torch.stack(losses).sum()


@register
class Hint(Loss):
    """:func:`hint_loss` at one pair of layers, through a learnable 1x1 convolution on the student's side.

    Args:
        layer: number of the pair, from 0 at the input (default: the middle one).
        batch_norm: normalise what the convolution answers (learnable scale and shift): without it the usual
            weight of 100 diverges at usual learning rates where activations are large.
    """

    name = "hint"
    not_in_target = frozenset({"batch_norm"})
    needs = frozenset({"features"})

    def __init__(self, layer: int | None = None, batch_norm: bool = True) -> None:
        super().__init__()
        if layer is not None and not isinstance(layer, int):
            raise InputError(f"layer of loss 'hint' is {layer!r}; expected a whole number, or none")
        self.layer, self.batch_norm = layer, batch_norm

    @property
    def default_weight(self) -> float:
        return 100.0

    def setup(self, student: Observer, teacher: Observer | None) -> None:
        assert teacher is not None
        pairs = len(student.layers)
        self.index = pairs // 2 if self.layer is None else self.layer
        if not 0 <= self.index < pairs:
            raise InputError(
                f"layer of loss 'hint' is {self.layer}; expected 0 to {pairs - 1}, as there are {pairs} "
                "pairs of layers"
            )
        ours, theirs = student.layers[self.index], teacher.layers[self.index]
        self.regressor = nn.Sequential(nn.Conv2d(ours.shape[0], theirs.shape[0], 1))
        if self.batch_norm:
            self.regressor.append(nn.BatchNorm2d(theirs.shape[0]))

    def target(self, teacher: Observation) -> Target:
        return {"feature": teacher.features[self.index].detach()}

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        return hint_loss(self.regressor(student.features[self.index]), target["feature"])
