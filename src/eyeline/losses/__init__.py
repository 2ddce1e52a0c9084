"""The methods. A new one is one file here and one line in this list."""

from eyeline.losses.attention_feature import AttentionFeatureTransfer
from eyeline.losses.attention_transfer import AttentionTransfer
from eyeline.losses.base import Loss, Target
from eyeline.losses.class_maps import ClassActivationMapTransfer, ClassAttentionTransfer
from eyeline.losses.cross_entropy import CrossEntropy
from eyeline.losses.full_activation import FullActivationTransfer, Hint
from eyeline.losses.gradient_attention import FlipSymmetry, GradientAttentionTransfer, InputGradientPenalty
from eyeline.losses.knowledge_distillation import KnowledgeDistillation
from eyeline.losses.similarity_preserving import SimilarityPreserving

LOSSES: dict[str, type[Loss]] = {
    loss.name: loss
    for loss in (
        CrossEntropy,
        AttentionTransfer,
        KnowledgeDistillation,
        GradientAttentionTransfer,
        FlipSymmetry,
        InputGradientPenalty,
        FullActivationTransfer,
        Hint,
        ClassActivationMapTransfer,
        ClassAttentionTransfer,
        AttentionFeatureTransfer,
        SimilarityPreserving,
    )
}

__all__ = ["LOSSES", "AttentionTransfer", "CrossEntropy", "KnowledgeDistillation", "Loss", "Target"]
