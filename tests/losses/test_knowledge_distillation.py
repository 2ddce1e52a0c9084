"""Knowledge distillation against its definition (tests/oracles/distillation.py) and torch's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from eyeline.errors import InputError
from eyeline.functional import knowledge_distillation_loss
from eyeline.losses import KnowledgeDistillation
from eyeline.objective.terms import Objective
from eyeline.observe import Observation
from oracles import distillation as oracle
from oracles.attention import as_float64

TEMPERATURES = [1.0, 2.0, 4.0, 20.0]


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def loss_and_gradient(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
    leaf = student.detach().clone().requires_grad_()
    loss = knowledge_distillation_loss(leaf, teacher, temperature)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("shape", [(4, 10), (1, 3), (3, 2)])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_value_and_gradient_are_the_definition(temperature: float, shape: tuple[int, int]) -> None:
    student, teacher = logits(*shape), logits(*shape, seed=1)
    loss, gradient = loss_and_gradient(student, teacher, temperature)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(
        oracle.knowledge_distillation_loss(student, teacher, temperature), rel=1e-12
    )
    expected = oracle.knowledge_distillation_gradient(student, teacher, temperature)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-12, atol=1e-14)

    student, teacher = student.float(), teacher.float()
    loss, gradient = loss_and_gradient(student, teacher, temperature)
    assert loss.dtype == torch.float32
    expected_loss = oracle.knowledge_distillation_loss(student, teacher, temperature)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5 if temperature <= 4 else 1e-4, abs=1e-6)
    expected = oracle.knowledge_distillation_gradient(student, teacher, temperature)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_default_temperature_is_four() -> None:
    student, teacher = logits(4, 10), logits(4, 10, seed=1)
    expected = oracle.knowledge_distillation_loss(student, teacher, 4.0)
    assert knowledge_distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_value_is_torch_kl_div_of_teacher_from_student(temperature: float) -> None:
    student, teacher = logits(5, 7), logits(5, 7, seed=1)
    by_torch = temperature**2 * F.kl_div(
        (student / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="batchmean"
    )
    loss = knowledge_distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(loss, by_torch, rtol=1e-12, atol=0)


def test_the_divergence_is_taken_from_the_teacher_to_the_student() -> None:
    """One hand-made sample at T=1: p_t = (3/4, 1/4), p_s = (1/2, 1/2)."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64), torch.zeros(1, 2).double()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert knowledge_distillation_loss(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_first_and_second_derivatives_are_the_finite_differences(temperature: float) -> None:
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4, seed=1)
    assert gradcheck(lambda z: knowledge_distillation_loss(z, teacher, temperature), (student,))
    assert gradgradcheck(lambda z: knowledge_distillation_loss(z, teacher, temperature), (student,))


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    loss = knowledge_distillation_loss(student, teacher)
    to_student, to_teacher = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    assert to_student is not None
    assert to_student.abs().sum() > 0
    assert to_teacher is None or not to_teacher.any()


logit_pairs = st.builds(
    lambda n, k, seed, spread: (
        logits(n, k, seed=seed, spread=spread),
        logits(n, k, seed=seed + 1, spread=spread),
    ),
    *(st.integers(1, 4), st.integers(2, 8), st.integers(0, 10**6), st.floats(0.1, 30.0)),
)


@given(logit_pairs, st.floats(0.5, 20.0), st.floats(-50.0, 50.0))
def test_never_negative_and_blind_to_a_shift_of_the_logits(
    pair: tuple[Tensor, Tensor], temperature: float, shift: float
) -> None:
    student, teacher = pair
    loss = knowledge_distillation_loss(student, teacher, temperature)
    assert loss.item() >= -1e-12
    for shifted in ((student + shift, teacher), (student, teacher + shift)):
        again = knowledge_distillation_loss(*shifted, temperature)
        torch.testing.assert_close(again, loss, rtol=1e-9, atol=1e-9)


@given(logit_pairs, st.floats(0.5, 20.0))
def test_batch_mean(pair: tuple[Tensor, Tensor], temperature: float) -> None:
    student, teacher = pair
    each = [
        knowledge_distillation_loss(s[None], t[None], temperature)
        for s, t in zip(student, teacher, strict=True)
    ]
    together = knowledge_distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(together, torch.stack(each).mean(), rtol=1e-11, atol=1e-13)


@given(logit_pairs, st.floats(0.5, 20.0), st.floats(-50.0, 50.0))
def test_zero_with_zero_gradient_at_equality(
    pair: tuple[Tensor, Tensor], temperature: float, shift: float
) -> None:
    student, _ = pair
    loss, gradient = loss_and_gradient(student, student.clone(), temperature)
    assert loss.item() == pytest.approx(0.0, abs=1e-13)
    assert gradient.abs().max().item() < 1e-13
    loss, gradient = loss_and_gradient(student, student + shift, temperature)
    assert loss.item() == pytest.approx(0.0, abs=1e-10)
    assert gradient.abs().max().item() < 1e-10


def test_at_high_temperature_it_is_half_the_mean_square_of_the_centred_difference() -> None:
    """Hinton's limit, which is why the loss carries T^2: 1/(2K) sum of (centred z_s - centred z_t)^2."""
    student, teacher = logits(4, 5), logits(4, 5, seed=1)
    difference = student - teacher
    limit = (difference - difference.mean(1, keepdim=True)).square().sum(1).mean() / (2 * 5)
    loss = knowledge_distillation_loss(student, teacher, 1e5)
    torch.testing.assert_close(loss, limit, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_confident_logits_stay_finite(dtype: torch.dtype) -> None:
    """log(softmax) would be -inf here; log_softmax is not."""
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype)
    loss, gradient = loss_and_gradient(student, teacher)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert loss.item() == pytest.approx(oracle.knowledge_distillation_loss(student, teacher), rel=1e-6)
    np.testing.assert_allclose(
        as_float64(gradient), oracle.knowledge_distillation_gradient(student, teacher), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_are_compared_in_float32(dtype: torch.dtype) -> None:
    student, teacher = logits(4, 10, dtype=dtype), logits(4, 10, seed=1, dtype=dtype)
    loss, _ = loss_and_gradient(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle.knowledge_distillation_loss(student, teacher), rel=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_changes_nothing(dtype: torch.dtype, device: str) -> None:
    student, teacher = logits(4, 10, dtype=dtype).to(device), logits(4, 10, seed=1, dtype=dtype).to(device)
    outside = loss_and_gradient(student, teacher)
    with torch.autocast(device, dtype=torch.bfloat16):
        inside = loss_and_gradient(student, teacher)
    assert inside[0].dtype == torch.float32
    assert torch.equal(inside[0], outside[0])
    assert torch.equal(inside[1], outside[1])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        knowledge_distillation_loss(logits(2, 3), logits(2, 3), temperature)


@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3, 3), (2, 1)])
def test_logits_of_different_shapes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        knowledge_distillation_loss(logits(2, 3), logits(*shape))


# --- the term of an objective ---------------------------------------------------------------------------


def test_the_term_is_the_function_of_what_the_teacher_showed() -> None:
    student, teacher = logits(4, 5).requires_grad_(), logits(4, 5, seed=1).requires_grad_()
    term = KnowledgeDistillation(temperature=3.0)
    target = term.target(Observation(teacher))
    assert all(len(t) == 4 and not t.requires_grad for t in target.values())
    loss = term(Observation(student), target, torch.zeros(4, dtype=torch.int64))
    assert loss.item() == pytest.approx(oracle.knowledge_distillation_loss(student, teacher, 3.0), rel=1e-12)
    with pytest.raises(InputError, match="temperature"):
        KnowledgeDistillation(temperature=0.0)


def test_beside_it_the_cross_entropy_weighs_one_minus_alpha() -> None:
    """alpha T^2 KL + (1 - alpha) CE with alpha = 0.9 and T = 4."""
    student, teacher, labels = logits(4, 5).float(), logits(4, 5, seed=1).float(), torch.tensor([0, 4, 2, 2])
    objective = Objective("kd")
    terms = objective(Observation(student), objective.target(Observation(teacher)), labels)
    predicted = torch.from_numpy(as_float64(student)).softmax(dim=1)
    cross_entropy = -np.mean([math.log(predicted[i, y]) for i, y in enumerate(labels)])
    distilled = oracle.knowledge_distillation_loss(student, teacher, 4.0)
    assert terms.total.item() == pytest.approx(0.9 * distilled + 0.1 * cross_entropy, rel=1e-5)
