"""What each loss does in the first step of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

from eyeline.doctor import check_effects, examine, warnings
from eyeline.experiment.experiment import Experiment
from eyeline.training.optimizer import learning_rate_factor
from eyeline.training.streams import training_stream


def examined(experiment: Experiment) -> dict[str, Any]:
    """What each loss does in the first step of a run: on its first images, in its precision.

    Raises:
        InputError: a loss changes no parameter of the student.
    """
    settings, device, distiller = experiment.settings, experiment.device, experiment.distiller
    device.place(distiller)
    # a batch is not worth the start of processes
    stream = training_stream(experiment.data, dataclasses.replace(settings, workers=0), device)
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
