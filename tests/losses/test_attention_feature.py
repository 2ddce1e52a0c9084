"""AFT against its definition; its straight-through gradients against those derived by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.functional import attention_feature
from eyeline.objective.method import resolve_method
from eyeline.observe import Observation
from networks import Plain
from oracles import features as oracle
from oracles.differences import assert_finite_differences

SHAPE = (3, 16, 16)
BINARIES = ["sigmoid", "mean", "soft"]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distiller(binary: str = "sigmoid", **options: Any) -> Distiller:
    torch.manual_seed(0)
    student, teacher = Plain(dropout=0.0), Plain(widths=(5, 6, 7))
    method = {"aft": {"binary": binary, "weight": 10.0, "schedule": "constant"}}
    return Distiller(student, teacher, method, input_shape=SHAPE, **options).double().eval()


def batch() -> tuple[Tensor, Tensor]:
    return random(3, *SHAPE), torch.tensor([0, 4, 2])


def pre_activations(network: Any, images: Tensor) -> list[Tensor]:
    """Of Plain, without an observer: what the stages' ReLUs are given."""
    out, x = [], network.conv(images)
    for stage in (network.stage1, network.stage2, network.stage3):
        before = stage[1](stage[0](x))
        out.append(before)
        x = before.relu()
    return out


def parameters(module: Any) -> tuple[Tensor, Tensor]:
    return module.weight, module.bias


# --- the function ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", BINARIES)
def test_attention_feature_is_the_definition(binary: str) -> None:
    maps, pre = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    found = attention_feature(maps, pre, binary)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.numpy(), oracle.attention_feature(maps, pre, binary), rtol=1e-10)


def test_where_the_sigmoid_is_just_one_half_nothing_is_seen() -> None:
    zeros = torch.zeros(1, 1, 1, 2)
    assert attention_feature(zeros, zeros).tolist() == [[[[0, 0]]]]
    assert attention_feature(zeros, zeros, "soft").tolist() == [[[[0.5, 0.5]]]]


@pytest.mark.parametrize("binary", BINARIES)
def test_the_gradient_is_that_of_the_sigmoid_and_of_the_relu(binary: str) -> None:
    maps, pre = random(2, 3, 4, 5).requires_grad_(), random(2, 3, 4, 5, seed=1).requires_grad_()
    given = random(2, 3, 4, 5, seed=2)
    found = torch.autograd.grad(attention_feature(maps, pre, binary), (maps, pre), given)  # type: ignore[arg-type]
    np.testing.assert_allclose(found[0].numpy(), given.numpy() * oracle.slope(maps), rtol=1e-10)
    assert torch.equal(found[1], given * (pre > 0))


def test_soft_maps_have_the_finite_differences() -> None:
    inputs = random(2, 3, 2, 3).requires_grad_(), random(2, 3, 2, 3, seed=1).requires_grad_()
    assert gradcheck(lambda maps, pre: attention_feature(maps, pre, "soft"), inputs)


def test_without_a_learnable_g_it_is_pre_plus_one_where_pre_is_positive() -> None:
    pre = random(2, 3, 4, 5)
    expected = torch.where(pre > 0, pre + 1, 0)
    torch.testing.assert_close(attention_feature(pre, pre), expected)


def test_unknown_binary() -> None:
    with pytest.raises(InputError, match="unknown binary 'sigmoit'; did you mean 'sigmoid'"):
        attention_feature(random(1, 1, 2, 2), random(1, 1, 2, 2), "sigmoit")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown binary"):
        resolve_method({"aft": {"binary": "hard"}})


# --- the term -------------------------------------------------------------------------------------------


def test_defaults() -> None:
    method = resolve_method("aft")
    assert method["aft"] == {"weight": 1.0, "schedule": "loss_rate", "binary": "sigmoid"}
    assert method["ce"]["schedule"] == "loss_rate"


@pytest.mark.parametrize("binary", BINARIES)
@pytest.mark.parametrize("layers", ["auto", ["stage1:stage2", "stage3:stage1"]], ids=str)
def test_the_loss_is_the_sum_over_the_pairs(binary: str, layers: Any) -> None:
    """Also of different resolution, where both are pooled to the smaller one."""
    whole = distiller(binary, layers=layers)
    images, labels = batch()
    ours, theirs = (pre_activations(network, images) for network in (whole.student, whole.teacher))
    pairs = [(0, 0), (1, 1), (2, 2)] if layers == "auto" else [(0, 1), (2, 0)]
    loss: Any = whole.objective.losses["aft"]
    expected = sum(
        oracle.attention_feature_loss(
            ours[s], theirs[t], parameters(loss.align[i]), parameters(loss.embed[i]), binary
        )
        for i, (s, t) in enumerate(pairs)
    )
    assert whole(images, labels)["aft"].item() == pytest.approx(expected, rel=1e-10)


def test_height_and_width_are_pooled_each_on_its_own() -> None:
    whole = distiller(layers=["stage1"])
    loss: Any = whole.objective.losses["aft"]
    ours, theirs = random(2, 4, 8, 3), random(2, 5, 4, 6, seed=1)
    target = loss.target(Observation(torch.zeros(2, 5), pre_activations=(theirs,)))
    found = loss(Observation(torch.zeros(2, 5), pre_activations=(ours,)), target, torch.tensor([0, 1]))
    sides = parameters(loss.align[0]), parameters(loss.embed[0])
    expected = oracle.attention_feature_loss(ours, theirs, *sides, "sigmoid")  # at 4x3
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_one_g_for_both_sides_and_no_gradient_through_the_teachers() -> None:
    """dL/dW_g and dL/dW_align by hand: D = 2 (AFB_s - AFB_t) / n, through the student's branch alone."""
    whole = distiller(layers=["stage2"])
    loss: Any = whole.objective.losses["aft"]
    images, labels = batch()
    align, embed = loss.align[0], loss.embed[0]
    ours, theirs = (pre_activations(network, images)[1] for network in (whole.student, whole.teacher))
    aligned = oracle.convolved(ours, *parameters(align))
    maps = oracle.convolved(aligned, *parameters(embed))
    shown = oracle.attention_feature(oracle.convolved(theirs, *parameters(embed)), theirs)
    seen = oracle.attention_feature(maps, aligned)
    upstream = 2 * (seen - shown) / seen.size
    to_maps = upstream * oracle.slope(maps)
    to_embed = np.einsum("nkhw,nchw->kc", to_maps, aligned)
    weight = oracle.as_float64(embed.weight)[:, :, 0, 0]
    to_aligned = np.einsum("nkhw,kc->nchw", to_maps, weight) + upstream * (aligned > 0)
    to_align = np.einsum("nkhw,nchw->kc", to_aligned, oracle.as_float64(ours))
    term = loss(whole.observe_student(images), whole.target(images)["aft"], labels)
    found = torch.autograd.grad(term, (embed.weight, embed.bias, align.weight, align.bias))
    for gradient, expected in zip(
        found, (to_embed, to_maps.sum((0, 2, 3)), to_align, to_aligned.sum((0, 2, 3))), strict=True
    ):
        np.testing.assert_allclose(gradient.squeeze().numpy(), expected, rtol=1e-9, atol=1e-14)
    assert not any(p.requires_grad for p in whole.teacher.parameters())  # type: ignore[union-attr]


def test_with_soft_maps_the_whole_objective_has_the_finite_differences() -> None:
    # a difference of g would move the teacher's side too, which the gradient holds constant
    assert_finite_differences(distiller("soft"), *batch(), skip=("objective.losses.aft.embed",))


def test_with_an_identity_for_g_the_term_compares_pre_plus_one() -> None:
    whole = distiller(layers=["stage2"])
    loss: Any = whole.objective.losses["aft"]
    images, labels = batch()
    with torch.no_grad():
        nn.init.dirac_(loss.embed[0].weight)
        loss.embed[0].bias.zero_()
    ours, theirs = (pre_activations(network, images)[1] for network in (whole.student, whole.teacher))
    ours = loss.align[0](ours)
    degenerate = [torch.where(pre > 0, pre + 1, 0) for pre in (ours, theirs)]
    torch.testing.assert_close(whole(images, labels)["aft"], nn.functional.mse_loss(*degenerate).detach())


def test_a_student_that_shows_what_the_teacher_shows_has_no_loss() -> None:
    torch.manual_seed(0)
    student, teacher = Plain(dropout=0.0), Plain(dropout=0.0)
    teacher.load_state_dict(student.state_dict())
    whole = Distiller(student, teacher, "aft", input_shape=SHAPE).eval()
    loss: Any = whole.objective.losses["aft"]
    with torch.no_grad():
        for convolution in loss.align:
            nn.init.dirac_(convolution.weight)
            convolution.bias.zero_()
    assert whole(torch.randn(2, *SHAPE), torch.tensor([0, 1]))["aft"].item() == pytest.approx(0, abs=1e-10)
