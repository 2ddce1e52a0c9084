"""What each loss does in the first step of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

from eyeline.data.splits import ImageData
from eyeline.device import Device
from eyeline.distiller import Distiller
from eyeline.doctor import check_effects, examine, warnings
from eyeline.settings import Settings
from eyeline.training.optimizer import learning_rate_factor
from eyeline.training.trainer import training_stream


def examined(distiller: Distiller, data: ImageData, settings: Settings) -> dict[str, Any]:
    """What each loss does in the first step of a run: on its first images, in its precision.

    Raises:
        InputError: a loss changes no parameter of the student.
    """
    device = Device.of(settings)
    device.place(distiller)
    # a batch is not worth the start of processes
    stream = training_stream(data, dataclasses.replace(settings, workers=0), device)
    distiller.set_progress(0, settings.epochs, learning_rate_factor(settings, 0, stream.steps_per_epoch))
    batch = next(iter(stream.batches(0, 1)))
    effects = examine(distiller, device.images(batch.images), batch.labels, device.autocast)
    check_effects(effects)
    return {
        "kind": "doctor",
        "images": len(batch.labels),
        "terms": [dataclasses.asdict(effect) for effect in effects],
        "warnings": warnings(effects),
    }
