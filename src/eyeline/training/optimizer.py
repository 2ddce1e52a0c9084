"""The optimizer, and its learning rate over training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from eyeline.settings import Settings


def learning_rate_factor(settings: Settings, step: int, steps_per_epoch: int) -> float:
    """Learning rate over its peak at a step (from 0): linear warm-up, then the schedule."""
    total = settings.epochs * steps_per_epoch
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2
    if settings.schedule == "step":
        done = (step // steps_per_epoch) / settings.epochs
        return settings.gamma ** sum(done >= milestone - 1e-9 for milestone in settings.milestones)
    return 1.0


def make_optimizer(settings: Settings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD as in the papers (momentum, no Nesterov, decay on all parameters), or AdamW."""
    options: Any = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=settings.momentum, **options)
    return torch.optim.AdamW(parameters, **options)
