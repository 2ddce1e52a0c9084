"""What a run's memory of the teacher will hold, and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eyeline.console import say
from eyeline.data.preprocess import shorter_side
from eyeline.errors import InputError
from eyeline.experiment.experiment import Experiment, Teacher
from eyeline.experiment.place import Place
from eyeline.files import amount
from eyeline.memory.folder import BEHAVIOUR, Memory
from eyeline.memory.names import target_names
from eyeline.memory.shared import SharedTeacher
from eyeline.settings import Settings
from eyeline.training.filling import targets_by_view


def planned_memory(
    experiments: Sequence[Experiment], place: Place | None = None
) -> tuple[Memory | None, Settings]:
    """The memory that the settings ask for, and the settings with the number of views that it will hold.

    Says what it will hold and where; writes nothing. The experiments differ in their methods alone.

    Raises:
        InputError: the teacher's answers cannot be remembered, or not there, or not so many.
    """
    first = experiments[0]
    settings, teacher, length = first.settings, first.teacher, len(first.data.train)
    distillers = [each.distiller for each in experiments if target_names(each.distiller)]
    if settings.memory is None or teacher is None or not distillers:
        return None, settings
    key = _key(first, teacher)
    first.device.place(teacher.network)
    _check_can_be_remembered(teacher.network)
    # it goes with the run that is replaced
    folder = Path(settings.memory).expanduser().resolve()
    anew = place is not None and place.overwrite and place.path.resolve() == folder.parent
    memory = Memory(settings.memory, key, length, say=say, anew=anew)
    with first.device.autocast(), SharedTeacher(distillers) as shared:
        some = torch.zeros(2, *teacher.shape, device=first.device.torch_device)
        sizes = shared.bytes_per_image(some, settings.memory_precision)
        losses = ", ".join(shared.losses)
    view, budget = length * sum(sizes.values()), settings.memory_budget * 1e9
    views = min(settings.epochs, settings.views or max(1, int(budget / view)))
    settings = dataclasses.replace(settings, views=views)
    wanted = targets_by_view(distillers, settings)
    whole = length * sum(sizes[name] for names in wanted for name in names)
    counted = f"{views} view{'s' * (views > 1)} of {length:,} images"
    if whole > budget:
        raise InputError(
            f"memory_budget is {settings.memory_budget:g} GB; {counted} would take {amount(whole)} "
            f"({losses}); give a larger --memory_budget, fewer --views, or --memory_precision uint8"
        )
    missing = sum(map(bool, wanted)) if anew else len(memory.missing(wanted))
    if missing:
        where = f"one outside of {place.path}" if anew and place is not None else "it"
        _check_can_be_filled(memory, first, f"{missing} of {views} views", where)
    say(
        f"memory: {counted}, {amount(view)} each, {amount(whole)} in all ({losses}), in {settings.memory}; "
        + (f"{missing} to be filled" if missing else "all are there")
    )
    return memory, settings


def _key(experiment: Experiment, teacher: Teacher) -> dict[str, Any]:
    """All that the targets depend on."""
    data, settings = experiment.data, experiment.settings
    packed = settings.packed is not None or getattr(data.train, "pixels", None) is not None
    # computed from images, they may differ in the last bits from processor to processor
    numbers = {name: [float(f"{n:.6g}") for n in getattr(data, name)] for name in ("mean", "std")}
    key = {
        "teacher": teacher.fingerprint["weights"],
        BEHAVIOUR: teacher.fingerprint["answers"],
        "data": data.fingerprint("train", times=True),
        "images": len(data.train),
        "augmentation": settings.augmentation,
        "image_size": teacher.shape,
        **numbers,
        "view_seed": settings.view_seed,
        "precision": settings.precision,
        "memory_precision": settings.memory_precision,
    }
    # the other augmentations do not see whether an image was resized before
    if packed and settings.augmentation == "resized-crop":
        key["packed"] = shorter_side(settings.image_size)
    return key


def _check_can_be_remembered(teacher: nn.Module) -> None:
    for name, module in teacher.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise InputError(
                f"{name} of the teacher keeps no running statistics (track_running_stats=False), so what it "
                "answers for an image depends on the others of its batch: leave memory out"
            )


def _check_can_be_filled(memory: Memory, experiment: Experiment, missing: str, where: str) -> None:
    folder = experiment.settings.memory
    if experiment.device.fabric.world_size > 1:
        raise InputError(
            f"{missing} are not in {folder}, and several devices do not fill a memory; fill {where} first "
            "with eyeline remember"
        )
    if not memory.can_be_written():
        raise InputError(
            f"{missing} are not in {folder}, which cannot be written; choose another folder with --memory"
        )
