"""Similarity-preserving distillation against a loop over its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from eyeline.errors import InputError
from eyeline.functional import similarity_preserving_loss


def by_definition(student: np.ndarray, teacher: np.ndarray) -> float:
    def similarities(features: np.ndarray) -> list[list[float]]:
        rows = []
        for one in features:
            row = [math.fsum((one * other).flat) for other in features]
            rows.append([value / math.sqrt(sum(v * v for v in row)) for value in row])
        return rows

    ours, theirs = similarities(student), similarities(teacher)
    count = len(student)
    return sum((ours[i][j] - theirs[i][j]) ** 2 for i in range(count) for j in range(count)) / count**2


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Different channels and resolutions."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 3, 4, 6, generator=generator, dtype=torch.float64)
    return student, torch.randn(5, 7, 2, 3, generator=generator, dtype=torch.float64)


def test_value_is_that_of_the_definition() -> None:
    student, teacher = pair()
    expected = by_definition(student.numpy(), teacher.numpy())
    assert similarity_preserving_loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    single = similarity_preserving_loss(student.bfloat16(), teacher.bfloat16())
    assert (single.dtype, single.item()) == (torch.float32, pytest.approx(expected, rel=0.05))


@pytest.mark.parametrize("scale", [1e-30, 1e20])
def test_scale_does_not_matter(scale: float) -> None:
    student, teacher = (x.float() for x in pair())
    expected = similarity_preserving_loss(student, teacher)
    torch.testing.assert_close(similarity_preserving_loss(student * scale, teacher), expected)
    assert similarity_preserving_loss(student, 3 * student).item() < 1e-12


def test_gradient_is_the_finite_difference_and_spares_the_teacher() -> None:
    student, teacher = (x.requires_grad_() for x in pair())
    assert gradcheck(lambda s: similarity_preserving_loss(s, teacher), (student,))
    similarity_preserving_loss(student, teacher).backward()
    assert teacher.grad is None
    zero = torch.zeros_like(student, requires_grad=True)
    similarity_preserving_loss(zero, teacher).backward()
    assert zero.grad is not None
    assert not zero.grad.any()


def test_other_samples() -> None:
    student, teacher = pair()
    with pytest.raises(InputError, match="5 and 4 samples"):
        similarity_preserving_loss(student, teacher[:4])
