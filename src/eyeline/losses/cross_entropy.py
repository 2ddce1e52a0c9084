"""Cross entropy with the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from eyeline.losses.base import Loss, Target, check_labels, register
from eyeline.observe import Observation

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@register
class CrossEntropy(Loss):
    """``-log softmax(z)_y``, batch mean. The student alone trains on this term only."""

    name = "ce"
    needs_teacher = False

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        check_labels(labels, *student.logits.shape)
        logits = student.logits.to(torch.promote_types(student.logits.dtype, torch.float32))
        return F.cross_entropy(logits, labels)
