"""Similarity-preserving distillation (Tung & Mori, ICCV 2019, arXiv 1907.09682)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from eyeline.attention import relative
from eyeline.errors import InputError
from eyeline.losses._common import wide
from eyeline.losses.base import Loss, Target, register
from eyeline.observe import Observation

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def similarity_preserving_loss(
    student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c_t h_t w_t"]
) -> Float[Tensor, ""]:
    """Distance of which samples of a batch the networks find alike, unweighted.

    ``(1/N²) ||r(G_s) - r(G_t)||_F²`` with ``G = F Fᵀ`` of the activations ``F`` flattened to ``[N, C·H·W]``,
    and ``r`` the division of each row by its Euclidean norm. Channels and resolutions may differ.

    Args:
        student, teacher: ``[N, C, H, W]`` of the same N samples; no gradient reaches the teacher.

    Returns:
        A scalar >= 0; float64 for float64 activations, float32 otherwise.

    Raises:
        InputError: the numbers of samples differ.
    """
    if len(student) != len(teacher):
        raise InputError(
            f"activations of {len(student)} and {len(teacher)} samples; expected the same samples"
        )
    with torch.autocast(student.device.type, enabled=False):
        return F.mse_loss(_similarities(student), _similarities(teacher.detach()))


def _similarities(activation: Float[Tensor, "n c h w"]) -> Float[Tensor, "n n"]:
    # relative to the strongest value of the batch, so that no square over- or underflows
    flat = relative(wide(activation).flatten(1), (0, 1))
    return F.normalize(flat @ flat.T, dim=1)


@register
class SimilarityPreserving(Loss):
    """:func:`similarity_preserving_loss` at the last pair of layers.

    Default weight: 3000, as in the common CIFAR-100 benchmark.
    """

    name = "sp"
    needs = frozenset({"features"})

    @property
    def default_weight(self) -> float:
        return 3000.0

    def target(self, teacher: Observation) -> Target:
        # not its similarities: which samples are in a batch is not the teacher's to know
        return {"feature": teacher.features[-1].detach()}

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        return similarity_preserving_loss(student.features[-1], target["feature"])
