"""The packed copy of a folder: the same views as from the files, and nothing served that is not whole."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

import eyeline
from eyeline.data import packed as module
from eyeline.data.batches import TrainingStream, evaluation_batches
from eyeline.data.preprocess import Normalization
from eyeline.data.sources import load_data
from eyeline.data.splits import FileSplit, ImageData
from eyeline.data.views import SeededTransform, train_transform
from eyeline.errors import InputError, TrainingStopped
from eyeline.settings import Settings
from tiny import SETTINGS

fork = multiprocessing.get_context("fork")
PLAIN = Normalization((0.0,) * 3, (1.0,) * 3)
SIDE = 18  # of an image_size of 16: 16 * 8 / 7, rounded


def write_image(path: Path, height: int, width: int, seed: int, kind: str = "RGB", **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if kind == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(pixels).convert(kind).save(path, **options)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """train, val and test, of all shapes and kinds; 18 is the shorter side of an image_size of 16."""
    root, turned = tmp_path / "birds", Image.Exif()
    turned[0x0112] = 6
    for split, seed in (("train", 0), ("val", 50), ("test", 100)):
        for name in ("crow", "owl"):
            folder, seed = root / split / name, seed + 20
            write_image(folder / "large.jpg", 61, 47, seed)
            write_image(folder / "wide.png", 21, 90, seed + 1)
            write_image(folder / "turned.jpg", 40, 33, seed + 2, exif=turned)
            write_image(folder / "small.png", 11, 14, seed + 3)
            write_image(folder / "short.png", 9, 70, seed + 4)
            write_image(folder / "exact.png", SIDE, 25, seed + 5)
            write_image(folder / "clear.png", 30, 29, seed + 6, "RGBA")
            write_image(folder / "deep.png", 31, 32, seed + 7, "I;16")
    return root


def load(root: Path, where: Path | None, **options: Any) -> ImageData:
    said: list[str] = options.pop("said", [])
    options = {"image_size": 16, "workers": 2, **options}
    if where is not None:
        options["packed"] = str(where)
    return load_data(f"folder:{root}", Settings(**options), say=said.append)


def files(split: Any) -> FileSplit:
    assert isinstance(split, FileSplit)
    return split


def upright(path: Path) -> Image.Image:
    """By Pillow alone."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
        image = ImageOps.exif_transpose(image)
        if image.mode == "RGBA":
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image)
            image = white
        return image.convert("RGB")


def expected(path: Path, side: int = SIDE) -> Image.Image:
    """What is kept of a file."""
    image = upright(path)
    width, height = image.size
    if min(width, height) <= side:
        return image
    if width < height:
        return image.resize((side, side * height // width), Image.Resampling.BILINEAR)
    return image.resize((side * width // height, side), Image.Resampling.BILINEAR)


def same_image(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode == "RGB" and np.array_equal(np.asarray(one), np.asarray(other))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def whole(data: ImageData) -> bool:
    """Whether all that is served is what it should be."""
    splits = [files(split) for split in data.splits.values()]
    assert all(split.pixels is not None for split in splits)
    return all(same_image(s.load(i), expected(path)) for s in splits for i, path in enumerate(s.paths))


def never(*arguments: Any) -> Any:
    pytest.fail("an image is decoded")


# --- what is served -----------------------------------------------------------------------------------------


def test_the_images_are_kept_as_they_should_be(birds: Path, tmp_path: Path) -> None:
    data, plain = load(birds, tmp_path / "p"), load(birds, None)
    assert whole(data)
    for name, split in data.splits.items():
        assert files(split).paths == files(plain.splits[name]).paths
        assert torch.equal(split.labels, plain.splits[name].labels)
    assert data.fingerprint() == plain.fingerprint()
    assert sorted(contents(tmp_path / "p")) == [
        ".eyeline.lock",
        "packed.json",
        "test.images",
        "train.images",
        "validation.images",
    ]


@pytest.mark.parametrize("size", [16, 9, 40])
def test_the_evaluation_view_is_that_of_the_files(birds: Path, tmp_path: Path, size: int) -> None:
    """Bit for bit; and so are the training views that begin with it."""
    data, plain = (load(birds, where, image_size=size) for where in (tmp_path / "p", None))
    for name, split in data.splits.items():
        ours, theirs = (
            torch.cat([b.images for b in evaluation_batches(s, PLAIN, size=size, workers=0)])
            for s in (split, plain.splits[name])
        )
        assert torch.equal(ours, theirs)
    for augmentation in ("crop+flip", "flip", "none"):
        ours, theirs = (
            torch.cat([b.images for b in stream(d, augmentation, size=size).batches(0, 8)])
            for d in (data, plain)
        )
        assert torch.equal(ours, theirs)


def stream(data: ImageData, augmentation: str = "resized-crop", **options: Any) -> TrainingStream:
    defaults: dict[str, Any] = {"batch_size": 4, "normalization": PLAIN, "size": 16, "workers": 0}
    return TrainingStream(data.train, augmentation=augmentation, **{**defaults, **options})


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_training_view_is_a_function_of_the_kept_image(birds: Path, tmp_path: Path, workers: int) -> None:
    data = load(birds, tmp_path / "p")
    ours = stream(data, workers=workers, view_seed=3)
    transform, differing = SeededTransform(train_transform("resized-crop", 16)), 0
    for step, batch in enumerate(ours.batches(2, 8), start=2):
        view, indices = ours.indices(step)
        assert torch.equal(batch.indices, indices)
        for index, image in zip(indices.tolist(), batch.images, strict=True):
            path = files(data.train).paths[index]
            assert torch.equal(image, transform(expected(path), 3, view, index) / 255)
            differing += not torch.equal(image, transform(upright(path), 3, view, index) / 255)
    assert differing  # else this test would not see whose view it is


def test_packed_once(birds: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Later runs decode nothing, also with other splits, or with the images in another place."""
    shutil.rmtree(birds / "val")
    shutil.rmtree(birds / "test")
    said: list[str] = []
    assert whole(load(birds, tmp_path / "p", said=said))
    size = (tmp_path / "p" / "train.images").stat().st_size
    taken = f"{size / 1e3:.1f} kB, in {tmp_path / 'p'}"
    assert said == [f"packed: 16 images with a shorter side of at most {SIDE} take {taken}"]
    before = contents(tmp_path / "p")
    monkeypatch.setattr(module, "decode", never)
    birds.rename(tmp_path / "moved")
    data = load(tmp_path / "moved", tmp_path / "p", train_size=6, split_seed=3, validation_size=4, said=said)
    assert (len(data.train), len(data.validation), data.test) == (6, 4, None)
    assert whole(data)
    assert len(said) == 1
    assert contents(tmp_path / "p") == before


def test_progress_is_shown(birds: Path, tmp_path: Path, capsys: Any) -> None:
    options: dict[str, Any] = {**SETTINGS, "epochs": 1, "image_size": 16, "workers": 0, "progress": True}
    eyeline.train(Colour(), f"folder:{birds}", str(tmp_path / "run"), packed=str(tmp_path / "p"), **options)
    shown = capsys.readouterr().err
    assert "packed: 48 images with a shorter side of at most 18 take " in shown
    assert re.search(r"packing  100 %  image 48/48  \S+ images/s", shown)


def test_another_process_maps_the_file_by_itself(birds: Path, tmp_path: Path) -> None:
    write_image(birds / "train" / "crow" / "panorama.png", SIDE, 4000, 0)
    split = files(load(birds, tmp_path / "p").train)
    content = pickle.dumps(split)
    assert len(content) < 10_000
    again = pickle.loads(content)
    assert all(same_image(again.load(i), split.load(i)) for i in range(len(split)))


# --- what is refused ----------------------------------------------------------------------------------------


def add(birds: Path) -> None:
    write_image(birds / "train" / "crow" / "new.png", 20, 20, 0)


def remove(birds: Path) -> None:
    (birds / "test" / "owl" / "large.jpg").unlink()


def change(birds: Path) -> None:
    path = birds / "val" / "owl" / "wide.png"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    os.utime(path, ns=(0, 1))


@pytest.mark.parametrize(
    ("edit", "options", "differs"),
    [
        (add, {}, r"1 file added: train/crow/new\.png"),
        (remove, {}, r"1 file removed: test/owl/large\.jpg"),
        (change, {}, r"1 file changed: val/owl/wide\.png"),
        (None, {"image_size": 24}, "its shorter side is 18 pixels, image_size needs 27"),
    ],
)
def test_another_key_is_named(
    birds: Path, tmp_path: Path, edit: Callable[[Path], None] | None, options: dict[str, Any], differs: str
) -> None:
    load(birds, tmp_path / "p")
    before = contents(tmp_path / "p")
    if edit is not None:
        edit(birds)
    with pytest.raises(
        InputError, match=rf"/p is the packed copy of something else \({differs}\); delete it"
    ):
        load(birds, tmp_path / "p", **options)
    assert contents(tmp_path / "p") == before
    shutil.rmtree(tmp_path / "p")
    assert len(load(birds, tmp_path / "p", **options).splits) == 3


def test_a_copy_of_another_version_is_refused(birds: Path, tmp_path: Path, monkeypatch: Any) -> None:
    load(birds, tmp_path / "p")
    monkeypatch.setattr(module, "_FORMAT", 2)
    with pytest.raises(InputError, match="its format is 1, expected 2: made by another version"):
        load(birds, tmp_path / "p")


def test_places_that_cannot_be_used(birds: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"packed .*/file is a file; expected a folder"):
        load(birds, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.images").write_text("mine")
    with pytest.raises(InputError, match="/mine holds files that are no packed images"):
        load(birds, tmp_path / "mine")
    (tmp_path / "mine" / "packed.json").write_text('{"kind": "lunch"}')
    with pytest.raises(InputError, match=r"packed\.json is not of eyeline"):
        load(birds, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.images").read_text() == "mine"
    with pytest.raises(InputError, match="lies in the folder of the images"):
        load(birds, birds / "packed")
    with pytest.raises(InputError, match="packed is ''; expected a name or a path"):
        Settings(packed="")
    with pytest.raises(InputError, match=r"cannot write .*/proc/nowhere: .*; choose another folder"):
        load(birds, Path("/proc/nowhere"))


def test_data_in_memory_has_nothing_to_pack(birds: Path, tmp_path: Path) -> None:
    loaded = load(birds, None)
    for data in ("fashion_mnist_sample", loaded, [(torch.zeros(1, 4, 4, dtype=torch.uint8), 0)] * 2):
        with pytest.raises(InputError, match=r"packed is for data='folder:PATH', whose images are decoded"):
            load_data(data, Settings(packed=str(tmp_path / "p")))
    assert not (tmp_path / "p").exists()
    data = load(birds, tmp_path / "p")
    assert load_data(data, Settings(image_size=16)) is data
    with pytest.raises(InputError, match="was packed for another image_size"):
        load_data(data, Settings(image_size=24))


# --- unreadable images --------------------------------------------------------------------------------------


def test_unreadable_images_are_named_or_left_out(birds: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (birds / "train" / "crow" / "half.jpg").write_bytes((birds / "val/owl/large.jpg").read_bytes()[:900])
    (birds / "test" / "owl" / "lost.png").symlink_to(birds / "nowhere.png")
    message = (
        r"2 of the 50 images in .* train/crow/half\.jpg \(.*truncated.*owl/lost\.png .*--skip_bad_images"
    )
    with pytest.raises(InputError, match=message):
        load(birds, tmp_path / "p")
    assert list(contents(tmp_path / "p")) == [".eyeline.lock"]  # nothing is kept, nothing must be deleted
    data = load(birds, tmp_path / "p", skip_bad_images=True)
    assert data.skipped == ("train/crow/half.jpg", "test/owl/lost.png")
    assert [len(split) for split in data.splits.values()] == [16, 16, 16]
    assert whole(data)
    monkeypatch.setattr(module, "decode", never)
    again = load(birds, tmp_path / "p", skip_bad_images=True)
    assert again.skipped == data.skipped
    assert whole(again)
    with pytest.raises(InputError, match=message):
        load(birds, tmp_path / "p")


def test_a_split_of_unreadable_images_only(birds: Path, tmp_path: Path) -> None:
    for path in (birds / "val").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="has no validation images"):
        load(birds, tmp_path / "p", skip_bad_images=True)


# --- what happens if ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [1, 2, 3, 4])
def test_killed_while_it_is_written(birds: Path, tmp_path: Path, which: int) -> None:
    """In the middle of each of the three files, and of the index."""

    def write_half() -> None:
        calls = []

        def kill(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == which:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = kill
        load(birds, tmp_path / "p")

    process = fork.Process(target=write_half)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = contents(tmp_path / "p")
    assert "packed.json" not in left
    assert sum(name.endswith(".part") for name in left) == 5 - which
    said: list[str] = []
    assert whole(load(birds, tmp_path / "p", said=said))
    assert len(said) == 1
    assert not any(name.endswith(".part") for name in contents(tmp_path / "p"))


def test_a_full_disk(birds: Path, tmp_path: Path, monkeypatch: Any) -> None:
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=1000))
    with pytest.raises(InputError, match=r"48 packed images take \S+ kB, and .*/p has 1\.0 kB free; choose"):
        load(birds, tmp_path / "p")
    monkeypatch.undo()

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(
            TrainingStopped, match=r"the disk is full; nothing is kept of the copy; make room"
        ):
            load(birds, tmp_path / "p")

    process = fork.Process(target=limited)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert list(contents(tmp_path / "p")) == [".eyeline.lock"]
    assert whole(load(birds, tmp_path / "p"))


def truncate(folder: Path) -> None:
    os.truncate(folder / "validation.images", 1000)


def lose(folder: Path) -> None:
    (folder / "train.images").unlink()


def garble(folder: Path) -> None:
    (folder / "packed.json").write_bytes(b'{"kind": "pack\xff')


def shorten(folder: Path) -> None:
    path = folder / "packed.json"
    path.write_text(
        re.sub(r'"images": \{"train": \[\[\d+, \d+, \d+\], ', '"images": {"train": [', path.read_text())
    )


@pytest.mark.parametrize("damage", [truncate, lose, garble, shorten])
def test_a_damaged_copy_is_made_anew(birds: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    load(birds, tmp_path / "p")
    before = contents(tmp_path / "p")
    damage(tmp_path / "p")
    assert contents(tmp_path / "p") != before
    said: list[str] = []
    assert whole(load(birds, tmp_path / "p", said=said))
    assert "damaged" in said[0]
    assert said[1].startswith("packed: 48 images")
    assert contents(tmp_path / "p") == before


def test_a_flipped_byte_is_not_served(birds: Path, tmp_path: Path) -> None:
    load(birds, tmp_path / "p")
    path = tmp_path / "p" / "train.images"
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    data = load(birds, tmp_path / "p")
    with pytest.warns(UserWarning, match=r"train\.images is damaged: some images are decoded again"):
        assert whole(data)


def test_two_processes_at_once(birds: Path, tmp_path: Path) -> None:
    """One writes, the other waits for it and reads."""
    barrier, lines = fork.Barrier(2), fork.Queue()

    def together() -> None:
        said: list[str] = []
        opened, first = module._opened, [True]

        def meet(*arguments: Any) -> Any:
            found = opened(*arguments)
            if first.pop() if first else False:
                barrier.wait(600)  # both have seen that there is none
            return found

        module._opened = meet  # type: ignore[assignment]
        assert whole(load(birds, tmp_path / "p", said=said))
        lines.put(said)

    processes = [fork.Process(target=together) for _ in range(2)]
    for process in processes:
        process.start()
    said = [line for _ in processes for line in lines.get(timeout=600)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sum(line.startswith("packed: 48 images") for line in said) == 1


# --- whole runs ---------------------------------------------------------------------------------------------


class Colour(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Conv2d(3, 2, 3, stride=2)
        self.head = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.low(images).relu().mean((2, 3)))


def distill(birds: Path, out: Path, **settings: Any) -> bytes:
    torch.manual_seed(0)
    options: dict[str, Any] = {**SETTINGS, "image_size": 16, "workers": 0, "epochs": 2, "method": "kd"}
    options["precision"] = "float32"
    run = eyeline.distill(Colour(), Colour(), f"folder:{birds}", str(out), **{**options, **settings})
    return (run.folder / "student.safetensors").read_bytes()


def test_a_run_goes_on_with_a_copy_that_has_moved(birds: Path, tmp_path: Path) -> None:
    expected = distill(birds, tmp_path / "whole", packed=str(tmp_path / "p"))
    assert expected != distill(birds, tmp_path / "plain")  # the training views differ
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("result.json", "student.safetensors"):
        (tmp_path / "cut" / name).unlink()
    (tmp_path / "p").rename(tmp_path / "q")
    with pytest.raises(InputError, match=r"packed was '.*/p', is None"):
        distill(birds, tmp_path / "cut", resume=True)
    assert distill(birds, tmp_path / "cut", resume=True, packed=str(tmp_path / "q")) == expected


def test_a_memory_knows_whose_views_it_has(birds: Path, tmp_path: Path) -> None:
    def run(out: str, augmentation: str, **settings: Any) -> bytes:
        memory = str(tmp_path / augmentation)
        return distill(birds, tmp_path / out, memory=memory, augmentation=augmentation, **settings)

    packed: dict[str, Any] = {"packed": str(tmp_path / "p")}
    one = run("one", "resized-crop", **packed)
    assert one == run("two", "resized-crop", **packed)
    with pytest.raises(InputError, match=r"remembers something else \(packed was 18, is None\)"):
        run("three", "resized-crop")
    # these views are the same bit for bit, and so the memory is
    assert run("four", "flip", **packed) == run("five", "flip")
