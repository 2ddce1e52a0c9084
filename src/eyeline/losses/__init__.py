"""The methods. A new one is one file here, with ``@register`` on its class, and its line in this list."""

# ruff: noqa: I001 (in this order the terms of a method are computed and named)
from eyeline.losses.base import LOSSES, Loss, Target, register
from eyeline.losses.cross_entropy import CrossEntropy
from eyeline.losses.attention_transfer import AttentionTransfer
from eyeline.losses.knowledge_distillation import KnowledgeDistillation
from eyeline.losses.gradient_attention import GradientAttentionTransfer, FlipSymmetry, InputGradientPenalty
from eyeline.losses.full_activation import FullActivationTransfer, Hint
from eyeline.losses.class_maps import ClassActivationMapTransfer, ClassAttentionTransfer
from eyeline.losses.attention_feature import AttentionFeatureTransfer
from eyeline.losses.similarity_preserving import SimilarityPreserving

__all__ = [
    "LOSSES",
    "AttentionFeatureTransfer",
    "AttentionTransfer",
    "ClassActivationMapTransfer",
    "ClassAttentionTransfer",
    "CrossEntropy",
    "FlipSymmetry",
    "FullActivationTransfer",
    "GradientAttentionTransfer",
    "Hint",
    "InputGradientPenalty",
    "KnowledgeDistillation",
    "Loss",
    "SimilarityPreserving",
    "Target",
    "register",
]
