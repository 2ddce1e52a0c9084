"""The packed copy of a folder of images: decoded and resized once, then mapped from disk by every run.

::

    PACKED/packed.json        of which files, in which size: names, bytes and times; shapes and checksums
    PACKED/train.images       the pixels of one split, uint8 ``[H, W, 3]`` one image after the other

``packed.json`` is written last: without it nothing is served.
"""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageFile
from torch import Tensor

from eyeline.cores import own_cores
from eyeline.data.images import FORMATS, decode
from eyeline.data.preprocess import resize
from eyeline.errors import InputError, TrainingStopped
from eyeline.files import LOCK, amount, is_left_over, locked, writing

INDEX = "packed.json"
_FORMAT = 1
_KIND = "packed images"
_PIXELS = ".images"
_OURS = {INDEX, *(split + _PIXELS for split in ("train", "validation", "test"))}

T = TypeVar("T")
Progress = Callable[[int], AbstractContextManager[Callable[[int, Callable[[], tuple[str, str, str]]], None]]]
"""Total -> context of a function that takes how many are done, and makes the figures that are shown."""


def silent(total: int) -> AbstractContextManager[Callable[[int, Callable[[], tuple[str, str, str]]], None]]:
    """Progress that nobody sees."""
    return nullcontext(lambda done, figures: None)


class Pixels:
    """The packed images of a split.

    Args:
        path: the file they lie in.
        places: int64 ``[M, 4]``: where an image starts, its height, width and CRC-32.
        side: no shorter side is longer than this.
    """

    def __init__(self, path: Path, places: np.ndarray, side: int) -> None:
        self.path, self.places, self.side = path, places, side
        empty = path.stat().st_size == 0  # all its images were left out
        self._bytes = np.zeros(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, "r"))

    def __reduce__(self) -> Any:
        return Pixels, (self.path, self.places, self.side)  # another process maps the file by itself

    def subset(self, indices: Tensor) -> Pixels:
        """The images at ``indices``, in that order."""
        return Pixels(self.path, self.places[indices.numpy()], self.side)

    def load(self, index: int, file: Path) -> Image.Image:
        """Image ``index``; where its bytes are damaged, made again from its ``file``."""
        start, height, width, checksum = self.places[index].tolist()
        content = self._bytes[start : start + 3 * height * width]
        if zlib.crc32(content.data) == checksum:
            return Image.fromarray(content.reshape(height, width, 3))
        warnings.warn(
            f"{self.path} is damaged: some images are decoded again; delete it, and it is made anew",
            stacklevel=2,
        )
        return _resized(decode(file), self.side)


def packed_copy(
    folder: Path,
    root: Path,
    splits: Mapping[str, Sequence[Path]],
    side: int,
    check: Callable[[Mapping[Path, str]], None],
    *,
    workers: int | None = None,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> tuple[dict[str, Pixels], dict[Path, str]]:
    """Open the packed copy of images, by split; make it if there is none, or it is damaged.

    Each image is decoded as :func:`~eyeline.data.images.decode` does and, if its shorter side is longer than
    ``side``, resized to that as for the evaluation view, which so is the same bit for bit.

    Args:
        folder: where it lies.
        root: the folder of the images.
        splits: their files.
        side: in pixels.
        check: is given the files that cannot be decoded, and why; it may raise, then nothing is written.
        workers: threads that decode.
        say: takes a line for the user.
        progress: shows how it goes.

    Returns:
        The images, and the files that cannot be decoded. Those keep their rows, without pixels.

    Raises:
        InputError: the folder holds the copy of something else (the differences are named), or other files,
            or there is no room, or it cannot be written.
        TrainingStopped: the disk became full; nothing is kept of the copy.
    """
    if folder.resolve().is_relative_to(root.resolve()):
        raise InputError(f"packed {folder} lies in the folder of the images; choose another with --packed")
    key = {"format": _FORMAT, "side": side, "files": {name: _files(p, root) for name, p in splits.items()}}
    opened = _opened(folder, key, say)
    if opened is None:
        with _lock(folder, say):
            opened = _opened(folder, key, lambda line: None)  # another process may have made it meanwhile
            if opened is None:
                _make(folder, root, key, splits, check, workers, say, progress)
                opened = _opened(folder, key, say)
    if opened is None:
        raise InputError(f"{folder} was changed while it was written; the same command makes it anew")
    pixels, unreadable = opened
    bad = {root / name: why for name, why in unreadable.items()}
    check(bad)
    return pixels, bad


def each_decoded(
    paths: Sequence[Path], workers: int | None, use: Callable[[Image.Image], T]
) -> Generator[T | str, None, None]:
    """Decode every file in full, in threads: what ``use`` makes of it, in order; or why it fails.

    To be closed: until then a flag of Pillow's is another for all that runs.
    """

    def one(path: Path) -> T | str:
        try:
            return use(decode(path))
        except Exception as error:  # a decoder raises anything on a damaged file
            return str(error).replace(f" {str(path)!r}", "")

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries switch it on, and half an image would pass
    threads = workers or own_cores()
    try:
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(paths), 16 * threads):  # so not all results wait in RAM
                yield from pool.map(one, paths[start : start + 16 * threads])
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


# --- the key ------------------------------------------------------------------------------------------------


def _files(paths: Sequence[Path], root: Path) -> dict[str, list[int]]:
    """Name -> bytes and time of change, of every file."""
    found = {}
    for path in paths:
        try:
            seen = path.stat()
            found[path.relative_to(root).as_posix()] = [seen.st_size, seen.st_mtime_ns]
        except OSError:  # a link to nothing
            found[path.relative_to(root).as_posix()] = [-1, -1]
    return found


def _differences(theirs: Mapping[str, Any], key: Mapping[str, Any]) -> list[str]:
    """What one sees of two keys that are not equal."""
    if theirs["format"] != key["format"]:
        return [f"its format is {theirs['format']}, expected {key['format']}: made by another version"]
    found = []
    if theirs["side"] != key["side"]:
        found.append(f"its shorter side is {theirs['side']} pixels, image_size needs {key['side']}")
    old, new = (
        {(split, name): state for split, files in which["files"].items() for name, state in files.items()}
        for which in (theirs, key)
    )
    for what, names in (
        ("added", [name for name in new if name not in old]),
        ("removed", [name for name in old if name not in new]),
        ("changed", [name for name in new if name in old and new[name] != old[name]]),
    ):
        if names:
            first = ", ".join(file for _, file in names[:3]) + (", ..." if len(names) > 3 else "")
            found.append(f"{len(names):,} file{'s' * (len(names) > 1)} {what}: {first}")
    return found


# --- the folder ---------------------------------------------------------------------------------------------


def _opened(
    folder: Path, key: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[dict[str, Pixels], dict[str, str]] | None:
    """The copy that is there, and the files that could not be decoded; None if there is none, or damaged."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"packed {folder} is a file; expected a folder")
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.is_dir() and not all(_is_ours(file) for file in folder.iterdir()):
            raise InputError(
                f"{folder} holds files that are no packed images of eyeline; choose another with --packed"
            ) from None
        return None
    except OSError as error:
        raise InputError(f"cannot read {folder / INDEX}: {error.strerror}") from error
    except ValueError:
        say(f"{folder / INDEX} is damaged; the copy is made anew")
        return None
    if not isinstance(index, dict) or index.get("kind") != _KIND:
        raise InputError(f"{folder / INDEX} is not of eyeline; choose another folder with --packed")
    try:
        if differing := _differences(index["key"], key):
            raise InputError(
                f"{folder} is the packed copy of something else ({'; '.join(differing)}); "
                "delete it, or choose another folder with --packed"
            )
        pixels = {}
        for name, files in key["files"].items():
            shapes = np.array(index["images"][name], np.int64).reshape(-1, 3)
            if list(index["key"]["files"][name]) != list(files) or len(shapes) != len(files):
                raise ValueError("its rows are not those of the files")
            pixels[name] = _split(folder / f"{name}{_PIXELS}", shapes, key["side"])
        return pixels, dict(index["unreadable"])
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        say(f"{folder} is damaged ({error}); the copy is made anew")
        return None


def _split(path: Path, shapes: np.ndarray, side: int) -> Pixels:
    """One file of pixels; ``shapes`` is height, width and checksum of each image.

    Raises:
        ValueError: it is not as large as it should be.
    """
    ends = (3 * shapes[:, 0] * shapes[:, 1]).cumsum()
    if path.stat().st_size != ends[-1]:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes of {ends[-1]:,}")
    starts = np.concatenate([[0], ends[:-1]])
    return Pixels(path, np.column_stack([starts, shapes]), side)


def _make(
    folder: Path,
    root: Path,
    key: Mapping[str, Any],
    splits: Mapping[str, Sequence[Path]],
    check: Callable[[Mapping[Path, str]], None],
    workers: int | None,
    say: Callable[[str], None],
    progress: Progress,
) -> None:
    """Write the copy, whole or not at all."""
    (folder / INDEX).unlink(missing_ok=True)  # first: what it is of goes now
    for earlier in folder.iterdir():
        if earlier.name != LOCK and _is_ours(earlier):
            earlier.unlink()
    count, side = sum(map(len, splits.values())), key["side"]
    with ThreadPoolExecutor(workers or own_cores()) as pool:
        size = sum(sum(pool.map(lambda path: _size(path, side), paths)) for paths in splits.values())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(
            f"{count:,} packed images take {amount(size)}, and {folder} has {amount(free)} free; "
            "choose a folder with more room with --packed"
        )
    say(f"packed: {count:,} images with a shorter side of at most {side} take {amount(size)}, in {folder}")

    def use(image: Image.Image) -> tuple[list[int], bytes]:
        image = _resized(image, side)
        content = image.tobytes()
        return [image.height, image.width, zlib.crc32(content)], content

    began, done = perf_counter(), 0

    def figures() -> tuple[str, str, str]:
        rate = done / max(perf_counter() - began, 1e-9)
        return f"image {done:,}/{count:,}", "", f"{rate:,.0f} images/s"

    images: dict[str, list[list[int]]] = {}
    bad: dict[Path, str] = {}
    try:
        # the stack leaves its files in turn, the last one first: the index is renamed when the others are
        with progress(count) as show, ExitStack() as written:
            index = written.enter_context(writing(folder / INDEX))
            for name, paths in splits.items():
                file = written.enter_context(writing(folder / f"{name}{_PIXELS}"))
                shapes: list[list[int]] = []
                images[name] = shapes
                decoded = written.enter_context(closing(each_decoded(paths, workers, use)))
                for path, made in zip(paths, decoded, strict=True):
                    if isinstance(made, str):
                        bad[path] = made
                        made = [0, 0, 0], b""
                    shapes.append(made[0])
                    file.write(made[1])
                    done += 1
                    show(done, figures)
            check(bad)
            unreadable = {path.relative_to(root).as_posix(): why for path, why in bad.items()}
            content = {"kind": _KIND, "key": key, "images": images, "unreadable": unreadable}
            index.write(json.dumps(content).encode())
    except TrainingStopped as error:
        reason = str(error).partition(";")[0]
        raise TrainingStopped(
            f"{reason}; nothing is kept of the copy; make room, or choose another folder with --packed"
        ) from error


def _resized(image: Image.Image, side: int) -> Image.Image:
    # a smaller one would grow: the view does that to its pixels as well
    return resize(side)(image) if min(image.size) > side else image


def _size(path: Path, side: int) -> int:
    """Bytes that an image will take, from the head of its file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            short, long = sorted(image.size)
    except Exception:  # it is named when it is decoded
        return 0
    return 3 * short * long if short <= side else 3 * side * int(side * long / short)


def _is_ours(file: Path) -> bool:
    return file.name in _OURS or is_left_over(file)


@contextmanager
def _lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One process writes at a time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(locked(folder, 0))
            except TimeoutError:
                say(f"packed: another process writes {folder}; this one waits for it")
                held.enter_context(locked(folder))
            yield
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror}; choose another folder with --packed"
        ) from error
