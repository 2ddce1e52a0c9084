"""What each loss does to the student in one step, told before training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.observe import buffers_kept, evaluation_mode
from eyeline.randomness import draws_apart

LEAST, MOST = 0.001, 0.9
"""Shares of the gradient beyond which there is a warning."""
_WHY = "frozen, under torch.no_grad(), or inside checkpointing with use_reentrant=True"


@dataclass(frozen=True)
class Effect:
    """What one loss does to the student."""

    name: str
    value: float
    """Unweighted."""
    weight: float
    gradient: float
    """Euclidean norm of the weighted loss's gradient in the student's parameters."""
    share: float
    """Of the gradient: this norm over the sum of all of them."""
    reached: bool
    """Whether there is a way from the loss to a parameter of the student."""
    constant: tuple[str, ...]
    """The student's layers that the loss looks at and that have no gradient."""
    finite: bool


def examine(
    distiller: Distiller, images: Tensor, labels: Tensor, autocast: Any = nullcontext
) -> tuple[Effect, ...]:
    """Do a step but for its update, and tell the effect of each loss whose weight is not 0.

    Weights, gradients, running statistics, modes and the random state stay as they are.

    Args:
        distiller: on the device of the images.
        images, labels: a batch, as for the distiller.
        autocast: a context-manager factory for the precision.
    """
    objective = distiller.objective
    weights = dict(zip(objective.method, objective.factors.tolist(), strict=True))
    learned = [p for p in distiller.student.parameters() if p.requires_grad]
    with _as_it_was(distiller, images.device):
        distiller.train()
        with autocast():
            seen, targets = distiller.observe(images, labels)
            # a leaf in place of what has no gradient tells whether a loss looks at it
            leaves: list[tuple[str, Tensor]] = []

            def watched(names: Iterable[str], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                shown = []
                for name, tensor in zip(names, tensors, strict=True):
                    shown.append(tensor if tensor.requires_grad else tensor.detach().requires_grad_())
                    if not tensor.requires_grad:
                        leaves.append((name, shown[-1]))
                return tuple(shown)

            student = distiller.observe_student
            seen = dataclasses.replace(
                seen,
                features=watched((layer.name for layer in student.layers), seen.features),
                pre_activations=watched(student.activated, seen.pre_activations),
            )
            terms = objective.terms(seen, targets, labels)
        found = []
        for name, term in terms.items():
            _forget_gradients(distiller)
            if term.requires_grad:
                # not torch.autograd.grad, which reentrant checkpointing refuses
                (weights[name] * term).backward(retain_graph=True)
            gradients = [p.grad for p in learned if p.grad is not None]
            norms = [float(torch.linalg.vector_norm(g, dtype=torch.float64)) for g in gradients]
            finite = all(p.grad is None or bool(p.grad.isfinite().all()) for p in distiller.parameters())
            constant = tuple(dict.fromkeys(layer for layer, leaf in leaves if leaf.grad is not None))
            for _, leaf in leaves:
                leaf.grad = None
            found.append((name, float(term.detach()), math.hypot(*norms), bool(gradients), constant, finite))
    whole = sum(norm for _, _, norm, *_ in found)
    return tuple(
        Effect(name, value, weights[name], norm, norm / whole if whole else 0.0, reached, constant, finite)
        for name, value, norm, reached, constant, finite in found
    )


def idle_parameters(distiller: Distiller, images: Tensor, labels: Tensor) -> list[str]:
    """The parameters that require a gradient and that a step gives none; all stays as it is."""
    with _as_it_was(distiller, images.device):
        distiller.train()(images, labels).total.backward()
        return [n for n, p in distiller.named_parameters() if p.requires_grad and p.grad is None]


def check_effects(effects: Sequence[Effect]) -> None:
    """Refuse a loss that teaches the student nothing.

    Raises:
        InputError: there is no way from a loss to a parameter of the student; names what it looks at.
    """
    for effect in effects:
        if not effect.reached:
            what = f"the layers {', '.join(effect.constant)}" if effect.constant else "what it looks at"
            raise InputError(
                f"loss {effect.name!r} changes no parameter of the student: {what} have no gradient "
                f"({_WHY}); name other layers, unfreeze them, or give the loss the weight 0"
            )


def warnings(effects: Sequence[Effect]) -> list[str]:
    """A line for each loss that hardly counts, outweighs the others, or looks at what cannot learn."""
    said = []
    for effect in effects:
        if effect.constant:
            said.append(
                f"{effect.name} teaches nothing at {', '.join(effect.constant)} of the student: no gradient "
                f"there ({_WHY})"
            )
        others = [other for other in effects if other is not effect]
        rest = sum(other.gradient for other in others)
        if not others or LEAST <= effect.share <= MOST:
            continue
        if effect.share < LEAST:
            advice = "it hardly counts"
            if effect.gradient and rest:
                tenth = _rounded(effect.weight * rest / (9 * effect.gradient))
                advice += f"; a weight of about {tenth} gives it a tenth"
        elif all(other.share < LEAST for other in others):
            continue  # that is said of them
        else:
            half = _rounded(effect.weight * rest / effect.gradient)
            advice = f"if the others are to count for more, a weight of about {half} gives it half"
        said.append(
            f"{effect.name} (weight {effect.weight:g}) has {100 * effect.share:.3g} % of the gradient in the "
            f"first step; {advice}"
        )
    return said


def _rounded(weight: float) -> str:
    """To two digits, without a power of ten where that can be."""
    return f"{float(f'{weight:.2g}'):g}"


@contextmanager
def _as_it_was(distiller: Distiller, device: torch.device) -> Iterator[None]:
    """Gradients, running statistics, modes and the random state are afterwards what they were."""
    gradients = [(parameter, parameter.grad) for parameter in distiller.parameters()]
    try:
        with evaluation_mode(distiller), buffers_kept(distiller), draws_apart(device, seed=0):
            _forget_gradients(distiller)
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _forget_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None
