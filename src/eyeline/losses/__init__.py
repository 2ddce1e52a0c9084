"""The methods. A new one is one file here and one line in this list."""

from eyeline.losses.attention_transfer import AttentionTransfer
from eyeline.losses.base import Loss, Target
from eyeline.losses.cross_entropy import CrossEntropy
from eyeline.losses.knowledge_distillation import KnowledgeDistillation

LOSSES: dict[str, type[Loss]] = {
    loss.name: loss
    for loss in (
        CrossEntropy,
        AttentionTransfer,
        KnowledgeDistillation,
    )
}

__all__ = ["LOSSES", "AttentionTransfer", "CrossEntropy", "KnowledgeDistillation", "Loss", "Target"]
