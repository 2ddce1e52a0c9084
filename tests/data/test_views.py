from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torchvision.transforms import v2

from eyeline.data.preprocess import Normalization, Preprocess
from eyeline.data.views import CropFlip, SeededTransform, train_transform
from eyeline.errors import InputError
from eyeline.randomness import epoch_order, mix, random_bits
from oracles import views as oracle

whole = st.integers(-(2**63), 2**63 - 1)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


# --- bits ---------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_mix_is_chained_splitmix64(numbers: list[int]) -> None:
    assert mix(*numbers) == oracle.hash64(*numbers)


@given(whole, whole, st.lists(whole, min_size=1, max_size=5))
def test_random_bits_are_mix_of_seed_epoch_and_index(seed: int, epoch: int, indices: list[int]) -> None:
    bits = random_bits(seed, epoch, torch.tensor(indices))
    assert [b % 2**64 for b in bits.tolist()] == [oracle.hash64(seed, epoch, i) for i in indices]


def test_first_of_splitmix64() -> None:
    # the first output of the published generator from state 0
    assert mix(0) == 0xE220A8397B1DCDAF


def test_bits_do_not_depend_on_their_neighbours() -> None:
    ones = torch.stack([((random_bits(7, 3, torch.arange(4096)) >> k) & 1).double() for k in range(64)])
    assert (ones.mean(1) - 0.5).abs().max() < 0.04  # 5 standard deviations
    correlation = torch.corrcoef(ones) - torch.eye(64)
    assert correlation.abs().max() < 0.08


# --- crop and flip ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "padding", "flip"),
    [((9, 3, 12, 10), 4, True), ((9, 1, 5, 9), 4, True), ((9, 3, 8, 8), 2, False), ((9, 2, 6, 7), 0, True)],
)
def test_crop_flip_is_the_slow_one(shape: tuple[int, ...], padding: int, flip: bool) -> None:
    images = noise(*shape)
    view = CropFlip(images, padding, flip)
    for seed, epoch in ((0, 0), (5, 17), (-3, 2**40)):
        indices = torch.tensor([8, 0, 3, 3, 5, 1, 7])
        ours = view(indices, seed, epoch)
        theirs = [oracle.view(images[i].numpy(), seed, epoch, i, padding, flip) for i in indices.tolist()]
        assert ours.dtype == torch.uint8
        assert (ours.numpy() == np.stack(theirs)).all()
        assert ours.is_contiguous(memory_format=torch.channels_last)


def test_a_view_depends_on_seed_epoch_and_index_alone() -> None:
    view = CropFlip(noise(40, 3, 16, 16))
    together = view(torch.arange(40), 1, 2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(9))
    torch.manual_seed(123)  # nothing is drawn from the global state
    for size in (1, 7, 40):
        parts = torch.cat([view(chunk, 1, 2) for chunk in order.split(size)])
        assert torch.equal(parts, together[order])


def test_another_seed_epoch_or_image_gives_another_view() -> None:
    same = noise(1, 3, 16, 16).expand(64, -1, -1, -1)
    view, indices = CropFlip(same), torch.arange(64)
    first = view(indices, 1, 2)
    for other in (view(indices, 2, 2), view(indices, 1, 3), view(indices.flip(0), 1, 2), view(indices, 2, 1)):
        different = (first != other).flatten(1).any(1).double().mean()
        assert different > 0.9  # of 162 views a pair agrees by chance


def test_offsets_are_uniform_and_half_are_flipped() -> None:
    # an image that tells where a crop came from: its rows and columns are numbered, columns count double
    side, count = 16, 8100
    image = (torch.arange(side)[:, None] * 16 + torch.arange(side)).to(torch.uint8)
    view = CropFlip(image[None, None].expand(count, 1, side, side), padding=4)
    seen = view(torch.arange(count), 3, 1)[:, 0].long()
    centre = seen[:, 4:-4, 4:-4]  # never padding: 4 ... 12 in the image
    flipped = centre[:, 0, 0] % 16 > centre[:, 0, 1] % 16
    row, column = centre[:, 0, 0] // 16, centre.amin((1, 2)) % 16
    assert row.min() == column.min() == 0
    assert row.max() == column.max() == 8
    cells = torch.bincount(row * 9 + column, minlength=81)
    assert stats.chisquare(cells.numpy()).pvalue > 0.01
    assert stats.binomtest(int(flipped.sum()), count).pvalue > 0.01
    both = torch.bincount((row * 9 + column) * 2 + flipped, minlength=162)
    assert stats.chisquare(both.numpy()).pvalue > 0.01


def test_padding_needs_larger_images() -> None:
    with pytest.raises(
        InputError, match="padding of 4 by reflection needs images larger than that; they are 12x4"
    ):
        CropFlip(noise(2, 1, 12, 4))


@pytest.mark.gpu
def test_the_same_views_on_a_gpu() -> None:
    images, indices = noise(50, 3, 32, 32), torch.arange(50)
    cpu, gpu = CropFlip(images), CropFlip(images.cuda())
    normalize = Normalization((0.1, 0.5, 0.9), (0.2, 0.3, 0.4))
    for seed, epoch in ((0, 0), (-5, 2**40)):
        ours, theirs = cpu(indices, seed, epoch), gpu(indices.cuda(), seed, epoch)
        assert torch.equal(ours, theirs.cpu())
        assert torch.equal(normalize(ours), normalize(theirs).cpu())


# --- golden: a run must not change silently when eyeline does -----------------------------------------------


def test_views_are_those_of_every_earlier_version() -> None:
    images = (torch.arange(6 * 3 * 16 * 16) * 2654435761 % 251).to(torch.uint8).view(6, 3, 16, 16)
    views = CropFlip(images)(torch.arange(6), 42, 7).contiguous()
    assert hashlib.sha256(views.numpy().tobytes()).hexdigest()[:16] == "e8fb7ce678198907"
    assert mix(42, 7, 3) == 8076984150304651870
    assert epoch_order(42, 7, 10).tolist() == [7, 1, 5, 2, 4, 0, 3, 8, 6, 9]


# --- order --------------------------------------------------------------------------------------------------


def test_the_order_is_a_permutation_of_seed_and_epoch() -> None:
    torch.manual_seed(0)
    first = epoch_order(1, 2, 500)
    torch.manual_seed(1)
    assert torch.equal(first, epoch_order(1, 2, 500))
    assert first.sort().values.tolist() == list(range(500))
    for other in (epoch_order(1, 3, 500), epoch_order(2, 2, 500), epoch_order(2, 1, 500)):
        assert (first == other).double().mean() < 0.02


# --- normalisation ------------------------------------------------------------------------------------------


def test_normalisation_is_exact_for_every_byte() -> None:
    mean, std = (125.3 / 255, 0.5, 0.0), (63.0 / 255, 0.25, 1.0)
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    ours = Normalization(mean, std)(images.contiguous(memory_format=torch.channels_last))
    exact = (images.double() / 255 - torch.tensor(mean).double().view(1, 3, 1, 1)) / torch.tensor(
        std
    ).double().view(1, 3, 1, 1)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert (ours - exact).abs().max() < 4e-7
    assert torch.equal(images[0, 0].flatten(), torch.arange(256, dtype=torch.uint8))  # not in place


# --- files --------------------------------------------------------------------------------------------------


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(noise(size[1], size[0], 3, seed=seed).numpy())


@pytest.mark.parametrize("kind", ["resized-crop", "crop+flip", "flip", "none"])
def test_a_file_view_depends_on_seed_epoch_and_index_alone(kind: str) -> None:
    transform = SeededTransform(train_transform(kind, 16))
    first = transform(picture(0), 1, 2, 3)
    assert first.shape == (3, 16, 16)
    assert first.dtype == torch.uint8
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert torch.equal(first, transform(picture(0), 1, 2, 3))
    assert torch.equal(before, torch.random.get_rng_state())  # and leaves the global state alone
    others = [
        transform(picture(0), *key) for key in [(s, e, i) for s in (1, 4) for e in (2, 5) for i in range(8)]
    ]
    different = sum(not torch.equal(first, other) for other in others)
    assert different == 0 if kind == "none" else different > 8


def test_no_augmentation_is_the_central_crop() -> None:
    image = picture(3, (64, 48))
    expected = v2.functional.center_crop(v2.functional.resize(image, [37], antialias=True), [32, 32])
    ours = SeededTransform(train_transform("none", 32))(image, 0, 0, 0)
    assert (ours.permute(1, 2, 0).numpy() == np.asarray(expected)).all()


# --- the evaluation view of a model -------------------------------------------------------------------------


def test_preprocess_leaves_the_pixels_of_an_image_of_the_right_size() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    image = picture(1, (20, 24))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    preprocess = Preprocess(3, (24, 20), mean, std)
    expected = Normalization(mean, std)(pixels)
    assert torch.equal(preprocess(image), expected)
    assert torch.equal(preprocess([image, image]), expected.repeat(2, 1, 1, 1))
    assert torch.equal(preprocess(pixels), expected)


def test_preprocess_resizes_and_makes_grey() -> None:
    preprocess = Preprocess(1, (28, 28), (0.5,), (0.5,))
    assert preprocess(picture(1, (60, 40))).shape == (1, 1, 28, 28)
    grey = Image.fromarray(np.full((50, 70, 3), 51, np.uint8))
    assert torch.allclose(preprocess(grey), torch.full((1, 1, 28, 28), (0.2 - 0.5) / 0.5))


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), noise(2, 1, 8, 8), noise(3, 8, 8)], ids=["float", "channels", "one"]
)
def test_preprocess_refuses_other_tensors(images: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"images of shape .* expected uint8 \[N, 3, H, W\]"):
        Preprocess(3, (8, 8), (0.5,) * 3, (0.5,) * 3)(images)


def test_preprocess_takes_what_a_folder_holds() -> None:
    """16-bit greyscale is scaled, transparency is laid on white, and a bare convert would do neither."""
    grey = Preprocess(1, (2, 2), (0.0,), (1.0,))
    deep = Image.fromarray(np.array([[0, 65535], [32896, 257]], dtype=np.uint16))
    assert grey.pixels(deep).tolist() == [[[0, 255], [128, 1]]]
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert Preprocess(3, (2, 2), (0.0,) * 3, (1.0,) * 3).pixels(clear).unique().tolist() == [255]


@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
@pytest.mark.parametrize("given", [(100, 100), (30, 300), (300, 30)])
def test_an_image_of_another_shape_covers_the_view(size: tuple[int, int], given: tuple[int, int]) -> None:
    white = Image.new("L", given, 255)
    for central in (1.0, 0.875):
        assert Preprocess(1, size, (0.0,), (1.0,), central).pixels(white).unique().tolist() == [255]
