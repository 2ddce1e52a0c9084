"""How good a network is, and how well it looks where its teacher looks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.data.batches import Batch
from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.losses import AttentionTransfer
from eyeline.losses.base import check_labels
from eyeline.observe import evaluation_mode


class Evaluation(NamedTuple):
    """What a network reaches on a split."""

    accuracy: float
    """Top-1, a fraction."""
    loss: float
    """Mean cross entropy, in nats."""
    answers: Tensor
    """int64 ``[N]``: the class it answers for each image, in their order."""


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], autocast: Any) -> Evaluation:
    """Accuracy, cross entropy and answers of a network in evaluation mode.

    Args:
        model: images ``[N, C, H, W]`` -> logits ``[N, K]``; every part of it is left in the mode it was in.
        batches: what to evaluate on.
        autocast: a context-manager factory for the precision.

    Raises:
        InputError: there is nothing to evaluate on, or the labels are no classes.
    """
    sums: list[Tensor] = []
    answers: list[Tensor] = []
    with evaluation_mode(model):
        for batch in batches:
            with autocast():
                logits = model(batch.images).float()
            check_labels(batch.labels, len(batch.images), logits.shape[-1])
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            answers.append(logits.argmax(1))
            sums.append(torch.stack([loss, (answers[-1] == batch.labels).sum()]))
    if not sums:
        raise InputError("there are no images to evaluate on; expected at least one")
    answered = torch.cat(answers).cpu()
    loss_sum, correct = torch.stack(sums).cpu().double().sum(0).tolist()
    return Evaluation(correct / len(answered), loss_sum / len(answered), answered)


@torch.no_grad()
def attention_loss(distiller: Distiller, batches: Iterable[Batch], autocast: Any) -> float:
    """How far a student looks from where its teacher looks.

    The AT loss (unweighted, ``mean_square``, exponent 2, summed over the paired layers) in evaluation mode,
    averaged over the images. Comparable between students trained by any method, also those that never saw an
    attention map.

    Args:
        distiller: of both networks by the method ``at``; left in the mode it was in.
        batches, autocast: as for :func:`evaluate`.

    Raises:
        InputError: there are no images.
    """
    total, count = 0.0, 0
    with evaluation_mode(distiller):
        for batch in batches:
            with autocast():
                terms = distiller(batch.images, batch.labels)
            total += float(terms[AttentionTransfer.name]) * len(batch.labels)
            count += len(batch.labels)
    if count == 0:
        raise InputError("there are no images to evaluate on; expected at least one")
    return total / count
