"""The teacher's memory: its targets for each view of each training image, asked for once, kept on disk.

A view is a function of (seed, view, sample) alone and the teacher never moves, so a target is one too, and
all students, seeds and methods can share it::

    MEMORY/memory.json                             what the targets depend on
    MEMORY/at-3f2a91c0/view-0004.safetensors       one view of one target, rows in the order of the split
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from eyeline.errors import InputError, TrainingStopped
from eyeline.files import is_left_over, read_json, write_atomically, write_json
from eyeline.hashing import same, update
from eyeline.losses import Target
from eyeline.memory.encoding import Encoded, gathered

KEY = "memory.json"
BEHAVIOUR = "teacher's answers"

_FORMAT = 3

_KIND = "memory"


def check_folder(folder: Path) -> bool:
    """Whether a memory is there; there may also be nothing.

    Raises:
        InputError: there is something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"memory {folder} is a file; expected a folder")
    if is_memory(folder):
        return True
    if not folder.is_dir() or all(is_left_over(file) for file in folder.iterdir()):
        return False
    if not is_memory(folder):  # another process may have made it meanwhile
        raise InputError(
            f"{folder} holds files that are no memory of eyeline; choose another folder with --memory"
        )
    return True


class Memory:
    """A folder of remembered targets.

    Args:
        folder: made when the first view is stored.
        key: all that the targets depend on, as JSON; ``memory_precision`` among it, and the teacher's answers
            to noise, which may differ by rounding.
        length: training images.
        say: takes a line for the user.
        anew: what is in the folder will be removed before it is used.

    Raises:
        InputError: the folder holds the memory of something else (the differences are named), or other files.
    """

    def __init__(
        self,
        folder: str | Path,
        key: Mapping[str, Any],
        length: int,
        *,
        say: Callable[[str], None] = print,
        anew: bool = False,
    ) -> None:
        self.folder, self.length, self.say = Path(folder).expanduser(), length, say
        self.key = json.loads(json.dumps({"format": _FORMAT, **key}))
        self.stuck = False
        """Whether a view could not be stored; none is stored from then on."""
        exact = {name: value for name, value in self.key.items() if name != BEHAVIOUR}
        self._shown = hashlib.sha256(json.dumps(exact, sort_keys=True).encode()).hexdigest()[:16]
        if not anew:
            self._check()

    def _check(self) -> bool:
        """Whether the folder is this memory; not so if there is nothing in it."""
        path = self.folder / KEY
        if not check_folder(self.folder):
            return False
        theirs = read_json(path, "the memory of a teacher").get("key", {})
        differing = [
            f"{name} was {_short(theirs.get(name))}, is {_short(self.key.get(name))}"
            for name in dict.fromkeys([*self.key, *theirs])
            if theirs.get(name) != self.key.get(name)
            and not (name == BEHAVIOUR and same(theirs.get(name), self.key.get(name)))
        ]
        if differing:
            raise InputError(
                f"{self.folder} remembers something else ({'; '.join(differing)}); "
                "choose another folder with --memory"
            )
        return True

    def _claim(self) -> None:
        """Make the folder this memory, or see that it is."""
        if not self._check():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / KEY, {"kind": _KIND, "key": self.key})
            self._check()  # another process may have been faster, with another key

    def path(self, name: str, view: int) -> Path:
        """The file of one view of one target."""
        return self.folder / name / f"view-{view:04d}.safetensors"

    def missing(self, wanted: Sequence[Collection[str]]) -> list[int]:
        """The views of which some target is not stored; ``wanted``: the targets of each view, by name."""
        return [v for v, names in enumerate(wanted) if any(not self.path(n, v).exists() for n in names)]

    def can_be_written(self) -> bool:
        """Whether the folder, or that in which it would be made, lets us write."""
        place = self.folder.absolute()
        while not place.exists():
            place = place.parent
        return os.access(place, os.W_OK)

    def view(
        self,
        view: int,
        names: Collection[str],
        ask: Callable[[list[str]], Iterable[tuple[Tensor, Mapping[str, Target]]]],
    ) -> dict[str, Encoded]:
        """The targets of one view, all rows, by name; mapped from disk, not read.

        What is not stored, or damaged, is asked for with ``ask(names)``, which answers (indices, targets by
        name) of batches that hold every sample once; and stored.
        Where it cannot be stored it is held in RAM; that is said once, and nothing more is stored.

        Raises:
            InputError: meanwhile the folder holds the memory of something else.
            TrainingStopped: a file cannot be read.
        """
        self._check()
        stored = {name: self._recalled(name, view) for name in names}
        lacking = [name for name, encoded in stored.items() if encoded is None]
        found = {name: encoded for name, encoded in stored.items() if encoded is not None}
        if lacking:
            for name, encoded in gathered(ask(lacking), self.length, self.key["memory_precision"]).items():
                self._keep(name, view, encoded)
                found[name] = self._recalled(name, view) or encoded
        return found

    def _recalled(self, name: str, view: int) -> Encoded | None:
        """A view that is stored; one that is damaged is removed."""
        path = self.path(name, view)
        try:
            return self._opened(name, view)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TrainingStopped(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # bytes that are no shard fail in many ways
            why = (str(error) or type(error).__name__).splitlines()[0][:80]
            self.say(f"{path} is damaged ({why}); it is removed, and the teacher asked again")
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None

    def _opened(self, name: str, view: int) -> Encoded:
        path = self.path(name, view)
        with safe_open(path, "pt") as file:  # maps the file: a row is read when it is needed
            facts, parts = file.metadata() or {}, {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118
        content = {k: v for k, v in facts.items() if k != "checksum"}
        seen = path.stat()
        state = (str(path.absolute()), seen.st_ino, seen.st_size, seen.st_mtime_ns)
        if state not in _VERIFIED and _checksum(parts, content) != facts.get("checksum"):
            raise ValueError("its checksum is wrong")
        if content != self._facts(name, view, facts["dtypes"]):
            raise ValueError("it belongs elsewhere")
        _VERIFIED.add(state)
        return Encoded(parts, {k: getattr(torch, v) for k, v in json.loads(facts["dtypes"]).items()})

    def _keep(self, name: str, view: int, encoded: Encoded) -> None:
        """Store a view, whole or not at all; a view that another process has stored by then stays."""
        path = self.path(name, view)
        if self.stuck or path.exists():
            return
        dtypes = {k: str(dtype).removeprefix("torch.") for k, dtype in encoded.dtypes.items()}
        facts = self._facts(name, view, json.dumps(dtypes, sort_keys=True))
        try:
            self._claim()
            path.parent.mkdir(exist_ok=True)
            facts["checksum"] = _checksum(encoded.parts, facts)
            write_atomically(path, to_safetensors(encoded.parts, facts))
        except (TrainingStopped, OSError) as error:
            if not path.exists():
                self.stuck = True
                made = f"cannot make {getattr(error, 'filename', path)}: {getattr(error, 'strerror', error)}"
                reason = str(error).partition(";")[0] if isinstance(error, TrainingStopped) else made
                self.say(
                    f"{reason}; what {self.folder} holds is kept, for the rest the teacher is asked anew"
                )
            return
        for file in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed in this place
            file.unlink(missing_ok=True)

    def _facts(self, name: str, view: int, dtypes: str) -> dict[str, str]:
        return {"memory": self._shown, "target": name, "view": str(view), "dtypes": dtypes}


_VERIFIED: set[tuple[str, int, int, int]] = set()
"""Files whose checksum this process has seen to be right."""


def _checksum(parts: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(parts):
        update(digest, name, parts[name])
    return digest.hexdigest()


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"[{value[0]}, ...]"
    return repr(f"{value[:12]}..." if isinstance(value, str) and len(value) > 16 else value)


def is_memory(folder: Path) -> bool:
    """Whether a folder is a memory."""
    try:
        return json.loads((folder / KEY).read_text(encoding="utf-8"))["kind"] == _KIND
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remove_memories(folder: Path) -> None:
    """Delete the memories that lie in a folder: what eyeline wrote. Other files stay."""
    for key in folder.glob(f"*/{KEY}"):
        if not is_memory(key.parent):
            continue
        for file in [*key.parent.glob("*/view-*.safetensors"), *key.parent.glob("*/.view-*.part")]:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                file.parent.rmdir()
        key.unlink()
        with suppress(OSError):
            key.parent.rmdir()
