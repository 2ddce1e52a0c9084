"""Activation-based attention transfer (Zagoruyko & Komodakis, ICLR 2017, arXiv 1612.03928)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from eyeline.attention import Reduce, attention_map, check_map_arguments, normalized, resized
from eyeline.errors import InputError, unknown
from eyeline.losses.base import Loss, Target, register
from eyeline.observe import Observation, Observer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Reduction = Literal["mean_square", "norm"]


def attention_transfer_loss(
    student: Float[Tensor, "n c h w"],
    teacher: Float[Tensor, "n c_t h_t w_t"],
    exponent: float = 2.0,
    reduce: Reduce = "sum",
    reduction: Reduction = "mean_square",
) -> Float[Tensor, ""]:
    """Distance between the normalised attention maps of one pair of activations, unweighted.

    With ``q`` the normalised map of :func:`eyeline.functional.attention_map` and ``d = q_s - q_t``:

    * ``reduction="mean_square"``: the mean of ``d²`` over batch and positions, as in the authors' code.
      Its usual weight is β = 1000.
    * ``reduction="norm"``: the batch mean of ``||d||_2``, as in Eq. 2 of the paper, where its weight is
      written β/2. Its gradient does not vanish as the student nears the teacher.

    Where the resolutions differ the teacher's map is resized to the student's before it is normalised.

    Args:
        student: ``[N, C_s, H, W]``.
        teacher: ``[N, C_t, H_t, W_t]``; no gradient reaches it.
        exponent, reduce: of the map.
        reduction: ``"mean_square"`` or ``"norm"``.

    Returns:
        A scalar >= 0; float64 for float64 activations, float32 otherwise.

    Raises:
        InputError: bad arguments, or batches of different size.
    """
    check_reduction(reduction)
    with torch.no_grad():
        remembered = attention_map(teacher, exponent, reduce)
    return map_distance(attention_map(student, exponent, reduce), remembered, reduction)


def map_distance(
    student: Float[Tensor, "n h w"], teacher: Float[Tensor, "n h_t w_t"], reduction: Reduction
) -> Float[Tensor, ""]:
    """Distance of normalised maps ``[N, H, W]``; the teacher's are resized where they must be."""
    if len(student) != len(teacher):
        raise InputError(
            f"{len(student)} maps of the student, {len(teacher)} of the teacher; expected the same images"
        )
    if student.shape != teacher.shape:
        # resizing is linear, so normalising before it as well changes nothing
        teacher = normalized(resized(teacher, (student.shape[1], student.shape[2])))
    return distance(student, teacher, reduction)


def distance(
    student: Float[Tensor, "n *shape"], teacher: Float[Tensor, "n *shape"], reduction: Reduction
) -> Float[Tensor, ""]:
    """Of ``d = student - teacher`` ``[N, ...]``: the mean of ``d²`` over everything, or the batch mean of
    ``||d||_2``."""
    if reduction == "mean_square":
        return F.mse_loss(student, teacher)
    return torch.linalg.vector_norm((student - teacher).flatten(1), dim=1).mean()


def default_weight(reduction: Reduction) -> float:
    """Of a distance between vectors of unit norm."""
    return 1000.0 if reduction == "mean_square" else 1.0


def check_reduction(reduction: str) -> None:
    """Raise InputError for an unknown reduction."""
    if reduction not in get_args(Reduction):
        raise unknown("reduction", reduction, get_args(Reduction))


@register
class AttentionTransfer(Loss):
    """:func:`attention_transfer_loss`, summed over the pairs of observed layers.

    Default weight: β = 1000 for ``mean_square`` (the authors' code). For ``norm`` no value is published;
    1 is a place to start from, to be chosen on validation.
    """

    name = "at"
    needs = frozenset({"features"})
    not_in_target = frozenset({"reduction"})
    default_schedule_with_kd = "linear"

    def __init__(
        self, exponent: float = 2.0, reduce: Reduce = "sum", reduction: Reduction = "mean_square"
    ) -> None:
        super().__init__()
        check_map_arguments(exponent, reduce)
        check_reduction(reduction)
        self.exponent, self.reduce, self.reduction = exponent, reduce, reduction

    @property
    def default_weight(self) -> float:
        return default_weight(self.reduction)

    def setup(self, student: Observer, teacher: Observer | None) -> None:
        for layer in (*student.layers, *(teacher.layers if teacher is not None else ())):
            if layer.shape[1] * layer.shape[2] == 1:
                raise InputError(
                    f"layer {layer.name!r} has one position, so its attention map of unit norm is always 1; "
                    "name a layer before the pooling"
                )

    def target(self, teacher: Observation) -> Target:
        return {
            f"map{i}": attention_map(feature.detach(), self.exponent, self.reduce)
            for i, feature in enumerate(teacher.features)
        }

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        distances = [
            map_distance(
                attention_map(feature, self.exponent, self.reduce), target[f"map{i}"], self.reduction
            )
            for i, feature in enumerate(student.features)
        ]
        return torch.stack(distances).sum()
