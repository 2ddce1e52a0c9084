"""What data: named data sets, folders of images and Python objects, all as one ``ImageData``."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import operator
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.functional import to_pil_image

from eyeline.data.packed import Pixels, Progress, each_decoded, packed_copy, silent
from eyeline.data.views import as_rgb, decode, shorter_side
from eyeline.errors import InputError, unknown
from eyeline.names import DATA, check_data, check_images
from eyeline.settings import Settings

if TYPE_CHECKING:
    from eyeline.data.views import Preprocess

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
HELD_OUT = 0.1  # fraction of the images held out where nobody says how many

_CACHE = Path("~/.cache/eyeline")
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_MEMORY_LIMIT = 2 * 1024**3
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FASHION_MNIST = (0.2860,), (0.3530,)
_CIFAR = {
    "cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
# SHA-256 of the unpacked files, because Debian packs the same files anew: its .gz differ from torchvision's.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@dataclass(frozen=True, eq=False)
class MemorySplit:
    """Small images of one size, all in memory.

    ``images`` is uint8 ``[M, C, H, W]``, ``labels`` int64 ``[M]``. Raises ``InputError`` for anything else.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            given = f"{self.images.dtype} {list(self.images.shape)}"
            raise InputError(f"images are {given}; expected torch.uint8 [M, C, H, W]")
        if _channels_last(self.images.shape):
            raise InputError(f"images are {list(self.images.shape)}; expected [M, C, H, W] (channels first)")
        _check_labels(self.labels, len(self.images))
        object.__setattr__(self, "images", self.images.cpu())  # a batch at a time goes to the device
        object.__setattr__(self, "labels", self.labels.cpu())

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> MemorySplit:
        """The samples at ``indices``, in that order."""
        return MemorySplit(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Images decoded when they are needed, or once (``pixels``): ``paths`` and ``labels``, int64 ``[M]``."""

    paths: tuple[Path, ...]
    labels: Tensor
    pixels: Pixels | None = None

    def __post_init__(self) -> None:
        _check_labels(self.labels, len(self.paths))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> FileSplit:
        """The samples at ``indices``, in that order."""
        pixels = self.pixels and self.pixels.subset(indices)
        return FileSplit(tuple(self.paths[i] for i in indices.tolist()), self.labels[indices], pixels)

    def load(self, index: int) -> Image.Image:
        """Decode image ``index``, always to mode RGB.

        EXIF orientation is applied, transparency is composited on white, 16-bit greyscale is scaled to 8 bits
        (not clipped), and of an animation the first frame is taken. From a packed copy it comes smaller.
        """
        if self.pixels is None:
            return decode(self.paths[index])
        return self.pixels.load(index, self.paths[index])


Split = MemorySplit | FileSplit


@dataclass(frozen=True, eq=False)
class ImageData:
    """A classification data set: its splits, its classes and how its pixels are normalised.

    ``mean`` and ``std`` are per channel, in ``[0, 1]``; ``size`` is (H, W), or None for files;
    ``skipped`` names the unreadable images left out. Raises ``InputError`` where the parts do not
    fit each other.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    test: Split | None
    channels: int
    size: tuple[int, int] | None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise InputError(f"{self.name} has the classes {self.classes}; expected at least two")
        if not len(self.mean) == len(self.std) == self.channels:
            raise InputError(f"{self.name} has mean {self.mean}, std {self.std} for {self.channels} channels")
        for name, split in self.splits.items():
            if not len(split):
                raise InputError(f"{self.name} has no {name} images")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.classes):
                last = len(self.classes) - 1
                raise InputError(
                    f"the {name} labels of {self.name} are {low} to {high}; expected 0 to {last}"
                )
            if isinstance(split, MemorySplit):
                given, expected = list(split.images.shape[1:]), [self.channels, *(self.size or ())]
                if given != expected:
                    raise InputError(f"the {name} images of {self.name} are {given}; expected {expected}")

    @property
    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def fingerprint(self, only: str | None = None, *, times: bool = False) -> str:
        """16 hexadecimal digits that change with the classes, labels or images of any split, or of one.

        SHA-256 over class names, labels and pixels; files count by CLASS/FILE name and size in bytes, so a
        folder may be moved or copied. ``times``: also by the second of their last change, which a copy may
        lose.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name, split in self.splits.items():
            if only not in (None, name):
                continue
            digest.update(f"{name} {len(split)}\n".encode())
            digest.update(split.labels.numpy().tobytes())
            if isinstance(split, MemorySplit):
                digest.update(f"{list(split.images.shape)}\n".encode())
                digest.update(split.images.numpy().tobytes())
            else:
                for path in split.paths:
                    facts = path.stat()
                    changed = f" {int(facts.st_mtime)}" * times
                    digest.update(f"{path.parent.name}/{path.name} {facts.st_size}{changed}\n".encode())
        return digest.hexdigest()[:16]


Loading = Callable[[], "ImageData"]


def load_data(
    data: Any,
    settings: Settings | None = None,
    *,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> ImageData:
    """Load ``data`` and divide it into train, validation and test as ``settings`` says.

    ``data`` is one of

    * ``"fashion_mnist"``, ``"cifar10"``, ``"cifar100"``: looked for in ``data_root``, checksums verified,
      downloaded through torchvision with ``download``;
    * ``"fashion_mnist_sample"``: 2,000 + 1,000 + 5,000 images that come with the package;
    * ``"folder:PATH"``: PATH/{train,val,test}/CLASS/IMAGE, or PATH/CLASS/IMAGE;
    * an ``ImageData``, or a map-style data set of (image, label), or a mapping of such with the keys train
      and, if there are any, validation and test. Images are PIL images, or uint8 ``[C,H,W]`` or ``[H,W]``;
      float images are taken only if they are uint8 / 255, as torchvision's ``ToTensor`` gives them, since
      eyeline augments and normalises by itself. A data set with uint8 ``.images`` and ``.labels`` is taken
      as it is. Mean and standard deviation are those of the train images given.

    Where there is no validation split, ``validation_size`` training images (default 10 %) are held out, in
    proportion to the classes. After that ``train_size`` keeps a subset of train, equal over the classes. Both
    depend on ``split_seed`` alone, and the smaller of two sizes is always part of the larger.

    With ``packed`` the images of a folder are decoded once and read from there. ``say`` takes a line for the
    user, ``progress`` shows how the packing goes.

    Raises ``InputError`` for data that is unknown, not there, damaged or not consistent.
    """
    return list_data(data, settings or Settings(), say=say, progress=progress)[1]()


def list_data(
    data: Any, settings: Settings, *, say: Callable[[str], None] = print, progress: Progress = silent
) -> tuple[ImageData, Loading]:
    """As :func:`load_data`, in two steps: a folder as it is listed, and what then decodes its images.

    Both are the same but for unreadable images that are left out, and packed pixels.
    """
    named = os.fspath(data) if isinstance(data, str | os.PathLike) else ""
    if settings.packed is not None and not named.startswith("folder:"):
        raise InputError("packed is for data='folder:PATH', whose images are decoded; this data is in memory")
    if isinstance(data, str | os.PathLike):
        check_data(named)
    if named.startswith("folder:"):
        return _folder(named, settings, say, progress)
    if named in _CIFAR:
        loaded = _cifar(named, settings)
    elif named:
        loaded = (_fashion_mnist if named == "fashion_mnist" else _fashion_mnist_sample)(settings)
    elif isinstance(data, ImageData):
        side = shorter_side(settings.image_size)
        packed = [split.pixels for split in data.splits.values() if isinstance(split, FileSplit)]
        if any(pixels is not None and pixels.side != side for pixels in packed):
            raise InputError(f"{data.name} was packed for another image_size; load it anew with this one")
        loaded = _with_train_size(data, settings)
    else:
        loaded = _from_objects(data, settings)
    return loaded, lambda: loaded


_Named = tuple[str, Image.Image]


def read_images(
    images: Any, preprocess: Preprocess, count: int, settings: Settings | None = None
) -> tuple[Tensor, list[str], list[Path]]:
    """Read images to look at, in the size a model takes.

    ``images`` is an image file, a folder of images, a PIL image or a list of them, or a data set as in
    ``load_data``, of which test images (validation images if it has no test split) are taken, equally many of
    each class. Returns the first ``count`` at most, uint8 ``[N, C, H, W]``, their names (of the file, or the
    class), and the files that were left out.
    Raises ``InputError`` if there are none, or one cannot be read and is not to be skipped.
    """
    pictures, bad = _pictures(images, count, settings or Settings())
    pixels = torch.stack([preprocess.pixels(picture) for _, picture in pictures])
    return pixels, [name for name, _ in pictures], bad


def _pictures(images: Any, count: int, settings: Settings) -> tuple[list[_Named], list[Path]]:
    if isinstance(images, Image.Image):
        return [("", images)], []
    if isinstance(images, list | tuple) and images and isinstance(images[0], Image.Image):
        return [("", image) for image in images[:count]], []
    path = Path(images).expanduser() if isinstance(images, str | os.PathLike) else None
    if path is not None and path.exists():
        return _first_pictures(
            _image_files(path) if path.is_dir() else [path], count, settings.skip_bad_images
        )
    named = os.fspath(images) if isinstance(images, str | os.PathLike) else ""
    if named:
        check_images(named)
    data = load_data(images, settings)
    split = data.test or data.validation
    chosen = split.subset(balanced_subset(split.labels, count, seed=0))
    names = [data.classes[label] for label in chosen.labels.tolist()]
    if isinstance(chosen, MemorySplit):
        return list(zip(names, map(to_pil_image, chosen.images), strict=True)), []
    pictures = [chosen.load(i) for i in range(len(chosen))]
    return list(zip(names, pictures, strict=True)), [Path(name) for name in data.skipped]


def _first_pictures(
    files: Sequence[Path], count: int, skip_bad_images: bool
) -> tuple[list[_Named], list[Path]]:
    """The first ``count`` pictures, and the files before the last of them that cannot be read."""
    pictures: list[_Named] = []
    bad: list[Path] = []
    for file, picture in zip(files, each_decoded(files, None, lambda image: image), strict=False):
        if isinstance(picture, Image.Image):
            pictures.append((_shortened(file.name), picture))
        elif skip_bad_images:
            bad.append(file)
        else:
            hint = "; --skip_bad_images leaves such files out" if len(files) > 1 else ""
            raise InputError(f"{file} cannot be read: {picture}{hint}")
        if len(pictures) == count:
            break
    if not pictures:
        raise InputError(f"none of {len(files):,} image files in {files[0].parent} can be read")
    return pictures, bad


def _shortened(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:9]}…{name[-10:]}"


# --- splits -------------------------------------------------------------------------------------------------


def held_out(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide samples into those kept and ``size`` held out, in proportion to the classes (stratified).

    ``labels`` is int64 ``[M]``; returns two sorted int64 index tensors. For one seed a smaller held-out set
    is part of a larger one. Raises ``InputError`` if a class would lose all its samples.
    """
    if not 0 < size < len(labels):
        raise InputError(
            f"cannot hold out {size:,} of {len(labels):,} images; expected 1 to {len(labels) - 1:,}"
        )
    order = _order(labels, seed, proportional=True)
    kept, held = order[size:].sort().values, order[:size].sort().values
    if len(labels[kept].unique()) < len(labels.unique()):
        raise InputError(
            f"holding out {size:,} of {len(labels):,} images leaves a class without training images"
        )
    return kept, held


def balanced_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """Choose ``size`` samples, as equally many of each class as there are.

    ``labels`` is int64 ``[M]``; returns sorted int64 indices ``[size]``. For one seed a smaller subset is
    part of a larger one.
    """
    return _order(labels, seed, proportional=False)[:size].sort().values


def _order(labels: Tensor, seed: int, *, proportional: bool) -> Tensor:
    """A seeded order of the samples of which every beginning is balanced, equally or in proportion."""
    # RandomState because NumPy promises never to change its stream, unlike default_rng and torch.randperm.
    permutation = np.random.RandomState(seed % 2**32).permutation(len(labels))
    shuffled = torch.from_numpy(permutation.astype(np.int64))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    label, counts = labels[by_class], torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[label]
    return by_class[((rank.double() + 0.5) / (counts[label] if proportional else 1)).argsort(stable=True)]


def _with_train_size(data: ImageData, settings: Settings) -> ImageData:
    """Keep ``train_size`` training images."""
    size, available = settings.train_size, len(data.train)
    if size is None:
        return data
    if size > available:
        raise InputError(
            f"train_size is {size:,}; expected at most {available:,}, the training images of {data.name} "
            "without those held out for validation"
        )
    if size < len(data.classes):
        raise InputError(
            f"train_size is {size:,}; expected one or more for each of {len(data.classes)} classes"
        )
    return replace(
        data, train=data.train.subset(balanced_subset(data.train.labels, size, settings.split_seed))
    )


def _with_validation(train: Split, validation: Split | None, settings: Settings) -> tuple[Split, Split]:
    """Hold out validation images from ``train`` where there are none."""
    if validation is not None:
        return train, validation
    size = settings.validation_size or max(1, round(HELD_OUT * len(train)))
    kept, held = held_out(train.labels, size, settings.split_seed)
    return train.subset(kept), train.subset(held)


def _check_labels(labels: Tensor, count: int) -> None:
    if not isinstance(labels, Tensor):
        raise InputError(f"labels are {type(labels).__name__}; expected torch.int64 [{count}]")
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise InputError(f"labels are {labels.dtype} {list(labels.shape)}; expected torch.int64 [{count}]")


# --- named data sets ----------------------------------------------------------------------------------------


def _data_root(settings: Settings) -> Path:
    return Path(settings.data_root or _CACHE).expanduser()


def _fashion_mnist(settings: Settings) -> ImageData:
    root = _data_root(settings)
    raw = Path("FashionMNIST", "raw")  # where torchvision puts the files
    folders = [root, root / raw, root / "fashion_mnist", _DEBIAN, _CACHE.expanduser() / raw]
    found = next((f for f in folders if any(_idx_path(f, name) for name in FASHION_MNIST_SHA256)), None)
    if settings.download and found in (None, root / raw):  # does nothing where the download is complete
        _download(datasets.FashionMNIST, root)
        found = root / raw
    if found is None:
        raise InputError(
            f"fashion_mnist is not in {', '.join(map(str, folders[:4]))}; "
            "`apt install dataset-fashion-mnist`, give its folder with --data_root, or download it "
            "with --download true (a small part comes with the package: fashion_mnist_sample)"
        )
    train, test = (
        MemorySplit(
            torch.from_numpy(_idx(found, f"{part}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)),
            torch.from_numpy(_idx(found, f"{part}-labels-idx1-ubyte", 8)).long(),
        )
        for part in ("train", "t10k")
    )
    return _named("fashion_mnist", datasets.FashionMNIST.classes, _FASHION_MNIST, train, None, test, settings)


def _idx_path(folder: Path, name: str) -> Path | None:
    """The file ``name``, packed or not, if it is in ``folder``."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _idx(folder: Path, name: str, header: int) -> np.ndarray:
    """The bytes of an IDX file after its header, once the checksum of the whole is verified."""
    path = _idx_path(folder, name)
    if path is None:
        raise InputError(f"{folder} has no {name}.gz, but has other files of Fashion-MNIST")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}; fetch it again") from error
    if hashlib.sha256(content).hexdigest() != FASHION_MNIST_SHA256[name]:
        raise InputError(
            f"{path} is not Fashion-MNIST's file (wrong checksum): truncated, or of another data set"
        )
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=header)


def _fashion_mnist_sample(settings: Settings) -> ImageData:
    content = resources.files("eyeline.data").joinpath("assets/fashion_mnist_sample.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        train, validation, test = (
            MemorySplit(
                torch.from_numpy(arrays[f"{part}_images"])[:, None],
                torch.from_numpy(arrays[f"{part}_labels"]).long(),
            )
            for part in ("train", "validation", "test")
        )
    classes = datasets.FashionMNIST.classes
    return _named("fashion_mnist_sample", classes, _FASHION_MNIST, train, validation, test, settings)


def _cifar(name: str, settings: Settings) -> ImageData:
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root = _data_root(settings)
    folder = root / kind.base_folder
    if settings.download:
        _download(kind, root)
    elif not folder.is_dir():
        raise InputError(
            f"{name} is not in {root}; give the folder that holds {kind.base_folder} with --data_root, "
            "or download it with --download true"
        )
    try:  # these files are pickles: torchvision verifies the MD5 of each before it opens it
        parts = [kind(root, train=train) for train in (True, False)]
    except RuntimeError as error:
        raise InputError(
            f"{folder} is not {name} as published (a file is missing or has a wrong checksum); "
            "fetch it again, for example with --download true"
        ) from error
    train, test = (
        MemorySplit(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return _named(name, parts[0].classes, _CIFAR[name], train, None, test, settings)


def _download(kind: Any, root: Path) -> None:
    """Download through torchvision, which verifies the MD5 of every archive."""
    try:
        kind(root, download=True)
    except (RuntimeError, OSError) as error:
        raise InputError(f"cannot download {kind.__name__} to {root}: {error}") from error


def _named(
    name: str,
    classes: Sequence[str],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    train: MemorySplit,
    validation: Split | None,
    test: Split | None,
    settings: Settings,
) -> ImageData:
    """Images in memory, with their usual names and statistics."""
    kept, validation = _with_validation(train, validation, settings)
    channels, height, width = train.images.shape[1:]
    data = ImageData(name, tuple(classes), *statistics, kept, validation, test, channels, (height, width))
    return _with_train_size(data, settings)


# --- folders ------------------------------------------------------------------------------------------------


def _folder(
    name: str, settings: Settings, say: Callable[[str], None], progress: Progress
) -> tuple[ImageData, Loading]:
    """PATH/{train,val,test}/CLASS/IMAGE, or PATH/CLASS/IMAGE, of which 10 % become the test split."""
    root = Path(name.removeprefix("folder:")).expanduser()
    layout = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
    found = {
        split: [root / n for n in names if (root / n).is_dir() and _subfolders(root / n)]
        for split, names in layout.items()
    }
    for split, folders in found.items():
        if len(folders) > 1:
            raise InputError(
                f"{root} has {' and '.join(f.name for f in folders)}; expected one {split} folder"
            )
    if any(found.values()) and not found["train"]:
        raise InputError(
            f"{root} has {next(f[0].name for f in found.values() if f)} but no train/CLASS folders"
        )

    class_folder = found["train"][0] if found["train"] else root
    classes = tuple(folder.name for folder in _subfolders(class_folder))
    if not classes:
        raise InputError(f"{class_folder} has no class folders; expected {class_folder}/CLASS/IMAGE")
    if len(classes) == 1:
        raise InputError(f"{class_folder} has one class folder, {classes[0]!r}; expected at least two")
    splits = {split: _scan(folders[0], classes) for split, folders in found.items() if folders}
    splits = splits or {"train": _scan(root, classes)}

    def divided(splits: Mapping[str, FileSplit], skipped: tuple[str, ...] = ()) -> ImageData:
        counts = torch.bincount(splits["train"].labels, minlength=len(classes))
        if not counts.all():
            raise InputError(f"no image of {class_folder / classes[int(counts.argmin())]} can be read")
        train: Split = splits["train"]
        test: Split | None = splits.get("test")
        if not found["train"]:
            kept, held = held_out(train.labels, max(1, round(HELD_OUT * len(train))), settings.split_seed)
            train, test = train.subset(kept), train.subset(held)
        train, validation = _with_validation(train, splits.get("validation"), settings)
        data = ImageData(name, classes, *_IMAGENET, train, validation, test, 3, None, skipped)
        return _with_train_size(data, settings)

    return divided(splits), lambda: divided(*_readable(splits, root, settings, say, progress))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _scan(folder: Path, classes: tuple[str, ...]) -> FileSplit:
    """List folder/CLASS/IMAGE, sorted."""
    paths: list[Path] = []
    labels: list[int] = []
    for subfolder in _subfolders(folder):
        if subfolder.name not in classes:
            reason = unknown("class", subfolder.name, classes)
            raise InputError(f"{subfolder} is a class without training images: {reason}")
        files = _image_files(subfolder)
        paths += files
        labels += [classes.index(subfolder.name)] * len(files)
    return FileSplit(tuple(paths), torch.tensor(labels))


def _image_files(folder: Path) -> list[Path]:
    """The images of one folder, sorted, without hidden files and other extensions; links are followed."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
    found = sorted(p for p in files if not p.is_dir())
    if not found:
        raise InputError(
            f"{folder} has no images ({', '.join(EXTENSIONS)}); put some there, or take the folder away"
        )
    return found


def _readable(
    splits: dict[str, FileSplit],
    root: Path,
    settings: Settings,
    say: Callable[[str], None],
    progress: Progress,
) -> tuple[dict[str, FileSplit], tuple[str, ...]]:
    """The splits without the images that cannot be decoded, and the names of those."""

    def check(bad: Mapping[Path, str]) -> None:
        if not bad or settings.skip_bad_images:
            return
        count = sum(len(split) for split in splits.values())
        first = ", ".join(f"{path.relative_to(root)} ({why})" for path, why in list(bad.items())[:3])
        raise InputError(
            f"{len(bad):,} of the {count:,} images in {root} cannot be read: {first}"
            f"{', ...' if len(bad) > 3 else ''}; --skip_bad_images leaves them out"
        )

    if settings.packed is None:
        bad = dict(
            failed for split in splits.values() for failed in _unreadable(split.paths, settings.workers)
        )
        check(bad)
    else:
        pixels, bad = packed_copy(
            Path(settings.packed).expanduser(),
            root,
            {name: split.paths for name, split in splits.items()},
            shorter_side(settings.image_size),
            check,
            workers=settings.workers,
            say=say,
            progress=progress,
        )
        splits = {name: replace(split, pixels=pixels[name]) for name, split in splits.items()}
    kept = {name: [i for i, p in enumerate(split.paths) if p not in bad] for name, split in splits.items()}
    splits = {name: split.subset(torch.tensor(kept[name]).long()) for name, split in splits.items()}
    return splits, tuple(path.relative_to(root).as_posix() for path in bad)


def _unreadable(paths: Sequence[Path], workers: int | None) -> list[tuple[Path, str]]:
    """Decode every file in full; return those that fail, and why."""
    decoded = each_decoded(paths, workers, lambda image: None)
    return [(path, why) for path, why in zip(paths, decoded, strict=True) if why is not None]


# --- Python objects -----------------------------------------------------------------------------------------


def _from_objects(data: Any, settings: Settings) -> ImageData:
    parts = data if isinstance(data, Mapping) else {"train": data}
    for key in parts:
        if key not in ("train", "validation", "test"):
            raise unknown("split", key, ("train", "validation", "test"))
    if parts.get("train") is None:
        raise InputError(
            "the data has no 'train'; expected a mapping with train, and validation and test if any"
        )
    splits = {name: _in_memory(part, name) for name, part in parts.items() if part is not None}
    labels = splits["train"].labels
    if not len(labels):
        raise InputError("the train data has no images")
    if int(labels.min()) < 0:
        raise InputError(f"a train label is {int(labels.min())}; expected classes numbered from 0")
    names = getattr(parts["train"], "classes", None)
    if names is None:
        counts = torch.bincount(labels)
        if not counts.all():
            raise InputError(f"class {int(counts.argmin())} has no training images; expected labels 0 to K-1")
        names = map(str, range(len(counts)))
    images = splits["train"].images
    statistics = _statistics(images)
    return _named(
        "custom",
        tuple(map(str, names)),
        statistics,
        splits["train"],
        splits.get("validation"),
        splits.get("test"),
        settings,
    )


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 ``[M,C,H,W]``, exact, in [0, 1]."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean.append(float(share @ values))
        std.append(float(share @ (values - mean[-1]) ** 2) ** 0.5 or 1.0)  # a constant channel is not scaled
    return tuple(mean), tuple(std)


def _in_memory(dataset: Any, name: str) -> MemorySplit:
    """The whole of a data set as one tensor."""
    if isinstance(dataset, MemorySplit):
        return dataset
    images, labels = getattr(dataset, "images", None), getattr(dataset, "labels", None)
    if isinstance(images, Tensor) and isinstance(labels, Tensor) and images.dtype == torch.uint8:
        images = images[:, None] if images.ndim == 3 else images
        return MemorySplit(images, torch.tensor([_label(y, i) for i, y in enumerate(labels.tolist())]))
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise InputError(
            f"the {name} data is {type(dataset).__name__}; expected a data set name ({', '.join(DATA)}), "
            "an ImageData, or a map-style data set of (image, label)"
        )
    count = len(dataset)
    stacked, labels = torch.empty(0, dtype=torch.uint8), []
    for index in range(count):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(
                f"item {index} of the {name} data is {type(item).__name__}; expected (image, label)"
            )
        image = _pixels(item[0], index)
        labels.append(_label(item[1], index))
        if index == 0:
            if count * image.numel() > _MEMORY_LIMIT:
                raise InputError(
                    f"the {name} data is over 2 GiB in memory; save it as image files and use folder:PATH"
                )
            stacked = torch.empty(count, *image.shape, dtype=torch.uint8)
        if image.shape != stacked.shape[1:]:
            raise InputError(
                f"image {index} of the {name} data is {list(image.shape)}, the first is "
                f"{list(stacked.shape[1:])}; for images of different sizes use folder:PATH"
            )
        stacked[index] = image
    if not count:
        raise InputError(f"the {name} data has no images")
    return MemorySplit(stacked, torch.tensor(labels))


def _channels_last(shape: Sequence[int]) -> bool:
    return shape[-1] <= 4 < shape[-3]


def _label(label: Any, index: int) -> int:
    """The label of sample ``index`` as an int; a float, bool, vector or name is refused."""
    try:
        if not isinstance(label, bool):
            return operator.index(label)
    except TypeError:
        pass
    raise InputError(f"label {index} is {label!r}; expected a whole number from 0 to K-1")


def _pixels(image: Any, index: int) -> Tensor:
    """One image as uint8 ``[C,H,W]``: greyscale stays one channel, every other PIL mode becomes RGB."""
    if isinstance(image, Image.Image):
        array = np.array(as_rgb(image).convert("L" if image.mode == "L" else "RGB"))
        return torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1)
    if not isinstance(image, Tensor | np.ndarray):
        raise InputError(f"image {index} is {type(image).__name__}; expected a PIL image, or uint8 [C, H, W]")
    pixels = image.detach().cpu() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or _channels_last(pixels.shape):
        raise InputError(
            f"image {index} is {list(pixels.shape)}; expected [C, H, W] (channels first) or [H, W]"
        )
    if pixels.is_floating_point():
        exact = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
        if torch.allclose(exact.to(pixels.dtype) / 255, pixels, rtol=0, atol=1e-5):
            return exact
    if pixels.dtype != torch.uint8:
        raise InputError(
            f"image {index} is {pixels.dtype} and not uint8 / 255; expected uint8 images, or ToTensor's, "
            "neither normalised nor augmented: eyeline does both"
        )
    return pixels
