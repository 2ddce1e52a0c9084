"""A run that was cut off and continued is, bit for bit, the run that was not."""

from __future__ import annotations

import csv
import dataclasses
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import eyeline
import eyeline.training.run
import tiny
from eyeline.cli import main
from eyeline.errors import InputError, TrainingStopped
from eyeline.files import locked
from eyeline.objective.method import resolve_method
from eyeline.runs.run import Run
from tiny import SETTINGS, TinyNet, tiny_data, tiny_net

pytestmark = pytest.mark.whole

TESTS = Path(tiny.__file__).parent


@pytest.fixture
def recipe(tiny_folder: str) -> list[str]:
    """Of a run of 2 epochs of 3 steps, for another process."""
    return [
        *("--data", tiny_folder, "--image_size", "12", "--workers", "0", "--batch_size", "20"),
        *("--epochs", "2", "--checkpoint_every", "2", "--accelerator", "cpu", "--progress", "false"),
    ]


def cut_off(saves: int, how: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in another process, and end it at a checkpoint."""
    command = [sys.executable, str(TESTS / "tiny.py"), str(torch.get_num_threads()), str(saves), how, *words]
    path = os.pathsep.join([str(TESTS), *sys.path])
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


def same(one: Path, other: Path, weights: str = "student.safetensors") -> None:
    assert (one / weights).read_bytes() == (other / weights).read_bytes()
    assert metrics(one) == metrics(other)
    assert (one / "result.json").read_text() == (other / "result.json").read_text()


def distill(out: Path, **settings: Any) -> Run:
    return eyeline.distill(tiny_net(1), tiny_net(2), tiny_data(), str(out), **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill(tmp_path_factory.mktemp("whole") / "run").folder


def cut_off_here(monkeypatch: Any, saves: int, out: Path, **settings: Any) -> None:
    """Run in this process, and end it after a checkpoint."""

    class CutOff(BaseException):
        pass

    save, done = eyeline.runs.folder.RunFolder.save_checkpoint, 0  # type: ignore[attr-defined]

    def counted(self: Any, state: Any) -> None:
        nonlocal done
        save(self, state)
        done += 1
        if done == saves:
            raise CutOff

    with monkeypatch.context() as patch:
        patch.setattr("eyeline.runs.folder.RunFolder.save_checkpoint", counted)
        with pytest.raises(CutOff):
            distill(out, **settings)


@pytest.mark.parametrize("saves", [2, 4, 5])
def test_a_run_with_dropout_from_any_checkpoint(
    tmp_path: Path, whole: Path, saves: int, monkeypatch: Any
) -> None:
    """Cut off in this process: at step 4 (in an epoch), 7 (at its end), 8 (just after), of 28."""
    cut_off_here(monkeypatch, saves, tmp_path / "run")
    torch.manual_seed(99)  # the state of the process is not that of the run
    distill(tmp_path / "run", resume=True)
    same(whole, tmp_path / "run")


LAYERS = ["low", "high"]
"""Behind ``high`` the network averages: all gradients there are the same, and alone they tell nothing."""
METHODS: dict[str, Any] = {
    "gat": "gat",
    "gat of features": {
        "gat": {"where": "features", "compare": "map", "statistics": "running", "weight": 0.1}
    },
    "sym": "sym",
    "grad_reg": "grad_reg",
    "aft": "aft",
    "balanced": {"at": {"schedule": "loss_rate", "weight": 10}, "sym": {"schedule": "loss_rate"}},
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_with_a_state_or_passes_of_their_own(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    """Cut off in the second of three epochs (step 10 of 21), and in the third (16), when weights moved."""
    settings = {"method": METHODS[name], "layers": LAYERS, "epochs": 3}
    distill(tmp_path / "whole", **settings)
    for saves in (6, 9):
        run = tmp_path / f"cut {saves}"
        cut_off_here(monkeypatch, saves, run, **settings)
        torch.manual_seed(99)
        distill(run, **settings, resume=True)
        same(tmp_path / "whole", run)


def test_balanced_weights_move_in_the_third_epoch(tmp_path: Path) -> None:
    """In the second one the last epoch is the first, and all rates are 1."""
    constant = {name: {**options, "schedule": "constant"} for name, options in METHODS["balanced"].items()}
    distill(tmp_path / "balanced", method=METHODS["balanced"], epochs=3)
    distill(tmp_path / "constant", method=constant, epochs=3)
    balanced, still = metrics(tmp_path / "balanced"), metrics(tmp_path / "constant")
    for name in ("ce", "at", "sym"):
        assert [row[name] for row in balanced[:2]] == [row[name] for row in still[:2]]
        assert balanced[2][name] != still[2][name]


@pytest.mark.parametrize("name", METHODS)
def test_such_methods_in_bf16(tmp_path: Path, name: str) -> None:
    settings = {"method": METHODS[name], "layers": LAYERS, "epochs": 2}
    distill(tmp_path / "bf16", **settings, precision="bf16")
    distill(tmp_path / "full", **settings, precision="float32")
    for half, full in zip(metrics(tmp_path / "bf16"), metrics(tmp_path / "full"), strict=True):
        for term in resolve_method(METHODS[name]):
            assert float(half[term]) == pytest.approx(float(full[term]), rel=0.05)
    assert metrics(tmp_path / "bf16") != metrics(tmp_path / "full")
    weights = load_file(tmp_path / "bf16" / "student.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())


def test_two_runs_are_the_same_and_seeds_differ(tmp_path: Path, whole: Path) -> None:
    distill(tmp_path / "again", checkpoint_every=None)
    same(whole, tmp_path / "again")
    distill(tmp_path / "other", seed=1)
    assert metrics(tmp_path / "other") != metrics(whole)


def test_a_killed_distillation_goes_on_to_the_same_student(tmp_path: Path, recipe: list[str]) -> None:
    words = ["distill", "wrn_10_1", *recipe, "--method", "at+kd"]
    assert main(["train", "wrn_10_1", *recipe, "--epochs", "1", "--out", str(tmp_path / "teacher")]) == 0
    words += ["--teacher", str(tmp_path / "teacher")]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    killed = cut_off(
        3, "within", *words, "--out", str(tmp_path / "cut")
    )  # steps 2, 3 were saved; 4 is half written
    assert killed.returncode == -9, killed.stderr
    left = {p.name.split(".part")[0].rstrip("0123456789.") for p in (tmp_path / "cut").iterdir()}
    assert {"last.ckpt", ".last.ckpt", "metrics.csv"} <= left
    assert main([*words, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    same(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".*.part"))
    assert not (tmp_path / "cut" / "last.ckpt").exists()


def test_two_processes_go_on_to_the_same_figures(tmp_path: Path, recipe: list[str]) -> None:
    words = ["train", "wrn_10_1", *recipe, "--devices", "2"]
    whole = cut_off(99, "after", *words, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    cut = cut_off(1, "after", *words, "--out", str(tmp_path / "cut"))  # at step 2 of 3 of the first epoch
    assert cut.returncode == -9, cut.stderr
    assert torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["sums"][-1] == 40
    resumed = cut_off(99, "after", *words, "--out", str(tmp_path / "cut"), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for one, other in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "cut"), strict=True):
        for name, value in one.items():
            assert float(other[name]) == pytest.approx(float(value), rel=1e-9), name


@pytest.mark.parametrize("how", ["term", "int"])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, recipe: list[str], how: str) -> None:
    words = ["train", "wrn_10_1", *recipe, "--out", str(tmp_path / "run")]
    stopped = cut_off(1, how, *words)
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines()[-1] == (
        f"eyeline: stopped at step 2 of 6; it is kept in {tmp_path / 'run'}; "
        "continue with the same command and --resume"
    )
    assert "Traceback" not in stopped.stderr
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["step"] == 2
    if how == "int":
        assert main([*words, "--resume", "true"]) == 0
        assert [row["step"] for row in metrics(tmp_path / "run")] == ["3", "6"]


def test_resume_of_a_finished_run_answers_at_once(tmp_path: Path, whole: Path, monkeypatch: Any) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    monkeypatch.setattr("eyeline.training.run.fit", None)  # cannot be called
    run = distill(whole, resume=True)
    assert run.result["method"] == "at+kd"
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before
    with pytest.raises(InputError, match=r"another recipe \(learning_rate was 0\.05, is 0\.1\)"):
        distill(whole, resume=True, learning_rate=0.1)
    with pytest.raises(InputError, match="holds a run already"):
        distill(whole)
    with pytest.raises(InputError, match="another content of teacher"):
        eyeline.distill(tiny_net(1), tiny_net(3), tiny_data(), str(whole), **SETTINGS, resume=True)
    with pytest.raises(InputError, match="another content of data"):
        eyeline.distill(tiny_net(1), tiny_net(2), tiny_data(49), str(whole), **SETTINGS, resume=True)
    data = dataclasses.replace(tiny_data(), std=(0.3,))
    with pytest.raises(InputError, match="another content of mean and std"):
        eyeline.distill(tiny_net(1), tiny_net(2), data, str(whole), **SETTINGS, resume=True)


class Scaled(TinyNet):
    """A number in an attribute decides what it answers."""

    scale = 2.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * super().forward(images)


def scaled(scale: float) -> Scaled:
    network = Scaled()
    network.load_state_dict(tiny_net(1).state_dict())
    network.scale = scale
    return network


STUDENTS: dict[str, Any] = {
    "weights": (lambda: tiny_net(1), lambda: tiny_net(3)),
    "dropout": (lambda: tiny_net(1), lambda: tiny_net(1, dropout=0.9)),
    "width": (lambda: tiny_net(1), lambda: tiny_net(1, width=5)),
    "attribute": (lambda: scaled(2.0), lambda: scaled(2.1)),
    "function": (lambda: lambda: TinyNet(), lambda: lambda: TinyNet(dropout=0.0)),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_run_is_not_answered_to_another_student(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    """Neither one that is finished, nor one that was stopped, nor one that is trained alone."""
    first, other = STUDENTS[name]
    settings = {**SETTINGS, "epochs": 1}

    def distill(make: Any, **how: bool) -> None:
        eyeline.distill(make(), tiny_net(2), tiny_data(), str(tmp_path / "run"), **settings, **how)

    distill(first)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    distill(first, resume=True)
    with pytest.raises(InputError, match=r"another content of student; .*function that makes it is seeded"):
        distill(other, resume=True)
    (tmp_path / "run" / "result.json").rename(tmp_path / "run" / "metrics.csv")  # as if it had been stopped
    with pytest.raises(InputError, match="another content of student"):
        distill(other, resume=True)
    (tmp_path / "run" / "metrics.csv").rename(tmp_path / "run" / "result.json")
    assert {p: before[p] for p in before if p.name != "metrics.csv"} == {
        p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
    }
    eyeline.train(first(), tiny_data(), str(tmp_path / "alone"), **settings)
    with pytest.raises(InputError, match="another content of model"):
        eyeline.train(other(), tiny_data(), str(tmp_path / "alone"), **settings, resume=True)


def test_nor_are_the_runs_of_a_study(tmp_path: Path) -> None:
    first, other = (make() for make in STUDENTS["function"])
    given, short = (tiny_net(2), tiny_data(), str(tmp_path)), {**SETTINGS, "epochs": 1}
    eyeline.study(first, *given, methods=["kd"], seeds=1, **short)
    with pytest.raises(InputError, match="another content of student"):
        eyeline.study(other, *given, methods=["kd"], seeds=1, **short, resume=True)
    teacher, data, _ = given
    run = str(tmp_path / "kd" / "seed-0")
    eyeline.distill(first, teacher, data, run, method="kd", **short, resume=True)
    with pytest.raises(InputError, match="another content of student"):
        eyeline.distill(other, teacher, data, run, method="kd", **short, resume=True)


def test_a_teacher_with_another_forward_is_another_one(tmp_path: Path) -> None:
    teacher, short = scaled(2.0), {**SETTINGS, "epochs": 1}
    eyeline.distill(tiny_net(1), teacher, tiny_data(), str(tmp_path / "run"), **short)
    eyeline.distill(tiny_net(1), teacher, tiny_data(), str(tmp_path / "run"), **short, resume=True)
    teacher.scale = 2.1
    with pytest.raises(InputError, match="another content of teacher"):
        eyeline.distill(tiny_net(1), teacher, tiny_data(), str(tmp_path / "run"), **short, resume=True)


def test_a_run_that_another_process_finishes_meanwhile_is_answered(
    tmp_path: Path, whole: Path, monkeypatch: Any
) -> None:
    """Another holds the folder until the run is finished; this one saw it when it was half done."""
    cut_off_here(monkeypatch, 4, tmp_path / "run")
    held = locked(tmp_path / "run")
    held.__enter__()

    def finish(folder: Path, seconds: float) -> Any:
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        held.__exit__(None, None, None)
        return locked(folder, seconds)

    monkeypatch.setattr("eyeline.runs.folder.locked", finish)
    monkeypatch.setattr("eyeline.training.run.fit", None)  # cannot be called
    distill(tmp_path / "run", resume=True)
    same(whole, tmp_path / "run")


def test_a_checkpoint_of_another_network(tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("eyeline.training.run.finish", None)
        with pytest.raises(TypeError):
            distill(tmp_path / "run", epochs=1)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    state["student"].pop("head.weight")
    torch.save(state, tmp_path / "run" / "last.ckpt")
    with pytest.raises(InputError, match=r"of another network or method .*start anew with --overwrite"):
        distill(tmp_path / "run", epochs=1, resume=True)


def test_a_disk_that_is_full_in_the_middle(tmp_path: Path, monkeypatch: Any) -> None:
    """The limit on the size of a file, lowered after the third checkpoint, is as a disk without room."""
    save, done = eyeline.runs.folder.RunFolder.save_checkpoint, 0  # type: ignore[attr-defined]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def counted(self: Any, state: Any) -> None:
        nonlocal done
        done += 1
        if done == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        save(self, state)

    monkeypatch.setattr("eyeline.runs.folder.RunFolder.save_checkpoint", counted)
    try:
        with pytest.raises(
            TrainingStopped, match=r"last\.ckpt: the disk is full; the earlier last\.ckpt is kept"
        ):
            distill(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["step"] == 6
    assert not list((tmp_path / "run").glob(".*.part"))
    monkeypatch.undo()
    distill(tmp_path / "run", resume=True)
    assert load_file(tmp_path / "run" / "student.safetensors")
