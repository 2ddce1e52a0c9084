"""How good a network is, and how well it looks where its teacher looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.data.batches import Batch
from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.losses import AttentionTransfer
from eyeline.losses.base import check_labels
from eyeline.observe import evaluation_mode


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], autocast: Any) -> dict[str, float]:
    """Top-1 accuracy (a fraction) and mean cross entropy (nats) of a network in evaluation mode.

    Args:
        model: images ``[N, C, H, W]`` -> logits ``[N, K]``; every part of it is left in the mode it was in.
        batches: what to evaluate on.
        autocast: a context-manager factory for the precision.

    Raises:
        InputError: there is nothing to evaluate on, or the labels are no classes.
    """
    sums: list[Tensor] = []
    count = 0
    with evaluation_mode(model):
        for batch in batches:
            with autocast():
                logits = model(batch.images).float()
            check_labels(batch.labels, len(batch.images), logits.shape[-1])
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            sums.append(torch.stack([loss, (logits.argmax(1) == batch.labels).sum()]))
            count += len(batch.labels)
    if count == 0:
        raise InputError("there are no images to evaluate on; expected at least one")
    loss_sum, correct = torch.stack(sums).cpu().double().sum(0).tolist()
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
    """How far a student looks from where its teacher looks.

    The AT loss (unweighted, ``mean_square``, exponent 2, summed over the paired layers) in evaluation mode,
    averaged over the images. Comparable between students trained by any method, also those that never saw an
    attention map. The student is left in the mode it was in; the teacher is frozen, as by
    :class:`eyeline.Distiller`.

    Raises:
        InputError: as :class:`eyeline.Distiller`, or there are no images.
    """
    distiller = Distiller(student, teacher, {AttentionTransfer.name: {}}, layers, input_shape)
    total, count = 0.0, 0
    try:
        with evaluation_mode(distiller):
            for batch in batches:
                with autocast():
                    terms = distiller(batch.images, batch.labels)
                total += float(terms[AttentionTransfer.name]) * len(batch.labels)
                count += len(batch.labels)
    finally:
        distiller.close()
    if count == 0:
        raise InputError("there are no images to evaluate on; expected at least one")
    return total / count
