"""What is compiled: by the settings, by the length of the run, and by what was measured. Times are faked."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eyeline.distiller import Distiller
from eyeline.engine import compiling
from eyeline.engine.compiling import compile_networks, restored
from networks import Smooth

CPU = torch.device("cpu")


class Clock:
    """Each question to the teacher takes a second; once it is compiled, as long as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, teacher: nn.Module, compiled: float) -> None:
        self.now, self.teacher, self.compiled, self.asked = 0.0, teacher, compiled, 0
        monkeypatch.setattr(compiling.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(
            nn.Module,
            "compile",
            lambda module, **options: setattr(module, "_compiled_call_impl", module._call_impl),
        )

    def ask(self, size: int) -> None:
        self.asked += 1
        self.now += self.compiled if self.teacher._compiled_call_impl is not None else 1.0


@pytest.mark.parametrize(
    ("steps", "compiled", "kept", "said"),
    [
        (599, 0.5, False, ""),
        (600, 0.5, True, "takes 0.50 of its time, which saves 5 minutes of this run"),
        (6000, 0.9, True, "takes 0.90 of its time, which saves 10 minutes of this run"),
        (6000, 1.0, False, "takes 1.00 of its time: runs as it is"),
        (6000, 2.0, False, "takes 2.00 of its time: runs as it is"),
        (0, 0.5, False, ""),
    ],
)
def test_auto_compiles_a_teacher_that_gains_in_a_long_run(
    steps: int, compiled: float, kept: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = Smooth(), Smooth()
    clock = Clock(monkeypatch, teacher, compiled)
    answer, line = compile_networks(student, teacher, "auto", CPU, clock.ask, [4, 3], steps)
    assert answer is kept
    assert said in line
    assert (line == "") == (said == "")
    assert (teacher._compiled_call_impl is not None) is kept
    assert student._compiled_call_impl is None
    assert clock.asked == 0 or steps > 0


@pytest.mark.parametrize("decided", [True, False])
def test_a_run_that_goes_on_keeps_what_was_decided(decided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Smooth()
    clock = Clock(monkeypatch, teacher, 2.0 if decided else 0.1)
    assert compile_networks(None, teacher, "auto", CPU, clock.ask, [4, 3], 6000, decided) == (decided, "")
    assert clock.asked == (2 if decided else 0)  # once for each size of a batch, without a measurement


def test_a_compiler_that_fails_leaves_the_teacher_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Smooth()
    clock = Clock(monkeypatch, teacher, 0.5)

    def ask(size: int) -> None:
        clock.ask(size)
        if teacher._compiled_call_impl is not None:
            raise RuntimeError("no compiler")

    answer, said = compile_networks(None, teacher, "auto", CPU, ask, [4], 6000)
    assert not answer
    assert "cannot be compiled (RuntimeError)" in said
    assert teacher._compiled_call_impl is None


def test_a_teacher_that_its_owner_compiled_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Smooth()
    clock = Clock(monkeypatch, teacher, 0.5)
    teacher.compile()
    compiled = teacher._compiled_call_impl
    with restored(None, teacher):
        assert compile_networks(None, teacher, "auto", CPU, clock.ask, [4], 6000) == (False, "")
        teacher._compiled_call_impl = None
    assert teacher._compiled_call_impl is compiled
    assert clock.asked == 0


def test_off_and_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = Smooth(), Smooth()
    clock = Clock(monkeypatch, teacher, 0.5)
    assert compile_networks(student, teacher, "off", CPU, clock.ask, [4], 10**6) == (False, "")
    assert compile_networks(student, teacher, "auto", torch.device("mps"), clock.ask, [4], 10**6) == (
        False,
        "",
    )
    assert compile_networks(student, teacher, "auto", torch.device("cuda"), clock.ask, [4], 1) == (True, "")
    assert None not in (student._compiled_call_impl, teacher._compiled_call_impl)
    assert clock.asked == 0


def test_a_teacher_of_constants_beside_a_student_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor itself: the same targets, and a student that is evaluated still trains."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    student, teacher = Smooth(), Smooth()
    images = {size: torch.randn(size, 2, 8, 8) for size in (4, 3)}
    distiller = Distiller(student, teacher, "at+kd", input_shape=(2, 8, 8))
    eager = {size: flat(distiller.target(x)) for size, x in images.items()}
    owners = ExitStack()
    owners.enter_context(restored(student, teacher))
    compile_networks(student, teacher, "on", CPU, lambda size: distiller.target(images[size]), [4, 3], 10)
    for size, x in images.items():
        torch.testing.assert_close(flat(distiller.target(x)), eager[size], rtol=1e-4, atol=1e-5)
    answers = []
    for _ in range(2):
        with torch.no_grad():
            answers.append(student.eval()(images[4]))
            torch.testing.assert_close(answers[-1], copy.deepcopy(uncompiled(student))(images[4]))
        distiller.train()
        distiller(images[4], torch.tensor([0, 1, 2, 0])).total.backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter -= parameter.grad
                parameter.grad = None
    assert (answers[0] - answers[1]).abs().max() > 1e-3
    owners.close()
    assert student._compiled_call_impl is teacher._compiled_call_impl is None
    torch.testing.assert_close(flat(distiller.target(images[4])), eager[4], rtol=0, atol=0)


def uncompiled(network: Any) -> nn.Module:
    plain = Smooth().eval()
    plain.load_state_dict(network.state_dict())
    return plain


def flat(targets: Any) -> Tensor:
    return torch.cat([tensor.flatten(1) for target in targets.values() for tensor in target.values()], 1)
