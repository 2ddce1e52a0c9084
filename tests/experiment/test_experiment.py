"""What one run trains, and how often it is looked at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import eyeline
from eyeline.data.splits import ImageData
from eyeline.experiment import experiment as module
from eyeline.experiment.experiment import Experiment, Student, Teacher
from eyeline.observe import Probe
from tiny import SETTINGS, TinyNet, resolved, tiny_data, tiny_net

SHAPE = (1, 12, 12)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something that takes time was done."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def seen(*given: Any, **options: Any) -> Any:
            counted[name] += 1
            return function(*given, **options)

        monkeypatch.setattr(owner, name, seen)

    for name in ("student_fingerprint", "teacher_fingerprint"):
        count(module, name)
    count(Probe, "_first_pass")
    count(ImageData, "_hash")
    return counted


ONCE = {"student_fingerprint": 1, "teacher_fingerprint": 1, "_first_pass": 2}


def test_a_run_finds_out_each_thing_once(tmp_path: Path, counts: Counter[str]) -> None:
    given = {**SETTINGS, "epochs": 1}
    eyeline.distill(tiny_net(1), tiny_net(2), tiny_data(), str(tmp_path / "run"), **given)
    assert counts == {**ONCE, "_hash": 3}  # of the whole, and of the images that are held out


@pytest.mark.whole
def test_a_study_finds_out_each_thing_once(tmp_path: Path, counts: Counter[str]) -> None:
    given = {**SETTINGS, "epochs": 1, "methods": ["at", "kd"], "seeds": 1, "memory": str(tmp_path / "m")}
    eyeline.study(TinyNet, tiny_net(2), tiny_data(), str(tmp_path / "study"), **given)
    # each of the three runs, and its picture, tries a network of its own; data also by the time of files
    assert counts == {**ONCE, "_first_pass": 8, "_hash": 4}
    counts.clear()
    given |= {"seeds": [1, 2], "memory": None}
    eyeline.study(TinyNet, tiny_net(2), tiny_data(), str(tmp_path / "two"), **given)
    # the first is the example; a student of another seed starts with other weights
    assert counts == {"student_fingerprint": 3, "teacher_fingerprint": 1, "_first_pass": 11, "_hash": 3}


def test_a_change_of_the_callers_data_is_seen(tmp_path: Path) -> None:
    """Hashes are kept for one call, not with an object that may change."""
    data, given = tiny_data(), {**SETTINGS, "epochs": 1}
    eyeline.train(tiny_net(1), data, str(tmp_path / "run"), **given)
    data.train.images[0] += 1
    with pytest.raises(eyeline.InputError, match="another content of data"):
        eyeline.train(tiny_net(1), data, str(tmp_path / "run"), resume=True, **given)


def test_what_is_known_later() -> None:
    """The distiller that was tried is the one that trains."""
    student, teacher = Student(TinyNet, tiny_net(1), SHAPE), Teacher("t", tiny_net(2), SHAPE)
    first = Experiment(student, tiny_data(), resolved(**SETTINGS), teacher, "at")
    before, data = first.later(first.data), tiny_data()
    with first.distiller as distiller:
        later = first.later(data, resolved(**{**SETTINGS, "views": 2}))
        assert (later.distiller, later.data, later.settings.views) == (distiller, data, 2)
    with before.distiller as other:
        assert other is not distiller


def test_learnable_parts_depend_on_the_seed_alone() -> None:
    def drawn(seed: int) -> torch.Tensor:
        student, teacher = Student(TinyNet, tiny_net(1), SHAPE), Teacher("t", tiny_net(2), SHAPE)
        settings = resolved(**{**SETTINGS, "seed": seed})
        with Experiment(student, tiny_data(), settings, teacher, "hint").distiller as distiller:
            return torch.cat([p.detach().flatten() for p in distiller.objective.parameters()])

    one, two, again = drawn(1), drawn(2), drawn(1)
    assert len(one)
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
