"""Class maps and what is learnt from them, against their definition and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.functional import class_activation_map_loss, class_activation_maps, class_attention_loss
from eyeline.losses.class_maps import binarized
from eyeline.objective.method import resolve_method
from networks import Plain
from oracles import features as oracle
from oracles.differences import assert_finite_differences

SHAPE = (3, 16, 16)
CLASSES = 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distiller(method: Any, teacher_widths: tuple[int, int, int] = (4, 5, 6), **options: Any) -> Distiller:
    torch.manual_seed(0)
    student, teacher = Plain(dropout=0.0), Plain(widths=teacher_widths)
    return Distiller(student, teacher, method, input_shape=SHAPE, **options).double().eval()


def maps_by_hand(network: Any, images: Tensor) -> Tensor:
    """Of Plain, without an observer."""
    features = network.stage3(network.stage2(network.stage1(network.conv(images))))
    return torch.from_numpy(oracle.convolved(features, network.fc.weight))


def batch(size: int = 3) -> tuple[Tensor, Tensor]:
    return random(size, *SHAPE), torch.tensor([0, 4, 2])[:size]


# --- the functions --------------------------------------------------------------------------------------


def test_maps_are_the_weighted_sums_of_the_features() -> None:
    features, weight = random(2, 3, 4, 5), random(6, 3, seed=1)
    expected = oracle.convolved(features, weight)
    np.testing.assert_allclose(class_activation_maps(features, weight).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("min_max", [False, True])
@pytest.mark.parametrize("theirs", [(4, 5), (8, 5), (2, 7)])
def test_activation_map_loss_is_the_definition(min_max: bool, theirs: tuple[int, int]) -> None:
    student, teacher = random(2, 3, 4, 5), random(2, 3, *theirs, seed=1)
    expected = oracle.class_activation_map_loss(student, teacher, min_max)
    found = class_activation_map_loss(student, teacher, min_max)
    assert (found.shape, found.dtype) == ((), torch.float64)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    assert class_activation_map_loss(student.half(), teacher.half(), min_max).item() == pytest.approx(
        expected, rel=1e-2
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("binarize", [False, True])
@pytest.mark.parametrize(("theirs", "resolution"), [((4, 6), 2), ((7, 5), 3), ((4, 4), 1), ((8, 9), 4)])
def test_class_attention_loss_is_the_definition(
    theirs: tuple[int, int], resolution: int, binarize: bool, normalize: bool
) -> None:
    student, teacher = random(2, 3, 4, 6), random(2, 3, *theirs, seed=1)
    expected = oracle.class_attention_loss(student, teacher, resolution, normalize, binarize)
    found = class_attention_loss(student, teacher, resolution, normalize, binarize)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    assert class_attention_loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


def test_derivatives_are_the_finite_differences() -> None:
    student, teacher = random(2, 2, 3, 4).requires_grad_(), random(2, 2, 3, 4, seed=1).requires_grad_()
    for call in (
        lambda s: class_activation_map_loss(s, teacher),
        lambda s: class_activation_map_loss(s, teacher, True),
        lambda s: class_attention_loss(s, teacher, 2),
        lambda s: class_attention_loss(s, teacher, 3, True, True),
    ):
        assert gradcheck(call, (student,))
        assert gradgradcheck(call, (student,))
        assert torch.autograd.grad(call(student), teacher, allow_unused=True)[0] is None


@pytest.mark.parametrize("min_max", [False, True])
def test_maps_of_one_value_stay_finite(min_max: bool) -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    for teacher in (torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4), random(2, 3, 4, 4).float()):
        for loss in (
            class_activation_map_loss(student, teacher, min_max),
            class_attention_loss(student, teacher, 2, True, min_max),
        ):
            (gradient,) = torch.autograd.grad(loss, student)
            assert loss.isfinite()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_activation_maps_do_not_depend_on_the_scale(scale: float) -> None:
    student, teacher = random(2, 3, 4, 4).float(), random(2, 3, 4, 4, seed=1).float()
    for min_max in (False, True):
        found = class_activation_map_loss(student * scale, teacher * scale, min_max)
        expected = class_activation_map_loss(student, teacher, min_max)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_binary_maps_by_hand() -> None:
    maps = torch.tensor([[[[3.0, -1.0], [0.5, 1.5]], [[-4.0, -1.0], [-2.0, -1.0]]]])
    assert binarized(maps).tolist() == [[[[1, 0], [0, 0]], [[0, 0], [0, 0]]]]  # mean |x| = 1.5, and 2


def test_the_teachers_maps_alone_are_binary_and_before_the_pooling() -> None:
    student, teacher = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    plain = class_attention_loss(student, binarized(teacher), 2)
    torch.testing.assert_close(class_attention_loss(student, teacher, 2, binarize=True), plain)
    after = F.mse_loss(F.adaptive_avg_pool2d(student, 2), binarized(F.adaptive_avg_pool2d(teacher, 2)))
    both = class_attention_loss(binarized(student), binarized(teacher), 2)
    for other in (after, both, class_attention_loss(student, teacher, 2)):
        assert other.item() != pytest.approx(plain.item(), rel=1e-3)


def test_what_cannot_be_compared() -> None:
    for function in (class_activation_map_loss, class_attention_loss):
        with pytest.raises(InputError, match=r"\[2, 3, 4, 4\] and \[2, 5, 4, 4\]; expected the same"):
            function(random(2, 3, 4, 4), random(2, 5, 4, 4))
    for resolution in (0, -1, 1.5):
        with pytest.raises(InputError, match=r"resolution is .*; expected a whole number of at least 1"):
            class_attention_loss(random(1, 1, 2, 2), random(1, 1, 2, 2), resolution)  # type: ignore[arg-type]


# --- cam as a term --------------------------------------------------------------------------------------


def test_defaults() -> None:
    method = resolve_method("cam+cat")
    assert method["cam"] == {"weight": 1000.0, "schedule": "constant", "classes": "all", "min_max": False}
    assert method["cat"] == {
        **{"weight": 1.0, "schedule": "constant", "resolution": 2, "normalize": False, "binarize": False},
        **{"top": None, "stages": False},
    }


@pytest.mark.parametrize("min_max", [False, True])
@pytest.mark.parametrize("classes", ["all", "label", 1, 3])
def test_cam_compares_the_classes_asked_for(classes: Any, min_max: bool) -> None:
    whole = distiller({"cam": {"classes": classes, "min_max": min_max}})
    images, labels = batch()
    ours, theirs = (maps_by_hand(network, images) for network in (whole.student, whole.teacher))
    assert whole.teacher is not None
    named = {
        "all": [list(range(CLASSES))] * 3,
        "label": [[int(label)] for label in labels],
    }.get(classes) or oracle.highest(whole.teacher(images), classes)
    expected = oracle.class_activation_map_loss(
        oracle.chosen(ours, named), oracle.chosen(theirs, named), min_max
    )
    assert whole(images, labels)["cam"].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("classes", [0, -1, 1.5, "labels", None])
def test_cam_refuses_other_classes(classes: Any) -> None:
    with pytest.raises(InputError, match=r"classes is .*; expected all, label, or a whole number"):
        resolve_method({"cam": {"classes": classes}})


def test_cam_refuses_more_classes_than_there_are() -> None:
    with pytest.raises(InputError, match="classes of loss 'cam' is 6; there are only 5"):
        distiller({"cam": {"classes": 6}})
    distiller({"cam": {"classes": 5}})


# --- cat as a term --------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [None, 1, 2, 5, -1, -2])
@pytest.mark.parametrize(("binarize", "normalize", "resolution"), [(False, False, 2), (True, True, 3)])
def test_cat_compares_exactly_the_top_or_bottom_classes(
    top: int | None, binarize: bool, normalize: bool, resolution: int
) -> None:
    options = {"top": top, "binarize": binarize, "normalize": normalize, "resolution": resolution}
    whole = distiller({"cat": options})
    images, labels = batch()
    ours, theirs = (maps_by_hand(network, images) for network in (whole.student, whole.teacher))
    assert whole.teacher is not None
    named = [list(range(CLASSES))] * 3 if top is None else oracle.highest(whole.teacher(images), top)
    assert all(len(row) == (5 if top is None else abs(top)) for row in named)
    target = whole.target(images)["cat"]
    assert target["maps"].shape == (3, len(named[0]), resolution, resolution)
    expected = oracle.class_attention_loss(
        oracle.chosen(ours, named), oracle.chosen(theirs, named), resolution, normalize, binarize
    )
    assert whole(images, labels)["cat"].item() == pytest.approx(expected, rel=1e-10)


def test_cat_alone_trains_without_the_labels() -> None:
    method = {"ce": {"weight": 0.0}, "cat": {"weight": 3.0}}
    whole = distiller(method)
    images, labels = batch()
    terms = whole(images, labels)
    torch.testing.assert_close(terms.total.detach(), 3 * terms["cat"])
    gradients = [
        torch.autograd.grad(whole(images, y).total, whole.student.stage1[0].weight)[0]
        for y in (labels, (labels + 1) % CLASSES)
    ]
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize(
    "method",
    [
        {"cam": {}},
        {"cam": {"classes": 2, "min_max": True}},
        {"cam": {"classes": "label"}},
        {"cat": {"weight": 10}},
        {"cat": {"weight": 10, "normalize": True, "binarize": True, "top": -2}},
        {"ce": {"weight": 0}, "cat": {}},
        {"cat": {"stages": True}},
    ],
    ids=str,
)
def test_gradient_of_the_whole_objective_is_the_finite_difference(method: Any) -> None:
    # the stages' maps of the teacher are compared where they are above a threshold: no difference reaches it
    assert_finite_differences(distiller(method), *batch())


@pytest.mark.parametrize("name", ["cam", "cat"])
def test_gradient_reaches_the_features_and_the_classifier_but_not_its_bias(name: str) -> None:
    whole = distiller({"ce": {"weight": 0}, name: {}})
    whole(*batch()).total.backward()
    student: Any = whole.student
    assert student.fc.weight.grad.abs().sum() > 0
    assert student.conv.weight.grad.abs().sum() > 0
    assert student.fc.bias.grad is None or not student.fc.bias.grad.any()
    assert whole.teacher is not None
    assert all(p.grad is None for p in whole.teacher.parameters())


def test_cat_at_a_resolution_that_the_maps_do_not_have() -> None:
    with pytest.raises(
        InputError,
        match=r"resolution of loss 'cat' is 5; the student's class maps are 4x4; expected at most 4",
    ):
        distiller({"cat": {"resolution": 5}})
    with pytest.raises(InputError, match=r"top of loss 'cat' is -6; there are only 5 classes"):
        distiller({"cat": {"top": -6}})
    for top in (0, 1.5):
        with pytest.raises(InputError, match=r"top is .*; expected a whole number other than 0"):
            resolve_method({"cat": {"top": top}})


@pytest.mark.parametrize("normalize", [False, True])
def test_cat_of_every_stage(normalize: bool) -> None:
    whole = distiller({"cat": {"stages": True, "normalize": normalize}})
    images, labels = batch()
    loss: Any = whole.objective.losses["cat"]
    assert [m.weight.shape[:2] for m in loss.student_maps] == [(5, 4), (5, 6), (5, 8)]
    assert [m.weight.shape[:2] for m in loss.teacher_maps] == [(5, 4), (5, 5), (5, 6)]
    ours, theirs = (maps_by_hand(network, images) for network in (whole.student, whole.teacher))
    expected = oracle.class_attention_loss(ours, theirs, 2, normalize)
    assert whole.observe_teacher is not None
    sides = zip(
        whole.observe_student(images).features,
        whole.observe_teacher(images).features,
        loss.student_maps,
        loss.teacher_maps,
        strict=True,
    )
    for s, t, to_ours, to_theirs in sides:
        seen = oracle.convolved(s, to_ours.weight, to_ours.bias)
        shown = oracle.convolved(t, to_theirs.weight, to_theirs.bias)
        binary = np.vectorize(lambda v: float(oracle.sigmoid(v) > 0.5))(shown)
        expected += oracle.class_attention_loss(seen, binary, 2, normalize)
        for maps in (seen, shown):
            expected += F.cross_entropy(torch.from_numpy(maps.mean((2, 3))), labels).item()
    assert whole(images, labels)["cat"].item() == pytest.approx(expected, rel=1e-10)


def test_the_stages_of_the_teacher_learn_from_the_labels_alone() -> None:
    """Learnable maps on both sides that were compared with each other would collapse."""
    images, labels = batch()
    gradients = []
    for normalize in (False, True):  # changes the comparison only
        whole = distiller({"cat": {"stages": True, "normalize": normalize}})
        whole(images, labels).total.backward()
        loss: Any = whole.objective.losses["cat"]
        gradients.append([convolution.weight.grad for convolution in loss.teacher_maps])
        assert all(gradient.abs().sum() > 0 for gradient in gradients[-1])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_normalised_class_maps_of_any_scale() -> None:
    """Squares of 1e-25 are 0 in float32, those of 1e22 infinite."""
    torch.manual_seed(0)
    student, teacher = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    expected = class_attention_loss(student, teacher, normalize=True)
    for scale in (1e-25, 1e22):
        scaled = (student * scale).requires_grad_()
        loss = class_attention_loss(scaled, teacher, normalize=True)
        torch.testing.assert_close(loss, expected)
        (gradient,) = torch.autograd.grad(loss * scale, scaled)
        assert torch.isfinite(gradient).all()
