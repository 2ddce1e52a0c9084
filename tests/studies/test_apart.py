"""Several runs of a study at once: the same figures, errors that arrive, and when it is done by itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import eyeline
from eyeline.errors import InputError, TrainingStopped
from eyeline.losses import LOSSES, Loss
from eyeline.studies import apart as processes

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> dict[str, Any]:
    """Arguments of a study whose parts have names: a folder of images and a teacher trained on it."""
    folder = tmp_path_factory.mktemp("named")
    common = {
        "data": tiny_folder,
        "image_size": 12,
        "epochs": 2,
        "batch_size": 20,
        "workers": 0,
        "accelerator": "cpu",
        "progress": False,
    }
    eyeline.train("wrn_10_1", **common, out=str(folder / "teacher"))
    return {
        "student": "wrn_10_1",
        "teacher": str(folder / "teacher"),
        "methods": ["at", "kd"],
        "seeds": 1,
    } | common


def students(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("student.safetensors")}


def test_several_at_once_are_the_same_runs(tmp_path: Path, study: dict[str, Any]) -> None:
    """With a memory and a loader that is forked as well; without them, where the study is stopped."""
    study = {**study, "memory": str(tmp_path / "memory"), "workers": 1}
    one = eyeline.study(**study, out=str(tmp_path / "one"), parallel=1)
    two = eyeline.study(**study, out=str(tmp_path / "two"), parallel=2)
    assert len(students(one.folder)) == 3
    assert students(one.folder) == students(two.folder)
    assert one.result["methods"] == two.result["methods"]
    commands = {
        json.loads(file.read_text())["command"][0]
        for file in two.folder.rglob("environment.json")
        if file.parent != two.folder
    }
    assert commands == {"worker.py"}, "they were trained here"


def test_the_error_of_a_run_arrives_and_ends_the_others(tmp_path: Path, study: dict[str, Any]) -> None:
    # the student alone would train for long beside the one that fails at its first step
    study = {**study, "methods": {"at": {"at": {"weight": 1e38}}}, "epochs": 10_000}
    with pytest.raises(TrainingStopped, match=r"at step .*without this method, .* goes on with --resume"):
        eyeline.study(**study, out=str(tmp_path / "study"), parallel=2)
    assert not list(tmp_path.rglob("result.json"))


def test_a_study_that_is_stopped_goes_on(tmp_path: Path, study: dict[str, Any]) -> None:
    whole = eyeline.study(**{**study, "epochs": 15}, out=str(tmp_path / "whole"), parallel=1)
    study = {**study, "epochs": 15, "checkpoint_every": 1, "parallel": 2, "out": str(tmp_path / "study")}
    # each process is asked to stop, as by Ctrl-C; what a background job inherits ignores the signal
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{handler}; import eyeline; eyeline.study(**{study!r})"
    with subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE
    ) as started:
        deadline = time.monotonic() + 600
        while not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=600)
    # all that held the pipe have ended, the workers too
    assert re.search(rb"stopped with [012] of 3 runs done", said)  # on a busy machine it hears of it late
    assert b"continue with the same command and --resume" in said
    cut = [torch.load(file, weights_only=True)["step"] for file in tmp_path.rglob("last.ckpt")]
    assert all(step < 15 * 3 for step in cut)
    done = eyeline.study(**study, resume=True)
    assert students(done.folder) == students(whole.folder)
    assert done.result["methods"] == whole.result["methods"]


@pytest.mark.parametrize(("how", "said"), [("kill -9 $$", r"killed \(SIGKILL\)"), ("exit 3", "status 3")])
def test_a_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, said: str) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\n{how}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(TrainingStopped, match=rf"{said}; .* continue with .*--resume, .*--parallel 1"):
        processes.run_apart([{}, {}, {}], 2, lambda number: None)


def test_a_process_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\nfrom _queue import *\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep + str(tmp_path / "elsewhere"))  # an empty entry, and one more
    task = {"student": "wrn_10_1", "teacher": "wrn_10_1", "data": "nowhere", "out": "out"}
    with pytest.raises(InputError, match="nowhere"):  # it has started, and found eyeline
        processes.run_apart([task], 1, lambda number: None)
    assert not (tmp_path / "was_run").exists()


def test_what_cannot_be_several(
    tmp_path: Path, study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "mine", type("Mine", (Loss,), {"name": "mine"}))
    for change, message in (
        ({"parallel": 0}, "expected at least 1"),
        ({"parallel": 2, "teacher": torch.nn.Identity()}, "a Python object was given"),
        ({"parallel": 2, "methods": ["kd", "mine"]}, "or a loss of yours"),
    ):
        with pytest.raises(InputError, match=message):
            eyeline.study(**{**study, **change}, out=str(tmp_path / "study"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "runs", "steps", "expected"),
    [
        (lambda threads: 0.1, 6, 10_000, 4),  # more threads help nothing
        (lambda threads: 0.1, 3, 10_000, 2),
        (lambda threads: 0.8 / threads, 6, 10_000, 1),  # they help all they can
        (lambda threads: 0.1, 6, 10, 1),  # over before a process has started
        (lambda threads: 0.2 if threads == 4 else 0.21, 6, 10_000, 4),
    ],
)
def test_how_many_is_measured(
    monkeypatch: pytest.MonkeyPatch,
    seconds: Callable[[int], float],
    runs: int,
    steps: int,
    expected: int,
) -> None:
    threads = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: threads.__setitem__(0, number))
    monkeypatch.setattr(processes, "_seconds", lambda step: seconds(threads[0]))
    count, said = processes.how_many(lambda: None, runs, steps)
    assert count == expected
    assert (f"{count} runs at once" in said) == (count > 1)
    assert threads == [4]
