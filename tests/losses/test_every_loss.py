"""What every loss promises, those of a later day too: they are taken from the list."""

from __future__ import annotations

import contextlib
import copy
import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import eyeline
import eyeline.training.run
from eyeline.data.batches import Batch
from eyeline.data.splits import MemorySplit
from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.losses import LOSSES
from eyeline.runs.run import Run
from eyeline.training.evaluation import evaluate
from networks import Plain
from tiny import SETTINGS, TinyNet, tiny_data, tiny_net

METHODS: dict[str, dict[str, Any]] = {
    **{name: {name: {}} for name in LOSSES},
    "cat of every stage": {"cat": {"stages": True}},
}
MAY_BE_NEGATIVE = {"vid"}
"""Losses with a log σ² in them."""
WORKS_ANYWHERE = {
    *("ce", "at", "kd", "gat", "sym", "grad_reg", "act", "hint", "cam", "cat", "aft", "cat of every stage")
}
"""Whatever the networks' resolution, channels and depth; others may refuse."""
SHORT: dict[str, Any] = {**SETTINGS, "epochs": 2, "precision": "float32"}
every = pytest.mark.parametrize("name", METHODS)


def term(name: str) -> str:
    return next(iter(METHODS[name]))


def students() -> tuple[TinyNet, TinyNet]:
    """A student, and a teacher of more channels."""
    return tiny_net(1, dropout=0.0), tiny_net(2, width=8, dropout=0.0)


def make(name: str, student: nn.Module | None = None, teacher: nn.Module | None = None) -> Distiller:
    ours, theirs = students()
    torch.manual_seed(0)
    return Distiller(student or ours, teacher or theirs, METHODS[name], input_shape=(1, 12, 12))


def batch(size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 1, 12, 12, generator=generator), torch.arange(size) % 3


def learnable(distiller: Distiller) -> dict[str, nn.Parameter]:
    """The learnable parts of the losses."""
    return dict(distiller.objective.named_parameters())


def figures(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


# --- the value ------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scalar_of_the_networks_precision(name: str, dtype: torch.dtype) -> None:
    whole = make(name).to(dtype).train()
    images, labels = batch()
    loss = whole(images.to(dtype), labels)
    value = loss[term(name)]
    assert (value.shape, value.dtype) == ((), dtype)
    assert value.isfinite()
    assert value >= -1e-6 or term(name) in MAY_BE_NEGATIVE
    assert (loss.total.shape, loss.total.dtype) == ((), dtype)


@every
def test_in_bfloat16_it_is_finite_and_near_that_in_float32(name: str) -> None:
    whole = make(name).eval()
    full = whole(*batch())[term(name)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = whole(*batch())
    value = loss[term(name)]
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(full.item(), rel=0.03, abs=1e-4)
    gradients = torch.autograd.grad(loss.total, whole.trainable_parameters(), allow_unused=True)
    assert all(g.isfinite().all() for g in gradients if g is not None)


@every
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_activations_of_zeros_have_a_finite_loss_and_gradient(name: str, who: str) -> None:
    whole = make(name).train()
    with torch.no_grad():
        for network in [whole.student] * (who != "teacher") + [whole.teacher] * (who != "student"):
            for parameter in network.parameters() if network is not None else ():
                parameter.zero_()
    loss = whole(*batch())
    assert loss.total.isfinite()
    parameters = whole.trainable_parameters()
    for gradient in torch.autograd.grad(loss.total, parameters, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


# --- the target -----------------------------------------------------------------------------------------


@every
def test_the_target_is_detached_and_can_be_remembered(name: str) -> None:
    whole = make(name).eval()
    images, labels = batch()
    target = whole.target(images, labels)
    kept = {loss: {k: t.clone() for k, t in given.items()} for loss, given in target.items()}
    for given in target.values():
        for tensor in given.values():
            assert len(tensor) == len(images)
            assert not tensor.requires_grad
    live, remembered = whole(images, labels), whole(images, labels, kept)
    assert torch.equal(live.total, remembered.total)
    other = whole.target(*batch(seed=1))
    if kept.get(term(name)):
        assert not torch.equal(whole(images, labels, other)[term(name)], live[term(name)])
        assert LOSSES[term(name)].needs_teacher
    if whole.objective.losses[term(name)].remembers and whole.teacher is not None:
        with torch.no_grad():
            for parameter in whole.teacher.parameters():
                parameter.zero_()
        assert torch.equal(whole(images, labels, kept).total, live.total)  # the teacher is not asked


# --- networks that differ -------------------------------------------------------------------------------


class Pooled(Plain):
    """Half the resolution and one stage more than TinyNet."""

    def __init__(self) -> None:
        super().__init__(channels=1, classes=3, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.avg_pool2d(x, 2))


@every
@pytest.mark.parametrize("case", ["resolution", "depth", "height and width"])
def test_networks_that_differ_work_or_are_refused_clearly(name: str, case: str) -> None:
    student, teacher = students()
    torch.manual_seed(3)
    shape, layers = (1, 12, 12), "auto"
    if case == "resolution":
        teacher, layers = Pooled(), "low:stage1,high:stage2"  # type: ignore[assignment]
    elif case == "depth":
        teacher = Plain(channels=1, classes=3, dropout=0.0)  # type: ignore[assignment]
    else:
        shape = (1, 16, 10)
    images, labels = torch.randn(4, *shape), torch.tensor([0, 1, 2, 0])
    refused = ""
    try:
        whole = Distiller(student, teacher, METHODS[name], layers, shape).train()
    except InputError as error:
        refused = str(error)
    if refused:
        assert name not in WORKS_ANYWHERE
        assert "; " in refused  # what was given; what to do
        return
    loss = whole(images, labels)
    assert loss.total.isfinite()
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


# --- learnable parts ------------------------------------------------------------------------------------


@every
def test_every_learnable_part_moves_at_the_first_step(name: str) -> None:
    whole = make(name).train()
    parts = learnable(whole)
    assert {id(p) for p in parts.values()} <= {id(p) for p in whole.trainable_parameters()}
    assert set(parts) <= set(whole.objective.state_dict())
    before = {n: p.detach().clone() for n, p in parts.items()}
    optimizer = torch.optim.SGD(whole.trainable_parameters(), 0.1)
    whole(*batch()).total.backward()
    optimizer.step()
    for part, parameter in parts.items():
        assert parameter.requires_grad, part
        assert not torch.equal(parameter, before[part]), part


@every
@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_learnable_parts_move_to_a_device_and_another_precision(name: str, device: str) -> None:
    whole = make(name)
    tensors = lambda: [*whole.objective.parameters(), *whole.objective.buffers()]  # noqa: E731
    names = list(whole.objective.state_dict())
    whole.double()
    assert all(t.dtype == torch.float64 for t in tensors() if t.is_floating_point())
    whole.to(device)
    assert all(t.device.type == device for t in tensors())
    assert list(whole.objective.state_dict()) == names


@every
def test_a_state_dict_holds_all_of_the_loss(name: str) -> None:
    one, other = make(name).eval(), make(name).eval()
    with torch.no_grad():
        for parameter in learnable(one).values():
            parameter.add_(0.1)
    other.objective.load_state_dict(one.objective.state_dict())
    assert torch.equal(one(*batch()).total, other(*batch()).total)
    again = copy.deepcopy(one)
    assert torch.equal(one(*batch()).total, again(*batch()).total)


class CutOff(BaseException):
    pass


@every
@pytest.mark.whole
def test_learnable_parts_start_from_the_seed_alone(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[dict[str, Tensor]] = []

    def started(distiller: Distiller, *_: Any, **options: Any) -> None:
        seen.append({n: p.detach().clone() for n, p in learnable(distiller).items()})
        raise CutOff

    monkeypatch.setattr("eyeline.training.run.fit", started)
    student, teacher = students()
    for run, seed in enumerate((3, 3, 4)):
        torch.manual_seed(run)
        with pytest.raises(CutOff):
            eyeline.distill(
                student,
                teacher,
                tiny_data(),
                str(tmp_path / str(run)),
                method=METHODS[name],
                seed=seed,
                **SHORT,
            )
    for part in seen[0]:
        assert torch.equal(seen[0][part], seen[1][part]), part
    changed = [part for part in seen[0] if not torch.equal(seen[0][part], seen[2][part])]
    random = [part for part in seen[0] if seen[0][part].unique().numel() > 1]
    assert set(random) <= set(changed)


@pytest.mark.whole
@every
def test_a_run_goes_on_where_it_was(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Cut off within the third epoch: the same student, losses and figures, bit for bit, as a whole run."""
    ends: list[dict[str, Tensor]] = []
    fit, save, done = eyeline.training.run.fit, eyeline.runs.folder.RunFolder.save_checkpoint, 0  # type: ignore[attr-defined]

    def fitted(distiller: Distiller, *given: Any, **options: Any) -> Any:
        device = fit(distiller, *given, **options)
        ends.append({n: t.clone() for n, t in distiller.objective.state_dict().items()})
        return device

    def counted(self: Any, state: Any) -> None:
        nonlocal done
        save(self, state)
        done += 1
        if done == 5:
            raise CutOff

    def distill(out: Path, **changes: Any) -> Run:
        student, teacher = tiny_net(1), tiny_net(2, width=8)
        options = {**SHORT, "epochs": 4, "batch_size": 6, **changes}
        return eyeline.distill(student, teacher, tiny_data(20), str(out), method=METHODS[name], **options)

    monkeypatch.setattr("eyeline.training.run.fit", fitted)
    whole = distill(tmp_path / "whole")
    assert all(math.isfinite(whole.result[figure]) for figure in ("train_loss", "validation_loss"))
    with monkeypatch.context() as patch:
        patch.setattr("eyeline.runs.folder.RunFolder.save_checkpoint", counted)
        with pytest.raises(CutOff):
            distill(tmp_path / "cut")
    step = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["step"]
    assert step == 10  # of 16, in the third epoch
    torch.manual_seed(99)
    distill(tmp_path / "cut", resume=True)
    student = "student.safetensors"
    assert (tmp_path / "whole" / student).read_bytes() == (tmp_path / "cut" / student).read_bytes()
    assert figures(tmp_path / "whole") == figures(tmp_path / "cut")
    assert ends[0].keys() == ends[1].keys()
    for part in ends[0]:
        assert torch.equal(ends[0][part], ends[1][part]), part
    assert set(load_file(tmp_path / "whole" / student)) == set(TinyNet().state_dict())  # the student alone


@pytest.mark.whole
def test_a_study_of_every_method(tmp_path: Path) -> None:
    methods = {name: method for name, method in METHODS.items() if name != "ce"}
    options = {**SHORT, "epochs": 1, "checkpoint_every": None}
    run = eyeline.study(
        TinyNet, tiny_net(2, width=8), tiny_data(20), str(tmp_path / "s"), methods=methods, seeds=1, **options
    )
    assert [entry["method"] for entry in run.result["methods"]] == ["ce", *methods]
    for entry in run.result["methods"]:
        assert math.isfinite(entry["runs"][0]["train_loss"])
        assert math.isfinite(entry["runs"][0]["test_accuracy"])


# --- labels -------------------------------------------------------------------------------------------------

WRONG_LABELS: dict[str, tuple[Any, str]] = {
    "soft": (
        torch.eye(3).repeat(2, 1),
        r"labels are \[6, 3\] for 6 images; .* soft labels are not understood",
    ),
    "soft, as many classes as images": (torch.eye(6), r"labels are \[6, 6\] for 6 images; .* soft labels"),
    "none": (None, r"labels are NoneType; expected \[6\] int64, a class of each image"),
    "a list": ([0, 1, 2, 0, 1, 2], "labels are list; expected"),
    "float": (torch.zeros(6), r"labels are float32; expected \[6\] int64"),
    "int32": (torch.zeros(6, dtype=torch.int32), r"labels are int32; .*labels\.long\(\)"),
    "one too few": (torch.zeros(5, dtype=torch.int64), r"labels are \[5\] for 6 images; expected \[6\]"),
    "one for all": (torch.tensor(0), r"labels are \[\] for 6 images"),
}
OUT_OF_RANGE = {
    "a class too many": (torch.tensor([0, 1, 2, 3, 0, 1]), "labels are 0 to 3; expected 0 to 2"),
    "negative": (torch.tensor([0, 1, 2, -100, 0, 1]), "labels are -100 to 2; expected 0 to 2"),
}
wrong_labels = pytest.mark.parametrize("wrong", [*WRONG_LABELS, *OUT_OF_RANGE])


@every
@wrong_labels
def test_labels_that_are_no_classes(name: str, wrong: str) -> None:
    labels, message = {**WRONG_LABELS, **OUT_OF_RANGE}[wrong]
    calls: list[int] = []
    with make(name) as whole:
        for network in (whole.student, whole.teacher):
            if network is not None:
                network.register_forward_hook(lambda *_: calls.append(1))
        with pytest.raises(InputError, match=message):
            whole(batch()[0], labels)
    assert not calls or wrong in OUT_OF_RANGE  # said before any work


@wrong_labels
@pytest.mark.parametrize("name", ["ce", "gat", "sym", "grad_reg", "cat of every stage", "cam"])
def test_a_loss_alone_refuses_labels_that_are_no_classes(name: str, wrong: str) -> None:
    labels, message = {**WRONG_LABELS, **OUT_OF_RANGE}[wrong]
    method = {"cam": {"classes": "label"}} if name == "cam" else METHODS[name]
    ours, theirs = students()
    with Distiller(ours, theirs, method, input_shape=(1, 12, 12)) as whole:
        targets = whole.target(*batch())
        seen = whole.observe_student(batch()[0].requires_grad_(), labels)
        loss: Any = whole.objective.losses[term(name)]
        if labels is None and name in ("gat", "sym", "grad_reg"):
            message = "give the labels"
        with pytest.raises(InputError, match=message):
            loss(seen, targets.get(term(name), {}), labels)


@wrong_labels
def test_evaluation_refuses_labels_that_are_no_classes(wrong: str) -> None:
    labels, message = {**WRONG_LABELS, **OUT_OF_RANGE}[wrong]
    given = Batch(batch()[0], labels, torch.arange(6), 0)
    with pytest.raises(InputError, match=message):
        evaluate(students()[0], [given], contextlib.nullcontext)


@pytest.mark.parametrize("wrong", WRONG_LABELS)
def test_a_split_refuses_labels_that_are_no_classes(wrong: str) -> None:
    with pytest.raises(InputError, match="labels are"):
        MemorySplit(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), WRONG_LABELS[wrong][0])
