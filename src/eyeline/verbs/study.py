"""Methods compared. No heavy import at the top: ``eyeline --help`` reads this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from eyeline.errors import InputError
from eyeline.names import check_names
from eyeline.runs.run import Run
from eyeline.settings import Settings, SettingsGiven
from eyeline.verbs._common import checked_arguments


@checked_arguments
def study(
    student: str | Any,
    teacher: str | Any,
    data: str | Any,
    out: str | None = None,
    *,
    methods: Sequence[str | Mapping[str, Any]] | str | Mapping[str, Any] = ["kd", "at", "at+kd"],
    seeds: int | Sequence[int] = 6,
    layers: str | Sequence[str] = "auto",
    teacher_weights: str | None = None,
    parallel: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Unpack[SettingsGiven],
) -> Run:
    """Compare methods with the student alone: one protocol, several seeds, paired intervals.

    The test split is read once a run, after its last epoch. Finished runs are not repeated on --resume.

    Args:
        student: a timm name, torchvision/NAME, wrn_16_1, or (in Python) a function that makes one
        teacher: a run folder, a name (with its published weights), or (in Python) an nn.Module
        data: fashion_mnist, fashion_mnist_sample, cifar10, cifar100, folder:PATH, or (in Python) a data set
        out: folder of the study (default: under runs/)
        methods: what to compare: a list of method strings, or a mapping from a name of yours to a method
        seeds: how many (0, 1, ...), or a list of them; with fewer than 6 no difference is significant
        layers: auto, or names: layer3, or student_layer:teacher_layer
        teacher_weights: checkpoint of a teacher that is given by name (safetensors)
        parallel: runs trained at once, in processes that share the cores (default: measured, on a CPU)
        resume: continue the study that is in the folder
        overwrite: replace the study that is in the folder
        settings: see below

    Returns:
        The finished study; its result is the content of ``study.json``.

    Raises:
        InputError: something given cannot work; raised before training.
    """
    check_names(methods=methods, data=data, networks=[student, teacher])
    import dataclasses
    from contextlib import ExitStack

    from eyeline.console import say
    from eyeline.experiment.experiment import Experiment
    from eyeline.experiment.place import Place, as_begun, complete_recipe, said_of_hardware, tell_of_changes
    from eyeline.experiment.preflight import check_memory, checked
    from eyeline.experiment.resolve import (
        listed_data,
        named_student,
        named_teacher,
        tell_of_another_division,
    )
    from eyeline.files import read_json, write_json
    from eyeline.pages import write_page
    from eyeline.ranks import is_main_process
    from eyeline.runs.card import called
    from eyeline.runs.folder import PAGE, STUDY
    from eyeline.studies.figures import draw_attention, study_figures
    from eyeline.studies.plan import check_folders, check_parallel, listed_seeds, named_methods, planned_runs
    from eyeline.studies.runs import Runs, advising
    from eyeline.training.filling import fill
    from eyeline.training.remembering import planned_memory

    asked, spelled, numbers = Settings.of(**settings), named_methods(methods), listed_seeds(seeds)
    recipe = {"student": student, "teacher": teacher, "data": data, "methods": spelled, "seeds": numbers}
    recipe |= {"layers": layers, "teacher_weights": teacher_weights, "parallel": parallel}
    if asked.seed:
        raise InputError(f"seed is {asked.seed}; a study has several, expected seeds (--seeds 5,6)")
    check_parallel(parallel, recipe, asked)
    check_folders(spelled)
    listed, load_images = listed_data(data, asked)
    named = ["study", called(student), listed.name]
    place = Place.of(out, named, resume=resume, overwrite=overwrite, needed=[student, teacher])
    meant = as_begun(asked, listed, place)
    if asked.memory is None:  # each seed has views of its own
        meant = dataclasses.replace(meant, view_seed=asked.view_seed)
    check_memory(meant, place)
    example = named_student(student, listed, meant)
    answering = named_teacher(teacher, listed, meant, teacher_weights)
    experiments = [Experiment(example, listed, meant, answering, each, layers) for each in spelled.values()]
    path = place.path
    with ExitStack() as claim:
        with ExitStack() as stack:
            distillers = [stack.enter_context(checked(each)) for each in experiments]
            if meant.skip_bad_images:  # the data are those that are left
                experiments = [each.later(load_images()) for each in experiments]
            memory, meant = planned_memory(experiments, place)
            complete = complete_recipe("study", recipe, meant)
            record = place.folder(complete, experiments[0].inputs(), said_of_hardware(asked))
            whole = dataclasses.replace(experiments[0], data=load_images(), settings=meant)
            tell_of_another_division(teacher, whole.data)
            claim.enter_context(record.claimed())
            tell_of_changes(record)
            claim.enter_context(advising(path))
            plan = planned_runs(recipe, whole, path)
            if done := all(run.done for run in plan):
                say(f"all {len(plan)} runs of {path} are done; --overwrite trains them anew")
            if memory is not None and not done and whole.device.fabric.world_size == 1:
                # one forward pass a view for all methods and seeds
                fill(memory, distillers, whole.data, meant, again="the same command and --resume goes on")
        results = Runs(plan, whole, memory).train(parallel)
        if not is_main_process():
            return Run(path, {})
        content = {"kind": "study", "verb": "study", "recipe": record.recipe}
        content |= study_figures(path, whole, plan, results)
        write_json(path / STUDY, content)
        content = read_json(path / STUDY, "the figures of a study")  # those that are not finite are None
        draw_attention(path, whole, content["methods"])
        write_page(path, path / PAGE)
        return Run(path, content)
