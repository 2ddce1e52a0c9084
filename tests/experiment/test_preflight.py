"""Every mistake that can be seen before images are decoded is said before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

import eyeline
from eyeline import create_model
from eyeline.errors import InputError
from tiny import TinyNet

COMMON: dict[str, Any] = {"image_size": 16, "workers": 0, "epochs": 1, "batch_size": 4, "accelerator": "cpu"}
THREE = TinyNet()  # one channel, three classes; the images have three and two


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("crow", "owl"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / "birds" / name / f"{i}.png")
    for name, classes in (("fits", 2), ("three", 3)):
        save_file(create_model("wrn_10_1", classes).state_dict(), tmp_path / f"{name}.safetensors")
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "other").write_text("x")
    return tmp_path


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "eyeline.data.sources.folder._readable", lambda *_: pytest.fail("images were decoded")
    )


ALL = [
    ({"data": "folder:bird"}, "there is no folder bird"),
    ({"out": "file"}, "file is a file"),
    ({"out": "taken"}, "taken holds files that are no run"),
    ({"resume": True, "overwrite": True}, "not both"),
    ({"train_size": 400}, "train_size is 400; expected at most"),
    ({"validation_size": 400}, "cannot hold out 400"),
    ({"accelerator": "abacus"}, "cannot use accelerator='abacus'"),
    ({"model": "wrn_10_x"}, "unknown model 'wrn_10_x'"),
    ({"weights": "nowhere.safetensors"}, r"checkpoint nowhere.safetensors does not exist"),
    ({"weights": "three.safetensors"}, "the checkpoint has 3 classes, the network 2"),
    ({"model": THREE}, r"the network answers \[3\]|channel"),
]
WITH_A_TEACHER = [
    ({"teacher": "wrn_10_2"}, "teacher_weights|another network|network has"),
    ({"teacher_weights": "three.safetensors"}, "the checkpoint has 3 classes, the network 2"),
    ({"teacher_weights": None}, "no trained weights are published for wrn_10_1"),
    ({"teacher": THREE, "teacher_weights": None}, "cannot take the images|channel"),
    ({"layers": "group4"}, "unknown layer .*'group4'; did you mean 'group"),
    ({"method": "kdd"}, "unknown loss 'kdd'"),
    ({"method": {"kd": {"temperature": 0}}}, "temperature is 0"),
    ({"memory": "file"}, "memory file is a file"),
    ({"memory": "taken"}, "taken holds files that are no memory"),
    ({"memory": "m", "memory_budget": 1e-9}, "memory_budget is 1e-09 GB; 1 view of 20 images"),
    ({"memory": "run"}, "memory run is the folder of the run"),
]
STUDY = [
    ({"parallel": 0}, "parallel is 0"),
    ({"parallel": 2, "student": lambda: create_model("wrn_10_1", 2)}, "a Python object was given"),
    ({"seeds": []}, r"seeds are \[\]"),
    ({"methods": {"a b": "kd", "a/b": "at"}}, "have names that make one folder"),
    ({"methods": {"": "kd"}}, "expected a name that makes a folder"),
]


def named(case: Any) -> str:
    return "-".join(map(str, case)) if isinstance(case, dict) else ""


@pytest.mark.parametrize(("change", "message"), ALL, ids=named)
def test_train(undecoded: None, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        eyeline.train(**{"model": "wrn_10_1", "data": "folder:birds", "out": "run", **COMMON, **change})


def as_student(change: dict[str, Any]) -> dict[str, Any]:
    return {{"model": "student", "weights": "student_weights"}.get(k, k): v for k, v in change.items()}


@pytest.mark.parametrize(("change", "message"), [*ALL, *WITH_A_TEACHER], ids=named)
def test_distill(undecoded: None, change: dict[str, Any], message: str) -> None:
    given = {"student": "wrn_10_1", "teacher": "wrn_10_1", "teacher_weights": "fits.safetensors"}
    with pytest.raises(InputError, match=message):
        eyeline.distill(**{**given, "data": "folder:birds", "out": "run", **COMMON, **as_student(change)})


@pytest.mark.parametrize(
    ("change", "message"),
    [case for case in (*ALL, *WITH_A_TEACHER, *STUDY) if "weights" not in case[0]],
    ids=named,
)
def test_study(undecoded: None, change: dict[str, Any], message: str) -> None:
    change = {"methods" if k == "method" else k: [v] if k == "method" else v for k, v in change.items()}
    given = {"student": "wrn_10_1", "teacher": "wrn_10_1", "teacher_weights": "fits.safetensors"}
    with pytest.raises(InputError, match=message):
        eyeline.study(**{**given, "data": "folder:birds", "out": "run", **COMMON, **as_student(change)})


def test_remember(undecoded: None) -> None:
    given = {"student": "wrn_10_1", "teacher": "wrn_10_1", "teacher_weights": "fits.safetensors"}
    for change, message in WITH_A_TEACHER[:-1]:
        change = {"methods" if k == "method" else k: [v] if k == "method" else v for k, v in change.items()}
        with pytest.raises(InputError, match=message):
            eyeline.remember(**{**given, "data": "folder:birds", "memory": "m", **COMMON, **change})
    with pytest.raises(InputError, match="need nothing of a teacher that could be remembered"):
        eyeline.remember(**given, data="folder:birds", memory="m", methods=["ce"], **COMMON)


def test_nothing_was_made(undecoded: None, images: Path) -> None:
    before = sorted(images.rglob("*"))
    with pytest.raises(InputError):
        eyeline.distill("wrn_10_1", "wrn_16_1", "folder:birds", memory="m", packed="p", **COMMON)
    assert sorted(images.rglob("*")) == before


def test_a_run_of_another_recipe(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"model": "wrn_10_1", "data": "folder:birds", "out": "run", **COMMON}
    eyeline.train(**given)
    monkeypatch.setattr(
        "eyeline.data.sources.folder._readable", lambda *_: pytest.fail("images were decoded")
    )
    with pytest.raises(InputError, match="run holds a run with another recipe"):
        eyeline.train(**{**given, "batch_size": 8}, resume=True)
    (images / "birds" / "owl" / "0.png").unlink()
    with pytest.raises(InputError, match="run holds a run that began with another content of data"):
        eyeline.train(**given, resume=True)


def test_a_memory_that_was_planned_before_images_are_packed(images: Path) -> None:
    given: dict[str, Any] = {"student": "wrn_10_1", "teacher": "wrn_10_1", "data": "folder:birds", **COMMON}
    given |= {"teacher_weights": "fits.safetensors", "memory": "m", "packed": "p"}
    eyeline.remember(**given)
    stored = {path: path.stat().st_mtime_ns for path in (images / "m").rglob("*.safetensors")}
    (images / "birds" / "owl" / "bad.png").write_bytes(b"bad")
    with pytest.raises(InputError, match="m remembers something else"):
        eyeline.remember(**given)
    eyeline.remember(**{**given, "packed": "q"}, skip_bad_images=True)
    assert stored == {path: path.stat().st_mtime_ns for path in (images / "m").rglob("*.safetensors")}
