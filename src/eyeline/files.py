"""Files that are written whole or not at all, JSON, and the lock of a folder."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from eyeline.errors import InputError, TrainingStopped

LOCK = ".eyeline.lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # of a file system without locks


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside its place; then it is renamed: the file is always whole, old or new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with no content
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file of a run, as in :func:`replacing`.

    Raises:
        TrainingStopped: the disk is full, or the folder cannot be written; the earlier file is kept.
    """
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        earlier = f"the earlier {path.name} is kept" if path.exists() else "nothing was written"
        raise TrainingStopped(
            f"could not write {path}: {'the disk is full' if full else error.strerror}; {earlier}; "
            "once there is room, continue with --resume"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file as :func:`writing` does, from bytes."""
    with writing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomically(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. It has no NaN and no infinity: a figure that is not finite is missing (null)."""
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file of ours.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_json)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected {what}") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); expected {what}") from error


def is_left_over(file: Path) -> bool:
    """Of a process that was killed while it wrote, or held the folder."""
    return file.name == LOCK or re.fullmatch(r"\..+\.\d+\.part", file.name) is not None


@contextmanager
def locked(folder: Path, seconds: float = -1) -> Iterator[None]:
    """A folder for this process alone. The lock is the system's: it goes with the process.

    Args:
        folder: it holds the file of the lock, which stays.
        seconds: how long to wait for another process; below 0: as long as it takes.

    Raises:
        TimeoutError: another process holds it.
        OSError: the folder cannot be written.
    """
    from filelock import FileLock  # not at the top: the command line reads this file

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(seconds)
        while not (folder / LOCK).exists():  # whoever held it took it away: nobody else waits for this one
            lock.release()
            lock.acquire(seconds)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        yield
        return
    try:
        yield
    finally:
        lock.release()


def amount(size: float) -> str:
    """A number of bytes as one reads it."""
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u or n == "kB")
    return f"{size / unit:.1f} {name}"
