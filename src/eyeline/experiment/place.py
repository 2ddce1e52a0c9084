"""Where a run goes, how one that is there goes on, and on what hardware."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyeline.console import say
from eyeline.data.splits import ImageData
from eyeline.device import Device, resolved
from eyeline.errors import InputError
from eyeline.ranks import is_main_process
from eyeline.runs.card import names_run
from eyeline.runs.folder import HARDWARE, RESULT, RunFolder, is_run, is_taken, read_recipe
from eyeline.settings import Settings


@dataclass(frozen=True)
class Place:
    """The folder that a run or a study goes to, and what may become of one that is there."""

    path: Path
    resume: bool = False
    overwrite: bool = False

    @classmethod
    def of(
        cls,
        out: str | None,
        named: Sequence[str],
        *,
        resume: bool = False,
        overwrite: bool = False,
        needed: Sequence[Any] = (),
    ) -> Place:
        """A folder that is given, or one under ``runs/`` that is called after what it holds.

        Raises:
            InputError: a run is there, or it would replace one that is ``needed``.
        """
        place = cls(placed(out, named), resume, overwrite)
        if is_main_process():
            is_taken(place.path, resume=resume, overwrite=overwrite)
        ours = place.path.resolve()
        for given in needed if overwrite else ():
            if not (isinstance(given, str) and names_run(given)):
                continue
            theirs = Path(given).expanduser().resolve()
            if ours == theirs or ours in theirs.parents:
                raise InputError(
                    f"{place.path} is to be overwritten, but {given} is needed; choose another folder with "
                    "--out"
                )
        return place

    def folder(
        self, recipe: Mapping[str, Any], inputs: Mapping[str, Any], said: Collection[str] = ()
    ) -> RunFolder:
        """The folder of a run with this recipe; ``said``: see :class:`RunFolder`."""
        how: dict[str, Any] = {"resume": self.resume, "overwrite": self.overwrite}
        return RunFolder(self.path, recipe, **how, inputs=inputs, said=said)


def placed(out: str | None, named: Sequence[str]) -> Path:
    """The path that is given, or one that is made of what a run holds."""
    return (Path(out) if out is not None else Path("runs") / file_name("-".join(named))).expanduser()


def file_name(text: str) -> str:
    """A text as the name of a file or a folder."""
    return re.sub(r"[^A-Za-z0-9+._-]+", "_", text).strip("_")


def complete_recipe(verb: str, recipe: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """All arguments of a command, as its run folder keeps them."""
    return {"verb": verb, **recipe, **dataclasses.asdict(settings)}


def said_of_hardware(settings: Settings) -> tuple[str, ...]:
    """The settings of the hardware that were given in so many words."""
    return tuple(name for name in HARDWARE if getattr(settings, name) != "auto")


def as_begun(settings: Settings, data: ImageData, place: Place) -> Settings:
    """What the settings mean: for a run that goes on, as it began; otherwise on this hardware.

    Raises:
        InputError: the run began on hardware that is not here, and it was not said on what it goes on.
    """
    files = data.size is None
    here = resolved(settings, files=files)
    # what is finished is only read
    if not (place.resume and is_run(place.path)) or (place.path / RESULT).exists():
        return here
    before = read_recipe(place.path)
    kept = {
        name: before[name] for name in HARDWARE if name in before and name not in said_of_hardware(settings)
    }
    there = dataclasses.replace(settings, **kept)
    missing: list[str] = []
    try:
        as_auto = Device.of(dataclasses.replace(there, precision="auto"))
    except InputError:
        missing = [n for n in ("accelerator", "devices") if n in kept and kept[n] != getattr(here, n)]
        as_auto = Device.of(dataclasses.replace(settings, precision="auto"))
    if kept.get("precision") == "bf16" and not as_auto.bf16:
        missing.append("precision")
    if missing:
        began = ", ".join(f"{name}={kept[name]}" for name in missing)
        words = " ".join(f"--{name} {getattr(here, name)}" for name in missing)
        emulated = ", or --precision bf16, which is slow here" if "precision" in missing else ""
        raise InputError(
            f"{place.path} began with {began}, which this machine does not have; to go on otherwise, no "
            f"longer bit for bit, give {words}{emulated}"
        )
    return resolved(there, files=files)


def tell_of_changes(folder: RunFolder) -> None:
    """Say of a run with what other hardware it goes on."""
    if folder.changed:
        began, now = (", ".join(f"{name}={each[i]}" for name, each in folder.changed.items()) for i in (0, 1))
        say(f"{folder.path} goes on with {now}; it began with {began}: no longer bit for bit")
