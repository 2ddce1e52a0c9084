"""Every attention map and loss as a pure function on tensors, for anybody's training loop."""

from eyeline.attention import attention_map
from eyeline.losses.attention_feature import attention_feature
from eyeline.losses.attention_transfer import attention_transfer_loss
from eyeline.losses.class_maps import class_activation_map_loss, class_activation_maps, class_attention_loss
from eyeline.losses.full_activation import full_activation_loss, hint_loss
from eyeline.losses.gradient_attention import gradient_distance, loss_gradient
from eyeline.losses.knowledge_distillation import knowledge_distillation_loss
from eyeline.losses.similarity_preserving import similarity_preserving_loss

__all__ = [
    "attention_feature",
    "attention_map",
    "attention_transfer_loss",
    "class_activation_map_loss",
    "class_activation_maps",
    "class_attention_loss",
    "full_activation_loss",
    "gradient_distance",
    "hint_loss",
    "knowledge_distillation_loss",
    "loss_gradient",
    "similarity_preserving_loss",
]
