"""What a run's memory of the teacher will hold, and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from eyeline.console import say
from eyeline.data.preprocess import shorter_side
from eyeline.data.splits import ImageData
from eyeline.device import Device
from eyeline.distiller import Distiller
from eyeline.errors import InputError
from eyeline.experiment.resolve import image_shape
from eyeline.files import amount
from eyeline.memory.folder import BEHAVIOUR, Memory
from eyeline.memory.names import target_names
from eyeline.memory.shared import SharedTeacher
from eyeline.settings import Settings
from eyeline.teacher import Teacher
from eyeline.training.trainer import targets_by_view


def planned_memory(
    distillers: Sequence[Distiller],
    asked: Teacher,
    data: ImageData,
    settings: Settings,
    out: Path | None = None,
    overwrite: bool = False,
) -> tuple[Memory | None, Settings]:
    """The memory that the settings ask for, and the settings with the number of views that it will hold.

    Says what it will hold and where; writes nothing.
    """
    distillers = [distiller for distiller in distillers if target_names(distiller)]
    if settings.memory is None or not distillers:
        return None, settings
    folder = Path(settings.memory).expanduser().resolve()
    # it goes with the run that is replaced
    anew = overwrite and out is not None and out.expanduser().resolve() == folder.parent
    device = Device.of(settings)
    shape = image_shape(data, settings)
    packed = settings.packed is not None or getattr(data.train, "pixels", None) is not None
    known, network = asked.fingerprint(shape), asked.network
    device.place(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise InputError(
                f"{name} of the teacher keeps no running statistics (track_running_stats=False), so what it "
                "answers for an image depends on the others of its batch: leave memory out"
            )
    memory = Memory(
        settings.memory,
        {
            "teacher": known["weights"],
            BEHAVIOUR: known["answers"],
            "data": data.fingerprint("train", times=True),
            "images": len(data.train),
            "augmentation": settings.augmentation,
            "image_size": shape,
            # computed from images, they may differ in the last bits from processor to processor
            **{name: [float(f"{number:.6g}") for number in getattr(data, name)] for name in ("mean", "std")},
            "view_seed": settings.view_seed,
            "precision": settings.precision,
            "memory_precision": settings.memory_precision,
            # the other augmentations do not see whether an image was resized before
            **(
                {"packed": shorter_side(settings.image_size)}
                if packed and settings.augmentation == "resized-crop"
                else {}
            ),
        },
        len(data.train),
        say=say,
        anew=anew,
    )
    with device.autocast(), SharedTeacher(distillers) as teacher:
        some = torch.zeros(2, *shape, device=device.torch_device)
        each = teacher.bytes_per_image(some, settings.memory_precision)
    size = len(data.train) * sum(each.values())
    views = min(settings.epochs, settings.views or max(1, int(settings.memory_budget * 1e9 / size)))
    settings = dataclasses.replace(settings, views=views)
    wanted = targets_by_view(distillers, settings)
    whole = len(data.train) * sum(each[name] for names in wanted for name in names)
    if whole > settings.memory_budget * 1e9:
        raise InputError(
            f"memory_budget is {settings.memory_budget:g} GB; {views} view{'s' * (views > 1)} of "
            f"{len(data.train):,} images would take {amount(whole)} "
            f"({', '.join(teacher.losses)}); give a larger --memory_budget, fewer --views, "
            "or --memory_precision uint8"
        )
    missing = sum(map(bool, wanted)) if anew else len(memory.missing(wanted))
    if missing and device.fabric.world_size > 1:
        raise InputError(
            f"{missing} of {views} views are not in {settings.memory}, and several devices do not fill a "
            f"memory; fill {'one outside of ' + str(out) if anew else 'it'} first with eyeline remember"
        )
    if missing and not memory.can_be_written():
        raise InputError(
            f"{missing} of {views} views are not in {settings.memory}, which cannot be written; "
            "choose another folder with --memory"
        )
    say(
        f"memory: {views} view{'s' * (views > 1)} of {len(data.train):,} images, {amount(size)} each, "
        f"{amount(whole)} in all ({', '.join(teacher.losses)}), in {settings.memory}; "
        + (f"{missing} to be filled" if missing else "all are there")
    )
    return memory, settings
