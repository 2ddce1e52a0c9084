"""Student, teacher and objective together: what is computed, and what is left alone."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyeline import Distiller, InputError, Observer, create_model
from eyeline.functional import attention_transfer_loss, knowledge_distillation_loss
from eyeline.objective.terms import Objective, Terms
from networks import Answers, Plain

SHAPE = (3, 16, 16)


def pair(student_classes: int = 5, teacher_classes: int = 5) -> tuple[Plain, Plain]:
    torch.manual_seed(0)
    return Plain(classes=student_classes), Plain(widths=(8, 10, 12), classes=teacher_classes)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, *SHAPE, generator=generator), torch.randint(5, (6,), generator=generator)


class DoubleConvolution(nn.Module):
    """One more resolution, 2x2, between the pooling and the classifier."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).mean((2, 3))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- what is computed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("ce", {"ce": 1.0}),
        ("kd", {"ce": 0.1, "kd": 0.9}),
        ("at", {"ce": 1.0, "at": 1000.0}),
        ("at+kd", {"ce": 0.1, "at": 1000.0, "kd": 0.9}),
        ({"at": {"exponent": 1, "weight": 7}, "kd": {"temperature": 2, "weight": 0.5}}, None),
    ],
    ids=str,
)
def test_terms_are_the_published_formulas(
    method: Any, weights: dict[str, float] | None, batch: tuple[Tensor, Tensor]
) -> None:
    weights = weights or {"ce": 0.5, "at": 7.0, "kd": 0.5}
    exponent, temperature = (2, 4) if isinstance(method, str) else (1, 2)
    student, teacher = pair()
    student.dropout.p = 0.0
    images, labels = batch
    distiller = Distiller(student, teacher, method, input_shape=SHAPE).train()
    before = copy.deepcopy(student)
    terms = distiller(images, labels)

    seen, shown = Observer(before, input_shape=SHAPE)(images), Observer(teacher, input_shape=SHAPE)(images)
    expected = {
        "ce": F.cross_entropy(seen.logits, labels),
        "at": sum(
            attention_transfer_loss(s, t, exponent)
            for s, t in zip(seen.features, shown.features, strict=True)
        ),
        "kd": knowledge_distillation_loss(seen.logits, shown.logits, temperature),
    }
    assert set(terms) == set(weights)
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name].detach())  # type: ignore[union-attr]
        assert not term.requires_grad
    torch.testing.assert_close(terms.total, sum(weights[name] * expected[name] for name in weights))
    assert torch.equal(terms.logits, seen.logits)
    terms.total.backward()
    sum(weights[name] * expected[name] for name in weights).backward()  # type: ignore[union-attr]
    for ours, theirs in zip(student.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_remembered_targets_are_the_same_as_live(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    student.dropout.p = 0.0
    distiller = Distiller(student, teacher, "at+kd", input_shape=SHAPE)
    images, labels = batch
    remembered = {
        name: {k: t.clone() for k, t in target.items()} for name, target in distiller.target(images).items()
    }
    assert set(remembered) == {"at", "kd"}
    assert all(len(tensor) == len(images) for target in remembered.values() for tensor in target.values())
    live = distiller(images, labels)
    again = distiller(images, labels, remembered)
    assert torch.equal(live.total, again.total)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    assert torch.equal(distiller(images, labels, remembered).total, live.total)  # the teacher is not asked
    some = distiller(images, labels, {"at": remembered["at"]})  # asked for what is not given
    assert torch.equal(some["at"], live["at"])
    assert torch.equal(some["kd"], distiller(images, labels)["kd"])
    assert set(distiller.target(images, only=["kd"])) == {"kd"}
    rows = [{n: {k: v[i : i + 2] for k, v in t.items()} for n, t in remembered.items()} for i in (0, 2, 4)]
    distiller.eval()
    parts = [
        distiller(images[i : i + 2], labels[i : i + 2], row) for i, row in zip((0, 2, 4), rows, strict=True)
    ]
    torch.testing.assert_close(
        torch.stack([part["at"] for part in parts]).mean(), distiller(images, labels, remembered)["at"]
    )


def test_weights_follow_the_progress(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    student.dropout.p = 0.0
    distiller = Distiller(student, teacher, "at+kd", input_shape=SHAPE).train()
    for epoch, factor in ((0, 1.0), (1, 0.75), (4, 0.0)):
        distiller.set_progress(epoch, 5)
        terms = distiller(*batch)
        attention = factor * 1000 * terms["at"] if factor else 0
        torch.testing.assert_close(terms.total.detach(), 0.1 * terms["ce"] + attention + 0.9 * terms["kd"])


@pytest.mark.parametrize(
    "method",
    [
        {"act": {}, "hint": {}, "ce": {}},  # act falls to 0, and has learnable parts
        {"at": {"schedule": "cosine"}, "ce": {"weight": 0}},  # all fall to 0
        {"cat": {"stages": True, "weight": 0}, "aft": {"weight": 0}, "at": {}},
        {"gat": {"schedule": "linear"}, "kd": {}},
    ],
    ids=lambda method: "+".join(method),
)
def test_a_term_of_weight_0_is_not_computed_and_changes_nothing(
    method: Any, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As though it were computed and its gradient multiplied by 0."""
    student, teacher = pair()
    student.dropout.p = 0.0
    whole = Distiller(student, teacher, method, input_shape=SHAPE).train()
    ours, calls = copy.deepcopy(whole), list[int]()
    ours.teacher.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    ours.set_progress(4, 5)
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "active_in", lambda self, *_: list(self.method))
        whole.set_progress(4, 5)
    assert any(factor == 0 for factor in whole.objective.factors)
    terms, expected = ours(*batch), whole(*batch)
    left = {n for n, factor in zip(whole.objective.method, whole.objective.factors, strict=True) if factor}
    assert set(terms) == left
    assert len(calls) == (1 if left & whole.objective.targeted.keys() else 0)
    assert set(ours.target(*batch)) == left & whole.objective.targeted.keys()
    assert torch.equal(terms.total, expected.total)
    terms.total.backward()
    expected.total.backward()
    for a, b in zip(ours.trainable_parameters(), whole.trainable_parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_0_times_infinity_is_0(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    distiller = Distiller(
        student, teacher, {"at": {"schedule": "linear"}, "kd": {"weight": 0}}, "stage1", SHAPE
    )
    with torch.no_grad():
        teacher.stage1[0].weight.fill_(math.inf)  # type: ignore[index, operator]
    assert distiller(*batch).total.isnan()
    distiller.set_progress(4, 5)
    total = distiller(*batch).total
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


# --- the teacher is left alone (METHODS, pitfalls 5 and 7) ----------------------------------------------


def test_teacher_stays_in_evaluation_mode_and_its_state_never_moves(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    teacher.train()
    before = snapshot(teacher)
    distiller = Distiller(student, teacher, "at+kd", input_shape=SHAPE)
    assert not any(module.training for module in teacher.modules())
    assert same(teacher, before)
    distiller.train()
    assert not any(module.training for module in teacher.modules())
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), 0.05)
    for disturb in (
        lambda: distiller.train(),
        lambda: distiller.train().eval(),
        lambda: teacher.train(),
        lambda: teacher.stage2[1].train(),
        lambda: teacher.dropout.train(),
        lambda: nn.ModuleList([distiller]).train(),
    ):
        disturb()
        for _ in range(3):
            optimizer.zero_grad()
            distiller(*batch).total.backward()
            optimizer.step()
        assert not any(module.training for module in teacher.modules())
        assert same(teacher, before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_no_graph_on_the_teachers_side(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    distiller = Distiller(student, teacher, "at+kd", input_shape=SHAPE)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    teacher.requires_grad_(True)  # even so
    seen: list[bool] = []
    teacher.stage1.register_forward_hook(lambda *given: seen.append(given[-1].requires_grad))
    targets = distiller.target(batch[0].requires_grad_())
    assert seen == [False]
    assert not any(tensor.requires_grad for target in targets.values() for tensor in target.values())


def test_trainable_parameters_are_the_students(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    student.stage1.requires_grad_(False)
    distiller = Distiller(student, teacher, input_shape=SHAPE)
    teacher.requires_grad_(True)  # even so
    ours = {id(parameter) for parameter in distiller.trainable_parameters()}
    assert ours == {id(p) for n, p in student.named_parameters() if not n.startswith("stage1")}
    assert len(distiller.trainable_parameters()) == len(ours)


def test_students_mode_follows(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    distiller = Distiller(student, teacher, input_shape=SHAPE)
    assert distiller.eval() is distiller
    assert not any(module.training for module in student.modules())
    before = snapshot(student)
    distiller(*batch)
    assert same(student, before)
    distiller.train()
    assert all(module.training for module in student.modules())
    distiller(*batch)
    assert not same(student, before)


def test_student_is_untouched_by_construction() -> None:
    student, teacher = pair()
    student.stage2.eval()
    before, modes = snapshot(student), [module.training for module in student.modules()]
    Distiller(student, teacher, input_shape=SHAPE)
    assert same(student, before)
    assert [module.training for module in student.modules()] == modes


METHODS: list[Any] = [
    "at+kd",
    {"gat": {"where": "features", "compare": "map"}, "cam": {}, "act": {}},
    {"sym": {"statistics": "running"}, "aft": {}},
]
"""Together all that a distiller may have: class maps, pre-activations, learnable parts, a second pass."""


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "inside another module"])
@pytest.mark.parametrize("method", [*METHODS, "ce"], ids=["at+kd", "gat+cam+act", "sym+aft", "ce"])
def test_the_state_is_that_of_the_student_and_the_losses(
    method: Any, wrapped: bool, batch: tuple[Tensor, Tensor]
) -> None:
    def make(seed: int) -> tuple[Distiller, nn.Module]:
        student, teacher = pair()
        torch.manual_seed(seed)
        for parameter in student.parameters():
            nn.init.normal_(parameter, 0, 0.3)
        distiller = copy.deepcopy(Distiller(student, teacher, method, input_shape=SHAPE))
        return distiller, nn.ModuleDict({"inner": distiller}) if wrapped else distiller

    (distiller, module), (other, target) = make(1), make(2)
    distiller.end_epoch(dict.fromkeys(distiller.objective.method, 2.0))
    state = module.state_dict()
    prefix = "inner." if wrapped else ""
    parts = {"student": distiller.student, "objective": distiller.objective}
    assert set(state) == {f"{prefix}{part}.{n}" for part, m in parts.items() for n in m.state_dict()}
    before = {} if other.teacher is None else snapshot(other.teacher)
    assert not same(other.student, snapshot(distiller.student))
    target.load_state_dict(state)  # strict
    assert same(other.student, snapshot(distiller.student))
    assert same(other.objective, snapshot(distiller.objective))
    if other.teacher is not None:
        assert same(other.teacher, before)
        name = f"{prefix}teacher.fc.bias"
        with pytest.raises(RuntimeError, match=f'Unexpected key.*"{name}"'):
            target.load_state_dict({**state, name: torch.ones(5)})
        target.load_state_dict({**state, name: torch.ones(5)}, strict=False)
        assert same(other.teacher, before)
    with pytest.raises(RuntimeError, match=r"Missing key.*student\.conv\.weight"):
        target.load_state_dict({k: v for k, v in state.items() if "conv.weight" not in k})
    torch.testing.assert_close(other.eval()(*batch).total, distiller.eval()(*batch).total)


# --- networks that differ -------------------------------------------------------------------------------


def test_resolution_channels_and_depth_may_differ_and_height_and_width(batch: tuple[Tensor, Tensor]) -> None:
    student = create_model("wrn_10_1", num_classes=5)
    teacher = Plain(widths=(8, 10, 12))
    distiller = Distiller(student, teacher, "at+kd")
    assert distiller.pairs == [("group1", "stage1"), ("group2", "stage2"), ("group3", "stage3")]
    distiller(torch.randn(2, 3, 12, 20), torch.tensor([0, 4])).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    # the student is known to take 32x32, of the teacher nothing is known: both are looked at with one image
    teacher.dropout = nn.Sequential(nn.Unflatten(1, (12, 1, 1)), nn.Upsample(size=2), DoubleConvolution(12))
    assert Distiller(student, teacher, "at").pairs == distiller.pairs


def test_named_pairs_of_different_resolution(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    for layers in (["stage1:stage2", "stage3"], "stage1:stage2, stage3"):
        distiller = Distiller(student, teacher, {"at": {}}, layers, SHAPE).eval()
        assert distiller.pairs == [("stage1", "stage2"), ("stage3", "stage3")]
        images = torch.randn(2, 3, 16, 24)
        seen = Observer(student, ["stage1", "stage3"])(images).features
        shown = Observer(teacher, ["stage2", "stage3"])(images).features
        expected = sum(attention_transfer_loss(s, t) for s, t in zip(seen, shown, strict=True))
        torch.testing.assert_close(distiller(images, torch.tensor([0, 1]))["at"], expected)
        distiller.close()


def test_attention_alone_does_not_compare_classes(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair(5, 7)
    Distiller(student, teacher, "at", input_shape=SHAPE)(*batch).total.backward()
    with pytest.raises(InputError, match=r"student answers 5 classes, the teacher 7.*'at' does not"):
        Distiller(student, teacher, "at+kd", input_shape=SHAPE)


# --- what is refused ------------------------------------------------------------------------------------


def test_refused_before_any_work_and_nothing_is_left_behind() -> None:
    student, teacher = pair()
    with pytest.raises(InputError, match="method 'at' needs a teacher"):
        Distiller(student, None, "at")
    with pytest.raises(InputError, match="the same object"):
        Distiller(student, student)
    with pytest.raises(InputError, match=r"student is 'resnet20'; expected an nn.Module"):
        Distiller("resnet20", teacher)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"teacher is 'resnet56'; expected an nn.Module"):
        Distiller(student, "resnet56")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown loss 'att'"):
        Distiller(student, teacher, "att")
    with pytest.raises(InputError, match="did you mean 'stage2'"):
        Distiller(student, teacher, "at", ["stage1", "stage2:stag2"], SHAPE)
    with pytest.raises(InputError, match="did you mean 'stage2'"):
        Distiller(student, teacher, "at", ["stage1", "stag2:stage2"], SHAPE)
    with pytest.raises(InputError, match=r"layers is \[\]"):
        Distiller(student, teacher, "at", [], SHAPE)
    with pytest.raises(InputError, match=r"the teacher answers no tensor; expected logits \[N, K\]"):
        Distiller(student, Answers(lambda z: {"logits": z}), "at", input_shape=SHAPE)
    narrow = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2), nn.Flatten(), nn.LazyLinear(5))
    narrow(torch.zeros(1, *SHAPE))
    with pytest.raises(
        InputError, match=r"no resolution in common: student has stage1 16x16.*teacher has 1 3x3"
    ):
        Distiller(student, narrow, "at", input_shape=SHAPE)
    for network in (student, teacher, narrow):
        assert not any(module._forward_hooks for module in network.modules())
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert all(module.training for module in network.modules())


def test_without_a_teacher(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    for given in (None, teacher):
        distiller = Distiller(student, given, "ce").eval()
        terms = distiller(*batch)
        assert list(terms) == ["ce"]
        torch.testing.assert_close(terms.total, F.cross_entropy(student(batch[0]), batch[1]))
        assert distiller.pairs == []
        assert distiller.target(batch[0]) == {}
        distiller.close()
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_close_and_copy(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    distiller = Distiller(student, teacher, input_shape=SHAPE).eval()
    other = copy.deepcopy(distiller)
    assert torch.equal(other(*batch).total, distiller(*batch).total)
    with torch.no_grad():
        other.student.fc.bias[0] += 1  # one class alone: no loss sees what is added to all
    assert not torch.equal(other(*batch).total, distiller(*batch).total)
    distiller.close()
    assert not any(module._forward_hooks for network in (student, teacher) for module in network.modules())


# --- in other people's loops ----------------------------------------------------------------------------


def test_plain_loop_learns_a_batch(batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = pair()
    student.dropout.p = 0.0
    distiller = Distiller(
        student, teacher, {"at": {"schedule": "constant"}, "kd": {}}, input_shape=SHAPE
    ).train()
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.02, momentum=0.9)
    totals: list[dict[str, float]] = []
    for _ in range(40):
        terms = distiller(*batch)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        totals.append({"total": terms.total.item(), **{name: term.item() for name, term in terms.items()}})
    for name in ("total", "at", "kd"):
        assert totals[-1][name] < 0.5 * totals[0][name], name


def same_terms(found: Terms, expected: Terms, **tolerance: float) -> None:
    assert isinstance(found, Terms)
    assert list(found) == list(expected)
    for name, term in found.items():
        torch.testing.assert_close(term.float(), expected[name], **tolerance)
    torch.testing.assert_close(found.total.float(), expected.total, **tolerance)
    torch.testing.assert_close(found.logits.float(), expected.logits, **tolerance)


def without_dropout() -> Distiller:
    student, teacher = pair()
    student.dropout.p = 0.0
    return Distiller(student, teacher, input_shape=SHAPE).train()


def test_terms_read_like_a_mapping(batch: tuple[Tensor, Tensor]) -> None:
    terms = without_dropout()(*batch)
    assert list(terms) == list(terms.keys()) == ["ce", "at", "kd"]
    assert len(terms) == 3
    assert "at" in terms
    assert "total" not in terms
    assert dict(terms) == {**terms} == dict(terms.items()) == dict(zip(terms, terms.values(), strict=True))
    with pytest.raises(KeyError):
        terms["nonsense"]


@pytest.mark.whole
def test_compiled_whole(batch: tuple[Tensor, Tensor]) -> None:
    if not os.environ.get("EYELINE_UNCHECKED"):  # the checks of shapes are no part of one graph
        command = [sys.executable, "-m", "pytest", "-q", f"{__file__}::test_compiled_whole"]
        environment = {**os.environ, "EYELINE_UNCHECKED": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return
    torch._dynamo.reset()
    distiller = Distiller(*pair(), input_shape=SHAPE).eval()
    eager = distiller(*batch)
    distiller.compile(backend="aot_eager", fullgraph=True)
    same_terms(distiller(*batch), eager)
    distiller.set_progress(4, 5)
    assert distiller(*batch).total < eager.total


@pytest.fixture
def one_process_group() -> Iterator[None]:
    import torch.distributed as dist

    if not dist.is_available():
        pytest.skip("torch is built without distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("how", ["", "find_unused_parameters", "static_graph"])
def test_distributed_data_parallel_gives_the_same_gradient(
    one_process_group: None, batch: tuple[Tensor, Tensor], how: str
) -> None:
    alone = without_dropout()
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(alone), **({how: True} if how else {}))
    expected, found = alone(*batch), parallel(*batch)
    same_terms(found, expected)
    expected.total.backward()
    found.total.backward()
    for a, b in zip(alone.trainable_parameters(), parallel.module.trainable_parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad)
    state = parallel.state_dict()
    assert list(state) == [f"module.{name}" for name in alone.state_dict()]
    parallel.load_state_dict(state)
    if how:  # what torch puts between the output and the network, to see which parameters it depends on
        assert "DDPSink" in type(found.total.grad_fn).__name__


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_in_lightning_fabric(batch: tuple[Tensor, Tensor], precision: Any) -> None:
    from lightning_fabric import Fabric

    distiller = without_dropout()
    expected = copy.deepcopy(distiller)(*batch)
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), 0.01)
    module, optimizer = fabric.setup(distiller, optimizer)
    terms = module(*batch)
    same_terms(terms, expected, **({"rtol": 0.1, "atol": 0.05} if precision == "bf16-mixed" else {}))
    assert terms.logits.dtype == torch.float32  # as Fabric hands results to its user
    before = snapshot(distiller.student)
    fabric.backward(terms.total)
    optimizer.step()
    assert not same(distiller.student, before)
    assert list(module.state_dict()) == list(distiller.state_dict())
    module.load_state_dict(module.state_dict())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_in_accelerate(batch: tuple[Tensor, Tensor], precision: str, tmp_path: Any) -> None:
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    distiller = without_dropout()
    expected = copy.deepcopy(distiller)(*batch)
    try:
        accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
        optimizer = torch.optim.SGD(distiller.trainable_parameters(), 0.01)
        module, optimizer = accelerator.prepare(distiller, optimizer)
        terms = module(*batch)
        same_terms(terms, expected, **({"rtol": 0.1, "atol": 0.05} if precision == "bf16" else {}))
        before = snapshot(distiller.student)
        accelerator.backward(terms.total)
        optimizer.step()
        assert not same(distiller.student, before)
        accelerator.save_state(str(tmp_path))
        after = snapshot(distiller.student)
        distiller.student.load_state_dict(before)
        accelerator.load_state(str(tmp_path))
        assert same(distiller.student, after)
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("method", METHODS, ids=["at+kd", "gat+cam+act", "sym+aft"])
def test_replicas_of_data_parallel_give_the_gradient_of_the_halves(
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    """torch's own copying, threads and gathering, with processors that are all this one."""
    student, teacher = pair()
    student.dropout.p = 0.0
    distiller = Distiller(student, teacher, method, input_shape=SHAPE).train()
    alone = [copy.deepcopy(distiller) for _ in range(2)]  # neither sees the statistics that the other moved

    def broadcast(tensors: list[Tensor], devices: list[int], detach: bool = False) -> list[list[Tensor]]:
        copies = [[tensor * 1 for tensor in tensors] for _ in devices]
        return [[t.detach() for t in tensors] for tensors in copies] if detach else copies

    class Gather:
        @staticmethod
        def apply(device: int, dim: int, *parts: Tensor) -> Tensor:
            return torch.cat([part.view(1) if part.ndim == 0 else part for part in parts], dim)

    import torch.nn.parallel.scatter_gather as gathering

    replicating = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(replicating, "_broadcast_coalesced_reshape", broadcast)
    monkeypatch.setattr(replicating, "_get_device_index", lambda device, optional: device)
    monkeypatch.setattr(gathering, "Gather", Gather)

    halves = [tuple(tensor[part] for tensor in batch) for part in (slice(0, 3), slice(3, 6))]
    together = threading.Barrier(2, timeout=600)  # each is in the middle of its pass when the other is
    waiting = distiller.student.stage2.register_forward_hook(lambda *_: (together.wait(), None)[1])
    replicas = replicating.replicate(distiller, [0, 1])
    with ThreadPoolExecutor(2) as pool:
        found = gathering.gather(list(pool.map(lambda r, half: r(*half), replicas, halves)), 0)
    waiting.remove()
    expected = [distiller(*half) for distiller, half in zip(alone, halves, strict=True)]
    assert isinstance(found, Terms)
    for name in expected[0]:
        torch.testing.assert_close(found[name], torch.stack([terms[name] for terms in expected]))
    torch.testing.assert_close(found.total, torch.stack([terms.total for terms in expected]))
    assert found.logits.shape == (6, 5)
    found.total.mean().backward()
    torch.stack([terms.total for terms in expected]).mean().backward()
    for found, *parts in zip(*(d.trainable_parameters() for d in (distiller, *alone)), strict=True):
        torch.testing.assert_close(found.grad, parts[0].grad + parts[1].grad, rtol=1e-4, atol=1e-6)
    assert isinstance(distiller(*batch), Terms)  # the original works as before


@pytest.mark.gpu
def test_in_data_parallel(batch: tuple[Tensor, Tensor]) -> None:
    devices = list(range(min(2, torch.cuda.device_count())))
    distiller = without_dropout().cuda()
    alone = copy.deepcopy(distiller)
    images, labels = (tensor.cuda() for tensor in batch)
    found = nn.DataParallel(distiller, devices)(images, labels)
    halves = zip(images.chunk(len(devices)), labels.chunk(len(devices)), strict=True)
    expected = [alone(*half) for half in halves]
    torch.testing.assert_close(found.total.mean(), torch.stack([terms.total for terms in expected]).mean())
    assert found.logits.shape == (6, 5)
    found.total.mean().backward()
    assert all(parameter.grad is not None for parameter in distiller.trainable_parameters())


def test_inside_a_lightning_module(batch: tuple[Tensor, Tensor], tmp_path: Any) -> None:
    lightning = pytest.importorskip("pytorch_lightning", reason="Lightning's Trainer is not installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.distiller = Distiller(*pair(), input_shape=SHAPE)
            self.seen: list[float] = []

        def training_step(self, given: list[Tensor], _: int) -> Tensor:
            terms = self.distiller(*given)
            assert self.distiller.student.training
            assert self.distiller.teacher is not None
            assert not any(module.training for module in self.distiller.teacher.modules())
            self.seen.append(terms.total.item())
            self.log_dict(dict(terms))
            return terms.total

        def on_train_epoch_start(self) -> None:
            self.distiller.set_progress(self.current_epoch, 4)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.distiller.trainable_parameters(), 0.01)

    module = Module()
    assert module.distiller.teacher is not None
    before = snapshot(module.distiller.teacher)
    trainer = lightning.Trainer(
        max_epochs=4, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), batch_size=6))
    assert len(module.seen) == 4
    assert module.seen[-1] < module.seen[0]
    assert same(module.distiller.teacher, before)
    assert trainer.logged_metrics.keys() == {"ce", "at", "kd"}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert list(kept) == [f"distiller.{name}" for name in module.distiller.state_dict()]
    Module().load_state_dict(kept)
