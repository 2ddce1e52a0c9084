"""Gradient attention, flip symmetry and the input-gradient penalty against their definitions.

The references are in tests/oracles/gradient_attention.py; networks and images are float64 unless a test says
otherwise.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline import Distiller, InputError
from eyeline.functional import gradient_distance, loss_gradient
from eyeline.losses.gradient_attention import FlipSymmetry, GradientAttentionTransfer, InputGradientPenalty
from eyeline.observe import Observation
from eyeline.settings import Settings
from eyeline.training.compiling import compile_for
from networks import OverwrittenLater, Plain, Smooth
from oracles import gradient_attention as oracle

SHAPE = (2, 4, 6)
LABELS = torch.tensor([2, 0, 1])
LAYERS = ["low", "high"]
GAT = [
    {"where": where, "compare": compare, "squared": squared}
    for where in ("input", "features")
    for compare, squared in (("gradient", False), ("gradient", True), ("map", False))
]
STUDENTS_OWN = [
    {"sym": {"squared": False}},
    {"sym": {"squared": True}},
    {"sym": {"outputs": 0.5}},
    {"grad_reg": {"squared": True}},
    {"grad_reg": {"squared": False}},
]
METHODS = [{"gat": options} for options in GAT] + STUDENTS_OWN


def smooth(seed: int, dtype: torch.dtype = torch.float64, **options: Any) -> Smooth:
    """With weights large enough for gradients of about 1, and running statistics that no batch has."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Smooth(**options)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
            elif isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.5)
        nn.init.normal_(network.head.weight, std=2)
    return network.to(dtype)


def images(seed: int = 0, n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def pair_for(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[Smooth, Smooth, Any]:
    """A student, a teacher and layers: where maps of features are compared nothing has the same shape."""
    if options.get("where") == "features" and options.get("compare") == "map":
        return smooth(0, dtype), smooth(1, dtype, widths=(5, 2), strides=(2, 1)), LAYERS
    return smooth(0, dtype), smooth(1, dtype), LAYERS


def distiller_of(method: dict[str, Any], dtype: torch.dtype = torch.float64) -> Distiller:
    ((_, options),) = method.items()
    student, teacher, layers = pair_for(options, dtype)
    return Distiller(student, teacher, method, layers, SHAPE).to(dtype).train()


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(network: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def gradients(loss: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.whole
def test_terms_are_the_definition(method: dict[str, Any], statistics: str) -> None:
    ((name, options),) = method.items()
    distiller = distiller_of({name: {**options, "statistics": statistics}})
    x = images()
    term = distiller(x, LABELS)[name]
    # read after the step: another pass has the statistics that the first one moved
    student = oracle.PlainNetwork(distiller.student, running=statistics == "running")
    if name == "gat":
        teacher = oracle.PlainNetwork(distiller.teacher, running=True)
        expected = oracle.gradient_attention_transfer(student, teacher, x, LABELS, **options)
    elif name == "sym":
        expected = oracle.flip_symmetry(student, x, LABELS, **{"squared": False, **options})
    else:
        expected = oracle.input_gradient_penalty(student, x, LABELS, **options)
    assert expected > 1e-2
    assert term.dtype == torch.float64
    assert term.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("running", [False, True])
def test_loss_gradient_is_the_definition(running: bool) -> None:
    network = smooth(0).train(not running)
    x = images().requires_grad_()
    low = network.low(x)
    high = network.high(low)
    logits = network.head(high.mean((2, 3)))
    plain = oracle.PlainNetwork(network, running)
    found = (*loss_gradient(logits, LABELS, x), *loss_gradient(logits, LABELS, (low, high)))
    expected = oracle.loss_gradient(plain, x, LABELS) + oracle.loss_gradient(plain, x, LABELS, "features")
    for ours, theirs in zip(found, expected, strict=True):
        assert not ours.requires_grad
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-10, atol=1e-12)
    (ours,) = loss_gradient(logits, LABELS, x, create_graph=True)
    assert ours.requires_grad


def test_the_cross_entropy_is_summed() -> None:
    """A sample's J is the same in a batch of any size."""
    network = smooth(0).eval()
    x = images().requires_grad_()
    (together,) = loss_gradient(network(x), LABELS, x)
    for i in range(3):
        alone = x[i : i + 1].detach().requires_grad_()
        (single,) = loss_gradient(network(alone), LABELS[i : i + 1], alone)
        torch.testing.assert_close(together[i : i + 1], single, rtol=1e-12, atol=1e-14)
    many = x.detach().repeat(5, 1, 1, 1).requires_grad_()
    (repeated,) = loss_gradient(network(many), LABELS.repeat(5), many)
    torch.testing.assert_close(repeated, together.repeat(5, 1, 1, 1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("squared", [False, True])
def test_distance_is_the_definition(squared: bool) -> None:
    a, b = images(0), images(1)
    expected = oracle.gradient_distance(a, b, squared)
    assert gradient_distance(a, b, squared).item() == pytest.approx(expected, rel=1e-14)
    expected = oracle.gradient_distance(a, torch.zeros_like(a), squared)
    assert gradient_distance(a, squared=squared).item() == pytest.approx(expected, rel=1e-14)
    by_hand = gradient_distance(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2), squared)
    assert by_hand.item() == (6.25 if squared else 1.25)


def test_gradients_in_bf16_are_subtracted_in_float32() -> None:
    a, b = images(0).bfloat16(), images(1).bfloat16()
    found = gradient_distance(a, b)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(oracle.gradient_distance(a.double(), b.double(), False), rel=1e-6)


# --- gradients for the student's weights --------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_whole_objective_against_finite_differences(method: dict[str, Any], statistics: str) -> None:
    ((name, options),) = method.items()
    distiller = distiller_of({name: {**options, "statistics": statistics, "weight": 2.0}})
    for module in distiller.student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # running statistics are no function of the weights
    x = images()
    targets = distiller.target(x, LABELS)

    def total() -> float:
        return distiller(x, LABELS, targets).total.item()

    terms = distiller(x, LABELS, targets)
    torch.testing.assert_close(terms.total.detach(), terms["ce"] + 2 * terms[name], rtol=1e-14, atol=0)
    analytic = gradients(terms.total, distiller.student)
    alone = gradients(F.cross_entropy(distiller.student(x), LABELS), distiller.student)
    assert any((a - b).abs().max() > 1e-2 for a, b in zip(analytic, alone, strict=True))
    generator = torch.Generator().manual_seed(3)
    for parameter, gradient in zip(distiller.student.parameters(), analytic, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        found, step = 0.0, 1e-3
        for factor, at in ((4 / 3, 1), (-1 / 6, 2)):  # of the fourth order
            for sign in (1, -1):
                with torch.no_grad():
                    parameter += sign * at * step * direction
                found += sign * factor * total() / (2 * step)
                with torch.no_grad():
                    parameter -= sign * at * step * direction
        assert (gradient * direction).sum().item() == pytest.approx(found, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_closed_form_of_the_gradient(squared: bool, statistics: str) -> None:
    """Squared: ``β (J_s - J_t) ∂²L/∂W∂x``, the mean; else ``1 / (2 ||J_s - J_t||)`` of it for each sample."""
    beta = 3.0
    options = {"squared": squared, "statistics": statistics, "weight": beta}
    distiller = Distiller(smooth(0), smooth(1), {"ce": {"weight": 0}, "gat": options}, LAYERS, SHAPE).double()
    student = distiller.train().student
    x = images()
    found = gradients(distiller(x, LABELS).total, student)

    again = copy.deepcopy(student).train(statistics == "batch")  # with the statistics after the step
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(again(leaf), LABELS, reduction="sum")
    (ours,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (theirs,) = loss_gradient(distiller.teacher(leaf), LABELS, leaf)
    difference = (ours - theirs).detach()
    expected = [torch.zeros_like(p) for p in again.parameters()]
    for i in range(len(x)):
        factor = 1.0 if squared else 1 / (2 * difference[i].norm().item())
        for index in np.ndindex(*SHAPE):
            mixed = torch.autograd.grad(
                ours[(i, *index)], list(again.parameters()), retain_graph=True, allow_unused=True
            )  # a row of ∂²L/∂W∂x
            for total, part in zip(expected, mixed, strict=True):
                if part is not None:
                    total += beta * factor * difference[(i, *index)] * part / len(x)
    for ours_, theirs_ in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", GAT, ids=str)
def test_nothing_is_asked_of_a_student_that_equals_its_teacher(options: dict[str, Any]) -> None:
    student = smooth(0)
    distiller = Distiller(student, copy.deepcopy(student), {"gat": options}, LAYERS, SHAPE).double().eval()
    terms = distiller(images(), LABELS)
    assert terms["gat"].item() == 0
    expected = gradients(F.cross_entropy(student(images()), LABELS), student)
    for ours, theirs in zip(gradients(terms.total, student), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_gradients_of_zero_have_finite_derivatives(method: dict[str, Any]) -> None:
    """A classifier of zeros, as many networks start with: J is 0 everywhere."""
    distiller = distiller_of(method, torch.float32)
    for network in (distiller.student, distiller.teacher):
        if network is not None:
            nn.init.zeros_(network.head.weight)  # type: ignore[arg-type]
    terms = distiller(images(dtype=torch.float32), LABELS)
    assert terms[next(iter(method))].item() == 0
    assert all(g.isfinite().all() for g in gradients(terms.total, distiller.student))


# --- the teacher --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", GAT, ids=str)
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_the_teacher_is_left_alone(options: dict[str, Any], statistics: str) -> None:
    distiller = distiller_of({"gat": {**options, "statistics": statistics}})
    teacher = distiller.teacher
    assert teacher is not None
    before = state(teacher)
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), 0.01)
    x = images()
    for _ in range(3):
        teacher.train()  # even so
        with torch.no_grad():  # remembered by somebody who needs no gradients
            target = distiller.target(x, LABELS)["gat"]
        assert all(len(tensor) == 3 and not tensor.requires_grad for tensor in target.values())
        assert all(tensor.grad_fn is None for tensor in target.values())
        optimizer.zero_grad()
        distiller(x, LABELS).total.backward()
        optimizer.step()
        assert not any(module.training for module in teacher.modules())
    assert same(teacher, before)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not x.requires_grad
    assert x.grad is None


def test_remembered_targets_are_the_same_as_live() -> None:
    distiller = distiller_of({"gat": {"where": "features"}}).eval()
    x = images()
    targets = {"gat": {k: v.clone() for k, v in distiller.target(x, LABELS)["gat"].items()}}
    live = distiller(x, LABELS)
    assert torch.equal(distiller(x, LABELS, targets).total, live.total)
    parts = [
        distiller(
            x[i : i + 1], LABELS[i : i + 1], {"gat": {k: v[i : i + 1] for k, v in targets["gat"].items()}}
        )
        for i in range(3)
    ]
    torch.testing.assert_close(torch.stack([part["gat"] for part in parts]).mean(), live["gat"])


def test_the_other_losses_see_the_same_teacher() -> None:
    student, teacher = smooth(0), smooth(1)
    both = Distiller(student, teacher, "at+gat+kd", LAYERS, SHAPE).double().eval()
    alone = Distiller(student, teacher, "at+kd", LAYERS, SHAPE).double().eval()
    ours, theirs = both.target(images(), LABELS), alone.target(images())
    for name in ("at", "kd"):
        for key, tensor in theirs[name].items():
            assert torch.equal(ours[name][key], tensor)
            assert not ours[name][key].requires_grad


# --- without a teacher --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sym", "grad_reg", "sym+grad_reg"])
def test_no_teacher_is_needed(method: str) -> None:
    student = smooth(0)
    distiller = Distiller(student, None, method=method).double().train()
    assert distiller.teacher is None
    assert distiller.target(images(), LABELS) == {}
    terms = distiller(images(), LABELS)
    assert list(terms) == ["ce", *method.split("+")]
    terms.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    unused = Distiller(smooth(0), smooth(1), method=method, input_shape=SHAPE)  # a teacher that is not asked
    assert unused.teacher is None


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_a_symmetric_network_has_symmetric_gradients(statistics: str) -> None:
    network = smooth(0, strides=(1, 1))
    x = images()
    method = {"sym": {"statistics": statistics, "outputs": 1.0}}
    distiller = Distiller(network, None, method=method).double().train()
    assert distiller(x, LABELS)["sym"] > 1e-2
    with torch.no_grad():
        for block in (network.low, network.high):
            block[0].weight.copy_((block[0].weight + block[0].weight.flip(3)) / 2)
    symmetric = x + x.flip(3)
    for given in (x, symmetric):
        terms = distiller(given, LABELS)
        assert terms["sym"] < 1e-13
        assert all(g.isfinite().all() for g in gradients(terms.total, network))
    with torch.no_grad():  # upside down is no mirror
        network.low[0].weight.copy_(network.low[0].weight.transpose(2, 3).clone())
    assert distiller(symmetric, LABELS)["sym"] > 1e-2


# --- batch norm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_running_statistics_move_as_in_a_plain_pass(method: dict[str, Any], statistics: str) -> None:
    ((name, options),) = method.items()
    distiller = distiller_of({name: {**options, "statistics": statistics}})
    plain = copy.deepcopy(distiller.student)
    for seed in range(2):
        distiller(images(seed), LABELS).total.backward()
        plain(images(seed))
    assert distiller.student.low[1].num_batches_tracked == 2
    assert same(distiller.student, state(plain))


class FailsAt(nn.Module):
    """Answers what it is given; fails in the pass of this number (from 1)."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.passes = number, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == self.number:
            raise RuntimeError("a pass that fails")
        return x


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("failing", [0, 2])
def test_modes_are_restored(statistics: str, failing: int) -> None:
    student = smooth(0)
    student.head = nn.Sequential(FailsAt(failing), student.head)  # type: ignore[assignment]
    distiller = Distiller(student, None, {"sym": {"statistics": statistics}}).double().train()
    student.low[1].eval()  # frozen by the user
    student.high[1].track_running_stats = True
    frozen = state(student.low[1])
    before = [(m.training, getattr(m, "track_running_stats", None)) for m in student.modules()]
    if failing:
        with pytest.raises(RuntimeError, match="a pass that fails"):
            distiller(images(), LABELS)
    else:
        distiller(images(), LABELS).total.backward()
    assert [(m.training, getattr(m, "track_running_stats", None)) for m in student.modules()] == before
    assert same(student.low[1], frozen)
    assert student.high[1].num_batches_tracked == 1


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_batch_norm_that_the_user_froze_stays_frozen_in_every_pass(statistics: str) -> None:
    student = smooth(0)
    distiller = Distiller(student, None, {"sym": {"statistics": statistics}}).double().train()
    student.low[1].eval()
    student.high[1].eval()
    expected = oracle.flip_symmetry(oracle.PlainNetwork(student, running=True), images(), LABELS, False)
    assert distiller(images(), LABELS)["sym"].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("method", [{"gat": {}}, {"sym": {}}, {"grad_reg": {}}], ids=str)
def test_one_sample_depends_on_the_others_with_batch_statistics_alone(method: dict[str, Any]) -> None:
    ((name, _),) = method.items()
    labels = LABELS[:2]
    for statistics, depends in (("batch", True), ("running", False)):
        distiller = distiller_of({name: {"statistics": statistics}})
        for module in distiller.student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
        loss = distiller.objective.losses[name]
        found = []
        for other in (images(1, 1), images(2, 1)):
            x = torch.cat([images(0, 1), other]).requires_grad_()
            seen = loss.seen(distiller.observe_student(x, labels))
            (gradient,) = loss_gradient(seen.logits, labels, x)
            found.append(gradient[0])
        assert torch.allclose(found[0], found[1], rtol=1e-9, atol=1e-12) is not depends
        # a mean over samples that do not see each other is the mean of the samples alone
        if not depends:
            x = images(0, 2)
            alone = [distiller(x[i : i + 1], labels[i : i + 1])[name] for i in range(2)]
            together = distiller(x, labels)[name]
            torch.testing.assert_close(torch.stack(alone).mean(), together, rtol=1e-9, atol=1e-12)


# --- precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_bf16_autocast_is_near_float32(method: dict[str, Any], statistics: str) -> None:
    ((name, options),) = method.items()
    found = []
    for bf16 in (False, True):
        distiller = distiller_of({name: {**options, "statistics": statistics}}, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            terms = distiller(images(dtype=torch.float32), LABELS)
        assert terms[name].dtype == torch.float32
        terms.total.backward()
        gradient = torch.cat([p.grad.flatten() for p in distiller.student.parameters()])  # type: ignore[union-attr]
        assert gradient.isfinite().all()
        assert all(p.grad.dtype == torch.float32 for p in distiller.student.parameters())  # type: ignore[union-attr]
        found.append((terms[name], gradient))
    (full, gradient), (half, rounded) = found
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.01)
    assert F.cosine_similarity(gradient, rounded, dim=0) > 0.99


def test_relu_and_overwriting_in_place_are_fine_on_the_way() -> None:
    torch.manual_seed(0)
    student, teacher = Plain(dropout=0.0), Plain(widths=(8, 10, 12))
    x, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
    for method in (
        {"gat": {}},
        {"gat": {"where": "features", "compare": "map"}},
        "sym",
        "grad_reg",
        "at+gat+kd",
    ):
        distiller = Distiller(student, teacher, method, input_shape=(3, 16, 16)).train()
        terms = distiller(x, labels)
        assert all(g.isfinite().all() for g in gradients(terms.total, student))
        assert all(term > 0 for term in terms.values())
        distiller.close()


# --- what is refused ----------------------------------------------------------------------------------------


def test_options_that_are_refused() -> None:
    with pytest.raises(InputError, match="unknown where 'inputs'; did you mean 'input'"):
        GradientAttentionTransfer(where="inputs")
    with pytest.raises(InputError, match="unknown compare 'maps'; did you mean 'map'"):
        GradientAttentionTransfer(compare="maps")
    with pytest.raises(InputError, match="unknown statistics 'runing'; did you mean 'running'"):
        InputGradientPenalty(statistics="runing")
    with pytest.raises(InputError, match="squared is for compare=gradient"):
        GradientAttentionTransfer(compare="map", squared=True)
    for outputs in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"outputs is .*; expected a finite weight of at least 0"):
            FlipSymmetry(outputs=outputs)
    with pytest.raises(InputError, match=r"unknown option of loss 'sym' 'output'; did you mean 'outputs'"):
        Distiller(smooth(0), None, {"sym": {"output": 1}})
    with pytest.raises(InputError, match="method 'gat' needs a teacher"):
        Distiller(smooth(0), None, "gat")


def test_networks_that_are_refused() -> None:
    method = {"gat": {"where": "features"}}
    with pytest.raises(
        InputError,
        match=r"layers low \[3, 4, 6\] and low \[5, 4, 6\] have gradients of different shape; .*compare=map",
    ):
        Distiller(smooth(0), smooth(1, widths=(5, 4)), method, LAYERS, SHAPE)
    with pytest.raises(InputError, match=r"3 classes, the teacher 4; .*gat"):
        Distiller(smooth(0), smooth(1, classes=4), "gat", input_shape=SHAPE)
    for how in ("relu module", "add"):
        for student, teacher in (
            (OverwrittenLater(how), OverwrittenLater("")),
            (OverwrittenLater(""), OverwrittenLater(how)),
        ):
            with pytest.raises(
                InputError, match="output of layer 'body' is overwritten in place, so it has no gradient"
            ):
                Distiller(student, teacher, method, "body", (3, 8, 8))
    Distiller(OverwrittenLater("add"), OverwrittenLater("add"), "gat", input_shape=(3, 8, 8))(
        torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    ).total.backward()
    for method in ({"gat": {"statistics": "running"}}, {"sym": {"statistics": "running"}}):
        student = smooth(0)
        student.low[1] = nn.BatchNorm2d(3, track_running_stats=False).double()
        with pytest.raises(
            InputError, match=r"layer 'low\.1' keeps no running statistics; give statistics=batch"
        ):
            Distiller(student, smooth(1), method, input_shape=SHAPE)


def test_calls_that_are_refused() -> None:
    distiller = distiller_of({"gat": {}})
    with pytest.raises(InputError, match=r"differentiates the cross entropy: give the labels \[N\]"):
        distiller.target(images())
    with (
        torch.no_grad(),
        pytest.raises(InputError, match=r"no graph .* gradients enabled \(no torch.no_grad"),
    ):
        distiller(images(), LABELS)
    with pytest.raises(InputError, match=r"shape \[3, 2, 4, 6\] and \[3, 2, 4, 5\] .*compare=map"):
        gradient_distance(images(), images()[..., :5])
    network = smooth(0)
    with pytest.raises(InputError, match="images that require a gradient"):
        loss_gradient(network(images()), LABELS, images())
    stranger = images().requires_grad_()
    with pytest.raises(InputError, match=r"do not depend on what has shape \[3, 2, 4, 6\]"):
        loss_gradient(network(images()), LABELS, stranger)
    seen = Observation(network(stranger), images=stranger)
    with pytest.raises(InputError, match="give the labels"):
        InputGradientPenalty()(seen, {}, LABELS)


@pytest.mark.parametrize("method", ["gat", "sym", "grad_reg", "at+gat", "kd+sym"])
def test_never_compiled(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    distiller = Distiller(smooth(0), smooth(1), method, LAYERS, SHAPE)
    for mode, said in (("auto", ""), ("on", "differentiates gradients cannot be compiled")):
        # refused before anything is asked of the device, the data or the teacher
        arguments: Any = (distiller.target, Settings.of(compile=mode), None, None, 10**6)
        assert compile_for([distiller], *arguments, trained=10**6) == []
        printed = " ".join(capsys.readouterr().err.split())
        assert (said in printed) if said else not printed
