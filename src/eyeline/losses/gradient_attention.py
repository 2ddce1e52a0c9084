"""Attention from the gradient of the loss: transfer, flip symmetry, and the penalty they are compared with.

Zagoruyko & Komodakis, ICLR 2017 (arXiv 1612.03928), section 3.2; Drucker & LeCun, "Improving generalization
performance using double backpropagation", IEEE Transactions on Neural Networks 3(6), 1992.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline.attention import attention_map
from eyeline.errors import InputError, unknown
from eyeline.losses.attention_transfer import map_distance
from eyeline.losses.base import Loss, Target, check_labels, register
from eyeline.observe import Observation, Observer

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Statistics = Literal["batch", "running"]
Where = Literal["input", "features"]
Compare = Literal["gradient", "map"]


def loss_gradient(
    logits: Float[Tensor, "n k"],
    labels: Int[Tensor, "n"],
    wrt: Float[Tensor, "n *shape"] | tuple[Float[Tensor, "n ..."], ...],
    create_graph: bool = False,
) -> tuple[Float[Tensor, "n ..."], ...]:
    """Gradient attention ``J = ∂L/∂x``: how the cross entropy of each sample answers to what it was given.

    The cross entropy is summed over the batch: a mean would scale ``J`` by 1/N. Where a network mixes samples
    (batch norm with the statistics of the batch), ``J`` of one sample depends on the others.

    Args:
        logits: ``[N, K]``, with a graph that leads to ``wrt``.
        labels: ``[N]`` int64.
        wrt: images or features ``[N, C, H, W]``.
        create_graph: make ``J`` itself differentiable.

    Returns:
        One ``J`` of the shape of each tensor of ``wrt``.

    Raises:
        InputError: there is no graph from the logits to ``wrt``, as under ``torch.no_grad()``; or the labels
            are no classes.
    """
    check_labels(labels, *logits.shape)
    inputs = (wrt,) if isinstance(wrt, Tensor) else wrt
    if not (logits.requires_grad and all(tensor.requires_grad for tensor in inputs)):
        raise InputError(
            "the logits have no graph that leads to the images or features; expected a forward pass with "
            "gradients enabled (no torch.no_grad()), of images that require a gradient"
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(wide, labels, reduction="sum")
    found = torch.autograd.grad(loss, inputs, create_graph=create_graph, retain_graph=True, allow_unused=True)
    gradients = tuple(gradient for gradient in found if gradient is not None)
    if len(gradients) < len(inputs):
        lost = [
            list(tensor.shape) for tensor, gradient in zip(inputs, found, strict=True) if gradient is None
        ]
        raise InputError(f"the logits do not depend on what has shape {lost[0]}; it has no gradient")
    return gradients


def gradient_distance(
    first: Float[Tensor, "n *shape"], second: Float[Tensor, "n *shape"] | None = None, squared: bool = False
) -> Float[Tensor, ""]:
    """``½ · mean over the batch of ||J_1 - J_2||_2``, or of its square; over C, H, W for each sample.

    With ``squared`` the gradient for the student's weights is the widely quoted ``(J_s - J_t) ∂²L/∂W∂x``;
    without, each sample has one more factor, ``1 / (2 ||J_s - J_t||)``, and 0 where both agree.

    Args:
        first, second: ``[N, ...]``, usually ``[N, C, H, W]``; without the second, the size of the
            first alone.
        squared: the square of the norm.

    Returns:
        A scalar; float64 for float64, float32 otherwise.

    Raises:
        InputError: the shapes differ.
    """
    if second is not None and first.shape != second.shape:
        raise InputError(
            f"gradients of shape {list(first.shape)} and {list(second.shape)} cannot be subtracted; "
            "compare=map compares where they are strong"
        )
    # in float32 before they are subtracted: bf16 would round the difference
    wide = torch.promote_types(first.dtype, torch.float32)
    difference = (first.to(wide) if second is None else first.to(wide) - second.to(wide)).flatten(1)
    if squared:
        return difference.square().sum(1).mean() / 2
    return torch.linalg.vector_norm(difference, dim=1).mean() / 2


class _GradientLoss(Loss):
    """What differentiates the student's loss by its input."""

    needs = frozenset({"logits", "input_gradient"})

    def __init__(self, squared: bool, statistics: Statistics) -> None:
        super().__init__()
        if statistics not in get_args(Statistics):
            raise unknown("statistics", statistics, get_args(Statistics))
        self.squared, self.statistics = squared, statistics

    def setup(self, student: Observer, teacher: Observer | None) -> None:
        if self.statistics == "running":
            for name, module in student.model.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
                    raise InputError(f"layer {name!r} keeps no running statistics; give statistics=batch")

    def seen(self, student: Observation) -> Observation:
        """The pass to differentiate: the usual one, or another with the running statistics."""
        if self.statistics == "batch":
            return student
        assert student.images is not None
        return _another_pass(student, student.images, "running")


@register
class GradientAttentionTransfer(_GradientLoss):
    """:func:`gradient_distance` of the student's and the teacher's :func:`loss_gradient`.

    Args:
        where: ``"input"``, or ``"features"``: with respect to every paired layer, summed.
        compare: ``"gradient"``: the gradients themselves, of one shape; ``"map"``: their normalised
            :func:`~eyeline.attention.attention_map`, by the batch mean of ``||q_s - q_t||_2``, for layers of
            different channels or resolution.
        squared: the square of the norm, for ``compare="gradient"``.
        statistics: batch-norm statistics in the student's pass: ``"batch"`` (the training pass itself), or
            ``"running"`` (another pass, in which one sample does not depend on the others).
    """

    name = "gat"
    not_in_target = frozenset({"squared", "statistics"})

    def __init__(
        self,
        where: Where = "input",
        compare: Compare = "gradient",
        squared: bool = False,
        statistics: Statistics = "batch",
    ) -> None:
        super().__init__(squared, statistics)
        if where not in get_args(Where):
            raise unknown("where", where, get_args(Where))
        if compare not in get_args(Compare):
            raise unknown("compare", compare, get_args(Compare))
        if squared and compare == "map":
            raise InputError("squared is for compare=gradient; a map is compared by its norm")
        self.where, self.compare = where, compare
        if where == "features":
            self.needs = self.needs | {"features"}

    def setup(self, student: Observer, teacher: Observer | None) -> None:
        super().setup(student, teacher)
        assert teacher is not None
        if self.where == "features":
            for layer in (*student.layers, *teacher.layers):
                if layer.overwritten:
                    raise InputError(
                        f"the output of layer {layer.name!r} is overwritten in place, so it has no gradient; "
                        "name another layer, or set inplace=False on what follows it"
                    )
            for ours, theirs in zip(student.layers, teacher.layers, strict=True):
                if self.compare == "gradient" and ours.shape != theirs.shape:
                    raise InputError(
                        f"layers {ours.name} {list(ours.shape)} and {theirs.name} {list(theirs.shape)} have "
                        "gradients of different shape; give gat compare=map, or layers of one shape"
                    )

    def target(self, teacher: Observation) -> Target:
        return {f"gradient{i}": g.detach() for i, g in enumerate(self._gradients(teacher))}

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        ours = self._gradients(self.seen(student), create_graph=True)
        theirs = [target[f"gradient{i}"] for i in range(len(ours))]
        if self.compare == "map":
            distances = [map_distance(g, t, "norm") for g, t in zip(ours, theirs, strict=True)]
        else:
            distances = [gradient_distance(g, t, self.squared) for g, t in zip(ours, theirs, strict=True)]
        return torch.stack(distances).sum()

    def _gradients(self, seen: Observation, create_graph: bool = False) -> list[Tensor]:
        gradients = _gradients(seen, self.where, create_graph)
        return [attention_map(g) for g in gradients] if self.compare == "map" else list(gradients)


@register
class FlipSymmetry(_GradientLoss):
    """The gradient of a mirrored image should be the mirrored gradient.

    ``½ · mean ||J(x) - flip(J(flip(x)))||_2`` with the horizontal flip; needs no teacher. Two passes a step,
    with ``statistics="running"`` three; dropout draws anew in each.

    Args:
        squared: the square of the norm.
        statistics: of batch norm, as for ``gat``. Only the first pass moves the running statistics.
        outputs: weight of ``½ · mean ||z(x) - z(flip(x))||_2²`` on the logits, added.
    """

    name = "sym"
    needs_teacher = False

    def __init__(self, squared: bool = False, statistics: Statistics = "batch", outputs: float = 0.0) -> None:
        super().__init__(squared, statistics)
        if not (outputs >= 0 and math.isfinite(outputs)):
            raise InputError(f"outputs is {outputs}; expected a finite weight of at least 0")
        self.outputs = outputs

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        seen = self.seen(student)
        assert student.images is not None
        mirrored_images = student.images.detach().flip(3).requires_grad_()
        mirrored = _another_pass(student, mirrored_images, self.statistics)
        (ours,) = _gradients(seen, "input", create_graph=True)
        (theirs,) = _gradients(mirrored, "input", create_graph=True)
        loss = gradient_distance(ours, theirs.flip(3), self.squared)
        if self.outputs:
            loss = loss + self.outputs * gradient_distance(seen.logits, mirrored.logits, squared=True)
        return loss


@register
class InputGradientPenalty(_GradientLoss):
    """Double backpropagation: ``½ · mean ||J(x)||_2²`` of the student itself; needs no teacher.

    Args:
        squared: the square of the norm, as published; or the norm.
        statistics: of batch norm, as for ``gat``.
    """

    name = "grad_reg"
    needs_teacher = False

    def __init__(self, squared: bool = True, statistics: Statistics = "batch") -> None:
        super().__init__(squared, statistics)

    def forward(self, student: Observation, target: Target, labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        (gradient,) = _gradients(self.seen(student), "input", create_graph=True)
        return gradient_distance(gradient, squared=self.squared)


def _gradients(seen: Observation, where: Where, create_graph: bool) -> tuple[Tensor, ...]:
    if seen.labels is None:
        raise InputError("gradient attention differentiates the cross entropy: give the labels [N] as well")
    assert seen.images is not None
    wrt = (seen.images,) if where == "input" else seen.features
    return loss_gradient(seen.logits, seen.labels, wrt, create_graph)


def _another_pass(seen: Observation, images: Tensor, statistics: Statistics) -> Observation:
    assert seen.observer is not None
    with _batch_norm(seen.observer.model, statistics):
        return seen.again(images)


@contextmanager
def _batch_norm(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Batch norm with these statistics, the running ones not moved."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            if statistics == "running":
                norm.training = False
            elif norm.training:
                norm.track_running_stats = False
        yield
    finally:
        for norm, (training, track) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, track
