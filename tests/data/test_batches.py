from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from eyeline.data.batches import Batch, TrainingStream, evaluation_batches
from eyeline.data.preprocess import Normalization, Preprocess
from eyeline.data.splits import FileSplit, MemorySplit
from eyeline.data.views import CropFlip, SeededTransform, train_transform
from eyeline.errors import InputError
from eyeline.randomness import epoch_order
from tiny import tiny_split

PLAIN = Normalization((0.0,), (1.0,))


def stream(split: MemorySplit | FileSplit, **options: Any) -> TrainingStream:
    files = isinstance(split, FileSplit)
    defaults: dict[str, Any] = {
        "batch_size": 8,
        "augmentation": "resized-crop" if files else "crop+flip",
        "normalization": Normalization((0.0,) * 3, (1.0,) * 3) if files else PLAIN,
    }
    return TrainingStream(split, **{**defaults, **options})


def by_index(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(i): image for b in batches for i, image in zip(b.indices, b.images, strict=True)}


@pytest.mark.parametrize(("size", "batch_size"), [(50, 8), (50, 50), (50, 100), (50, 49), (9, 1), (64, 16)])
def test_every_image_once_an_epoch_in_equal_batches(size: int, batch_size: int) -> None:
    ours = stream(tiny_split(size, 0), batch_size=batch_size)
    assert ours.steps_per_epoch == -(-size // batch_size)
    for epoch in range(2):
        start = epoch * ours.steps_per_epoch
        batches = list(ours.batches(start, start + ours.steps_per_epoch))
        assert sorted(i for b in batches for i in b.indices.tolist()) == list(range(size))
        lengths = [len(b.images) for b in batches]
        assert max(lengths) <= batch_size
        assert max(lengths) - min(lengths) <= 1
        for batch in batches:
            assert torch.equal(batch.labels, ours.split.labels[batch.indices])


@given(st.integers(1, 300), st.integers(1, 120), st.integers(0, 2**31))
def test_the_batches_divide_the_order_as_tensor_split_does(size: int, batch_size: int, where: int) -> None:
    ours = stream(tiny_split(size, 0, side=10), batch_size=batch_size, augmentation="none", seed=3)
    epoch, position = divmod(where % (3 * ours.steps_per_epoch), ours.steps_per_epoch)
    expected = epoch_order(3, epoch, size).tensor_split(ours.steps_per_epoch)[position]
    view, indices = ours.indices(epoch * ours.steps_per_epoch + position)
    assert view == epoch
    assert torch.equal(indices, expected)


def test_a_step_makes_no_slices_for_the_others() -> None:
    class Counting(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations += 1
            return func(*args, **(kwargs or {}))

    ours = stream(tiny_split(400, 0), batch_size=2)
    ours.indices(0)  # the order of the epoch is made once
    with Counting() as counted:
        ours.indices(150)
    assert counted.operations <= 4


def test_a_batch_is_the_normalised_view_of_its_images() -> None:
    split, normalization = tiny_split(30, 0), Normalization((0.3,), (0.2,))
    ours = stream(split, normalization=normalization, seed=3, view_seed=4)
    for step, batch in enumerate(ours.batches(0, 12)):
        views = CropFlip(split.images)(batch.indices, 4, step // ours.steps_per_epoch)
        assert torch.equal(batch.images, normalization(views))
        assert batch.images.dtype == torch.float32


def test_views_are_seen_in_turn(tmp_path: Path) -> None:
    """In orders that differ; and those of one view, whoever asks, in the same batches."""
    paths = []
    for i in range(9):
        pixels = torch.randint(
            0, 256, (20, 24, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8
        )
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    files = FileSplit(tuple(paths), torch.arange(9))
    for split, options in ((tiny_split(9, 0), {}), (files, {"size": 8, "workers": 0})):
        plain = stream(split, batch_size=4, view_seed=5, seed=1, **options)
        ours = stream(split, batch_size=4, view_seed=5, seed=1, views=2, **options)
        other = stream(split, batch_size=4, view_seed=5, seed=2, views=2, **options)
        epochs = [by_index(list(plain.batches(start, start + 3))) for start in (0, 3)]
        batches = list(ours.batches(0, 12))
        assert [batch.view for batch in batches] == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
        assert not torch.equal(batches[0].indices, batches[6].indices)
        for batch in batches:
            for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
                assert torch.equal(image, epochs[batch.view][index])
        for view in (0, 1):
            for one, two in zip(ours.of_view(view), other.of_view(view), strict=True):
                assert torch.equal(one.indices, two.indices)
                assert torch.equal(one.images, two.images)
                assert one.view == two.view == view
        # those of a run whose seed is that of the views
        same = stream(split, batch_size=4, view_seed=5, seed=5, **options)
        for one, two in zip(ours.of_view(1), same.batches(3, 6), strict=True):
            assert torch.equal(one.indices, two.indices)


def test_without_augmentation_the_images_are_as_they_are() -> None:
    split = tiny_split(20, 0)
    for batch in stream(split, augmentation="none").batches(0, 6):
        assert torch.equal(batch.images, split.images[batch.indices] / 255)
    flips = 0
    for batch in stream(split, augmentation="flip").batches(0, 3):
        for image, original in zip(batch.images, split.images[batch.indices] / 255, strict=True):
            flipped = torch.equal(image, original.flip(2))
            assert flipped or torch.equal(image, original)
            flips += flipped
    assert 3 <= flips <= 17


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, **options: Any) -> list[int]:
        batches = stream(tiny_split(50, 0), seed=seed, **options).batches(0, 14)
        return [i for b in batches for i in b.indices.tolist()]

    first = order(1)
    assert first == order(1, view_seed=9) == order(1, augmentation="none")
    assert first[:50] == order(1, batch_size=50)[:50]
    assert first != order(2)
    assert first[:50] != first[50:]


def test_the_views_do_not_depend_on_the_batches() -> None:
    split = tiny_split(50, 0)
    small, large = stream(split, view_seed=5), stream(split, view_seed=5, batch_size=50, seed=8)
    ours, theirs = by_index(list(small.batches(7, 14))), by_index(list(large.batches(1, 2)))
    assert all(torch.equal(ours[i], theirs[i]) for i in range(50))
    assert not all(torch.equal(ours[i], v) for i, v in by_index(list(small.batches(0, 7))).items())
    other = by_index(list(stream(split, view_seed=6).batches(7, 14)))
    assert not all(torch.equal(ours[i], other[i]) for i in range(50))


@pytest.mark.parametrize("start", [1, 6, 7, 10])
def test_from_any_step_on_it_is_the_same(start: int) -> None:
    whole = list(stream(tiny_split(50, 0)).batches(0, 14))[start:]
    for ours, theirs in zip(stream(tiny_split(50, 0)).batches(start, 14), whole, strict=True):
        assert torch.equal(ours.indices, theirs.indices)
        assert torch.equal(ours.images, theirs.images)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_divide_each_batch(world: int) -> None:
    split = tiny_split(50, 0)
    parts = [list(stream(split, rank=rank, world=world).batches(0, 14)) for rank in range(world)]
    for step, whole in enumerate(stream(split).batches(0, 14)):
        shares = [part[step] for part in parts]
        assert max(len(s.indices) for s in shares) - min(len(s.indices) for s in shares) <= 1
        assert sorted(torch.cat([s.indices for s in shares]).tolist()) == sorted(whole.indices.tolist())
        views = by_index(shares)
        assert all(torch.equal(views[i], image) for i, image in by_index([whole]).items())


def test_a_process_without_images_is_refused() -> None:
    with pytest.raises(InputError, match="3 images in batches of 2 leave one of 2 devices without any"):
        stream(tiny_split(3, 0), batch_size=2, world=2)


# --- files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FileSplit:
    folder, generator = tmp_path_factory.mktemp("pictures"), torch.Generator().manual_seed(0)
    paths: list[Path] = []
    for i in range(9):
        shape = (30 + i, 44 - i, 3)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).numpy()
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return FileSplit(tuple(paths), torch.arange(9) % 2)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_number_of_workers_does_not_matter(files: FileSplit, workers: int) -> None:
    ours = stream(files, batch_size=4, workers=workers, size=16, view_seed=3)
    batches = list(ours.batches(2, 6))  # in the middle of an epoch to the end of the next
    transform = SeededTransform(train_transform("resized-crop", 16))
    for step, batch in enumerate(batches, start=2):
        epoch, expected = ours.indices(step)
        assert torch.equal(batch.indices, expected)
        assert torch.equal(batch.labels, files.labels[expected])
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            view = transform(files.load(index), 3, epoch, index)
            assert torch.equal(image, view / 255)


def test_processes_divide_each_batch_of_files(files: FileSplit) -> None:
    options: dict[str, Any] = {"batch_size": 4, "workers": 0, "size": 16}
    whole = by_index(list(stream(files, **options).batches(0, 3)))
    parts = by_index([b for r in range(2) for b in stream(files, rank=r, world=2, **options).batches(0, 3)])
    assert all(torch.equal(whole[i], parts[i]) for i in range(9))


# --- evaluation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [7, 100])
def test_evaluation_sees_each_image_once_as_it_is(batch_size: int) -> None:
    split = tiny_split(30, 0)
    batches = list(evaluation_batches(split, PLAIN, batch_size=batch_size))
    assert torch.cat([b.indices for b in batches]).tolist() == list(range(30))
    assert torch.equal(torch.cat([b.images for b in batches]), split.images / 255)
    assert torch.equal(torch.cat([b.labels for b in batches]), split.labels)


def test_evaluation_of_files_is_the_view_that_preprocess_gives(files: FileSplit) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    for size in (16, 30, 40):
        options: dict[str, Any] = {"batch_size": 4, "size": size, "workers": 0}
        batches = list(evaluation_batches(files, Normalization(mean, std), **options))
        preprocess = Preprocess(3, (size, size), mean, std, 7 / 8)
        expected = preprocess([files.load(i) for i in range(9)])
        assert torch.equal(torch.cat([b.images for b in batches]), expected)
