"""Runs with a memory: the same as with the teacher at hand, and the same however it came to be filled."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import eyeline
import eyeline.training.streams
import tiny
from eyeline.data.preprocess import Normalization
from eyeline.data.sources import load_data
from eyeline.data.views import CropFlip
from eyeline.errors import InputError, TrainingStopped
from eyeline.losses import LOSSES, Loss, Target
from eyeline.observe import Observation
from eyeline.runs.run import Run
from eyeline.settings import Settings
from tiny import SETTINGS, TinyNet, tiny_data, tiny_net

pytestmark = pytest.mark.whole

SHORT: dict[str, Any] = {**SETTINGS, "precision": "float32"}
"""4 epochs of 7 steps, in batches of 7 and 8 images."""
ALL = ["at0", "at1", "at2", "kd0", "kd1", "kd2", "kd3"]
"""What a memory of them holds: the weight of at falls to 0 in the last epoch, which asks for no map."""
EXACT: dict[str, Any] = {**SHORT, "memory_precision": "float32"}


def distill(out: Path, teacher: Any = None, data: Any = None, **settings: Any) -> Run:
    given = (tiny_net(1), teacher or tiny_net(2), data or tiny_data())
    return eyeline.distill(*given, str(out), **{**SHORT, **settings})


def remember(memory: Path, teacher: Any = None, **settings: Any) -> Path:
    given = (tiny_net(9), teacher or tiny_net(2), tiny_data(), str(memory))
    return eyeline.remember(*given, **{**SHORT, **settings})


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


def same(one: Path, other: Path) -> bool:
    weights = [(folder / "student.safetensors").read_bytes() for folder in (one, other)]
    return weights[0] == weights[1] and metrics(one) == metrics(other)


def stored(memory: Path) -> list[str]:
    return sorted(f"{p.parent.name[:2]}{int(p.stem[-4:])}" for p in memory.glob("*/view-*.safetensors"))


LOOK = 1
"""Batches that the teacher is asked before a run, for what each loss does."""


class Counted(TinyNet):
    """A teacher that counts its forward passes in training."""

    calls = 0

    def _get_name(self) -> str:
        return "TinyNet"  # the same network to a memory

    def forward(self, images: Tensor) -> Tensor:
        if len(images) in (7, 8):  # not the probes and the evaluations
            self.calls += 1
        return super().forward(images)


def counted() -> Counted:
    teacher = Counted()
    teacher.load_state_dict(tiny_net(2).state_dict())
    return teacher


def louder(network: TinyNet) -> TinyNet:
    """The same weights, and another ``forward``."""
    network.forward = lambda images: 1.1 * TinyNet.forward(network, images)  # type: ignore[method-assign]
    return network


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that filled its memory by itself: ``filled / "m"`` and ``filled / "run"``."""
    folder = tmp_path_factory.mktemp("filled")
    distill(folder / "run", memory=str(folder / "m"), checkpoint_every=None)
    return folder


# --- the same run -------------------------------------------------------------------------------------------


def test_exact_memory_is_the_live_teacher(tmp_path: Path) -> None:
    distill(tmp_path / "live")
    teacher = counted()
    distill(tmp_path / "run", teacher, **EXACT, memory=str(tmp_path / "m"))
    assert same(tmp_path / "live", tmp_path / "run")
    assert teacher.calls == 4 * 7 + LOOK
    distill(tmp_path / "again", teacher, **EXACT, memory=str(tmp_path / "m"))
    assert same(tmp_path / "live", tmp_path / "again")
    assert teacher.calls == 4 * 7 + 2 * LOOK  # not asked again


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float16", {"kd": 1e-4, "at": 2e-3}), ("uint8", {"kd": 1e-4, "at": 0.02})]
)
def test_less_precise_memory_hardly_changes_the_loss(
    tmp_path: Path, precision: str, tolerance: dict[str, float]
) -> None:
    """With a rate too small to move a weight: what is measured is the error of the targets."""
    still: dict[str, Any] = {"learning_rate": 1e-30, "weight_decay": 0.0, "epochs": 1}
    distill(tmp_path / "live", **still)
    distill(tmp_path / "run", **still, memory=str(tmp_path / "m"), memory_precision=precision)
    live, ours = metrics(tmp_path / "live")[0], metrics(tmp_path / "run")[0]
    assert ours["ce"] == live["ce"]
    for name, relative in tolerance.items():
        assert float(ours[name]) == pytest.approx(float(live[name]), rel=relative)
        assert ours[name] != live[name]


@pytest.mark.parametrize("how", ["before", "partly", "by another seed"])
def test_the_run_is_the_same_however_it_was_filled(tmp_path: Path, filled: Path, how: str) -> None:
    teacher = counted()
    match how:
        case "before":
            remember(tmp_path / "m")
            assert stored(tmp_path / "m") == ALL
        case "partly":
            remember(tmp_path / "m", methods=["kd"], views=3)
            remember(tmp_path / "m", methods=["at"], views=1)
            assert stored(tmp_path / "m") == ["at0", "kd0", "kd1", "kd2"]
        case _:
            distill(tmp_path / "other", seed=5, memory=str(tmp_path / "m"))
            assert not same(tmp_path / "other", filled / "run")
    distill(tmp_path / "run", teacher, memory=str(tmp_path / "m"))
    assert same(tmp_path / "run", filled / "run")
    assert teacher.calls == (3 * 7 if how == "partly" else 0) + LOOK


class CutOff(BaseException):
    pass


@pytest.mark.parametrize(("saves", "lost"), [(2, "nothing"), (2, "the memory"), (6, "a view")])
def test_resumed_in_the_middle_of_an_epoch(
    tmp_path: Path, filled: Path, monkeypatch: Any, saves: int, lost: str
) -> None:
    save, done = eyeline.runs.folder.RunFolder.save_checkpoint, 0  # type: ignore[attr-defined]

    def cut(self: Any, state: Any) -> None:
        nonlocal done
        save(self, state)
        done += 1
        if done == saves:
            raise CutOff

    with monkeypatch.context() as patch:
        patch.setattr("eyeline.runs.folder.RunFolder.save_checkpoint", cut)
        with pytest.raises(CutOff):
            distill(tmp_path / "run", memory=str(tmp_path / "m"))
    memory = tmp_path / "m"
    if lost == "the memory":
        memory = tmp_path / "elsewhere"
    elif lost == "a view":
        for file in memory.glob("*/view-0001.safetensors"):
            file.unlink()
    distill(tmp_path / "run", memory=str(memory), resume=True)
    assert same(tmp_path / "run", filled / "run")


def test_killed_while_the_teacher_is_asked(tmp_path: Path, filled: Path) -> None:
    """SIGKILL in the middle of the second view, by another process; this one goes on."""
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {tests!r})
        import tiny
        from eyeline.memory import encoding as memory
        encode, done = memory.encode, 0
        def counted(*given):
            global done
            done += 1
            if done == 2 * (7 + 3):
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(*given)
        from training import test_remembered_runs as runs
        memory.encode = counted
        out = Path({out!r})
        runs.distill(out / "run", memory=str(out / "m"))
    """
    tests = str(Path(tiny.__file__).parent)
    killed = subprocess.run(
        [sys.executable, "-c", code.format(tests=tests, out=str(tmp_path))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    assert stored(tmp_path / "m") == ["at0", "kd0"]
    assert len(metrics(tmp_path / "run")) == 1
    distill(tmp_path / "run", memory=str(tmp_path / "m"), resume=True)
    assert same(tmp_path / "run", filled / "run")


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_full_disk_changes_nothing_but_a_line(
    tmp_path: Path, filled: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    write = eyeline.memory.folder.write_atomically  # type: ignore[attr-defined]
    room = 0 if when == "at once" else 3

    def limited(path: Path, content: bytes) -> None:
        nonlocal room
        if room == 0:
            monkeypatch.setattr(os, "fsync", full)
        try:
            room -= 1
            write(path, content)
        finally:
            monkeypatch.setattr(os, "fsync", flush)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flush = os.fsync
    monkeypatch.setattr("eyeline.memory.folder.write_atomically", limited)
    distill(tmp_path / "run", memory=str(tmp_path / "m"))
    assert same(tmp_path / "run", filled / "run")
    assert stored(tmp_path / "m") == ([] if when == "at once" else ["at0", "at1", "kd0"])
    lines = [line for line in capsys.readouterr().err.splitlines() if "disk is full" in line]
    assert len(lines) == 1
    assert lines[0].endswith("is kept, for the rest the teacher is asked anew")


def test_a_damaged_view_is_made_anew_in_the_run(
    tmp_path: Path, filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(tmp_path / "m")
    (file,) = (tmp_path / "m").glob("kd-*/view-0002.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 16
    file.write_bytes(content)
    capsys.readouterr()
    teacher = counted()
    distill(tmp_path / "run", teacher, memory=str(tmp_path / "m"))
    assert teacher.calls == 7 + LOOK
    assert same(tmp_path / "run", filled / "run")
    assert capsys.readouterr().err.count(f"{file} is damaged (its checksum is wrong)") == 1
    theirs = next((filled / "m").glob("kd-*/view-0002.safetensors"))
    ours = load_file(file)
    assert all(torch.equal(part, ours[name]) for name, part in load_file(theirs).items())


# --- views --------------------------------------------------------------------------------------------------


def test_more_epochs_than_views(tmp_path: Path) -> None:
    """Each image is seen in V views, in turn and in orders that differ; so is what is remembered of them."""
    seen: list[tuple[Tensor, Tensor]] = []
    stream = eyeline.training.streams.TrainingStream  # type: ignore[attr-defined]

    class Seen(stream):  # type: ignore[misc, valid-type]
        def batches(self, start: int, stop: int) -> Any:
            for batch in super().batches(start, stop):
                if stop - start > 7:  # not the teacher's
                    seen.append((batch.images.clone(), batch.indices))
                yield batch

    options: dict[str, Any] = {"views": 3, "epochs": 5, "seed": 4, "memory": str(tmp_path / "m")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eyeline.training.streams.TrainingStream", Seen)
        teacher = counted()
        distill(tmp_path / "run", teacher, **options)
    assert teacher.calls == 3 * 7 + LOOK
    assert stored(tmp_path / "m") == [f"{t}{v}" for t in ("at", "kd") for v in range(3)]

    data = tiny_data()
    view, normalize = CropFlip(data.train.images), Normalization(data.mean, data.std)  # type: ignore[union-attr]
    orders = []
    for epoch in range(5):
        images, indices = (torch.cat(parts) for parts in zip(*seen[7 * epoch : 7 * epoch + 7], strict=True))
        assert torch.equal(images, normalize(view(indices, 0, epoch % 3)))
        orders.append(tuple(indices.tolist()))
    assert len(set(orders)) == 5


def test_the_student_alone_sees_the_same_views(tmp_path: Path) -> None:
    runs = {
        "all": {},
        "one an epoch": {"views": 4},
        "two": {"views": 2},
        "two, shared": {"views": 2, "memory": str(tmp_path / "m"), "seed": 0},
    }
    for name, options in runs.items():
        distill(tmp_path / name, method="ce", **options)
    assert same(tmp_path / "all", tmp_path / "one an epoch")
    assert not same(tmp_path / "all", tmp_path / "two")
    assert same(tmp_path / "two", tmp_path / "two, shared")
    assert not (tmp_path / "m").exists()


def test_as_many_views_as_the_budget_holds(tmp_path: Path) -> None:
    size = 50 * (2 * (3 + 1) + 2 * (144 + 1 + 36 + 1))  # bytes a view: logits, maps, their scales
    options: dict[str, Any] = {"layers": ["low", "high"], "memory_budget": 2.5 * size / 1e9}
    run = distill(tmp_path / "run", memory=str(tmp_path / "m"), **options)
    assert stored(tmp_path / "m") == ["at0", "at1", "kd0", "kd1"]
    assert re.search(r"^views: 2$", (run.folder / "recipe.yaml").read_text(), re.MULTILINE)
    for change in ({"memory_budget": 0.5 * size / 1e9}, {"views": 3}):
        with pytest.raises(InputError, match=r"give a larger --memory_budget, fewer --views"):
            distill(tmp_path / "none", memory=str(tmp_path / "n"), **{**options, **change})
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "n").exists()


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teacher": tiny_net(3)},
            r"\(teacher was '[0-9a-f]{12}...', is '[0-9a-f]{12}...'; teacher's answers was .*\)",
        ),
        ({"teacher": louder(tiny_net(2))}, r"\(teacher's answers was \[.*, ...\], is \[.*, ...\]\)"),
        ({"data": tiny_data(train=49)}, r"\(data was .*; images was 50, is 49\)"),
        (
            {"augmentation": "flip", "view_seed": 1},
            r"\(augmentation was 'crop\+flip', is 'flip'; view_seed was 0, is 1\)",
        ),
        ({"memory_precision": "uint8"}, r"\(memory_precision was 'float16', is 'uint8'\)"),
        ({"precision": "bf16"}, r"\(precision was 'float32', is 'bf16'\)"),
    ],
    ids=["teacher", "forward", "data", "views", "memory precision", "precision"],
)
def test_a_memory_of_something_else(
    tmp_path: Path, filled: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(
        InputError, match=rf"{filled / 'm'} remembers something else {message}; choose another"
    ):
        distill(tmp_path / "run", memory=str(filled / "m"), **change)
    assert not (tmp_path / "run").exists()


def test_one_changed_file(tmp_path: Path) -> None:
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.RandomState(20 * label + i).randint(0, 100, (16, 16, 3)) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{i}.png")

    class Colour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low = nn.Conv2d(3, 2, 3, stride=2)
            self.head = nn.Linear(2, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.low(images).relu().mean((2, 3)))

    def run(out: str, memory: bool = True) -> Path:
        torch.manual_seed(0)
        options: dict[str, Any] = {**EXACT, "image_size": 16, "workers": 0, "epochs": 2, "method": "kd"}
        options["memory"] = str(tmp_path / "m") if memory else None
        data = f"folder:{tmp_path / 'images'}"
        return eyeline.distill(Colour(), Colour(), data, str(tmp_path / out), **options).folder

    live = run("live", memory=False)
    assert same(live, run("one"))
    assert same(live, run("two"))  # the folder is as it was
    fingerprint = json.loads((tmp_path / "m" / "memory.json").read_text())["key"]["data"]
    first = int((tmp_path / "images" / "dark" / "0.png").stat().st_mtime)
    with (tmp_path / "images" / "dark" / "0.png").open("ab") as file:
        file.write(b"\0")
    data = load_data(f"folder:{tmp_path / 'images'}", Settings(image_size=16))
    if all(path.name != "0.png" or path.parent.name != "dark" for path in data.train.paths):  # type: ignore[union-attr]
        pytest.fail("the changed image is not one of the training images; choose another")
    with pytest.raises(InputError, match=rf"remembers something else \(data was '{fingerprint}', is '"):
        run("three")
    # as many bytes as before, at another time: other pixels
    changed = tmp_path / "images" / "dark" / "0.png"
    os.truncate(changed, changed.stat().st_size - 1)
    os.utime(changed, (first, first))
    assert same(live, run("four"))
    os.utime(changed, (first + 1, first + 1))
    with pytest.raises(InputError, match=rf"remembers something else \(data was '{fingerprint}', is '"):
        run("five")


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: Any) -> None:
    remember(tmp_path / "m", views=3)
    access = os.access  # root may write anywhere, so a mode would not do
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: not (mode & os.W_OK and Path(path).name == "m") and access(path, mode),
    )
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "m").rglob("*")}
    distill(tmp_path / "run", memory=str(tmp_path / "m"), views=3)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "m").rglob("*")} == before
    with pytest.raises(InputError, match=r"1 of 4 views are not in .*/m, which cannot be written; choose"):
        distill(tmp_path / "none", memory=str(tmp_path / "m"))
    assert not (tmp_path / "none").exists()


def test_several_devices_read_but_do_not_fill(tmp_path: Path, filled: Path) -> None:
    with pytest.raises(InputError, match=r"4 of 4 views are not in .*fill it first with eyeline remember"):
        distill(tmp_path / "run", memory=str(tmp_path / "m"), devices=2)
    assert not (tmp_path / "m").exists()


def test_a_teacher_that_looks_at_the_whole_batch(tmp_path: Path) -> None:
    teacher = tiny_net(2)
    teacher.low[1] = nn.BatchNorm2d(teacher.low[1].num_features, track_running_stats=False)  # type: ignore[index, operator, arg-type]
    with pytest.raises(InputError, match=r"low\.1 of the teacher keeps no running statistics"):
        distill(tmp_path / "run", teacher, memory=str(tmp_path / "m"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_replaced_with_the_memory_in_its_folder_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("memory", "deep/memory"):
        run = tmp_path / place.partition("/")[0] / "run"
        memory = str(run / place)
        distill(run, memory=memory)
        capsys.readouterr()
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        if place == "memory":
            distill(run, tiny_net(3), memory=memory, overwrite=True)
            assert "; 4 to be filled" in capsys.readouterr().err
        else:  # it is not looked for so deep
            with pytest.raises(InputError, match="remembers something else"):
                distill(run, tiny_net(3), memory=memory, overwrite=True)
            assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    with pytest.raises(InputError, match=rf"fill one outside of {tmp_path / 'memory' / 'run'} first"):
        distill(
            tmp_path / "memory" / "run",
            memory=str(tmp_path / "memory" / "run" / "memory"),
            overwrite=True,
            devices=2,
        )
    assert (tmp_path / "memory" / "run" / "result.json").exists()


def test_a_memory_that_is_the_run_s_folder(tmp_path: Path) -> None:
    for memory in (tmp_path / "a" / "run", tmp_path / "a"):
        with pytest.raises(InputError, match="is the folder of the run, or around it"):
            distill(tmp_path / "a" / "run", memory=str(memory))
    with pytest.raises(InputError, match="train has no teacher"):
        eyeline.train(tiny_net(1), tiny_data(), str(tmp_path / "b"), **SHORT, memory=str(tmp_path / "m"))
    with pytest.raises(InputError, match="need nothing of a teacher that could be remembered"):
        remember(tmp_path / "m", methods=["ce"])
    assert list(tmp_path.iterdir()) == []


def test_resume_with_another_memory(tmp_path: Path, filled: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("eyeline.training.run.finish", None)
        with pytest.raises(TypeError):
            distill(tmp_path / "run", memory=str(filled / "m"), epochs=1)
    for memory, views in ((None, 1), (None, None)):
        with pytest.raises(InputError, match=r"another recipe \(memory was"):
            distill(tmp_path / "run", memory=memory, views=views, epochs=1, resume=True)
    with pytest.raises(InputError, match="memory_precision was 'float16', is 'uint8'"):
        distill(tmp_path / "run", memory=str(tmp_path / "n"), memory_precision="uint8", epochs=1, resume=True)
    distill(tmp_path / "run", memory=str(tmp_path / "m"), memory_budget=9.0, epochs=1, resume=True)


# --- other methods ------------------------------------------------------------------------------------------


class Doubled(Loss):
    """A method as one adds it: it says what it needs of the teacher, and nothing of a memory."""

    name = "doubled"
    needs = frozenset({"features", "logits"})

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def target(self, teacher: Observation) -> Target:
        means = torch.stack([feature.mean((1, 2, 3)) for feature in teacher.features], 1)
        return {"means": means * self.factor, "classes": teacher.logits.argmax(1)}

    def forward(self, student: Observation, target: Target, labels: Tensor) -> Tensor:
        means = torch.stack([feature.mean((1, 2, 3)) for feature in student.features], 1)
        right = (student.logits.argmax(1) == target["classes"]).float().mean()
        return (means - target["means"]).square().mean() + right


class Forgetful(Doubled):
    """Its target is not to be remembered."""

    name = "forgetful"
    remembers = False


def test_a_new_method_has_a_memory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(LOSSES, "doubled", Doubled)
    teacher = counted()
    distill(tmp_path / "live", method="doubled+kd")
    for out in ("one", "two"):
        distill(tmp_path / out, teacher, method="doubled+kd", **EXACT, memory=str(tmp_path / "m"))
        assert same(tmp_path / "live", tmp_path / out)
    assert teacher.calls == 4 * 7 + 2 * LOOK
    distill(
        tmp_path / "three", teacher, method={"doubled": {"factor": 3}}, **EXACT, memory=str(tmp_path / "m")
    )
    assert teacher.calls == 8 * 7 + 3 * LOOK
    assert len(list((tmp_path / "m").glob("doubled-*"))) == 2


def test_a_target_that_is_not_remembered_is_asked_live(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(LOSSES, "forgetful", Forgetful)
    teacher = counted()
    distill(tmp_path / "live", method="forgetful+kd")
    remember(tmp_path / "m", memory_precision="float32")
    distill(tmp_path / "run", teacher, method="forgetful+kd", **EXACT, memory=str(tmp_path / "m"))
    assert same(tmp_path / "live", tmp_path / "run")
    assert teacher.calls == 4 * 7 + LOOK  # one a step
    assert stored(tmp_path / "m") == ALL


# --- the verb, and studies ----------------------------------------------------------------------------------


def test_remember_says_what_it_will_take_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    teacher = counted()
    calls = 0

    def encode(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 + 2 * 7 * 2 + 3:
            raise CutOff
        return whole(*given)

    whole = eyeline.memory.encoding.encode  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr("eyeline.memory.encoding.encode", encode)
        with pytest.raises(CutOff):
            remember(tmp_path / "m", teacher)
    assert stored(tmp_path / "m") == ["at0", "at1", "kd0", "kd1"]
    size = 50 * (2 * (3 + 1) + 2 * (36 + 1))  # of the layers that find each other one has a map
    err = capsys.readouterr().err
    whole_size = 4 * 50 * 2 * (3 + 1) + 3 * 50 * 2 * (36 + 1)  # no map for the last view
    each, total = (f"{amount / 1e3:.1f} kB" for amount in (size, whole_size))
    assert err.startswith(f"memory: 4 views of 50 images, {each} each, {total} in all (at-")
    assert err.rstrip().endswith(f"in {tmp_path / 'm'}; 4 to be filled")
    teacher.calls = 0
    assert remember(tmp_path / "m", teacher) == tmp_path / "m"
    assert teacher.calls == 2 * 7
    assert capsys.readouterr().err.rstrip().endswith("; 2 to be filled")
    remember(tmp_path / "m", teacher)
    assert teacher.calls == 2 * 7
    assert capsys.readouterr().err.rstrip().endswith("; all are there")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingStopped, match="is not complete; the same command goes on"):
        remember(tmp_path / "n", teacher)


def test_what_no_epoch_needs_is_not_asked(tmp_path: Path) -> None:
    """Terms of weight 0: always, in the last epoch, or in the last epoch of several with one view."""
    teacher = counted()
    never = {"at": {"schedule": "linear"}, "kd": {"weight": 0}}
    distill(tmp_path / "run", teacher, method=never, memory=str(tmp_path / "m"))
    assert stored(tmp_path / "m") == ["at0", "at1", "at2"]
    assert teacher.calls == 3 * 7 + LOOK
    distill(tmp_path / "live", teacher, method=never)
    assert teacher.calls == 6 * 7 + 2 * LOOK  # so without a memory
    remember(tmp_path / "n", teacher, methods=["at+kd"], views=3)
    assert stored(tmp_path / "n") == ["at0", "at1", "at2", "kd0", "kd1", "kd2"]
    assert teacher.calls == 9 * 7 + 2 * LOOK
    remember(tmp_path / "n", teacher, methods=["at", "at+kd"])  # at alone has a constant weight
    assert stored(tmp_path / "n") == [f"{term}{view}" for term in ("at", "kd") for view in range(4)]
    assert teacher.calls == 10 * 7 + 2 * LOOK
    with pytest.raises(InputError, match="need nothing of a teacher that could be remembered"):
        remember(tmp_path / "o", methods=[{"kd": {"weight": 0}}])


def test_a_study_asks_the_teacher_once_a_view(tmp_path: Path) -> None:
    teacher = counted()

    def study(**options: Any) -> dict[str, Any]:
        given = {"student": TinyNet, "teacher": teacher, "data": tiny_data(), "out": str(tmp_path / "s")}
        given |= {"methods": ["kd", "at"], "seeds": 2, "memory": str(tmp_path / "s" / "memory")}
        return eyeline.study(**{**given, **SHORT, "epochs": 3, "views": 2, **options}).result

    result = study()
    assert teacher.calls == 2 * 7 + 4 * LOOK
    assert stored(tmp_path / "s" / "memory") == ["at0", "at1", "kd0", "kd1"]
    assert result["recipe"]["views"] == 2
    recipes = [p.read_text() for p in (tmp_path / "s").glob("*/seed-*/recipe.yaml")]
    assert len(recipes) == 6
    assert all(re.search(r"^views: 2$", recipe, re.MULTILINE) for recipe in recipes)
    runs = {entry["method"]: entry["runs"] for entry in result["methods"]}

    # each run is the one that a command of its own makes with this memory
    alone = eyeline.distill(
        eyeline.experiment.experiment.from_seed(Settings(seed=1), TinyNet),  # type: ignore[attr-defined]
        teacher,
        tiny_data(),
        str(tmp_path / "alone"),
        method="kd",
        **{**SHORT, "epochs": 3, "views": 2, "seed": 1, "memory": str(tmp_path / "s" / "memory")},
    )
    assert same(alone.folder, tmp_path / "s" / runs["kd"][1]["run"])

    (tmp_path / "s" / "memory" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds a run already"):
        study()
    teacher.low[0].weight.data += 1  # type: ignore[operator]
    (tmp_path / "s" / "memory" / "notes.txt").unlink()
    teacher.calls = 0
    study(overwrite=True, seeds=1, views=1)
    assert teacher.calls == 7 + 2 * LOOK
    assert stored(tmp_path / "s" / "memory") == ["at0", "kd0"]
