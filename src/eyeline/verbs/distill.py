"""A student with a teacher. No heavy import at the top: ``eyeline --help`` reads this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from eyeline.names import check_names
from eyeline.runs.run import Run
from eyeline.settings import Settings, SettingsGiven
from eyeline.verbs._common import checked_arguments


@checked_arguments
def distill(
    student: str | Any,
    teacher: str | Any,
    data: str | Any,
    out: str | None = None,
    *,
    method: str | Mapping[str, Any] = "at+kd",
    layers: str | Sequence[str] = "auto",
    student_weights: str | None = None,
    teacher_weights: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    check: bool = False,
    **settings: Unpack[SettingsGiven],
) -> Run:
    """Train a student with a teacher's help.

    Args:
        student: a timm name, torchvision/NAME, wrn_16_1, a run folder, or (in Python) an nn.Module
        teacher: a run folder, a name (with its published weights), or (in Python) an nn.Module
        data: fashion_mnist, fashion_mnist_sample, cifar10, cifar100, folder:PATH, or (in Python) a data set
        out: folder of the run (default: under runs/)
        method: a sum of losses such as kd, at or at+kd (all of them: docs/methods), or a mapping such as
            {at: {weight: 1000}, kd: {temperature: 4}}
        layers: auto, or names: layer3, or student_layer:teacher_layer
        student_weights: checkpoint from which the student starts (safetensors)
        teacher_weights: checkpoint of a teacher that is given by name (safetensors)
        resume: continue the run that is in the folder
        overwrite: replace the run that is in the folder
        check: train nothing, and tell what each loss does to the student in the first step
        settings: see below

    Returns:
        The finished run; ``run.load()`` is the student. With ``check`` the result is what ``doctor.json`` of
        the run would hold.

    Raises:
        InputError: something given cannot work; raised before training.
    """
    check_names(methods=[method], data=data, networks=[student, teacher])
    from eyeline.experiment.experiment import Experiment
    from eyeline.experiment.place import Place, as_begun, complete_recipe, placed, said_of_hardware
    from eyeline.experiment.preflight import check_memory, checked
    from eyeline.experiment.resolve import (
        listed_data,
        named_student,
        named_teacher,
        tell_of_another_division,
    )
    from eyeline.objective.method import method_name, resolve_method
    from eyeline.runs.card import called
    from eyeline.training.first_step import examined
    from eyeline.training.remembering import planned_memory
    from eyeline.training.run import train_run

    asked, spelled = Settings.of(**settings), resolve_method(method)
    recipe = {"student": student, "teacher": teacher, "data": data, "method": spelled, "layers": layers}
    recipe |= {"student_weights": student_weights, "teacher_weights": teacher_weights}
    listed, load_images = listed_data(data, asked)
    named = ["distill", called(student), method_name(spelled), listed.name, f"seed-{asked.seed}"]
    if check:  # it makes no folder
        place = Place(placed(out, named))
    else:
        place = Place.of(out, named, resume=resume, overwrite=overwrite, needed=[student, teacher])
    meant = as_begun(asked, listed, place)
    if not check:
        check_memory(meant, place)
    experiment = Experiment(
        named_student(student, listed, meant, weights=student_weights),
        listed,
        meant,
        named_teacher(teacher, listed, meant, teacher_weights),
        spelled,
        layers,
    )
    with checked(experiment):
        if check:
            return Run(place.path, examined(experiment.later(load_images())))
        if meant.skip_bad_images:  # the data are those that are left
            experiment = experiment.later(load_images())
        memory, meant = planned_memory([experiment], place)
        complete = complete_recipe("distill", recipe, meant)
        folder = place.folder(complete, experiment.inputs(), said_of_hardware(asked))
        experiment = experiment.later(load_images(), meant)
        tell_of_another_division(teacher, experiment.data)
        return train_run(folder, experiment, memory=memory)
