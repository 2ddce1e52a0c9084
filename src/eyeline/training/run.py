"""One run: trained, evaluated, and what came out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from eyeline.console import say
from eyeline.data.images import left_out
from eyeline.experiment.experiment import Experiment
from eyeline.experiment.place import tell_of_changes
from eyeline.files import write_json
from eyeline.memory.folder import Memory
from eyeline.ranks import is_main_process
from eyeline.runs.card import architecture
from eyeline.runs.folder import ANSWERS, CHECKPOINT, DOCTOR, RunFolder
from eyeline.runs.run import Run
from eyeline.training.first_step import examined
from eyeline.training.result import finish, test_again
from eyeline.training.trainer import fit


def train_run(
    folder: RunFolder,
    experiment: Experiment,
    *,
    memory: Memory | None = None,
    label: str = "",
    warn: Callable[[str], None] = say,
) -> Run:
    """Train, evaluate, and write what came out; a run that is finished already is read."""
    student, data = experiment.student, experiment.data
    with folder.claimed() as result:
        if result is not None:
            if data.test is not None and not (folder.path / ANSWERS).exists() and is_main_process():
                result = test_again(folder, experiment)
            return Run(folder.path, result, _own(student.given, student.network))
        tell_of_changes(folder)
        if data.skipped:
            say(left_out(data.skipped))
        with experiment.distiller as distiller:
            if is_main_process() and not (folder.path / CHECKPOINT).exists():
                effects = examined(experiment)
                write_json(folder.path / DOCTOR, effects)
                for line in effects["warnings"]:
                    warn(line)
            device = fit(distiller, data, experiment.settings, folder, memory=memory, label=label)
        if is_main_process():
            finish(folder, experiment, device)
    device.fabric.barrier()
    return Run(folder.path, folder.result or {}, _own(student.given, student.network))


def _own(given: Any, network: nn.Module) -> nn.Module | None:
    """A network that no name rebuilds."""
    return network if architecture(given) is None else None
