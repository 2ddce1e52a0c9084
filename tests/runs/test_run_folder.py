from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eyeline.errors import InputError, TrainingStopped
from eyeline.files import LOCK, locked, read_json, write_atomically, write_json
from eyeline.runs import folder as module
from eyeline.runs.folder import RunFolder, claimed, is_run
from eyeline.runs.provenance import environment, plain

fork = multiprocessing.get_context("fork")

RECIPE = {
    "verb": "train",
    "model": "wrn_10_1",
    "milestones": (0.3, 0.6),
    "learning_rate": 1e-5,
    "workers": None,
}


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != LOCK)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def begun(folder: Path, recipe: Any = RECIPE, **how: Any) -> RunFolder:
    """A run that was begun, and stopped."""
    run = RunFolder(folder, recipe, **how)
    with run.claimed():
        return run


def finished(folder: Path) -> RunFolder:
    """A folder with every file that a run writes."""
    run = begun(folder)
    for name in ("metrics.csv", "last.ckpt", "model.safetensors", "attention.png", "report.html"):
        (folder / name).write_text("old")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out").write_text("old")
    write_json(folder / "model.json", {})
    write_json(folder / "result.json", {"kind": "run"})
    return run


def test_a_new_folder_holds_recipe_and_environment(tmp_path: Path) -> None:
    run = begun(tmp_path / "a" / "b", RECIPE)
    assert sorted(contents(run.path)) == ["environment.json", "recipe.yaml"]
    text = (run.path / "recipe.yaml").read_text()
    assert text.startswith("# eyeline train --config recipe.yaml")
    assert yaml.safe_load(text) == {
        "model": "wrn_10_1",
        "milestones": [0.3, 0.6],
        "learning_rate": 1e-5,
        "workers": None,
    }
    assert json.loads((run.path / "environment.json").read_text()) == environment() | {"inputs": {}}
    assert environment()["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert run.result is None


def test_a_run_that_is_there_is_not_touched(tmp_path: Path) -> None:
    finished(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds a run already; continue it with --resume, replace it with"):
        begun(tmp_path, RECIPE)
    assert contents(tmp_path) == before


def test_a_run_is_continued_or_replaced_not_both(tmp_path: Path) -> None:
    finished(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"resume and overwrite: .*not both"):
        RunFolder(tmp_path, RECIPE, resume=True, overwrite=True)
    assert contents(tmp_path) == before


def test_resume_leaves_a_finished_run_as_it_is(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "environment.json").write_text('{"of": "then"}')
    before = contents(tmp_path)
    assert begun(tmp_path, {**RECIPE, "workers": 3}, resume=True).result == {"kind": "run"}
    assert contents(tmp_path) == before


def test_resume_with_another_recipe_names_the_difference(tmp_path: Path) -> None:
    begun(tmp_path, RECIPE)
    before = contents(tmp_path)
    with pytest.raises(
        InputError, match=r"another recipe \(learning_rate was 1e-05, is 0\.1\); resume with the same"
    ):
        RunFolder(tmp_path, {**RECIPE, "learning_rate": 0.1}, resume=True)
    with pytest.raises(InputError, match="verb was 'train', is 'distill'"):
        RunFolder(tmp_path, {**RECIPE, "verb": "distill"}, resume=True)
    with pytest.raises(InputError, match=r"gamma was None, is 0\.2"):
        RunFolder(tmp_path, {**RECIPE, "gamma": 0.2}, resume=True)
    assert contents(tmp_path) == before
    begun(tmp_path, {**RECIPE, "workers": 3}, resume=True)  # changes nothing in the outcome


@pytest.mark.parametrize("text", ["# eyeline train\n: {", "# eyeline train\n- a\n", "# eyeline train\n"])
def test_a_damaged_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml is damaged .*start anew with --overwrite"):
        begun(tmp_path, RECIPE, resume=True)


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").write_text("mine")
    begun(tmp_path, RECIPE, overwrite=True)
    assert sorted(contents(tmp_path)) == ["environment.json", "figures/a.png", "notes.txt", "recipe.yaml"]


def test_overwrite_replaces_the_runs_of_a_study(tmp_path: Path) -> None:
    begun(tmp_path, RECIPE)
    (tmp_path / "study.json").write_text("{}")
    for place in ("at+kd/seed-0", "at+kd/seed-1", "ce/seed-0"):
        finished(tmp_path / place)
    (tmp_path / "ce" / "seed-7").mkdir()
    (tmp_path / "ce" / "seed-7" / "mine").write_text("no run")
    begun(tmp_path, RECIPE, overwrite=True)
    assert sorted(contents(tmp_path)) == ["ce/seed-7/mine", "environment.json", "recipe.yaml"]


@pytest.mark.parametrize("name", ["thesis.tex", "recipe.yaml", "last.ckpt"])
@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path, name: str, how: dict[str, bool]) -> None:
    (tmp_path / name).write_text("flour: 500 g\n")
    with pytest.raises(InputError, match="holds files that are no run of eyeline; choose another folder"):
        RunFolder(tmp_path, RECIPE, **how)
    assert contents(tmp_path) == {name: b"flour: 500 g\n"}


def test_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file; expected a folder"):
        RunFolder(tmp_path / "file", RECIPE)
    with pytest.raises(InputError, match=r"cannot make the folder .*file/run: Not a directory"):
        begun(tmp_path / "file" / "run", RECIPE)


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".recipe.yaml.123.part").write_text("ha")
    begun(tmp_path, RECIPE)
    (tmp_path / ".last.ckpt.123.part").write_text("ha")
    run = RunFolder(tmp_path, RECIPE, resume=True)
    assert (tmp_path / ".last.ckpt.123.part").exists()  # perhaps of a process that still writes
    with run.claimed():
        assert sorted(contents(tmp_path)) == ["environment.json", "recipe.yaml"]


def test_one_process_trains_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eyeline.runs.folder._PATIENCE", 0.2)
    one = RunFolder(tmp_path, RECIPE)
    with one.claimed():
        before = contents(tmp_path)
        for how in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match="another process trains in"):
                begun(tmp_path, RECIPE, **how)
        assert contents(tmp_path) == before
    begun(tmp_path, RECIPE, resume=True)  # free again


@contextmanager
def another_waits(do: Callable[[], None], folder: Path) -> Iterator[None]:
    """Let another process ``do`` something, and keep it from the folder while this one is in the block."""
    waiting = fork.Event()

    def told(*given: Any) -> Any:
        waiting.set()
        return locked(*given)

    def work() -> None:
        module.locked = told  # type: ignore[attr-defined]
        do()

    process = fork.Process(target=work)
    with locked(folder):
        process.start()
        assert waiting.wait(60)
        yield
    process.join(600)
    assert process.exitcode == 0


def test_a_run_that_is_finished_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    begun(tmp_path)

    def resume() -> None:
        with RunFolder(tmp_path, RECIPE, resume=True).claimed() as result:
            assert result == {"kind": "run"}

    with another_waits(resume, tmp_path):
        write_json(tmp_path / "result.json", {"kind": "run"})
        before = contents(tmp_path)
    assert contents(tmp_path) == before
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_is_begun_meanwhile_keeps_its_recipe(tmp_path: Path, finished: bool) -> None:
    def start() -> None:
        with pytest.raises(InputError, match="holds a run already"):
            begun(tmp_path / "run", {**RECIPE, "learning_rate": 0.1})

    with another_waits(start, tmp_path / "run"):
        shutil.copytree(begun(tmp_path / "other").path, tmp_path / "run", dirs_exist_ok=True)
        if finished:
            write_json(tmp_path / "run" / "result.json", {"kind": "run"})
        before = contents(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_what_changed_while_one_waits_is_seen(tmp_path: Path) -> None:
    run = begun(tmp_path / "run").path

    def resume() -> None:
        with pytest.raises(InputError, match=r"another recipe \(learning_rate was 0\.1, is 1e-05\)"):
            begun(run, resume=True)

    with another_waits(resume, run):
        shutil.copy(begun(tmp_path / "other", {**RECIPE, "learning_rate": 0.1}).path / "recipe.yaml", run)
        before = contents(run)
    assert contents(run) == before


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    """Also where those that it forked live on; the file that is left is not a run."""
    held = fork.Event()

    def hold() -> None:
        with claimed(tmp_path):
            child = fork.Process(target=time.sleep, args=(600,))
            child.start()
            children.put(child.pid)
            held.set()
            time.sleep(600)

    children = fork.SimpleQueue()
    process = fork.Process(target=hold)
    process.start()
    assert held.wait(600)
    assert process.pid is not None
    try:
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)  # join would wait for what it forked, too
        assert [file.name for file in tmp_path.iterdir()] == [LOCK]
        begun(tmp_path)
    finally:
        os.kill(children.get(), signal.SIGKILL)


def test_a_study_whose_run_another_process_trains_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eyeline.runs.folder._PATIENCE", 0.2)
    begun(tmp_path)
    for place in ("at+kd/seed-0", "ce/seed-0"):
        finished(tmp_path / place)
    for place in ("at+kd/seed-0", "ce/seed-0"):
        before = contents(tmp_path)
        with locked(tmp_path / place), pytest.raises(InputError, match=r"process trains in .*/seed-0"):
            begun(tmp_path, overwrite=True)
        assert contents(tmp_path) == before


def test_a_finished_run_is_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path)
    monkeypatch.setattr("eyeline.runs.folder.locked", None)  # cannot be called
    with RunFolder(tmp_path, RECIPE, resume=True).claimed() as result:
        assert result == {"kind": "run"}


def test_resume_with_other_contents_of_what_the_recipe_names(tmp_path: Path) -> None:
    begun(tmp_path, RECIPE, inputs={"data": "a", "teacher": "b"})
    before = contents(tmp_path)
    with pytest.raises(InputError, match="began with another content of teacher; give what it began with"):
        RunFolder(tmp_path, RECIPE, resume=True, inputs={"data": "a", "teacher": "c"})
    with pytest.raises(InputError, match="another content of data and teacher"):
        RunFolder(tmp_path, RECIPE, resume=True, inputs={"data": "c", "teacher": "c"})
    assert contents(tmp_path) == before
    begun(tmp_path, RECIPE, resume=True, inputs={"data": "a", "teacher": "b"})
    begun(tmp_path, RECIPE, overwrite=True, inputs={"data": "c", "teacher": "c"})


def test_every_environment_in_which_a_run_went_on_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> dict[str, object]:
        return json.loads((tmp_path / "environment.json").read_text())

    begun(tmp_path, RECIPE, inputs={"data": "a"})
    first = kept()
    begun(tmp_path, RECIPE, resume=True)
    assert kept() == first
    other = environment() | {"gpus": ["another machine's"]}
    for now in (other, other, environment()):
        monkeypatch.setattr("eyeline.runs.provenance.environment", lambda now=now: now)
        begun(tmp_path, RECIPE, resume=True)
    assert kept() == first | {"resumed": [other, environment()]}


# --- checkpoints --------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    run = begun(tmp_path, RECIPE)
    assert run.load_checkpoint() is None
    run.save_checkpoint({"format": 2, "step": 3, "student": {"w": torch.arange(5.0)}})
    state = run.load_checkpoint()
    assert state is not None
    assert state["step"] == 3
    assert state["student"]["w"].tolist() == [0, 1, 2, 3, 4]


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    run, path = begun(tmp_path, RECIPE), tmp_path / "last.ckpt"
    run.save_checkpoint({"format": 2, "step": 3, "w": torch.zeros(1000)})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"last\.ckpt is truncated or not one of eyeline"):
            run.load_checkpoint()
    for foreign in ({"weight": torch.zeros(3)}, [1, 2], Path("code that would run")):
        torch.save(foreign, path)
        with pytest.raises(InputError, match="truncated or not one of eyeline"):
            run.load_checkpoint()
    torch.save({"format": 9}, path)
    with pytest.raises(InputError, match="has format 9, expected 2: made by another version"):
        run.load_checkpoint()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = begun(tmp_path, RECIPE)
    run.save_checkpoint({"format": 2, "step": 3})
    before = contents(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)  # where a file system that writes late tells it
    with pytest.raises(
        TrainingStopped, match=r"last\.ckpt: the disk is full; the earlier last\.ckpt is kept"
    ):
        run.save_checkpoint({"format": 2, "step": 4})
    assert contents(tmp_path) == before


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"first")

    def check(source: Any, target: Any) -> None:
        assert Path(source).read_bytes() == b"second"
        assert path.read_bytes() == b"first"
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", check)
    write_atomically(path, b"second")
    assert contents(tmp_path) == {"a": b"second"}
    with pytest.raises(
        TrainingStopped, match=r"could not write .*nowhere/a: No such file or directory; nothing was"
    ):
        write_atomically(tmp_path / "nowhere" / "a", b"")


# --- small things -------------------------------------------------------------------------------------------


def test_metrics_come_back_as_they_were(tmp_path: Path) -> None:
    run = begun(tmp_path, RECIPE)
    assert run.read_metrics() == []
    rows = [
        {"epoch": 1, "step": 7, "loss": 0.1 + 0.2, "images_per_second": 12.0},
        {"epoch": 2, "step": 14, "loss": 1e-17, "validation_accuracy": 1 / 3, "images_per_second": 3.0},
    ]
    run.write_metrics(rows)
    text = (tmp_path / "metrics.csv").read_text()
    assert text.splitlines()[0] == "epoch,step,loss,validation_accuracy,validation_loss,images_per_second"
    assert run.read_metrics() == rows
    run.write_metrics(run.read_metrics())
    assert (tmp_path / "metrics.csv").read_text() == text


def test_plain_values() -> None:
    assert plain({1: (2, Path("a")), "b": None, "c": [True, 0.5]}) == {
        "1": [2, "a"],
        "b": None,
        "c": [True, 0.5],
    }
    assert plain(torch.nn.Linear(1, 1)) == "<torch.nn.modules.linear.Linear object>"


def test_json_that_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; expected a run"):
        read_json(tmp_path / "a.json", "a run")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        read_json(tmp_path / "a.json", "a run")
    assert not is_run(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_no_figure_that_is_not_finite(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": value, "b": [1.5, {"c": (value, "NaN")}], "d": None})
    assert read_json(path, "figures") == {"a": None, "b": [1.5, {"c": [None, "NaN"]}], "d": None}
    path.write_text(json.dumps({"a": value}))
    with pytest.raises(InputError, match=r"is damaged \(-?(NaN|Infinity) is no JSON\); expected figures"):
        read_json(path, "figures")


def test_other_processes_leave_the_folder_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    begun(tmp_path / "run", RECIPE, overwrite=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["epoch,step,ce\n1,x,2\n", "ce\n1\n", "epoch,step\n1\n"])
def test_damaged_figures(tmp_path: Path, text: str) -> None:
    folder = begun(tmp_path / "run", {"verb": "train"})
    (folder.path / "metrics.csv").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.csv is damaged .*--overwrite"):
        folder.read_metrics()
