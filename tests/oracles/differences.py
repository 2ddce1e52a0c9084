"""The gradient of a whole objective by central differences of its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eyeline.distiller import Distiller


def assert_finite_differences(
    whole: Distiller, images: Tensor, labels: Tensor, skip: tuple[str, ...] = ()
) -> None:
    """In float64, for the weight of largest gradient of each learnable parameter of student and losses."""
    learnable = {n: p for n, p in whole.named_parameters() if p.requires_grad and not n.startswith(skip)}
    total = whole(images, labels).total
    gradients = torch.autograd.grad(total, list(learnable.values()), allow_unused=True)
    assert any(gradient is not None for gradient in gradients)
    for (name, parameter), gradient in zip(learnable.items(), gradients, strict=True):
        if gradient is None:
            continue
        at = int(gradient.abs().argmax())
        kept = parameter.data.flatten()[at].item()
        values = []
        for step in (1e-6, -1e-6):
            parameter.data.view(-1)[at] = kept + step
            values.append(whole(images, labels).total.item())
        parameter.data.view(-1)[at] = kept
        difference = (values[0] - values[1]) / 2e-6
        assert gradient.flatten()[at].item() == pytest.approx(difference, rel=1e-4, abs=1e-6), name
