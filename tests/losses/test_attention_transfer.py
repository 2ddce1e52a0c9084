"""Attention transfer against its definition, its closed-form gradient and its layered construction.

The references are in tests/oracles/attention.py. ``student`` and ``teacher`` are signed activations.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.functional import attention_transfer_loss
from eyeline.losses import AttentionTransfer
from eyeline.objective.terms import Objective
from eyeline.observe import Observation
from networks import Plain
from oracles import attention as oracle

EXPONENTS = [1.0, 1.5, 2.0, 3.0, 4.0]
REDUCES = ["sum", "max"]
REDUCTIONS = ["mean_square", "norm"]
SHAPES = [  # student, teacher
    ((2, 3, 4, 4), (2, 3, 4, 4)),
    ((1, 5, 3, 6), (1, 2, 3, 6)),
    ((3, 1, 5, 2), (3, 4, 5, 2)),
]
SIZES = [  # (height, width) of student, teacher
    pytest.param((4, 4), (8, 8), id="shrink"),
    pytest.param((8, 8), (4, 4), id="grow"),
    pytest.param((8, 4), (4, 8), id="grow height, shrink width"),
    pytest.param((4, 8), (8, 4), id="shrink height, grow width"),
    pytest.param((4, 8), (4, 4), id="width only, grow"),
    pytest.param((4, 4), (4, 8), id="width only, shrink"),
    pytest.param((8, 4), (4, 4), id="height only"),
    pytest.param((6, 3), (5, 7), id="ratios that are not whole"),
    pytest.param((2, 2), (8, 12), id="shrink by four and six"),
    pytest.param((1, 1), (3, 2), id="to one position"),
]


def activation(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Signed random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def away_from_zero(a: Tensor) -> Tensor:
    """Signed, no entry within 0.2 of 0: finite differences never cross the kink of the absolute value."""
    return a + 0.2 * a.sign()


def loss_and_gradient(student: Tensor, teacher: Tensor, *settings) -> tuple[Tensor, Tensor]:
    leaf = student.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = attention_transfer_loss(leaf, teacher, *settings)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def assert_close(actual: Tensor, expected: np.ndarray, rtol: float, atol: float = 0.0) -> None:
    assert tuple(actual.shape) == expected.shape
    np.testing.assert_allclose(oracle.as_float64(actual), expected, rtol=rtol, atol=atol)


def assert_is_the_definition(student: Tensor, teacher: Tensor, *settings, rtol: float) -> None:
    loss, gradient = loss_and_gradient(student, teacher, *settings)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(oracle.attention_transfer_loss(student, teacher, *settings), rel=rtol)
    expected = oracle.attention_transfer_gradient(student, teacher, *settings)
    assert_close(gradient, expected, rtol=10 * rtol, atol=rtol * float(np.abs(expected).max()))


# --- value and gradient ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("student_shape", "teacher_shape"), SHAPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_value_and_gradient_are_the_closed_forms(
    exponent: float,
    reduce: str,
    reduction: str,
    student_shape: tuple[int, ...],
    teacher_shape: tuple[int, ...],
) -> None:
    # Pitfall 1: signed activations, odd and fractional exponents.
    student, teacher = activation(*student_shape), activation(*teacher_shape, seed=1)
    assert (student < 0).any()
    assert (teacher < 0).any()
    assert_is_the_definition(student, teacher, exponent, reduce, reduction, rtol=1e-12)
    assert_is_the_definition(student.float(), teacher.float(), exponent, reduce, reduction, rtol=2e-6)


def test_defaults_are_the_mean_square_between_sums_of_squares() -> None:
    student, teacher = activation(2, 3, 4, 5), activation(2, 4, 4, 5, seed=1)
    expected = oracle.attention_transfer_loss(student, teacher, 2.0, "sum", "mean_square")
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_a_sample_computed_by_hand() -> None:
    """Q_s = (9, 16) has length sqrt(337); Q_t = (1, 0)."""
    student, teacher = torch.tensor([[[[3.0, -4.0]]]]).double(), torch.tensor([[[[-2.0, 0.0]]]]).double()
    x, y = 9 / 337**0.5 - 1, 16 / 337**0.5
    mean_square = attention_transfer_loss(student, teacher, 2.0, "sum", "mean_square")
    norm = attention_transfer_loss(student, teacher, 2.0, "sum", "norm")
    assert mean_square.item() == pytest.approx((x * x + y * y) / 2, rel=1e-14)
    assert norm.item() == pytest.approx((x * x + y * y) ** 0.5, rel=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_layered_construction_has_the_same_value_and_gradient(exponent: float, reduction: str) -> None:
    student, teacher = activation(2, 3, 4, 5), activation(2, 6, 4, 5, seed=1)
    loss, gradient = loss_and_gradient(student, teacher, exponent, "sum", reduction)
    student.requires_grad_()
    layered = oracle.LayeredLoss(3, 6, exponent, reduction)(student, teacher)
    torch.testing.assert_close(loss, layered.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(layered, student)[0], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("teacher_size", [(2, 3), (4, 2)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0, 3.0])
def test_first_and_second_derivatives_are_the_finite_differences(
    exponent: float, reduce: str, reduction: str, teacher_size: tuple[int, int]
) -> None:
    """The second one matters to methods that differentiate a gradient."""
    student = away_from_zero(activation(2, 2, 2, 3)).requires_grad_()
    teacher = activation(2, 3, *teacher_size, seed=1)
    assert gradcheck(lambda a: attention_transfer_loss(a, teacher, exponent, reduce, reduction), (student,))
    assert gradgradcheck(
        lambda a: attention_transfer_loss(a, teacher, exponent, reduce, reduction), (student,)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_gradient_of_maximum_maps_reaches_only_the_strongest_channel(exponent: float, reduction: str) -> None:
    student, teacher = activation(2, 5, 3, 4), activation(2, 5, 3, 4, seed=1)
    _, gradient = loss_and_gradient(student, teacher, exponent, "max", reduction)
    strongest = student.abs() == student.abs().amax(dim=1, keepdim=True)
    assert torch.equal(gradient != 0, strongest)


@pytest.mark.parametrize("teacher_size", [(4, 5), (8, 5)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_gradient_reaches_the_teacher(reduction: str, teacher_size: tuple[int, int]) -> None:
    student = activation(2, 3, 4, 5).requires_grad_()
    teacher = activation(2, 3, *teacher_size, seed=1).requires_grad_()
    loss = attention_transfer_loss(student, teacher, 2.0, "sum", reduction)
    to_student, to_teacher = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    assert to_student is not None
    assert to_student.abs().sum() > 0
    assert to_teacher is None or not to_teacher.any()


@pytest.mark.parametrize("layout", ["channels_last", "every other", "transposed"])
def test_memory_layout_does_not_matter(layout: str) -> None:
    def lay_out(seed: int) -> Tensor:
        return {
            "channels_last": activation(2, 3, 4, 6, seed=seed).to(memory_format=torch.channels_last),
            "every other": activation(4, 6, 8, 6, seed=seed)[::2, ::2, 1::2, ::2],
            "transposed": activation(6, 4, 3, 2, seed=seed).permute(3, 2, 1, 0),
        }[layout]

    assert not lay_out(0).is_contiguous()
    for reduction in REDUCTIONS:
        assert_is_the_definition(lay_out(0), lay_out(1), 3.0, "sum", reduction, rtol=1e-12)
        assert_is_the_definition(lay_out(0), lay_out(1)[:, :, ::2], 3.0, "max", reduction, rtol=1e-12)


# --- maps of different sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(("student_size", "teacher_size"), SIZES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("reduce", REDUCES)
def test_pitfall_4_the_teachers_map_takes_the_students_size(
    reduce: str, reduction: str, student_size: tuple[int, int], teacher_size: tuple[int, int]
) -> None:
    """Averages where it shrinks, straight lines where it grows, each axis on its own; never a square."""
    student, teacher = activation(2, 3, *student_size), activation(2, 4, *teacher_size, seed=1)
    if student_size == (1, 1):  # one position is always (1,): nothing to learn
        loss, gradient = loss_and_gradient(student, teacher, 2.0, reduce, reduction)
        assert loss.item() == pytest.approx(0, abs=1e-15)
        assert gradient.abs().max() < 1e-15
        return
    assert_is_the_definition(student, teacher, 2.0, reduce, reduction, rtol=1e-12)
    assert_is_the_definition(student.float(), teacher.float(), 2.0, reduce, reduction, rtol=2e-6)


def test_resizing_comes_after_the_power_and_before_the_normalisation() -> None:
    student, teacher = activation(4, 3, 4, 4), activation(4, 4, 8, 8, seed=1)
    student[:, :, 1, 2] *= 4  # a clear peak
    loss = attention_transfer_loss(student, teacher).item()
    assert loss == pytest.approx(oracle.attention_transfer_loss(student, teacher), rel=1e-12)

    normalised_first = torch.from_numpy(oracle.resize_map(oracle.attention_map(teacher), (4, 4)))
    q_s = torch.from_numpy(oracle.attention_map(student))
    assert (q_s - normalised_first).square().mean().item() != pytest.approx(loss, rel=0.2)
    features_first = attention_transfer_loss(student, F.interpolate(teacher, size=(4, 4), mode="area")).item()
    assert features_first != pytest.approx(loss, rel=0.2)


# --- what the formulas promise --------------------------------------------------------------------------


def pair(n: int, c_s: int, c_t: int, h: int, w: int, seed: int) -> tuple[Tensor, Tensor]:
    return activation(n, c_s, h, w, seed=seed), activation(n, c_t, h, w, seed=seed + 1)


channels, sides = st.integers(1, 4), st.integers(2, 4)
pairs = st.builds(pair, st.integers(1, 3), channels, channels, sides, sides, st.integers(0, 10**6))
exponents = st.one_of(st.sampled_from(EXPONENTS), st.floats(1.0, 5.0))
reduces, reductions = st.sampled_from(REDUCES), st.sampled_from(REDUCTIONS)
magnitudes = st.floats(-6, 6)


@given(pairs, exponents, reduces, reductions, magnitudes, magnitudes)
def test_the_scale_of_either_network_does_not_matter(
    pair: tuple[Tensor, Tensor],
    exponent: float,
    reduce: str,
    reduction: str,
    by_student: float,
    by_teacher: float,
) -> None:
    student, teacher = pair
    loss = attention_transfer_loss(student, teacher, exponent, reduce, reduction)
    scaled = attention_transfer_loss(
        student * 10.0**by_student, -teacher * 10.0**by_teacher, exponent, reduce, reduction
    )
    torch.testing.assert_close(scaled, loss, rtol=1e-10, atol=1e-14)


@given(pairs, exponents, reduces, reductions)
def test_so_the_gradient_is_orthogonal_to_the_activation(
    pair: tuple[Tensor, Tensor], exponent: float, reduce: str, reduction: str
) -> None:
    student, teacher = pair
    _, gradient = loss_and_gradient(student, teacher, exponent, reduce, reduction)
    along = (gradient * student).sum(dim=(1, 2, 3))  # <dL/dA, A>, each sample
    size = (gradient * student).abs().sum(dim=(1, 2, 3))
    assert (along.abs() <= 1e-11 * size + 1e-15).all()
    assert gradient.abs().max() > 1e-9


@given(pairs, exponents, reduces, reductions, magnitudes)
def test_zero_at_equality(
    pair: tuple[Tensor, Tensor], exponent: float, reduce: str, reduction: str, magnitude: float
) -> None:
    _, teacher = pair
    loss, gradient = loss_and_gradient(teacher, teacher.clone(), exponent, reduce, reduction)
    assert loss.item() == 0
    assert (gradient == 0).all()  # by convention for the norm, whose kink this is
    loss = attention_transfer_loss(-teacher * 10.0**magnitude, teacher, exponent, reduce, reduction)
    assert loss.item() < 1e-12


@given(pairs, exponents, reduces)
def test_squared_distance_is_twice_one_minus_the_cosine(
    pair: tuple[Tensor, Tensor], exponent: float, reduce: str
) -> None:
    student, teacher = pair
    _, q_s, q_t = oracle.map_pair(student, teacher, exponent, reduce)
    expected = np.mean([2 * (1 - float((s * t).sum())) for s, t in zip(q_s, q_t, strict=True)])
    positions = student[0, 0].numel()
    squared = positions * attention_transfer_loss(student, teacher, exponent, reduce, "mean_square").item()
    assert squared == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert 0 <= squared <= 2
    assert attention_transfer_loss(student, teacher, exponent, reduce, "norm").item() <= 2**0.5


def test_two_maps_that_share_no_position_are_at_the_largest_distance() -> None:
    student, teacher = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 3)
    student[..., 0], teacher[..., 1] = -3.0, 5.0
    assert attention_transfer_loss(student, teacher).item() == pytest.approx(2 / 6, rel=1e-6)
    assert attention_transfer_loss(student, teacher, 2.0, "sum", "norm").item() == pytest.approx(
        2**0.5, rel=1e-6
    )


@given(pairs, exponents, reduces, reductions)
def test_symmetric_in_student_and_teacher(
    pair: tuple[Tensor, Tensor], exponent: float, reduce: str, reduction: str
) -> None:
    forth = attention_transfer_loss(*pair, exponent, reduce, reduction)
    back = attention_transfer_loss(*pair[::-1], exponent, reduce, reduction)
    torch.testing.assert_close(forth, back, rtol=1e-13, atol=1e-15)


@given(pairs, exponents, reduces, reductions)
def test_the_loss_of_a_batch_is_the_mean_over_its_samples(
    pair: tuple[Tensor, Tensor], exponent: float, reduce: str, reduction: str
) -> None:
    """So the size of the batch cancels."""
    student, teacher = pair
    settings = (exponent, reduce, reduction)
    together = attention_transfer_loss(student, teacher, *settings)
    each = [
        attention_transfer_loss(s[None], t[None], *settings) for s, t in zip(student, teacher, strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(each).mean(), rtol=1e-12, atol=1e-15)
    twice = attention_transfer_loss(torch.cat([student] * 2), torch.cat([teacher] * 2), *settings)
    torch.testing.assert_close(twice, together, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("size", "weight"), [(32, 0.9766), (16, 3.906), (8, 15.625)])
def test_weight_on_the_mean_square_is_that_over_the_positions_on_the_squared_distance(
    size: int, weight: float
) -> None:
    """1000 x mean_square = batch mean of (1000/P) ||d||^2: layers weigh 1 : 4 : 16 as the sides halve."""
    student, teacher = activation(2, 2, size, size), activation(2, 3, size, size, seed=1)
    _, q_s, q_t = oracle.map_pair(student, teacher)
    squared = np.mean([oracle.norm(s - t) ** 2 for s, t in zip(q_s, q_t, strict=True)])
    loss = 1000 * attention_transfer_loss(student, teacher).item()
    assert loss == pytest.approx(1000 / size**2 * squared, rel=1e-12)
    assert loss == pytest.approx(weight * squared, rel=1e-3)


def test_only_the_gradient_of_the_norm_keeps_its_size_near_equality() -> None:
    teacher = activation(2, 3, 4, 5)
    noise = activation(2, 3, 4, 5, seed=1)

    def size(reduction: str, distance: float) -> float:
        return loss_and_gradient(teacher + distance * noise, teacher, 2.0, "sum", reduction)[1].norm().item()

    assert size("norm", 1e-2) / size("norm", 1e-5) == pytest.approx(1.0, rel=0.1)
    assert size("mean_square", 1e-2) / size("mean_square", 1e-5) == pytest.approx(1e3, rel=0.1)


# --- limits of the number formats -----------------------------------------------------------------------

SCALES = [1e-30, 1.0, 1e25]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("exponent", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("teacher_scale", SCALES)
@pytest.mark.parametrize("student_scale", SCALES)
def test_exact_at_any_scale_of_float32(
    student_scale: float, teacher_scale: float, exponent: float, reduction: str
) -> None:
    student = activation(2, 3, 4, 5, dtype=torch.float32) * student_scale
    teacher = activation(2, 4, 8, 3, seed=1, dtype=torch.float32) * teacher_scale
    loss, gradient = loss_and_gradient(student, teacher, exponent, "sum", reduction)
    expected = oracle.attention_transfer_loss(student, teacher, exponent, "sum", reduction)
    assert loss.item() == pytest.approx(expected, rel=2e-6)
    gradient, scale = oracle.as_float64(gradient) * student_scale, student_scale
    expected_gradient = (
        oracle.attention_transfer_gradient(student, teacher, exponent, "sum", reduction) * scale
    )
    np.testing.assert_allclose(
        gradient, expected_gradient, rtol=1e-4, atol=1e-6 * np.abs(expected_gradient).max()
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float16, 256.0), (torch.float16, 60000.0), (torch.bfloat16, 1e30)]
)
def test_pitfall_2_half_precision_does_not_overflow(
    dtype: torch.dtype, size: float, reduce: str, reduction: str
) -> None:
    student = (activation(2, 3, 4, 5).clamp(-1, 1) * size).to(dtype)
    teacher = (activation(2, 3, 4, 5, seed=1).clamp(-1, 1) * size).to(dtype)
    loss, gradient = loss_and_gradient(student, teacher, 4.0, reduce, reduction)
    assert loss.dtype == torch.float32
    expected = oracle.attention_transfer_loss(student, teacher, 4.0, reduce, reduction)
    assert loss.item() == pytest.approx(expected, rel=2e-6)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@pytest.mark.parametrize("teacher_size", [(4, 5), (8, 3)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_pitfall_2_autocast_changes_nothing(
    device: str, dtype: torch.dtype, reduction: str, teacher_size: tuple[int, int]
) -> None:
    student = activation(2, 8, 4, 5, dtype=dtype).to(device)
    teacher = activation(2, 8, *teacher_size, seed=1, dtype=dtype).to(device)
    outside = loss_and_gradient(student, teacher, 2.0, "sum", reduction)
    with torch.autocast(device, dtype=torch.bfloat16):
        inside = loss_and_gradient(student, teacher, 2.0, "sum", reduction)
    assert inside[0].dtype == torch.float32
    assert torch.equal(inside[0], outside[0])
    assert torch.equal(inside[1], outside[1])
    expected = oracle.attention_transfer_loss(student, teacher, 2.0, "sum", reduction)
    assert inside[0].item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_pitfall_3_all_zero_maps_have_a_finite_loss_and_gradient_zero(
    dead: str, exponent: float, reduction: str, dtype: torch.dtype
) -> None:
    student, teacher = activation(2, 3, 4, 5, dtype=dtype), activation(2, 3, 8, 5, seed=1, dtype=dtype)
    if dead != "teacher":
        student[0] = 0
    if dead != "student":
        teacher[0] = 0
    loss, gradient = loss_and_gradient(student, teacher, exponent, "sum", reduction)
    expected = oracle.attention_transfer_loss(student, teacher, exponent, "sum", reduction)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    expected_gradient = oracle.attention_transfer_gradient(student, teacher, exponent, "sum", reduction)
    tolerance = {torch.float16: 1e-3, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    atol = tolerance * float(np.abs(expected_gradient).max())
    assert_close(gradient, expected_gradient, rtol=tolerance, atol=atol)
    if dead != "teacher":
        assert (gradient[0] == 0).all()


def second_derivative(student: Tensor, teacher: Tensor, *settings) -> Tensor:
    """Gradient of the squared length of the gradient."""
    student = student.clone().requires_grad_()
    loss = attention_transfer_loss(student, teacher, *settings)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), student)[0]


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, 4.0])  # that of |A|^1.5 is infinite at 0
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivative_is_finite_at_exact_zeros(reduction: str, reduce: str, exponent: float) -> None:
    student, teacher = activation(3, 3, 4, 5).relu(), activation(3, 3, 4, 5, seed=1).relu()
    second = second_derivative(student, teacher, exponent, reduce, reduction)
    assert second.isfinite().all()
    assert second.abs().sum() > 0


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("dead", ["student", "teacher"])
def test_pitfall_3_second_derivative_is_finite_at_all_zero_maps(
    dead: str, reduce: str, exponent: float
) -> None:
    student, teacher = activation(2, 3, 4, 5), activation(2, 3, 4, 5, seed=1)
    (student if dead == "student" else teacher)[0] = 0
    for reduction in REDUCTIONS:
        assert second_derivative(student, teacher, exponent, reduce, reduction).isfinite().all()


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_pitfall_3_second_derivative_of_the_mean_square_is_finite_at_equality(exponent: float) -> None:
    teacher = activation(2, 3, 4, 5)
    assert second_derivative(teacher, teacher, exponent, "sum", "mean_square").isfinite().all()


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.99, 0.0, -1.0, float("nan")])
def test_an_exponent_below_one_is_refused(exponent: float) -> None:
    with pytest.raises(InputError, match="exponent"):
        attention_transfer_loss(activation(2, 3, 4, 5), activation(2, 3, 4, 5), exponent)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    a = activation(2, 3, 4, 5)
    with pytest.raises(InputError, match="did you mean 'max'"):
        attention_transfer_loss(a, a, 2.0, "maxx")
    with pytest.raises(InputError, match="did you mean 'mean_square'"):
        attention_transfer_loss(a, a, 2.0, "sum", "mean_squared")


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [
        ((2, 3, 4, 4), (3, 3, 4, 4)),
        ((2, 3, 4, 4), (1, 3, 4, 4)),
        ((2, 3, 4), (2, 3, 4)),
        ((2, 3, 4, 4), (2, 10)),
    ],
)
def test_shapes_that_cannot_be_compared_are_refused(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    """A batch of 1 against 2 would broadcast without a word."""
    with pytest.raises(InputError):
        attention_transfer_loss(activation(*student_shape), activation(*teacher_shape))


# --- the term of an objective ---------------------------------------------------------------------------

LOGITS, LABELS = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)


def observed(*shapes: tuple[int, ...], seed: int = 0) -> Observation:
    return Observation(
        LOGITS, tuple(activation(*s, seed=seed + i).requires_grad_() for i, s in enumerate(shapes))
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_the_term_is_the_sum_over_the_pairs_of_layers(exponent: float, reduce: str, reduction: str) -> None:
    student = observed((3, 2, 6, 4), (3, 4, 3, 2))
    teacher = observed((3, 5, 6, 4), (3, 3, 6, 4), seed=10)  # the second pair differs in resolution
    term = AttentionTransfer(exponent, reduce, reduction)
    target = term.target(teacher)
    assert all(len(t) == 3 and not t.requires_grad for t in target.values())
    loss = term(student, target, LABELS)

    settings = (exponent, reduce, reduction)
    pairs = list(zip(student.features, teacher.features, strict=True))
    assert loss.item() == pytest.approx(
        sum(oracle.attention_transfer_loss(*p, *settings) for p in pairs), rel=1e-12
    )
    gradients = torch.autograd.grad(loss, student.features)
    for gradient, activations in zip(gradients, pairs, strict=True):
        expected = oracle.attention_transfer_gradient(*activations, *settings)
        assert_close(gradient, expected, rtol=1e-11, atol=1e-14)


def test_its_usual_weight_is_a_thousand_times_the_mean_square() -> None:
    student, teacher = observed((3, 2, 6, 4)), observed((3, 5, 6, 4), seed=10)
    objective = Objective("at")
    terms = objective(student, objective.target(teacher), LABELS)
    loss = oracle.attention_transfer_loss(student.features[0], teacher.features[0], 2.0, "sum", "mean_square")
    assert terms["at"].item() == pytest.approx(loss, rel=1e-6)
    assert terms.total.item() == pytest.approx(
        np.log(2) + 1000 * loss, rel=1e-5
    )  # flat logits of two classes


def test_the_term_refuses_what_the_function_refuses() -> None:
    with pytest.raises(InputError, match="exponent"):
        AttentionTransfer(exponent=0.5)
    with pytest.raises(InputError, match="did you mean 'sum'"):
        AttentionTransfer(reduce="summ")
    with pytest.raises(InputError, match="did you mean 'mean_square'"):
        AttentionTransfer(reduction="mean_squared")


def test_a_layer_of_one_position_has_no_map() -> None:
    class Pooled(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.pooled = nn.AdaptiveAvgPool2d(1)

        def forward(self, images: Tensor) -> Tensor:
            self.pooled(images)
            return super().forward(images)

    with pytest.raises(InputError, match="layer 'pooled' has one position"):
        Distiller(Pooled(), Pooled(), "at", ["pooled"], (3, 8, 8))
