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
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from eyeline.distiller import Distiller, ask_teacher
from eyeline.errors import InputError, TrainingStopped
from eyeline.files import is_left_over, read_json, write_atomically, write_json
from eyeline.losses import Loss, Target
from eyeline.observe import Observer

KEY = "memory.json"
_FORMAT = 2
_KIND = "memory"


# --- how a target is stored ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """A target as it is stored: its ``parts`` by name, and the ``dtypes`` that its tensors come back in."""

    parts: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]

    def rows(self, indices: Tensor, device: torch.device) -> Encoded:
        """Those at ``indices`` (int64 on the CPU), on a device, without waiting for it."""
        chosen = {name: part[indices] for name, part in self.parts.items()}
        if device.type == "cuda":
            chosen = {name: part.pin_memory() for name, part in chosen.items()}
        return Encoded({n: part.to(device, non_blocking=True) for n, part in chosen.items()}, self.dtypes)

    def decode(self) -> Target:
        """The target: float32 arithmetic, then the dtype it had."""
        target = {}
        for name, dtype in self.dtypes.items():
            rows = self.parts[name]
            if f"{name}/scale" in self.parts:
                rows = rows.float() * _spread(self.parts[f"{name}/scale"].float(), rows)
            elif f"{name}/step" in self.parts:
                low, step = (_spread(self.parts[f"{name}/{part}"], rows) for part in ("low", "step"))
                rows = low + rows.float() * step
            target[name] = rows.to(dtype)
        return target


def encode(target: Target, precision: str) -> Encoded:
    """Store a target's tensors ``[N, ...]``.

    * ``float32``: as they are.
    * ``float16``: each row times a power of two that brings its largest value to ``[2^14, 2^15)``, stored
      beside it; so a row of tiny values keeps 11 bits as any other: the error is at most ``2^-11 |x|``, or
      ``2^-39`` of the row's largest (from ``2^-100`` on). Tensors of 2 bytes a value (bf16) stay as they are.
    * ``uint8``: ``x = low + q step`` with ``step`` = (largest - smallest) / 255 of the row: the error is at
      most half a step; for tensors of 3 and more dimensions (maps). Others as with ``float16``.
    """
    parts = {}
    for name, tensor in target.items():
        rows = tensor.detach()
        if precision != "float32" and rows.is_floating_point():
            flat = rows.float().reshape(len(rows), -1)
            if precision == "uint8" and rows.ndim > 2:
                low, high = flat.aminmax(dim=1)
                step = parts[f"{name}/step"] = (high - low) / 255
                parts[f"{name}/low"] = low
                smallest = torch.finfo(torch.float32).tiny  # a constant row has step 0
                levels = (flat - low[:, None]) / step.clamp(min=smallest)[:, None]
                rows = levels.round().clamp(0, 255).to(torch.uint8).view(rows.shape)
            elif rows.itemsize > 2:
                # the exponent bits alone are the power of two below a number, exactly
                below = (flat.abs().amax(1).view(torch.int32) & 0x7F800000).view(torch.float32)
                scale = below.clamp(min=2.0**-100) * 2.0**-14
                parts[f"{name}/scale"] = scale.to(torch.bfloat16)
                rows = (flat / scale[:, None]).to(torch.float16).view(rows.shape)
        parts[name] = rows
    return Encoded(parts, {name: tensor.dtype for name, tensor in target.items()})


def _spread(values: Tensor, rows: Tensor) -> Tensor:
    """``[N]`` as ``[N, 1, ...]`` beside rows."""
    return values.view(-1, *[1] * (rows.ndim - 1))


def _gathered(
    batches: Iterable[tuple[Tensor, Mapping[str, Target]]], length: int, precision: str
) -> dict[str, Encoded]:
    """Targets of all samples from those of batches, by name."""
    whole: dict[str, Encoded] = {}
    for indices, targets in batches:
        for name, target in targets.items():
            rows = encode(target, precision)
            if name not in whole:
                parts = {k: torch.empty(length, *v.shape[1:], dtype=v.dtype) for k, v in rows.parts.items()}
                whole[name] = Encoded(parts, rows.dtypes)
            for part, values in rows.parts.items():
                whole[name].parts[part][indices.cpu()] = values.cpu()
    return whole


# --- what is remembered -------------------------------------------------------------------------------------


def target_names(distiller: Distiller) -> dict[str, str]:
    """Loss -> name of its target in a memory, for the losses that count and whose target can be remembered.

    The name ends in a hash of what the target depends on: the loss, its parameters (without its
    ``not_in_target``), and the teacher's observed layers if it needs features.
    """
    names = {}
    for term, loss in distiller.objective.targeted.items():
        if not (loss.remembers and distiller.objective.weights[term].value):
            continue
        left_out = {"weight", "schedule", *loss.not_in_target}
        options = {k: v for k, v in distiller.objective.method[term].items() if k not in left_out}
        # 2 and 2.0 are one value
        options = {k: float(v) if type(v) is int else v for k, v in options.items()}
        of_layers = "features" in loss.needs or "pre_activations" in loss.needs
        layers = [theirs for _, theirs in distiller.pairs] if of_layers else []
        depends = json.dumps([term, options, layers], sort_keys=True, default=repr)
        names[term] = f"{term}-{hashlib.sha256(depends.encode()).hexdigest()[:8]}"
    return names


class SharedTeacher:
    """The teacher of several distillers, and all that can be remembered of it: ``losses`` by target name.

    Leaving a ``with`` takes off the hooks that are not those of a distiller.
    """

    network: nn.Module
    losses: dict[str, Loss]

    def __init__(self, distillers: Sequence[Distiller]) -> None:
        asking = [distiller for distiller in distillers if distiller.observe_teacher is not None]
        observers = [d.observe_teacher for d in asking if d.observe_teacher is not None]
        self.network = observers[0].model
        # all pair the same layers, or need none
        layers = max((observer.layers for observer in observers), key=len)
        needed = {
            what for d in asking for what in ("pre_activations", "class_maps") if d.objective.needs(what)
        }
        enough = [
            observer
            for observer, d in zip(observers, asking, strict=True)
            if observer.layers == layers and all(d.objective.needs(what) for what in needed)
        ]
        self._own = None
        if not enough:
            self._own = Observer(
                self.network,
                [layer.name for layer in layers],
                asking[0].input_shape,
                pre_activations="pre_activations" in needed,
                class_maps="class_maps" in needed,
            )
        self.observe = self._own or enough[0]
        self.losses = {
            name: distiller.objective.targeted[term]
            for distiller in distillers
            for term, name in target_names(distiller).items()
        }

    def __enter__(self) -> SharedTeacher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            self._own.close()

    def targets(self, images: Tensor, labels: Tensor, names: Collection[str]) -> dict[str, Target]:
        """Of one forward pass on ``images`` ``[N, C, H, W]`` of ``labels`` ``[N]``: those that are named."""
        return ask_teacher(self.observe, images, labels, self.losses, names)

    def bytes_per_image(self, images: Tensor, precision: str) -> dict[str, int]:
        """What each target of one view of one image takes, from a few images of any content.

        Raises:
            InputError: a target has not one row an image.
        """
        sizes = {}
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        for name, target in self.targets(images, labels, self.losses).items():
            for part, tensor in target.items():
                if tensor.ndim == 0 or len(tensor) != len(images):
                    raise InputError(
                        f"the target {part!r} of {name.rpartition('-')[0]!r} is {list(tensor.shape)} for "
                        f"{len(images)} images; expected a row an image, or a loss with remembers = False"
                    )
            whole = sum(part.nbytes for part in encode(target, precision).parts.values())
            sizes[name] = whole // len(images)
        return sizes


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of a network's structure as it prints itself, and of its parameters and buffers, by name."""
    # an object that has no text of its own prints its address
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(network)).encode())
    tensors = {**network.state_dict(), **dict(network.named_buffers())}  # those that are not saved, too
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, Tensor):
            _update(digest, name, tensor)
    return digest.hexdigest()


def _update(digest: Any, name: str, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())


# --- the folder ---------------------------------------------------------------------------------------------


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
        key: all that the targets depend on, as JSON; ``memory_precision`` among it.
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
        self._shown = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
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
            for name, encoded in _gathered(ask(lacking), self.length, self.key["memory_precision"]).items():
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
        _update(digest, name, parts[name])
    return digest.hexdigest()


def _short(value: Any) -> str:
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
