"""From what was named to objects: data, networks, the folder, and what the settings mean."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from eyeline import models
from eyeline.console import say, show_progress
from eyeline.data.preprocess import CENTRAL, Preprocess
from eyeline.data.sources import list_data
from eyeline.data.splits import ImageData
from eyeline.device import Device, resolved
from eyeline.errors import InputError
from eyeline.files import read_json
from eyeline.observe import Probe
from eyeline.randomness import draws_apart, mix
from eyeline.ranks import is_main_process
from eyeline.runs.card import called, held_out_hashes, load, names_run
from eyeline.runs.folder import (
    HARDWARE,
    MODEL,
    RESULT,
    RunFolder,
    is_run,
    is_taken,
    read_recipe,
)
from eyeline.settings import Settings
from eyeline.teacher import Teacher

_Module = TypeVar("_Module", bound=nn.Module)


def evaluation_view(data: ImageData, settings: Settings) -> Preprocess:
    channels, *size = image_shape(data, settings)
    return Preprocess(
        channels, (size[0], size[1]), data.mean, data.std, CENTRAL if data.size is None else 1.0
    )


def from_seed(settings: Settings, make: Callable[[], _Module]) -> _Module:
    """A network whose initial weights depend on the seed alone."""
    with draws_apart(Device.of(settings).torch_device, seed=mix(settings.seed, 0x696E6974) >> 1):
        return make()


def listed_data(given: Any, settings: Settings) -> tuple[ImageData, Callable[[], ImageData]]:
    """The data as listed, and what loads it; what cannot work with it, or on this machine, is refused."""
    Device.of(settings)
    listed, load = list_data(
        given,
        settings,
        say=say,
        progress=lambda total: show_progress(settings, total, 0, "packing", shown=is_main_process()),
    )

    @functools.cache
    def loaded() -> ImageData:
        data = load()
        if data.size is None:
            sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
            say(f"{data.name}: {sizes} images of {len(data.classes)} classes")
        return data

    return listed, loaded


def named_network(
    given: Any, data: ImageData, settings: Settings, pretrained: bool = False, weights: str | None = None
) -> nn.Module:
    """The network to train: a name, a run folder, a module (copied), or a function that makes one."""
    if isinstance(given, str) and not names_run(given):
        network = models.create_model(given, len(data.classes), data.channels, pretrained, weights)
    elif pretrained:
        raise InputError(f"pretrained is for a network given by name; {called(given)} brings its own weights")
    else:
        if isinstance(given, nn.Module):
            network = copy.deepcopy(given)
        elif isinstance(given, str):
            network = load(Path(given))
        elif callable(given):
            network = given()
        else:
            raise InputError(
                f"model is {given!r}; expected a name, a run folder, an nn.Module, "
                "or a function that makes one"
            )
        if weights is not None:
            models.load_weights(network, weights)
    answered = Probe(network, image_shape(data, settings)).answer
    if answered != (len(data.classes),):
        raise InputError(
            f"the network answers {list(answered)} for an image; {data.name} has {len(data.classes)} classes"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(
            f"{called(given)} has no parameter that requires a gradient; there is nothing to train"
        )
    return network.train()


def named_teacher(given: Any, data: ImageData, weights: str | None) -> Teacher:
    """The teacher: with trained weights, never a fresh head."""
    if weights is not None and (not isinstance(given, str) or names_run(given)):
        raise InputError(
            f"teacher_weights is for a teacher given by name; {called(given)} brings its own weights"
        )
    if isinstance(given, nn.Module):
        network = given
    elif isinstance(given, str) and names_run(given):
        network = load(Path(given).expanduser())
    elif isinstance(given, str) and weights is not None:
        network = models.create_model(given, len(data.classes), data.channels, weights=weights)
    elif isinstance(given, str):
        if _has_no_published_weights(models.create_model(given), given):
            raise InputError(
                f"no trained weights are published for {given}; give a run folder "
                "(made with eyeline train), or a checkpoint with --teacher_weights"
            )
        network = models.create_model(given, pretrained=True)
    else:
        raise InputError(f"teacher is {given!r}; expected a run folder, a name or an nn.Module")
    classes = getattr(network, "classes", None)
    if classes is not None and len(classes) == len(data.classes) and tuple(classes) != data.classes:
        say(f"teacher {called(given)} names its classes otherwise than {data.name}; they are paired in order")
    return Teacher(called(given), network.eval().requires_grad_(False))


def tell_of_another_division(teacher: Any, data: ImageData) -> None:
    """Say of a teacher that it may have been trained on images that are held out here."""
    if not (isinstance(teacher, str) and names_run(teacher)):
        return
    theirs = read_json(Path(teacher).expanduser() / MODEL, "a run").get("data", {})
    others = [name for name, hash_ in held_out_hashes(data).items() if theirs.get(name, hash_) != hash_]
    if others and theirs.get("name") == data.name:
        say(
            f"teacher {teacher} was trained beside other {' and '.join(others)} images of {data.name} (of "
            "another split_seed, or before files came or went); it may have seen some of these, and its "
            "figures be too high: train it again, or keep test images in a folder of their own"
        )


def _has_no_published_weights(network: nn.Module, name: str) -> bool:
    config = getattr(network, "pretrained_cfg", None) or {}
    return (
        name not in models.EMBEDDED
        and not name.startswith("torchvision/")
        and not (config.get("url") or config.get("hf_hub_id") or config.get("file"))
    )


def left_out(files: Sequence[object]) -> str:
    named = ", ".join(map(str, files[:3])) + ", ..." * (len(files) > 3)
    return f"{len(files)} unreadable image{'s' * (len(files) > 1)} left out: {named}"


def any_network(given: Any, pretrained: bool, weights: str | None) -> nn.Module:
    if weights is not None and (not isinstance(given, str) or names_run(given)):
        raise InputError(f"weights is for a model given by name; {called(given)} brings its own")
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, str):
        raise InputError(f"model is {given!r}; expected a name, a run folder or an nn.Module")
    if names_run(given):
        return load(Path(given).expanduser())
    if given in models.EMBEDDED:
        pretrained = True
    network = models.create_model(given, pretrained=pretrained, weights=weights)
    if not pretrained and weights is None:
        say(f"{given} has random weights: give --pretrained, --weights FILE or a run folder for trained ones")
    return network


def image_shape(data: ImageData, settings: Settings) -> tuple[int, int, int]:
    side = settings.image_size
    height, width = data.size or (side, side)
    return data.channels, height, width


def complete_recipe(verb: str, recipe: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    return {"verb": verb, **recipe, **dataclasses.asdict(settings)}


def said_of_hardware(settings: Settings) -> tuple[str, ...]:
    """The settings of the hardware that were given in so many words."""
    return tuple(name for name in HARDWARE if getattr(settings, name) != "auto")


def as_begun(settings: Settings, data: ImageData, path: Path, resume: bool) -> Settings:
    """What the settings mean: for a run that goes on, as it began; otherwise on this hardware.

    Raises:
        InputError: the run began on hardware that is not here, and it was not said on what it goes on.
    """
    files = data.size is None
    here = resolved(settings, files=files)
    if not (resume and is_run(path)) or (path / RESULT).exists():  # what is finished is only read
        return here
    before = read_recipe(path)
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
            f"{path} began with {began}, which this machine does not have; to go on otherwise, no longer bit "
            f"for bit, give {words}{emulated}"
        )
    return resolved(there, files=files)


def tell_of_changes(folder: RunFolder) -> None:
    if folder.changed:
        began, now = (", ".join(f"{name}={each[i]}" for name, each in folder.changed.items()) for i in (0, 1))
        say(f"{folder.path} goes on with {now}; it began with {began}: no longer bit for bit")


def inputs_of(
    data: ImageData, settings: Settings, teacher: Teacher | None = None, **trained: dict[str, Any]
) -> dict[str, Any]:
    """Records of what may change under a recipe that stays the same; ``trained``: fingerprints by name."""
    numbers = [" ".join(f"{number:.6g}" for number in each) for each in (data.mean, data.std)]
    inputs: dict[str, Any] = {"data": data.fingerprint(), "mean and std": ", ".join(numbers)}
    if teacher is not None:
        inputs["teacher"] = teacher.fingerprint(image_shape(data, settings))
    return inputs | trained


def run_path(
    out: str | None, verb: str, parts: Sequence[str], resume: bool, overwrite: bool, *needed: Any
) -> Path:
    """The folder of a run; refused where a run is there, or it would replace one that is needed."""
    path = place_of(out, verb, parts)
    if is_main_process():
        is_taken(path, resume=resume, overwrite=overwrite)
    _keep(path, overwrite, *needed)
    return path


def place_of(out: str | None, verb: str, parts: Sequence[str]) -> Path:
    path = Path(out) if out is not None else Path("runs") / file_name("-".join([verb, *parts]))
    return path.expanduser()


def _keep(path: Path, overwrite: bool, *inputs: Any) -> None:
    """Refuse to overwrite a run that this one starts from."""
    ours = path.expanduser().resolve()
    for given in inputs:
        if overwrite and isinstance(given, str) and names_run(given):
            theirs = Path(given).expanduser().resolve()
            if ours == theirs or ours in theirs.parents:
                raise InputError(
                    f"{path} is to be overwritten, but {given} is needed; choose another folder with --out"
                )


def file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9+._-]+", "_", text).strip("_")


def described(data: ImageData) -> dict[str, Any]:
    sizes = {name: len(split) for name, split in data.splits.items()}
    skipped = {"skipped": list(data.skipped)} if data.skipped else {}
    facts = {"name": data.name, "fingerprint": data.fingerprint(), "classes": list(data.classes)}
    return {**facts, **sizes, **skipped}
