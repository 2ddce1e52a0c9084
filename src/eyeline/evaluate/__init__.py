"""How good a network is, and how well it looks where its teacher looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.data.loaders import Batch
from eyeline.distiller import Distiller
from eyeline.losses import AttentionTransfer


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], autocast: Any) -> dict[str, float]:
    """Top-1 accuracy (a fraction) and mean cross entropy (nats) of a network in evaluation mode.

    Args:
        model: images ``[N, C, H, W]`` -> logits ``[N, K]``; left in the mode it was in.
        batches: what to evaluate on.
        autocast: a context-manager factory for the precision.
    """
    training = model.training
    model.eval()
    sums: Tensor | int = 0
    count = 0
    try:
        for batch in batches:
            with autocast():
                logits = model(batch.images).float()
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            sums = sums + torch.stack([loss, (logits.argmax(1) == batch.labels).sum()]).double()
            count += len(batch.labels)
    finally:
        model.train(training)
    assert isinstance(sums, Tensor)
    loss_sum, correct = sums.tolist()
    return {"loss": loss_sum / count, "accuracy": correct / count}


@torch.no_grad()
def attention_loss(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Batch],
    autocast: Any,
    layers: str | Sequence[str] = "auto",
    input_shape: tuple[int, int, int] | None = None,
) -> float:
    """How far a student looks from where its teacher looks: the AT loss (unweighted, ``mean_square``, exponent 2,
    summed over the paired layers) in evaluation mode, averaged over the images.

    Comparable between students trained by any method, also those that never saw an attention map.
    """
    distiller = Distiller(student, teacher, {AttentionTransfer.name: {}}, layers, input_shape)
    training = student.training
    distiller.eval()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    try:
        for batch in batches:
            with autocast():
                terms = distiller(batch.images, batch.labels)
            total += terms[AttentionTransfer.name].double().cpu() * len(batch.labels)
            count += len(batch.labels)
    finally:
        distiller.close()
        student.train(training)
    return float(total) / count
