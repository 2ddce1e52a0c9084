"""What is compiled: by the settings, by the length of the run, and by what was measured. Times are faked."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from eyeline.distiller import Distiller
from eyeline.training import compiling
from eyeline.training.compiling import Part, compile_parts, losses_part, restored, student_part, teacher_part
from networks import Smooth
from tiny import tiny_net

pytestmark = pytest.mark.unchecked

CPU = torch.device("cpu")


class Clock:
    """Each question to a module takes a second; once it is compiled, as long as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, compiled: float) -> None:
        self.now, self.compiled, self.asked = 0.0, compiled, 0
        monkeypatch.setattr(compiling.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(
            nn.Module,
            "compile",
            lambda module, **options: setattr(module, "_compiled_call_impl", module._call_impl),
        )

    def teacher(self, steps: int, module: nn.Module | None = None) -> Part:
        teacher = module or Smooth()

        def ask(size: int) -> None:
            self.asked += 1
            self.now += self.compiled if teacher._compiled_call_impl is not None else 1.0

        return teacher_part(teacher, ask, steps)

    def losses(self, steps: int) -> Part:
        return dataclasses.replace(self.teacher(steps), name="losses", long=60.0)


@pytest.mark.parametrize(
    ("steps", "compiled", "kept", "said"),
    [
        (599, 0.5, False, ""),
        (600, 0.5, True, "teacher compiled in 1 s, 0.50 of the time: saves 5 minutes of this run"),
        (6000, 0.9, True, "0.90 of the time: saves 10 minutes of this run"),
        (6000, 1.0, False, "teacher takes 1.00 of the time when compiled, and runs without"),
        (6000, 2.0, False, "teacher takes 2.00 of the time when compiled, and runs without"),
        (0, 0.5, False, ""),
    ],
)
def test_auto_compiles_a_teacher_that_gains_in_a_long_run(
    steps: int, compiled: float, kept: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, compiled)
    part = clock.teacher(steps)
    answer, lines = compile_parts([part], "auto", CPU, [4, 3])
    assert answer == ["teacher"] * kept
    assert said in "\n".join(lines)
    assert (lines == []) == (said == "")
    assert (part.module._compiled_call_impl is not None) is kept
    assert clock.asked == 0 or steps > 0


def test_each_part_is_measured_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5)
    parts = [clock.teacher(400), clock.losses(400)]
    answer, lines = compile_parts(parts, "auto", CPU, [4, 3])
    assert answer == ["losses"]
    assert lines == ["compile=auto: losses compiled in 1 s, 0.50 of the time: saves 3 minutes of this run"]
    assert [part.module._compiled_call_impl is None for part in parts] == [True, False]
    _, (line,) = compile_parts([clock.losses(200)], "auto", CPU, [4])
    assert "saves 100 s of this run" in line


@pytest.mark.parametrize("named", [["teacher"], ["losses"], []])
def test_what_is_named_is_compiled_without_a_measurement(
    named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, 2.0)
    parts = [clock.teacher(6), clock.losses(6)]
    assert compile_parts(parts, named, CPU, [4, 3]) == (named, [])
    assert clock.asked == 2 * len(named)  # once for each size of a batch
    assert [p.name for p in parts if p.module._compiled_call_impl is not None] == named
    assert compile_parts([clock.teacher(0)], named, CPU, [4]) == ([], [])  # a teacher that is never asked


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_compiler_that_fails_leaves_it_as_it_is(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Clock(monkeypatch, 0.5).teacher(6000)

    def ask(size: int) -> None:
        part.ask(size)
        if part.module._compiled_call_impl is not None:
            raise RuntimeError("no compiler")

    answer, lines = compile_parts([dataclasses.replace(part, ask=ask)], mode, CPU, [4])
    assert answer == []
    assert lines == [f"compile={mode}: teacher cannot be compiled (RuntimeError) and runs without"]
    assert part.module._compiled_call_impl is None


def test_a_teacher_that_its_owner_compiled_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Smooth()
    clock = Clock(monkeypatch, 0.5)
    teacher.compile()
    compiled = teacher._compiled_call_impl
    with restored(None, teacher):
        assert compile_parts([clock.teacher(6000, teacher)], "auto", CPU, [4]) == ([], [])
        teacher._compiled_call_impl = None
    assert teacher._compiled_call_impl is compiled
    assert clock.asked == 0


def test_off_and_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.5)
    part = clock.teacher(10**6)
    assert compile_parts([part], "off", CPU, [4]) == ([], [])
    assert compile_parts([part], "auto", torch.device("mps"), [4]) == ([], [])
    assert clock.asked == 0
    assert part.module._compiled_call_impl is None
    # not measured there
    assert compile_parts([clock.teacher(1)], "auto", torch.device("cuda"), [4]) == (["teacher"], [])
    assert clock.asked == 1


@pytest.mark.whole
def test_a_teacher_of_constants_beside_a_student_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor itself: the same targets and gradients, and a student that is evaluated still trains."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    student, teacher = Smooth(), Smooth()
    images = {size: torch.randn(size, 2, 8, 8) for size in (4, 3)}
    labels = torch.tensor([0, 1, 2, 0])
    distiller = Distiller(student, teacher, "at+kd", input_shape=(2, 8, 8))
    eager = {size: flat(distiller.target(x)) for size, x in images.items()}
    distiller.train()
    gradients = torch.autograd.grad(distiller(images[4], labels).total, [*student.parameters()])
    owners = ExitStack()
    owners.enter_context(restored(student, teacher, distiller.objective))
    parts = [
        teacher_part(teacher, lambda size: distiller.target(images[size]), 10),
        losses_part(distiller, images.__getitem__, nullcontext, 10),
        student_part(distiller, images.__getitem__, nullcontext, 10),
    ]
    assert compile_parts(parts[:1], "on", CPU, [4, 3]) == (["teacher"], [])
    assert compile_parts(parts[1:], "on", CPU, [4]) == (["losses", "student"], [])  # each size takes long
    for size, x in images.items():
        torch.testing.assert_close(flat(distiller.target(x)), eager[size], rtol=1e-4, atol=1e-5)
    graphs = counters["stats"]["unique_graphs"]
    compiled = torch.autograd.grad(distiller(images[4], labels).total, [*student.parameters()])
    assert counters["stats"]["unique_graphs"] == graphs  # nothing is compiled in the step itself
    torch.testing.assert_close(compiled, gradients, rtol=1e-3, atol=1e-5)
    answers = []
    for _ in range(2):
        with torch.no_grad():
            answers.append(student.eval()(images[4]))
            torch.testing.assert_close(answers[-1], copy.deepcopy(uncompiled(student))(images[4]))
        distiller.train()
        distiller(images[4], labels).total.backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= parameter.grad
                parameter.grad = None
    assert (answers[0] - answers[1]).abs().max() > 1e-3
    owners.close()
    assert student._compiled_call_impl is teacher._compiled_call_impl is None
    assert distiller.objective._compiled_call_impl is None
    torch.testing.assert_close(flat(distiller.target(images[4])), eager[4], rtol=0, atol=0)


@pytest.mark.whole
def test_constants_are_those_of_the_weights_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor itself: a network with other weights from run to run, then compiled by its owner."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    teacher, images = Smooth().eval(), torch.randn(4, 2, 8, 8)

    def ask(size: int) -> Tensor:
        with torch.no_grad():
            return teacher(images[:size])

    graphs = []
    for scale in (1.0, 3.0, 1.0):
        with torch.no_grad():
            teacher.head.weight.mul_(scale)
        expected = ask(4)
        with restored(teacher):
            assert compile_parts([teacher_part(teacher, ask, 10)], "on", CPU, [4]) == (["teacher"], [])
            torch.testing.assert_close(ask(4), expected, rtol=1e-4, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] > graphs[0]
    assert graphs[2] == graphs[1]  # of the same weights: nothing is compiled again
    with torch.no_grad():
        teacher.head.weight.mul_(3.0)
    expected = ask(4)
    teacher.compile()
    torch.testing.assert_close(ask(4), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "differentiated"), [("ce", 1), ("kd", 1), ("at", 3), ("cam", 2), ("aft", 3)]
)
def test_losses_are_tried_with_the_gradient_of_all_they_look_at(
    method: str, differentiated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(4, 1, 12, 12)
    distiller = Distiller(tiny_net(1), tiny_net(2), method, ("low", "high"), (1, 12, 12)).train()
    answers: list[tuple[Tensor | None, ...]] = []
    plain = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **o: answers.append(plain(*a, **o)))
    losses_part(distiller, lambda size: images[:size], nullcontext, 10).ask(4)
    assert sum(gradient is not None for gradient in answers[-1]) == differentiated


def test_code_of_a_student_that_is_not_observed_serves_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline of a study is compiled first; its code calls no hooks."""
    torch._dynamo.reset()
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda m, **o: plain(m, **{**o, "backend": "aot_eager"}))
    images, labels = torch.randn(4, 2, 8, 8), torch.tensor([0, 1, 2, 0])
    distillers = {
        method: Distiller(Smooth(), Smooth(), method, input_shape=(2, 8, 8)).train()
        for method in ("at", "ce", "kd", "at+kd")
    }
    for distiller in distillers.values():
        parts = [student_part(distiller, lambda size: images[:size], nullcontext, 10)]
        assert compile_parts(parts, "on", CPU, [4]) == (["student"], [])
    for _ in range(2):
        for method, distiller in distillers.items():
            assert torch.isfinite(distiller(images, labels).total), method


def uncompiled(network: Any) -> nn.Module:
    plain = Smooth().eval()
    plain.load_state_dict(network.state_dict())
    return plain


def flat(targets: Any) -> Tensor:
    return torch.cat([tensor.flatten(1) for target in targets.values() for tensor in target.values()], 1)
