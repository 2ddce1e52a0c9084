"""Method strings, weights and schedules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eyeline import InputError
from eyeline.names import SCHEDULES
from eyeline.objective.method import method_name, resolve_method
from eyeline.objective.schedules import Weight, loss_rates
from eyeline.objective.terms import Objective
from eyeline.observe import Observation
from oracles import balancer as oracle

CE = {"weight": 1.0, "schedule": "constant"}
AT = {"weight": 1000.0, "schedule": "constant", "exponent": 2.0, "reduce": "sum", "reduction": "mean_square"}
KD = {"weight": 0.9, "schedule": "constant", "temperature": 4.0}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ce", {"ce": CE}),
        ("kd", {"ce": {**CE, "weight": 0.1}, "kd": KD}),
        ("at", {"ce": CE, "at": AT}),
        ("at+kd", {"ce": {**CE, "weight": 0.1}, "at": {**AT, "schedule": "linear"}, "kd": KD}),
        (" kd + at ", {"ce": {**CE, "weight": 0.1}, "at": {**AT, "schedule": "linear"}, "kd": KD}),
        ("ce+kd", {"ce": {**CE, "weight": 0.1}, "kd": KD}),
        ({"at": None}, {"ce": CE, "at": AT}),
        ({"at": {"exponent": 4, "weight": 50}}, {"ce": CE, "at": {**AT, "exponent": 4, "weight": 50}}),
        ({"at": {"reduction": "norm"}}, {"ce": CE, "at": {**AT, "reduction": "norm", "weight": 1.0}}),
        (
            {"kd": {"weight": 0.7, "temperature": 2}},
            {"ce": {**CE, "weight": 0.3}, "kd": {**KD, "weight": 0.7, "temperature": 2}},
        ),
        ({"kd": {"weight": 5}, "ce": {"weight": 1}}, {"ce": {**CE, "weight": 1}, "kd": {**KD, "weight": 5}}),
        (
            {"kd": {}, "at": {"schedule": "step"}},
            {"ce": {**CE, "weight": 0.1}, "at": {**AT, "schedule": "step"}, "kd": KD},
        ),
        (
            {"ce": {"schedule": "cosine"}, "kd": {}},
            {"ce": {"weight": 0.1, "schedule": "cosine"}, "kd": KD},
        ),
    ],
    ids=str,
)
def test_methods_spelt_out(method: Any, expected: dict[str, Any]) -> None:
    resolved = resolve_method(method)
    assert resolved == expected
    assert list(resolved) == [name for name in ("ce", "at", "kd") if name in expected]  # one order
    assert resolve_method(resolved) == resolved
    assert {name: term.options for name, term in Objective(resolved).method.items()} == resolved


@given(
    at=st.none()
    | st.fixed_dictionaries({}, optional={"weight": st.floats(0, 1e4), "exponent": st.floats(1, 8)}),
    kd=st.none()
    | st.fixed_dictionaries({}, optional={"weight": st.floats(0, 1), "temperature": st.floats(1, 9)}),
)
def test_a_resolved_method_resolves_to_itself(
    at: dict[str, float] | None, kd: dict[str, float] | None
) -> None:
    method = {name: options for name, options in (("kd", kd), ("at", at), ("ce", {})) if options is not None}
    resolved = resolve_method(method)
    assert resolve_method(resolved) == resolved
    share = resolved["kd"]["weight"] if "kd" in resolved else 0
    assert resolved["ce"]["weight"] == pytest.approx(1 - share)


def test_what_is_given_is_not_changed() -> None:
    method: dict[str, Any] = {"at": {"weight": 5}, "kd": None}
    resolved = resolve_method(method)
    resolved["at"]["weight"] = 6
    assert method == {"at": {"weight": 5}, "kd": None}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("kd+at", "at+kd"),
        ("ce", "ce"),
        ("ce+at", "at"),
        ({"kd": {"weight": 0.2}}, "kd"),
        ({"kd": {}, "at": {}}, "at+kd"),
    ],
    ids=str,
)
def test_method_name(method: Any, name: str) -> None:
    assert method_name(method) == name
    assert method_name(resolve_method(method)) == name


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("att", r"unknown loss 'att'; did you mean 'at'\? \(act, aft, at, "),
        ("at+", "unknown loss ''"),
        ("", "unknown loss ''"),
        ("at+kd+at", r"'at\+kd\+at' names a loss twice"),
        ({}, "has no loss; expected some of ce, at, kd"),
        (3, "method is 3; expected a string"),
        (None, "method is None; expected a string"),
        ({"at": {"wieght": 3}}, "unknown option of loss 'at' 'wieght'; did you mean 'weight'"),
        ({"kd": {"exponent": 3}}, "unknown option of loss 'kd' 'exponent'"),
        ({"at": {"schedule": "linaer"}}, "unknown schedule 'linaer'; did you mean 'linear'"),
        ({"at": {"reduce": "maks"}}, "unknown reduce 'maks'; did you mean 'max'"),
        ({"at": {"reduction": "nrom"}}, "unknown reduction 'nrom'; did you mean 'norm'"),
        ({"at": {"exponent": 0.5}}, "exponent is 0.5; expected at least 1"),
        ({"at": {"exponent": math.nan}}, "exponent is nan"),
        ({"at": {"exponent": "two"}}, "loss 'at' with .*'exponent': 'two'.*wrong kind"),
        ({"kd": {"temperature": 0}}, "temperature is 0"),
        ({"at": {"weight": -1}}, "weight is -1; expected a finite number of at least 0"),
        ({"at": {"weight": math.nan}}, "weight is nan"),
        ({"at": {"weight": math.inf}}, "weight is inf"),
        ({"kd": {"temperature": math.inf}}, "temperature is inf; expected a finite value"),
        ({"gat": {"squared": math.nan}}, "squared is nan; expected a finite value"),
        ({"at": {"weight": "10"}}, "weight is '10'"),
        ({"at": {"weight": None}}, "weight is None"),
        ({"ce": {"weight": -1}}, "weight is -1"),
        ({"kd": {"weight": 1.5}}, "weight of 'kd' is 1.5; expected at most 1, or give the weight of 'ce'"),
        ({"at": 1000}, "options of loss 'at' are 1000; expected a mapping"),
        ({"ce": {"schedule": "loss_rate"}}, "loss_rate balances losses .*expected it on at least two"),
        ({"at": {"schedule": "loss_rate"}, "ce": {"schedule": "constant"}}, "expected it on at least two"),
    ],
    ids=str,
)
def test_refused(method: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        resolve_method(method)


# --- schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", [8, 8, 8, 8, 8]),
        ("linear", [8, 6, 4, 2, 0]),
        ("cosine", [8, 4 * (1 + math.sqrt(0.5)), 4, 4 * (1 - math.sqrt(0.5)), 0]),
        ("step", [8, 8, 1.6, 1.6, 0.32]),
    ],
)
def test_schedules(schedule: str, values: list[float]) -> None:
    rates = [1, 1, 0.2, 0.2, 0.04]
    weight = Weight(8, schedule)
    found = [weight.at(epoch, 5, rate) for epoch, rate in enumerate(rates)]
    assert found == pytest.approx(values, abs=1e-12)
    assert weight.at(0, 1) == 8  # a single epoch is the first, not the last
    assert weight.at(5, 5, 0.04) == pytest.approx(values[-1], abs=1e-12)  # after the end as at the end


@given(st.sampled_from(SCHEDULES), st.integers(1, 30), st.floats(0, 1))
def test_a_weight_falls_and_stays_between_0_and_its_value(schedule: str, epochs: int, rate: float) -> None:
    values = [Weight(3.0, schedule).at(epoch, epochs, rate) for epoch in range(epochs)]
    assert all(0 <= value <= 3 for value in values)
    assert values == sorted(values, reverse=True)


# --- the sum --------------------------------------------------------------------------------------------


def test_total_is_the_weighted_sum_and_needs_are_told() -> None:
    objective = Objective({"kd": {"weight": 0.5}, "at": {"weight": 3, "schedule": "linear"}})
    assert objective.needs_teacher
    assert objective.needs("logits")
    assert objective.needs("features")
    assert not Objective("at").needs("logits", of_teacher=True)
    assert not Objective("kd").needs("features")
    assert not Objective("ce").needs_teacher
    student = Observation(
        torch.randn(4, 3, requires_grad=True), (torch.randn(4, 2, 5, 5, requires_grad=True),)
    )
    teacher = Observation(
        torch.randn(4, 3, requires_grad=True), (torch.randn(4, 6, 5, 5, requires_grad=True),)
    )
    targets = objective.target(teacher)
    assert {name: set(target) for name, target in targets.items()} == {"at": {"map0"}, "kd": {"logits"}}
    assert not any(tensor.requires_grad for target in targets.values() for tensor in target.values())
    labels = torch.tensor([0, 1, 2, 0])
    for epoch, weights in ((0, (0.5, 3.0, 0.5)), (1, (0.5, 1.5, 0.5)), (2, (0.5, 0.0, 0.5))):
        objective.set_progress(epoch, 3)
        terms = objective(student, targets, labels)
        assert list(terms) == ["ce", "at", "kd"] if weights[1] else ["ce", "kd"]
        expected = sum(w * t for w, t in zip(filter(None, weights), terms.values(), strict=True))
        torch.testing.assert_close(terms.total.detach(), expected)
        assert terms.total.requires_grad
    assert not any("factors" in name for name in objective.state_dict())  # a function of the epoch, not state


# --- weights that follow the rates of the losses ------------------------------------------------------------

BALANCED = {"at": {"schedule": "loss_rate"}, "kd": {"schedule": "loss_rate"}}


@pytest.mark.parametrize(
    ("names", "first", "last", "expected"),
    [
        # rates 1/2 and 1/4: mean 3/8
        (("ce", "at"), (2.0, 4.0), (1.0, 1.0), (4 / 3, 2 / 3)),
        # rates 1/2, 1, 3/2: mean 1
        (("ce", "at", "kd"), (2.0, 1.0, 4.0), (1.0, 1.0, 6.0), (0.5, 1.0, 1.5)),
        # rates 1/100 and 1: 2/101 is below the floor, and at has the rest of 2
        (("ce", "at"), (1.0, 1.0), (0.01, 1.0), (0.1, 1.9)),
        # rates 1/100, 1/2, 1: the others keep their ratio, 2.9 in all
        (("ce", "at", "kd"), (1.0, 1.0, 1.0), (0.01, 0.5, 1.0), (0.1, 2.9 / 3, 5.8 / 3)),
        # only the cross entropy has a floor
        (("ce", "at"), (1.0, 1.0), (1.0, 0.01), (2 / 1.01, 0.02 / 1.01)),
        (("at", "kd"), (1.0, 1.0), (0.01, 1.0), (0.02 / 1.01, 2 / 1.01)),
        # a loss of 0 in the first epoch counts as one that stays as it is
        (("ce", "at"), (1.0, 0.0), (0.5, 3.0), (2 / 3, 4 / 3)),
        (("ce", "at"), (0.0, 0.0), (0.0, 0.0), (1.0, 1.0)),
        (("ce", "at"), (2.0, 3.0), (0.0, 0.0), (1.0, 1.0)),
        # a loss that fell to 0 has no weight, but for the cross entropy; nor has one below 0
        (("ce", "at"), (2.0, 3.0), (1.0, 0.0), (2.0, 0.0)),
        (("ce", "at"), (2.0, 3.0), (1.0, -9.0), (2.0, 0.0)),
        (("ce", "at"), (2.0, 3.0), (0.0, 1.0), (0.1, 1.9)),
    ],
    ids=str,
)
def test_weights_follow_the_rates(
    names: tuple[str, ...], first: tuple[float, ...], last: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    found = loss_rates(
        names, torch.tensor(first, dtype=torch.float64), torch.tensor(last, dtype=torch.float64)
    )
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert oracle.weights(names, first, last) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0, 1e3)), min_size=2, max_size=5))
def test_balanced_weights_have_the_mean_1(losses: list[tuple[float, float]]) -> None:
    names = ("ce", "at", "kd", "gat", "sym")[: len(losses)]
    first, last = zip(*losses, strict=True)
    found = loss_rates(
        names, torch.tensor(first, dtype=torch.float64), torch.tensor(last, dtype=torch.float64)
    )
    assert found.tolist() == pytest.approx(oracle.weights(names, first, last), rel=1e-9, abs=1e-12)
    assert found.mean().item() == pytest.approx(1)
    assert found[0] >= 0.1
    assert (found >= 0).all()


def test_balanced_weights_are_constants_for_the_gradient() -> None:
    """Differentiated as well, the weights would have the cross entropy grow: its rate is already low."""
    losses = torch.tensor([0.2, 1.0], dtype=torch.float64, requires_grad=True)
    first = torch.ones(2, dtype=torch.float64)
    weights = loss_rates(("ce", "at"), first, losses)
    assert not weights.requires_grad
    (gradient,) = torch.autograd.grad((weights * losses).sum(), losses)
    assert gradient.tolist() == pytest.approx([1 / 3, 5 / 3])  # rates 0.2 and 1, mean 0.6
    wrong = oracle.undetached_gradient(("ce", "at"), (1.0, 1.0), (0.2, 1.0))
    assert wrong[0] == pytest.approx(2 * (0.2**2 + 2 * 0.2 - 1) / 1.2**2, rel=1e-6)
    assert wrong[0] < 0 < gradient[0]


def test_the_cross_entropy_joins_those_that_are_balanced() -> None:
    resolved = resolve_method(BALANCED)
    assert {name: options["schedule"] for name, options in resolved.items()} == dict.fromkeys(
        ("ce", "at", "kd"), "loss_rate"
    )
    assert resolved["ce"]["weight"] == 0.1
    assert resolve_method(resolved) == resolved
    kept = resolve_method({**BALANCED, "ce": {"schedule": "constant"}})
    assert [options["schedule"] for options in kept.values()] == ["constant", "loss_rate", "loss_rate"]
    mixed = resolve_method({"at": {"schedule": "loss_rate"}, "kd": {}})
    assert [options["schedule"] for options in mixed.values()] == ["loss_rate", "loss_rate", "constant"]
    assert resolve_method("at+kd")["ce"]["schedule"] == "constant"


def test_an_objective_balances_by_the_epoch_before() -> None:
    objective = Objective({**BALANCED, "at": {"schedule": "loss_rate", "weight": 10}})
    student = Observation(
        torch.randn(4, 3, requires_grad=True), (torch.randn(4, 2, 5, 5, requires_grad=True),)
    )
    targets = objective.target(Observation(torch.randn(4, 3), (torch.randn(4, 6, 5, 5),)))
    labels = torch.tensor([0, 1, 2, 0])
    epochs = [
        {"ce": 2.0, "at": 0.4, "kd": 5.0},
        {"ce": 1.0, "at": 0.3, "kd": 5.0},
        {"ce": 0.02, "at": 0.2, "kd": 4.0},
        {"ce": 3.0, "at": 0.1, "kd": 1.0},
    ]
    shares = [1.0, 1.0, 1.0]
    for epoch, losses in enumerate(epochs):
        objective.set_progress(epoch, len(epochs))
        expected = [value * share for value, share in zip((0.1, 10, 0.9), shares, strict=True)]
        assert objective.factors.tolist() == pytest.approx(expected, rel=1e-6)
        terms = objective(student, targets, labels)
        (gradient,) = torch.autograd.grad(terms.total, student.logits, retain_graph=True)
        plain = [objective.losses[name](student, targets.get(name, {}), labels) for name in ("ce", "kd")]
        weighted = expected[0] * plain[0] + expected[2] * plain[1]
        torch.testing.assert_close(gradient, torch.autograd.grad(weighted, student.logits)[0])
        objective.end_epoch(losses)
        names = tuple(losses)
        shares = oracle.weights(names, tuple(epochs[0].values()), tuple(losses.values()))
    assert objective.first_losses.tolist() == pytest.approx(list(epochs[0].values()))


def test_balancing_goes_on_from_a_saved_state() -> None:
    whole, cut = Objective(BALANCED), Objective(BALANCED)
    for losses in ({"ce": 2.0, "at": 0.4, "kd": 5.0}, {"ce": 1.0, "at": 0.3, "kd": 5.0}):
        whole.end_epoch(losses)
    assert cut.load_state_dict(whole.state_dict())
    for objective in (whole, cut):
        objective.set_progress(2, 9)
    assert torch.equal(whole.factors, cut.factors)
    assert not torch.equal(whole.factors, Objective(BALANCED).factors)
    for objective in (whole, cut):
        objective.end_epoch({"ce": 0.5, "at": 0.2, "kd": 1.0})
        objective.set_progress(3, 9)
    assert torch.equal(whole.factors, cut.factors)


def test_a_loss_that_starts_at_0_is_followed_from_its_first_value() -> None:
    objective = Objective({"at": {"schedule": "loss_rate", "weight": 1}})
    for losses, shares in (
        ({"ce": 2.0, "at": 0.0}, (1.0, 1.0)),
        ({"ce": 1.0, "at": 4.0}, (2 / 3, 4 / 3)),  # rates 1/2 and 1
        ({"ce": 1.0, "at": 2.0}, (1.0, 1.0)),  # rates 1/2 and 1/2
    ):
        objective.end_epoch(losses)
        objective.set_progress(1, 9)
        assert objective.factors.tolist() == pytest.approx(shares)
    with pytest.raises(InputError, match="the mean of at is missing; expected ce, at"):
        objective.end_epoch({"ce": 1.0})


def test_only_what_is_followed_needs_its_mean() -> None:
    method = {"at": {"schedule": "loss_rate", "weight": 1}, "kd": {}, "sp": {"schedule": "linear"}}
    objective, other = Objective(method), Objective(method)
    for losses in ({"ce": 2.0, "at": 4.0}, {"ce": 1.0, "at": 1.0}):
        objective.end_epoch(losses)
        other.end_epoch({**losses, "kd": 3.0, "sp": 1.0})
    for balanced in (objective, other):
        balanced.set_progress(4, 5)
    assert torch.equal(objective.factors, other.factors)
    assert objective.active == ["ce", "at", "kd"]
    objective.end_epoch({"ce": 1.0, "at": 0.0, "kd": 3.0})
    objective.set_progress(1, 5)
    assert objective.factors[1] == 0
    assert "at" in objective.active  # or its loss could never rise again


@pytest.mark.parametrize("method", [{"ce": {"weight": 0}}, {"ce": {"weight": 0}, "at": {"weight": 0}}])
def test_a_method_without_any_weight(method: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"all weights .* are 0"):
        resolve_method(method)


def test_weights_are_exact_in_float64() -> None:
    objective = Objective({"ce": {"weight": 0.1}, "kd": {"weight": 0.9}}).double()
    objective.set_progress(0, 1)
    assert objective.factors.tolist() == [0.1, 0.9]
