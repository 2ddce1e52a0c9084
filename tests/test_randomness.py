from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import eyeline
from eyeline.data.views import SeededTransform, train_transform
from eyeline.experiment.experiment import Experiment, Student, Teacher, from_seed
from eyeline.experiment.preflight import checked
from eyeline.randomness import draws_apart, seed_draws
from eyeline.settings import Settings
from tiny import SETTINGS, TinyNet, tiny_data, tiny_net


def drawn() -> list[torch.Tensor]:
    dropout = torch.nn.functional.dropout(torch.ones(20))
    return [torch.rand(3), torch.randn(20), torch.randperm(9), dropout, torch.nn.Linear(3, 2).weight.detach()]


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_the_draws_are_those_of_torch(seed: int) -> None:
    torch.manual_seed(seed)
    theirs = drawn()
    seed_draws(seed)
    assert all(map(torch.equal, drawn(), theirs))
    with draws_apart(seed=seed):
        assert all(map(torch.equal, drawn(), theirs))


@pytest.mark.gpu
def test_the_draws_on_a_gpu_are_those_of_torch() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(3)
    theirs = torch.rand(5, device=device), torch.rand(5)
    before = torch.cuda.get_rng_state(device)
    with draws_apart(device, seed=3):
        assert torch.equal(torch.rand(5, device=device), theirs[0])
        assert torch.equal(torch.rand(5), theirs[1])
    assert torch.equal(torch.cuda.get_rng_state(device), before)


def test_the_state_of_a_device_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    state = [torch.tensor([1, 2])]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: state[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new, device: state.append(new))
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: state.append(torch.tensor([seed])))
    with draws_apart(torch.device("mps"), seed=7):
        assert state[-1].tolist() == [7]
    assert state[-1].tolist() == [1, 2]


def test_afterwards_the_state_is_as_it_was() -> None:
    state = torch.get_rng_state()
    with draws_apart():
        torch.rand(1)
    with pytest.raises(ZeroDivisionError), draws_apart(seed=1):
        1 / 0  # noqa: B018
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_on_the_cpu_seeds_nothing_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed keeps each seed, with its stack, until CUDA is used."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a seed for devices that the run does not use")

    given = tiny_net(1), tiny_net(2), tiny_data()
    monkeypatch.setattr("torch.cuda.random._lazy_call", refuse)
    eyeline.distill(*given, str(tmp_path / "run"), **{**SETTINGS, "epochs": 1})
    image = Image.new("RGB", (20, 24))
    SeededTransform(train_transform("resized-crop", 8))(image, 0, 1, 2)


def test_gpus_that_a_run_does_not_use_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's fork_rng takes all of them, and warns."""
    settings, shape = Settings.of(**SETTINGS), (1, 12, 12)
    teacher = Teacher("a", tiny_net(2), shape)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student = Student(TinyNet, from_seed(settings, TinyNet), shape)
        with checked(Experiment(student, tiny_data(), settings, teacher, "at+kd")):
            pass
