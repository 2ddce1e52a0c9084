"""Every mistake that can be seen before work is said before work."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from eyeline.data.splits import ImageData
from eyeline.distiller import Distiller
from eyeline.doctor import check_effects, examine
from eyeline.errors import InputError
from eyeline.experiment.experiment import Experiment, Teacher
from eyeline.experiment.place import Place
from eyeline.memory.folder import check_folder
from eyeline.settings import Settings


def checked(experiment: Experiment) -> Distiller:
    """The experiment's distiller, to be closed, once it has done a step on noise.

    Raises:
        InputError: what was given cannot be trained so.
    """
    teacher, data = experiment.teacher, experiment.data
    assert teacher is not None
    _check_takes_images(teacher, data)
    distiller = experiment.distiller
    try:
        _try_step(distiller, experiment.student.shape, len(data.classes))
    except BaseException:
        distiller.close()
        raise
    return distiller


def _check_takes_images(teacher: Teacher, data: ImageData) -> None:
    try:
        _ = teacher.probe
    except InputError as error:
        size = "x".join(map(str, teacher.shape))
        first = next((m for m in teacher.network.modules() if isinstance(m, nn.Conv2d)), None)
        why = str(error.__cause__ or error).partition("\n")[0]
        if first is not None and first.in_channels != data.channels:
            why = f"it takes {first.in_channels} channel{'s' * (first.in_channels > 1)}"
        raise InputError(
            f"teacher {teacher.name} cannot take the images of {data.name}, which are {size} ({why}); "
            f"train one on this data: eyeline train --model NAME --data {data.name}"
        ) from error


def check_memory(settings: Settings, place: Place | None = None) -> None:
    """Refuse a folder that can be no memory, for whatever teacher and data."""
    if settings.memory is None:
        return
    folder = Path(settings.memory).expanduser().resolve()
    ours = place.path.resolve() if place is not None else None
    if ours is not None and (folder == ours or folder in ours.parents):
        raise InputError(
            f"memory {settings.memory} is the folder of the run, or around it; choose one of its own"
        )
    if not (place is not None and place.overwrite and ours == folder.parent):
        check_folder(Path(settings.memory).expanduser())


def _try_step(distiller: Distiller, shape: tuple[int, int, int], classes: int) -> None:
    """A step on noise: a loss that fails, is not finite, or changes nothing shows before any work."""
    device = next(distiller.student.parameters()).device
    if distiller.teacher is not None:
        before = next((p.device for p in distiller.teacher.parameters()), device)
        distiller.teacher.to(device)
    distiller.objective.to(device)
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4) % classes
    try:
        effects = examine(distiller, images.to(device), labels.to(device))
    finally:
        if distiller.teacher is not None:
            distiller.teacher.to(before)
    bad = [effect.name for effect in effects if not math.isfinite(effect.value)]
    if not bad and not all(effect.finite for effect in effects):
        bad = ["the gradient"]
    if bad:
        raise InputError(
            f"{', '.join(bad)} of method {distiller.objective.name} is not finite on images "
            "of noise; the student, the teacher or a parameter of the method has values that are too large"
        )
    check_effects(effects)
