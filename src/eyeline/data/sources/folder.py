"""Folders of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from eyeline.data.packed import Progress, each_decoded, packed_copy
from eyeline.data.preprocess import shorter_side
from eyeline.data.sources.registry import Listed, source
from eyeline.data.splits import (
    HELD_OUT,
    FileSplit,
    ImageData,
    Split,
    held_out,
    with_train_size,
    with_validation,
)
from eyeline.errors import InputError, unknown
from eyeline.settings import Settings

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@source("folder:")
def folder(name: str, settings: Settings, say: Callable[[str], None], progress: Progress) -> Listed:
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
        train, validation = with_validation(train, splits.get("validation"), settings)
        data = ImageData(name, classes, *_IMAGENET, train, validation, test, 3, None, skipped)
        return with_train_size(data, settings)

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
        files = image_files(subfolder)
        paths += files
        labels += [classes.index(subfolder.name)] * len(files)
    return FileSplit(tuple(paths), torch.tensor(labels))


def image_files(folder: Path) -> list[Path]:
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
    with closing(each_decoded(paths, workers, lambda image: None)) as decoded:
        return [(path, why) for path, why in zip(paths, decoded, strict=True) if why is not None]
