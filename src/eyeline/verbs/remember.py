"""A teacher that is asked once. No heavy import at the top: ``eyeline --help`` reads this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from eyeline.errors import InputError, TrainingStopped
from eyeline.names import check_names
from eyeline.settings import Settings, SettingsButMemory
from eyeline.verbs._common import checked_arguments


@checked_arguments
def remember(
    student: str | Any,
    teacher: str | Any,
    data: str | Any,
    memory: str,
    *,
    methods: Sequence[str | Mapping[str, Any]] | str | Mapping[str, Any] = ["at+kd"],
    layers: str | Sequence[str] = "auto",
    teacher_weights: str | None = None,
    **settings: Unpack[SettingsButMemory],
) -> Path:
    """Ask a teacher once for each view of each training image, and keep its answers for all runs.

    A run with the same --memory reads them and does not run the teacher. What is there already is not asked
    again, so an interrupted command goes on where it was. Give the settings of the runs to come, above all
    their batch_size, views or epochs.

    Args:
        student: as in the runs to come: the teacher's layers are paired with its own
        teacher: a run folder, a name (with its published weights), or (in Python) an nn.Module
        data: fashion_mnist, fashion_mnist_sample, cifar10, cifar100, folder:PATH, or (in Python) a data set
        memory: the folder to fill
        methods: of the runs: a list of method strings, or a mapping from a name of yours to a method
        layers: auto, or names: layer3, or student_layer:teacher_layer
        teacher_weights: checkpoint of a teacher that is given by name (safetensors)
        settings: see below

    Returns:
        The folder.

    Raises:
        InputError: something given cannot work, or the folder remembers something else.
        TrainingStopped: the disk is full; what was stored is kept.
    """
    check_names(methods=methods, data=data, networks=[student, teacher])
    from contextlib import ExitStack

    from eyeline.device import resolved
    from eyeline.experiment.experiment import Experiment
    from eyeline.experiment.preflight import check_memory, checked
    from eyeline.experiment.resolve import (
        listed_data,
        named_student,
        named_teacher,
        tell_of_another_division,
    )
    from eyeline.studies.plan import named_methods
    from eyeline.training.filling import fill
    from eyeline.training.remembering import planned_memory

    asked, spelled = Settings.of(memory=memory, **settings), named_methods(methods)
    listed, load_images = listed_data(data, asked)
    meant = resolved(asked, files=listed.size is None)
    check_memory(meant)
    example = named_student(student, listed, meant)
    answering = named_teacher(teacher, listed, meant, teacher_weights)
    experiments = [Experiment(example, listed, meant, answering, each, layers) for each in spelled.values()]
    with ExitStack() as stack:
        distillers = [stack.enter_context(checked(each)) for each in experiments]
        if meant.skip_bad_images:  # the data are those that are left
            experiments = [each.later(load_images()) for each in experiments]
        filled, meant = planned_memory(experiments)
        if filled is None:
            raise InputError(
                f"methods {list(spelled)} need nothing of a teacher that could be remembered; "
                "expected some as 'at+kd'"
            )
        tell_of_another_division(teacher, load_images())
        fill(filled, distillers, load_images(), meant)
    if filled.stuck:
        raise TrainingStopped(f"the memory {filled.folder} is not complete; the same command goes on")
    return filled.folder
