"""Knowledge distillation (Hinton, Vinyals & Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from eyeline.errors import InputError
from eyeline.losses.base import Loss, Target, register
from eyeline.observe import Observation

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def knowledge_distillation_loss(
    student_logits: Float[Tensor, "n k"], teacher_logits: Float[Tensor, "n k"], temperature: float = 4.0
) -> Float[Tensor, ""]:
    """Divergence of the student's softened predictions from the teacher's.

    ``T² KL(softmax(z_t/T) || softmax(z_s/T))``, mean over the batch. The factor T² keeps the size of the
    gradient independent of the temperature. Log-softmax on both sides: finite for logits of any confidence.

    Args:
        student_logits: ``[N, K]``.
        teacher_logits: ``[N, K]``; no gradient reaches it.
        temperature: ``T > 0``.

    Returns:
        A scalar >= 0 (in nats); float64 for float64 logits, float32 otherwise.

    Raises:
        InputError: the shapes differ, or the temperature is not above 0.
    """
    check_temperature(temperature)
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2:
        raise InputError(
            f"student logits {list(student_logits.shape)} and teacher logits {list(teacher_logits.shape)}; "
            "expected both [N, K] over the same classes"
        )
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    with torch.autocast(student_logits.device.type, enabled=False):
        student = F.log_softmax(student_logits.to(dtype) / temperature, dim=1)
        teacher = F.log_softmax(teacher_logits.detach().to(dtype) / temperature, dim=1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def check_temperature(temperature: float) -> None:
    """Raise InputError for a temperature that is not above 0."""
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; expected a number above 0; the default is 4")


@register
class KnowledgeDistillation(Loss):
    """:func:`knowledge_distillation_loss` as a term. Its default weight is α = 0.9, and the cross entropy
    beside it then has 1 - α."""

    name = "kd"
    not_in_target = frozenset({"temperature"})

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    @property
    def default_weight(self) -> float:
        return 0.9

    def target(self, teacher: Observation) -> Target:
        return {"logits": teacher.logits.detach()}

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        return knowledge_distillation_loss(student.logits, target["logits"], self.temperature)
