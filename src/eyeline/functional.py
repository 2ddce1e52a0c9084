"""Every attention map and loss as a pure function on tensors, for anybody's training loop."""

from eyeline.attention import attention_map
from eyeline.losses.attention_transfer import attention_transfer_loss
from eyeline.losses.knowledge_distillation import knowledge_distillation_loss

__all__ = ["attention_map", "attention_transfer_loss", "knowledge_distillation_loss"]
