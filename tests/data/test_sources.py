from __future__ import annotations

import gzip
import hashlib
import pickle
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

import eyeline.data
from eyeline.data.pictures import read_images
from eyeline.data.preprocess import Preprocess
from eyeline.data.sources import fashion_mnist, load_data
from eyeline.data.sources.registry import SOURCES
from eyeline.data.splits import FileSplit, ImageData, MemorySplit, Split, balanced_subset, held_out
from eyeline.errors import InputError
from eyeline.names import DATA
from eyeline.settings import Settings


def keys(split: Split | None) -> set[bytes]:
    assert isinstance(split, MemorySplit)
    return {image.numpy().tobytes() for image in split.images}


def counts(split: Split) -> list[int]:
    return torch.bincount(split.labels).tolist()


def write_images(folder: Path, count: int, extension: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.{extension}")


def names(split: Split | None) -> set[str]:
    assert isinstance(split, FileSplit)
    return {f"{p.parent.name}/{p.name}" for p in split.paths}


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    for name, count in {"crow": 40, "owl": 20, "wren": 20}.items():
        write_images(tmp_path / "birds" / name, count)
    return tmp_path / "birds"


# --- splits -------------------------------------------------------------------------------------------------

label_lists = st.lists(st.integers(0, 4), min_size=2, max_size=200)


@given(label_lists, st.integers(0, 200), st.integers(0, 200), st.integers(0, 2**40))
def test_balanced_subset_is_nested_and_as_equal_as_possible(
    values: list[int], a: int, b: int, seed: int
) -> None:
    labels, (a, b) = torch.tensor(values), sorted((min(a, len(values)), min(b, len(values))))
    small, large = balanced_subset(labels, a, seed).tolist(), balanced_subset(labels, b, seed).tolist()
    assert len(set(small)) == a
    assert len(set(large)) == b
    assert set(small) <= set(large)
    chosen, there = Counter(values[i] for i in large), Counter(values)
    # as equal as possible: a class is behind another one only if all its samples are used
    for label in there:
        assert chosen[label] == there[label] or chosen[label] >= max(chosen.values(), default=0) - 1


@given(label_lists, st.integers(1, 100), st.integers(1, 100), st.integers(0, 9))
def test_held_out_is_nested_disjoint_and_in_proportion(values: list[int], a: int, b: int, seed: int) -> None:
    labels, (a, b), there = torch.tensor(values), sorted((a, b)), Counter(values)
    try:
        kept, held = held_out(labels, b, seed)
    except InputError:
        assert 2 * b > len(values) - len(there)  # up to there each class keeps a sample
        return
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(values)))
    assert len(held) == b
    assert set(values) == set(labels[kept].tolist())
    assert set(held_out(labels, a, seed)[1].tolist()) <= set(held.tolist())
    chosen = Counter(labels[held].tolist())
    for label, count in there.items():
        share = count / len(values)
        assert abs(chosen[label] - b * share) <= 0.5 + 0.5 * len(there) * share  # each class rounds once


def test_held_out_takes_the_same_share_of_every_class() -> None:
    labels = torch.tensor([0] * 500 + [1] * 300 + [2] * 200)[torch.randperm(1000)]
    _, held = held_out(labels, 100, seed=3)
    assert torch.bincount(labels[held]).tolist() == [50, 30, 20]


def test_splits_are_the_same_on_every_machine_and_change_with_the_seed() -> None:
    labels = torch.arange(30) % 3
    # recorded once: a change here changes the experiments of everybody
    assert held_out(labels, 6, seed=0)[1].tolist() == [2, 13, 24, 26, 27, 28]
    assert balanced_subset(labels, 6, seed=0).tolist() == [2, 13, 24, 26, 27, 28]
    assert held_out(labels, 6, seed=1)[1].tolist() != held_out(labels, 6, seed=0)[1].tolist()


def test_a_class_is_not_held_out_as_a_whole() -> None:
    with pytest.raises(InputError, match="leaves a class without training images"):
        held_out(torch.tensor([0, 0, 0, 1]), 3, seed=0)
    with pytest.raises(InputError, match="cannot hold out 4 of 4 images; expected 1 to 3"):
        held_out(torch.tensor([0, 0, 0, 1]), 4, seed=0)


def test_train_size_and_validation_size() -> None:
    dataset = Named(torch.arange(200).view(200, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8))
    data = load_data(dataset, Settings(validation_size=50, train_size=100))
    small = load_data(dataset, Settings(validation_size=50, train_size=30))
    assert counts(data.validation) == [10] * 5
    assert counts(data.train) == [20] * 5
    assert counts(small.train) == [6] * 5
    assert not keys(data.train) & keys(data.validation)
    assert keys(small.train) <= keys(data.train)
    assert keys(small.validation) == keys(data.validation)
    assert keys(load_data(dataset, Settings(split_seed=1)).validation) != keys(load_data(dataset).validation)
    assert len(load_data(dataset).validation) == 20
    with pytest.raises(InputError, match="train_size is 151; expected at most 150"):
        load_data(dataset, Settings(validation_size=50, train_size=151))
    with pytest.raises(InputError, match="train_size is 4; expected one or more for each of 5 classes"):
        load_data(dataset, Settings(train_size=4))


# --- Fashion-MNIST ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full() -> ImageData:
    if not fashion_mnist._DEBIAN.is_dir():
        pytest.skip("needs the files of Debian's package dataset-fashion-mnist")
    return load_data("fashion_mnist")


@pytest.fixture(scope="module")
def sample() -> ImageData:
    return load_data("fashion_mnist_sample")


def test_sample_is_balanced_and_its_splits_are_disjoint(sample: ImageData) -> None:
    assert counts(sample.train) == [200] * 10
    assert counts(sample.validation) == [100] * 10
    assert sample.test is not None
    assert counts(sample.test) == [500] * 10
    train, validation, test = (keys(s) for s in sample.splits.values())
    assert (len(train), len(validation), len(test)) == (2000, 1000, 5000)
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert (sample.channels, sample.size, sample.classes[9]) == (1, (28, 28), "Ankle boot")
    assert sample.train.labels.dtype == torch.int64


def test_sample_is_small() -> None:
    asset = Path(eyeline.data.__file__).parent / "assets" / "fashion_mnist_sample.npz"
    assert asset.stat().st_size < 5_000_000


def test_full_fashion_mnist(full: ImageData) -> None:
    assert counts(full.train) == [5400] * 10
    assert counts(full.validation) == [600] * 10
    assert full.test is not None
    assert counts(full.test) == [1000] * 10
    assert isinstance(full.train, MemorySplit)
    assert isinstance(full.validation, MemorySplit)
    official = torch.cat([full.train.images, full.validation.images]).double() / 255
    assert full.mean == pytest.approx([official.mean().item()], abs=5e-5)
    assert full.std == pytest.approx([official.std().item()], abs=5e-5)


def test_a_teacher_of_the_full_set_has_not_seen_the_sample_s_validation_or_test(
    full: ImageData, sample: ImageData
) -> None:
    seen = keys(full.train)
    assert keys(sample.train) <= seen
    assert keys(sample.validation) <= keys(full.validation)
    assert keys(sample.test) <= keys(full.test)
    assert not seen & keys(sample.validation)
    assert not seen & keys(sample.test)


@pytest.fixture
def fake_fashion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with small files in the format of Fashion-MNIST, whose checksums are the expected ones."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    rng, sha256, md5 = np.random.default_rng(0), {}, []
    for part, count in {"train": 60, "t10k": 20}.items():
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in {"images-idx3": images, "labels-idx1": labels}.items():
            magic = bytes([0, 0, 8, array.ndim])
            content = magic + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
            file = folder / f"{part}-{name}-ubyte.gz"
            file.write_bytes(gzip.compress(content))
            sha256[file.stem] = hashlib.sha256(content).hexdigest()
            md5.append((file.name, hashlib.md5(file.read_bytes()).hexdigest()))
    monkeypatch.setattr(fashion_mnist, "FASHION_MNIST_SHA256", sha256)
    monkeypatch.setattr(fashion_mnist, "_DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "CACHE", tmp_path / "cache")
    monkeypatch.setattr("eyeline.data.sources.downloads.CACHE", tmp_path / "cache")
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", md5)
    return folder


@pytest.fixture
def mirror(fake_fashion: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same folder, as a server from which torchvision downloads."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(fake_fashion))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [url])
        yield fake_fashion
        server.shutdown()


@pytest.mark.parametrize("where", ["", "FashionMNIST/raw", "fashion_mnist"])
def test_fashion_mnist_is_found_where_torchvision_or_the_user_puts_it(
    fake_fashion: Path, tmp_path: Path, where: str
) -> None:
    (tmp_path / "root" / where).parent.mkdir(parents=True, exist_ok=True)
    fake_fashion.rename(tmp_path / "root" / where)
    data = load_data("fashion_mnist", Settings(data_root=str(tmp_path / "root")))
    assert (len(data.train), len(data.validation), len(data.test or ())) == (54, 6, 20)
    assert isinstance(data.test, MemorySplit)
    raw = gzip.decompress((tmp_path / "root" / where / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert data.test.images[7, 0, 27, 3] == raw[16 + 7 * 784 + 27 * 28 + 3]


def test_unpacked_files_are_read_too(fake_fashion: Path) -> None:
    packed = load_data("fashion_mnist", Settings(data_root=str(fake_fashion)))
    for path in fake_fashion.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    unpacked = load_data("fashion_mnist", Settings(data_root=str(fake_fashion)))
    assert unpacked.fingerprint() == packed.fingerprint()


def test_fashion_mnist_that_is_nowhere_names_the_ways_out(fake_fashion: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"(?s)apt install dataset-fashion-mnist.*--data_root.*--download true"
    ):
        load_data("fashion_mnist", Settings(data_root=str(tmp_path / "nothing")))


@pytest.mark.parametrize("root", [None, "root"])
def test_fashion_mnist_is_downloaded_and_a_broken_download_repaired(
    mirror: Path, tmp_path: Path, root: str | None
) -> None:
    settings = Settings(data_root=str(tmp_path / root) if root else None, download=True)
    folder = tmp_path / (root or "cache") / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"half")  # as an interrupted download leaves it
    assert len(load_data("fashion_mnist", settings).train) == 54
    (mirror / "train-labels-idx1-ubyte.gz").write_bytes(b"foreign")
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="cannot download FashionMNIST"):
        load_data("fashion_mnist", settings)


def test_a_foreign_truncated_or_missing_file_is_refused(fake_fashion: Path) -> None:
    settings, path = Settings(data_root=str(fake_fashion)), fake_fashion / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz cannot be read"):
        load_data("fashion_mnist", settings)
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1] + b"\0"))
    with pytest.raises(InputError, match="wrong checksum"):
        load_data("fashion_mnist", settings)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="cannot be read"):
        load_data("fashion_mnist", settings)
    path.unlink()
    with pytest.raises(InputError, match="has no t10k-images-idx3-ubyte"):
        load_data("fashion_mnist", settings)


# --- CIFAR --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar(name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    classes, folder = int(name.removeprefix("cifar")), tmp_path / kind.base_folder
    settings = Settings(data_root=str(tmp_path))
    with pytest.raises(InputError, match=f"{name} is not in .*--data_root.*--download true"):
        load_data(name, settings)

    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4 * classes, 3072), dtype=np.uint8)

    def write(file: str, entry: object) -> str:
        (folder / file).write_bytes(pickle.dumps(entry))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    batch = {"data": pixels, key: [i % classes for i in range(4 * classes)]}
    for table in ("train_list", "test_list"):
        monkeypatch.setattr(kind, table, [[table, write(table, batch)]])
    meta = {"filename": "meta", "key": "names"}
    meta["md5"] = write("meta", {"names": [f"class {i}" for i in range(classes)]})
    monkeypatch.setattr(kind, "meta", meta)

    data = load_data(name, Settings(data_root=str(tmp_path), validation_size=classes))
    assert counts(data.train) == [3] * classes
    assert counts(data.validation) == [1] * classes
    assert isinstance(data.test, MemorySplit)
    assert torch.equal(data.test.images, torch.from_numpy(pixels).view(-1, 3, 32, 32))
    assert (data.channels, data.size, len(data.classes)) == (3, (32, 32), classes)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "unpickled",)  # type: ignore[return-value]

    write("test_list", Evil())
    with pytest.raises(InputError, match="wrong checksum"):
        load_data(name, settings)
    assert not (tmp_path / "unpickled").exists()


# --- folders ------------------------------------------------------------------------------------------------


def test_folder_of_classes_is_split_in_proportion(birds: Path) -> None:
    data = load_data(f"folder:{birds}")
    assert data.classes == ("crow", "owl", "wren")
    assert counts(data.test) == [4, 2, 2]  # type: ignore[arg-type]
    assert len(data.validation) == 7
    assert (data.channels, data.size, data.skipped) == (3, None, ())
    train, validation, test = (names(s) for s in data.splits.values())
    assert len(train | validation | test) == 80
    assert len(train) + len(validation) + len(test) == 80
    assert isinstance(data.train, FileSplit)
    for path, label in zip(data.train.paths, data.train.labels.tolist(), strict=True):
        assert path.parent.name == data.classes[label]
    small = load_data(f"folder:{birds}", Settings(train_size=6, validation_size=20))
    assert counts(small.train) == [2, 2, 2]
    assert counts(small.validation) == [10, 5, 5]
    assert names(small.test) == test


@pytest.mark.parametrize("validation", ["val", "valid", "validation", None])
def test_folder_with_splits(tmp_path: Path, validation: str | None) -> None:
    for split, count in {"train": 10, validation: 3, "test": 2}.items():
        for name in ("cat", "dog"):
            if split:
                write_images(tmp_path / split / name, count)
    data = load_data(f"folder:{tmp_path}", Settings(validation_size=4))
    assert data.classes == ("cat", "dog")
    assert counts(data.train) == ([10, 10] if validation else [8, 8])
    assert counts(data.validation) == ([3, 3] if validation else [2, 2])
    assert data.test is not None
    assert counts(data.test) == [2, 2]


def test_folder_without_test_has_none(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            write_images(tmp_path / split / name, 2)
    assert load_data(f"folder:{tmp_path}").test is None


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car", "train"):
        write_images(tmp_path / name, 10)
    assert load_data(f"folder:{tmp_path}").classes == ("car", "train")


def test_extensions_links_and_files_that_do_not_count(birds: Path, tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4))
    for name in ("a.JPG", "a.jpeg", "a.webp", "a.BMP", "a.tif", "a.TIFF", "a.PNG"):
        image.save(birds / "owl" / name)
    image.save(tmp_path / "elsewhere.png")
    (birds / "owl" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    (birds / "owl" / ".hidden.png").write_bytes(b"")
    (birds / "owl" / "notes.txt").write_text("an owl")
    (birds / "owl" / "folder.png").mkdir()
    (birds / ".thumbnails").mkdir()
    (birds / "index.csv").write_text("")
    write_images(tmp_path / "linked", 5)
    (birds / "rook").symlink_to(tmp_path / "linked")
    data = load_data(f"folder:{birds}")
    assert data.classes == ("crow", "owl", "rook", "wren")
    assert sum(counts(s)[1] for s in data.splits.values()) == 20 + 8
    assert sum(counts(s)[2] for s in data.splits.values()) == 5


def decoded(path: Path) -> np.ndarray:
    image = FileSplit((path,), torch.tensor([0])).load(0)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_greyscale_and_bilevel(tmp_path: Path) -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey > 9).save(tmp_path / "bilevel.png")
    assert (decoded(tmp_path / "grey.png") == grey[..., None]).all()
    assert (decoded(tmp_path / "bilevel.png") == 255 * (grey > 9)[..., None]).all()


@pytest.mark.parametrize("file", ["deep.png", "deep.tif"])
def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path: Path, file: str) -> None:
    deep = np.array([[0, 257, 100 * 257, 65535], [300, 1000, 40000, 128]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / file)
    assert (decoded(tmp_path / file) == (deep / 65535 * 255).round()[..., None]).all()


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    black = np.zeros((1, 3, 4), dtype=np.uint8)
    black[0, :, 3] = [0, 51, 255]
    Image.fromarray(black).save(tmp_path / "rgba.png")
    Image.fromarray(black[..., 2:]).save(tmp_path / "la.png")
    for file in ("rgba.png", "la.png"):
        assert (decoded(tmp_path / file) == np.array([255, 204, 0])[None, :, None]).all()
    palette = Image.frombytes("P", (2, 1), bytes([0, 1]))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert decoded(tmp_path / "palette.png").tolist() == [[[255] * 3, [40, 50, 60]]]


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg", quality=100)
    assert np.abs(decoded(tmp_path / "cyan.jpg").astype(int) - [0, 255, 255]).max() <= 2


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert (decoded(tmp_path / "turned.png") == np.rot90(pixels, k=-1)).all()


def test_unreadable_images_are_named_or_left_out(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("baseline", "progressive"):
        path = birds / "owl" / f"{name}.jpg"
        photo.save(path, progressive=name == "progressive")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (birds / "owl" / "empty.png").write_bytes(b"")
    (birds / "owl" / "text.png").write_text("no image")
    (birds / "owl" / "dangling.png").symlink_to(birds / "nowhere.png")
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(birds / "owl" / "float.tif")
    photo.save(
        birds / "owl" / "other.png", format="PPM"
    )  # only the formats of EXTENSIONS are decoded, and GIF
    damaged = {"baseline.jpg", "progressive.jpg", "empty.png", "text.png", "dangling.png", "float.tif"}
    damaged.add("other.png")

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some libraries leave it
    with pytest.raises(InputError, match=r"7 of the 87 images .*owl/baseline\.jpg \(.*truncated.*--skip_bad"):
        load_data(f"folder:{birds}")
    assert ImageFile.LOAD_TRUNCATED_IMAGES

    data = load_data(f"folder:{birds}", Settings(skip_bad_images=True))
    assert set(data.skipped) == {f"owl/{name}" for name in damaged}
    kept = set().union(*(names(s) for s in data.splits.values()))
    assert len(kept) == 80
    assert not kept & set(data.skipped)


def test_a_decompression_bomb_is_a_bad_image(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(birds / "owl" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        InputError, match=r"1 of the 81 images .*owl/bomb\.png \(it has more than 2,000 pixels"
    ):
        load_data(f"folder:{birds}")


def test_a_class_of_bad_images_only_cannot_be_left_out(birds: Path) -> None:
    (birds / "rook").mkdir()
    (birds / "rook" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"no image of .*rook can be read"):
        load_data(f"folder:{birds}", Settings(skip_bad_images=True))


def test_folders_that_cannot_work(tmp_path: Path) -> None:
    def refused(expected: str) -> None:
        with pytest.raises(InputError, match=expected):
            load_data(f"folder:{tmp_path / 'set'}")

    refused("there is no folder")
    (tmp_path / "set").write_text("")
    refused("is not a folder")
    (tmp_path / "set").unlink()
    (tmp_path / "set").mkdir()
    refused("has no class folders")
    write_images(tmp_path / "set", 2)
    refused("has no class folders")
    write_images(tmp_path / "set" / "cat", 4)
    refused("one class folder, 'cat'; expected at least two")
    (tmp_path / "set" / "dog").mkdir()
    refused(r"dog has no images \(\.png, ")


def test_split_folders_that_cannot_work(tmp_path: Path) -> None:
    def refused(expected: str) -> None:
        with pytest.raises(InputError, match=expected):
            load_data(f"folder:{tmp_path}")

    write_images(tmp_path / "val" / "cat", 1)
    refused("has val but no train/CLASS folders")
    for name in ("cat", "dog"):
        write_images(tmp_path / "train" / name, 2)
    write_images(tmp_path / "val" / "dogs", 1)
    refused(r"val/dogs is a class without training images: .*did you mean 'dog'\?")
    write_images(tmp_path / "valid" / "dog", 1)
    refused("has val and valid; expected one validation folder")


# --- Python objects -----------------------------------------------------------------------------------------


class Named:
    """A data set that holds its tensors."""

    def __init__(self, images: torch.Tensor, classes: int = 5) -> None:
        self.images, self.labels = images, torch.arange(len(images)) % classes
        self.classes = [f"class {i}" for i in range(classes)]


def items(image: object, count: int = 20) -> list[tuple[object, int]]:
    return [(image, i % 2) for i in range(count)]


@pytest.mark.parametrize(
    ("image", "shape"),
    [
        (Image.new("L", (5, 4), 51), (1, 4, 5)),
        (Image.new("RGB", (5, 4), (51, 51, 51)), (3, 4, 5)),
        (torch.full((2, 4, 5), 51, dtype=torch.uint8), (2, 4, 5)),
        (torch.full((4, 5), 51, dtype=torch.uint8), (1, 4, 5)),
        (np.full((3, 4, 5), 51, dtype=np.uint8), (3, 4, 5)),
        (torch.full((3, 4, 5), 51, dtype=torch.uint8) / 255, (3, 4, 5)),
    ],
)
def test_images_of_a_dataset(image: object, shape: tuple[int, int, int]) -> None:
    data = load_data(items(image))
    assert isinstance(data.train, MemorySplit)
    assert data.train.images.shape == (18, *shape)
    assert (data.train.images == 51).all()
    assert (data.channels, data.size) == (shape[0], shape[1:])
    assert data.mean == pytest.approx([0.2] * shape[0])
    assert data.std == (1.0,) * shape[0]  # constant images
    assert data.classes == ("0", "1")
    assert data.test is None


def test_mapping_of_datasets_keeps_its_splits_and_measures_its_pixels() -> None:
    pixels = torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8)
    parts = {"train": Named(pixels), "validation": Named(pixels[:10]), "test": Named(pixels[:20])}
    data = load_data(parts, Settings(validation_size=3))
    assert [len(s) for s in data.splits.values()] == [60, 10, 20]
    assert data.classes == tuple(parts["train"].classes)
    expected = (pixels.double() / 255).transpose(0, 1).flatten(1)
    assert data.mean == pytest.approx(expected.mean(1).tolist())
    assert data.std == pytest.approx(expected.std(1, correction=0).tolist())


def test_torchvision_dataset_as_an_object() -> None:
    fake = torchvision.datasets.FakeData(40, (3, 6, 6), num_classes=2)
    data = load_data(torch.utils.data.Subset(fake, range(30)))
    assert isinstance(data.train, MemorySplit)
    assert len(data.train) + len(data.validation) == 30
    assert np.asarray(fake[0][0]).transpose(2, 0, 1).tobytes() in keys(data.train) | keys(data.validation)


def test_image_data_is_taken_as_it_is_and_twice_is_once() -> None:
    data = load_data(Named(torch.arange(100).view(100, 1, 1, 1).to(torch.uint8)), Settings(train_size=20))
    assert load_data(data) is data
    assert load_data(data, Settings(train_size=20)).fingerprint() == data.fingerprint()
    assert counts(load_data(data, Settings(train_size=10)).train) == [2] * 5


U8 = torch.zeros(1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (items(torch.rand(3, 4, 4)), "float32 and not uint8 / 255"),
        (items(torch.zeros(3, 4, 4, dtype=torch.int64)), "int64 and not uint8"),
        (items(np.zeros((8, 8, 3), dtype=np.uint8)), "channels first"),
        (items("cat.png"), "image 0 is str; expected a PIL image"),
        ([*items(U8), (U8[:, :3], 0)], r"image 20 .*\[1, 3, 4\], the first is \[1, 4, 4\]; .*folder:PATH"),
        ([(U8, 0.5)] * 4, "label 0 is 0.5; expected a whole number"),
        ([(U8, True)] * 4, "label 0 is True"),
        ([(U8, torch.tensor([0, 1]))] * 4, "label 0 is tensor"),
        ([(U8, -1), (U8, 0)] * 4, "train label is -1"),
        ([(U8, 1), (U8, 2)] * 4, "class 0 has no training images"),
        ([(U8, 0)] * 4, r"classes \('0',\); expected at least two"),
        ([], "has no images"),
        ([U8] * 4, "item 0 of the train data is Tensor; expected"),
        ({"train": items(U8), "test": [(U8, 7)]}, "test labels of custom are 7 to 7; expected 0 to 1"),
        ({"train": items(U8), "test": items(U8[:, :2])}, r"test images of custom are \[1, 2, 4\]; expected"),
        ({"train": items(U8), "tets": items(U8)}, r"unknown split 'tets'; did you mean 'test'\?"),
        ({"test": items(U8)}, "the data has no 'train'"),
        (7, "the train data is int; expected a data set name"),
        (torch.utils.data.DataLoader(torchvision.datasets.FakeData(4)), "the train data is DataLoader"),
    ],
)
def test_objects_that_cannot_work(data: object, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load_data(data)


def test_a_dataset_over_the_memory_limit_is_refused_at_its_first_image() -> None:
    class Huge:
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            assert index == 0
            return U8, 0

    with pytest.raises(InputError, match="over 2 GiB in memory"):
        load_data(Huge())


def test_read_images(birds: Path, sample: ImageData) -> None:
    colour, grey = Preprocess(3, (6, 8), (0.0,) * 3, (1.0,) * 3), Preprocess(1, (28, 28), (0.0,), (1.0,))

    def read(images: Any, view: Preprocess, count: int) -> torch.Tensor:
        pixels, names, bad = read_images(images, view, count)
        assert len(names) == len(pixels)
        assert bad == []
        return pixels

    owls = [np.asarray(Image.open(birds / "owl" / f"00{i}.png")).transpose(2, 0, 1) for i in range(4)]
    assert (read(birds / "owl", colour, 3).numpy() == np.stack(owls[:3])).all()
    assert (read(str(birds / "owl" / "001.png"), colour, 3).numpy() == owls[1][None]).all()
    assert (read(Image.open(birds / "owl" / "002.png"), colour, 3).numpy() == owls[2][None]).all()
    assert read(f"folder:{birds}", colour, 5).shape == (5, 3, 6, 8)
    shown = read("fashion_mnist_sample", grey, 10)
    assert shown.shape == (10, 1, 28, 28)
    assert {image.numpy().tobytes() for image in shown} <= keys(sample.test)

    broken, skip = birds / "owl" / "000.png", Settings(skip_bad_images=True)
    broken.write_bytes(broken.read_bytes()[:100])
    pixels, names, bad = read_images(f"folder:{birds}", colour, 5, skip)
    assert (len(pixels), [file.name for file in bad]) == (5, ["000.png"])
    with pytest.raises(InputError, match=r"000\.png cannot be read: .*; --skip_bad_images leaves such files"):
        read_images(birds / "owl", colour, 3)
    assert set(names) == {"crow", "owl", "wren"}
    pixels, names, bad = read_images(birds / "owl", colour, 3, skip)
    assert names == ["001.png", "002.png", "003.png"]
    assert (pixels.numpy() == np.stack(owls[1:])).all()
    assert bad == [broken]
    with pytest.raises(InputError, match=r"000\.png cannot be read: [^;]*$"):  # nothing would be left
        read_images(broken, colour, 3)
    with pytest.raises(InputError, match=r"none of 1 image files in .*owl can be read"):
        read_images(broken, colour, 3, skip)
    with pytest.raises(InputError, match="birds has no images"):
        read_images(birds, colour, 3)
    with pytest.raises(InputError, match=r"folder of images or data set 'owl\.png'"):
        read_images("owl.png", colour, 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fashion_mnits", "unknown data set 'fashion_mnits'; did you mean 'fashion_mnist'"),
        ("cifar-10", "did you mean 'cifar10'"),
        ("imagenet", "cifar10, cifar100, fashion_mnist, fashion_mnist_sample, folder:PATH"),
    ],
)
def test_unknown_name(name: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load_data(name)


def test_a_path_without_folder(birds: Path) -> None:
    with pytest.raises(InputError, match=f"did you mean 'folder:{birds}'"):
        load_data(str(birds))


def test_parts_of_python_data_that_need_a_word() -> None:
    pixels = torch.zeros(50, 1, 2, 2, dtype=torch.uint8)
    numbered = Named(pixels)
    numbered.classes = list(np.unique(numbered.labels))  # type: ignore[assignment]
    assert all(type(name) is str for name in load_data(numbered).classes)
    assert load_data(numbered).fingerprint()
    last = torch.zeros(50, 32, 16, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"\[50, 32, 16, 3\]; expected \[M, C, H, W\] \(channels first\)"):
        load_data(Named(last))
    with pytest.raises(InputError, match="the train data has no images"):
        load_data(MemorySplit(pixels[:0], torch.zeros(0, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (None, "labels are NoneType"),
        (torch.eye(3), r"labels are torch.float32 \[3, 3\]"),
        (torch.eye(3).long(), r"labels are torch.int64 \[3, 3\]"),
        (torch.arange(2), r"labels are torch.int64 \[2\]"),
        (torch.zeros(3), r"labels are torch.float32 \[3\]"),
    ],
    ids=["none", "soft", "one-hot", "too few", "real"],
)
def test_labels_that_are_no_class_of_each_image(labels: Any, shown: str) -> None:
    expected = rf"^{shown}; expected torch.int64 \[3\]$"
    with pytest.raises(InputError, match=expected):
        MemorySplit(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), labels)
    with pytest.raises(InputError, match=expected):
        FileSplit((Path("a"), Path("b"), Path("c")), labels)


def test_fingerprint_changes_with_pixels_labels_and_classes(birds: Path, tmp_path: Path) -> None:
    pixels = torch.zeros(50, 1, 2, 2, dtype=torch.uint8)
    prints = {load_data(Named(pixels)).fingerprint(), load_data(Named(pixels, 2)).fingerprint()}
    relabelled = Named(pixels)
    relabelled.labels = relabelled.labels.flip(0)
    prints.add(load_data(relabelled).fingerprint())
    pixels[13, 0, 1, 1] = 1
    prints.add(load_data(Named(pixels)).fingerprint())
    renamed = Named(pixels)
    renamed.classes[0] = "other"
    prints.add(load_data(renamed).fingerprint())
    assert len(prints) == 5
    assert all(len(p) == 16 and int(p, 16) >= 0 for p in prints)

    before = load_data(f"folder:{birds}").fingerprint()
    birds = birds.rename(tmp_path / "moved")
    assert load_data(f"folder:{birds}").fingerprint() == before
    Image.new("RGB", (99, 99)).save(birds / "owl" / "003.png")
    assert load_data(f"folder:{birds}").fingerprint() != before


def test_the_names_known_without_pytorch_are_those_of_the_sources() -> None:
    assert {name.replace(":PATH", ":") for name in DATA} == set(SOURCES)
