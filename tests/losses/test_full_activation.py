"""Full activations and hints against their definition (tests/oracles/features.py) and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.functional import full_activation_loss, hint_loss
from eyeline.losses.full_activation import FullActivationTransfer, Hint
from eyeline.objective.method import resolve_method
from networks import Plain
from oracles import features as oracle
from oracles.differences import assert_finite_differences

SIZES = [  # (height, width) of student, teacher
    ((4, 5), (4, 5)),
    ((4, 4), (8, 8)),
    ((8, 4), (4, 8)),
    ((6, 3), (5, 7)),
]
REDUCTIONS = ["mean_square", "norm"]
SHAPE = (3, 16, 16)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("ours", "theirs"), SIZES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_full_activations_are_compared_by_definition(
    reduction: str, ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    student, teacher = random(2, 3, *ours), random(2, 3, *theirs, seed=1)
    expected = oracle.full_activation_loss(student, teacher, reduction)
    found = full_activation_loss(student, teacher, reduction)
    assert (found.shape, found.dtype) == ((), torch.float64)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    single = full_activation_loss(student.float(), teacher.float(), reduction)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), SIZES)
def test_hints_are_compared_by_definition(ours: tuple[int, int], theirs: tuple[int, int]) -> None:
    student, teacher = random(2, 3, *ours), random(2, 3, *theirs, seed=1)
    assert hint_loss(student, teacher).item() == pytest.approx(oracle.hint_loss(student, teacher), rel=1e-10)
    assert hint_loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("function", [full_activation_loss, hint_loss])
@pytest.mark.parametrize("size", [(2, 3), (4, 2)])
def test_derivatives_are_the_finite_differences(function: object, size: tuple[int, int]) -> None:
    student, teacher = random(2, 2, 2, 3).requires_grad_(), random(2, 2, *size, seed=1).requires_grad_()
    for settings in [("mean_square",), ("norm",)] if function is full_activation_loss else [()]:
        call = lambda s, settings=settings: function(s, teacher, *settings)  # type: ignore[operator]  # noqa: E731
        assert gradcheck(call, (student,))
        assert gradgradcheck(call, (student,))
        assert torch.autograd.grad(call(student), teacher, allow_unused=True)[0] is None


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e25])
def test_full_activations_do_not_depend_on_the_scale(scale: float) -> None:
    """Also where the sum of squares would over- or underflow in float32."""
    student, teacher = random(2, 3, 4, 4).float(), random(2, 3, 4, 4, seed=1).float()
    expected = full_activation_loss(student, teacher).item()
    scaled = (student * scale).requires_grad_()
    loss = full_activation_loss(scaled, teacher * scale)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, scaled)
    assert gradient.isfinite().all()
    along = (gradient * scaled.detach()).sum((1, 2, 3)).abs()
    assert (along <= 1e-4 * (gradient * scaled.detach()).abs().sum((1, 2, 3))).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_activations_of_zeros(reduction: str) -> None:
    zeros, teacher = torch.zeros(2, 3, 4, 4, requires_grad=True), random(2, 3, 4, 4).float()
    loss = full_activation_loss(zeros, teacher, reduction)
    (gradient,) = torch.autograd.grad(loss, zeros)
    expected = 1 / 48 if reduction == "mean_square" else 1  # ||0 - f_t|| = 1
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert gradient.isfinite().all()
    again = full_activation_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), reduction)
    assert again.item() == 0


def test_squared_distance_is_twice_one_minus_the_cosine() -> None:
    student, teacher = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    cosine = nn.functional.cosine_similarity(student.flatten(1), teacher.flatten(1))
    expected = (2 - 2 * cosine).mean() / student[0].numel()
    torch.testing.assert_close(full_activation_loss(student, teacher), expected)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match=r"\[2, 3, 4, 4\] and \[2, 5, 4, 4\].*1x1 convolution"):
        full_activation_loss(random(2, 3, 4, 4), random(2, 5, 4, 4))
    with pytest.raises(InputError, match=r"\[2, 3, 4, 4\] and \[2, 5, 4, 4\].*1x1 convolution"):
        hint_loss(random(2, 3, 4, 4), random(2, 5, 4, 4))
    with pytest.raises(InputError, match="unknown reduction"):
        full_activation_loss(random(2, 3, 4, 4), random(2, 3, 4, 4), "mean")  # type: ignore[arg-type]


# --- as terms of an objective ---------------------------------------------------------------------------


def test_defaults() -> None:
    method = resolve_method("act+hint")
    assert method["act"] == {"weight": 1000.0, "schedule": "linear", "reduction": "mean_square"}
    assert method["hint"] == {"weight": 100.0, "schedule": "constant", "layer": None, "batch_norm": True}
    assert resolve_method({"act": {"reduction": "norm"}})["act"]["weight"] == 1.0


def distiller(method: object, teacher_widths: tuple[int, int, int] = (4, 5, 8)) -> Distiller:
    torch.manual_seed(0)
    student, teacher = Plain(dropout=0.0), Plain(widths=teacher_widths)
    return Distiller(student, teacher, method, input_shape=SHAPE).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pairs_are_summed_behind_a_convolution_where_channels_differ(reduction: str) -> None:
    whole = distiller({"act": {"reduction": reduction}})
    images, labels = random(2, *SHAPE), torch.tensor([0, 4])
    connectors = whole.objective.losses["act"].connectors  # type: ignore[union-attr]
    assert [type(c).__name__ for c in connectors] == ["Identity", "Conv2d", "Identity"]
    ours = whole.observe_student(images).features
    theirs = whole.observe_teacher(images).features  # type: ignore[misc]
    middle = oracle.convolved(ours[1], connectors[1].weight, connectors[1].bias)
    expected = sum(
        oracle.full_activation_loss(s, t, reduction)
        for s, t in zip((ours[0], middle, ours[2]), theirs, strict=True)
    )
    assert whole(images, labels)["act"].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("layer", "index"), [(None, 1), (0, 0), (2, 2)])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_hint_is_taken_at_one_pair(layer: int | None, index: int, batch_norm: bool) -> None:
    whole = distiller({"hint": {"layer": layer, "batch_norm": batch_norm}})
    images, labels = random(2, *SHAPE), torch.tensor([0, 4])
    regressor = whole.objective.losses["hint"].regressor  # type: ignore[union-attr]
    ours = whole.observe_student(images).features[index]
    theirs = whole.observe_teacher(images).features[index]  # type: ignore[misc]
    answered = oracle.convolved(ours, regressor[0].weight, regressor[0].bias)
    if batch_norm:
        norm = regressor[1].train()
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 2, len(norm.weight)))
            norm.bias.copy_(torch.linspace(3, 1, len(norm.bias)))
        answered = np.asarray(answered)
        mean = answered.mean((0, 2, 3), keepdims=True)
        variance = ((answered - mean) ** 2).mean((0, 2, 3), keepdims=True)
        scale, shift = (p.detach().numpy().reshape(1, -1, 1, 1) for p in (norm.weight, norm.bias))
        answered = torch.from_numpy((answered - mean) / np.sqrt(variance + norm.eps) * scale + shift)
    expected = oracle.hint_loss(answered, theirs)
    assert whole(images, labels)["hint"].item() == pytest.approx(expected, rel=1e-10)
    assert list(whole.target(images)["hint"]) == ["feature"]  # of one layer, nothing else is remembered


@pytest.mark.parametrize("layer", [3, -1, "stage2", 1.5])
def test_a_hint_where_there_is_no_pair(layer: object) -> None:
    with pytest.raises(InputError, match=r"layer of loss 'hint' is .*; expected (0 to 2|a whole number)"):
        distiller({"hint": {"layer": layer}})


@pytest.mark.parametrize(
    "method", [{"act": {}}, {"act": {"reduction": "norm"}}, {"hint": {"layer": 1}}], ids=str
)
def test_gradient_of_the_whole_objective_is_the_finite_difference(method: object) -> None:
    assert_finite_differences(distiller(method), random(3, *SHAPE), torch.tensor([0, 4, 2]))


def test_the_modules_refuse_bad_settings_alone() -> None:
    with pytest.raises(InputError, match="unknown reduction"):
        FullActivationTransfer("mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a whole number"):
        Hint("middle")  # type: ignore[arg-type]
