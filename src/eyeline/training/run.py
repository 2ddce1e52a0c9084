"""One run: trained, evaluated, and what came out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from eyeline.console import say
from eyeline.data.splits import ImageData
from eyeline.distiller import Distiller
from eyeline.experiment.resolve import from_seed, image_shape, left_out, tell_of_changes
from eyeline.files import write_json
from eyeline.memory.folder import Memory
from eyeline.ranks import is_main_process
from eyeline.runs.card import architecture
from eyeline.runs.folder import (
    ANSWERS,
    CHECKPOINT,
    DOCTOR,
    RunFolder,
)
from eyeline.runs.run import Run
from eyeline.settings import Settings
from eyeline.teacher import Teacher
from eyeline.training.doctoring import examined
from eyeline.training.result import finish, test_again
from eyeline.training.trainer import fit


def train_run(
    verb: str,
    folder: RunFolder,
    given: Any,
    student: nn.Module,
    teacher: Teacher | None,
    data: ImageData,
    method: Any,
    layers: str | Sequence[str],
    settings: Settings,
    *,
    memory: Memory | None = None,
    label: str = "",
    warn: Callable[[str], None] | None = None,
) -> Run:
    """Train, evaluate, and write what came out; a run that is finished already is read."""
    network = teacher.network if teacher else None
    shape = image_shape(data, settings)
    with folder.claimed() as result:
        if result is not None:
            if data.test is not None and not (folder.path / ANSWERS).exists() and is_main_process():
                result = test_again(folder, student, teacher, data, settings)
            return Run(folder.path, result, _own(given, student))
        tell_of_changes(folder)
        if data.skipped:
            say(left_out(data.skipped))
        # a loss's learnable parts depend on the seed alone, as the student does
        with from_seed(settings, lambda: Distiller(student, network, method, layers, shape)) as distiller:
            if is_main_process() and not (folder.path / CHECKPOINT).exists():
                effects = examined(distiller, data, settings)
                write_json(folder.path / DOCTOR, effects)
                for line in effects["warnings"]:
                    (warn or say)(line)
            device = fit(distiller, data, settings, folder, memory=memory, label=label)
        if is_main_process():
            finish(
                verb, folder, given, student, teacher, data, method, layers, settings, device, distiller.pairs
            )
    device.fabric.barrier()
    return Run(folder.path, folder.result or {}, _own(given, student))


def _own(given: Any, network: nn.Module) -> nn.Module | None:
    """A network that no name rebuilds."""
    return network if architecture(given) is None else None
