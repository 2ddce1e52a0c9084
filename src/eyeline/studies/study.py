"""A study: its runs, what they have in common, and what came out of them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from eyeline import models
from eyeline.attention import attention_map
from eyeline.console import say
from eyeline.data.splits import ImageData
from eyeline.device import Device
from eyeline.distiller import Distiller
from eyeline.errors import Diverged, InputError
from eyeline.experiment.preflight import check_memory, checked
from eyeline.experiment.resolve import (
    as_begun,
    complete_recipe,
    described,
    evaluation_view,
    file_name,
    from_seed,
    image_shape,
    inputs_of,
    listed_data,
    named_network,
    named_teacher,
    run_path,
    said_of_hardware,
    tell_of_another_division,
    tell_of_changes,
)
from eyeline.files import read_json, write_json
from eyeline.fingerprint import student_fingerprint
from eyeline.objective.method import method_name, resolve_method
from eyeline.observe import Probe
from eyeline.pages.page import write_page
from eyeline.ranks import is_main_process
from eyeline.runs.answers import read_answers, write_answers
from eyeline.runs.card import called, load
from eyeline.runs.folder import (
    ANSWERS,
    DOCTOR,
    HARDWARE,
    PAGE,
    RESULT,
    STUDY,
    TEACHER_ANSWERS,
    RunFolder,
    is_ours,
)
from eyeline.runs.provenance import environment, plain
from eyeline.runs.run import Run
from eyeline.settings import Settings
from eyeline.studies.apart import how_many, run_apart
from eyeline.studies.statistics import correct, paired_difference, summary
from eyeline.teacher import Teacher
from eyeline.training.evaluation import evaluate
from eyeline.training.remembering import planned_memory
from eyeline.training.result import teacher_tested
from eyeline.training.run import train_run
from eyeline.training.trainer import evaluation_stream
from eyeline.training.trainer import remember as fill

BASELINE = "ce"


def study(
    recipe: dict[str, Any], settings: Settings, *, out: str | None, resume: bool, overwrite: bool
) -> Run:
    methods = named_methods(recipe["methods"])
    seeds = list(range(recipe["seeds"])) if isinstance(recipe["seeds"], int) else list(recipe["seeds"])
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(
            f"seeds are {recipe['seeds']!r}; expected a number of at least 1, or different seeds"
        )
    parallel = recipe["parallel"]
    _check_parallel(parallel, recipe, settings)
    if len({file_name(name).casefold() for name in methods}) < len(methods):
        raise InputError(
            f"methods {list(methods)} have names that make one folder; expected names that differ"
        )
    listed, load_images = listed_data(recipe["data"], settings)
    student = recipe["student"]
    path = run_path(
        out, "study", [called(student), listed.name], resume, overwrite, student, recipe["teacher"]
    )
    # each seed has views of its own, unless all share a memory
    own_views: dict[str, Any] = {} if settings.memory else {"view_seed": settings.view_seed}
    said, settings = said_of_hardware(settings), as_begun(settings, listed, path, resume)
    settings = dataclasses.replace(settings, **own_views)
    check_memory(settings, path, overwrite)
    teacher = named_teacher(recipe["teacher"], listed, recipe["teacher_weights"])
    make = functools.partial(named_network, student, listed, settings)
    example = from_seed(settings, make)
    known = {settings.seed: student_fingerprint(example, image_shape(listed, settings))}
    with ExitStack() as claim:
        with ExitStack() as stack:
            distillers = [
                stack.enter_context(checked(example, teacher, method, recipe["layers"], listed, settings))
                for method in methods.values()
            ]
            data = load_images() if settings.skip_bad_images else listed
            memory, settings = planned_memory(distillers, teacher, data, settings, path, overwrite)
            recipe = {**recipe, "methods": methods, "seeds": seeds}
            inputs = inputs_of(data, settings, teacher)
            complete = complete_recipe("study", recipe, settings)
            how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "said": said}
            record = RunFolder(path, complete, **how, inputs={**inputs, "student": known[settings.seed]})
            data = load_images()
            tell_of_another_division(recipe["teacher"], data)
            claim.enter_context(record.claimed())
            tell_of_changes(record)
            done = all((path / file_name(n) / f"seed-{s}" / RESULT).exists() for n in methods for s in seeds)
            if done:
                say(f"all {len(methods) * len(seeds)} runs of {path} are done; --overwrite trains them anew")
            if memory is not None and not done and Device.of(settings).fabric.world_size == 1:
                # one forward pass a view for all methods and seeds
                fill(memory, distillers, data, settings, again="the same command and --resume goes on")
        claim.enter_context(_advising(path))
        plan: list[_Planned] = []
        for number, seed in enumerate(seeds, 1):
            for name, method in methods.items():
                arguments = {
                    k: recipe[k] for k in ("student", "teacher", "data", "layers", "teacher_weights")
                }
                arguments |= {"method": method, "student_weights": None}
                place = path / file_name(name) / f"seed-{seed}"
                label = f"{name}, seed {seed} ({number}/{len(seeds)})"
                seeded = as_begun(dataclasses.replace(settings, seed=seed), data, place, True)
                plan.append(_Planned(name, label, place, arguments, seeded))
        told = set[str]()  # the methods of which warnings have been said
        if Device.of(settings).fabric.world_size == 1:
            _train_apart(parallel, plan, example, data, told)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
        for name, label, place, arguments, seeded in plan:
            # one that is finished stays, on whatever hardware it was made
            said = () if (place / RESULT).exists() else HARDWARE
            complete = complete_recipe("distill", arguments, seeded)
            network = from_seed(seeded, make)
            if seeded.seed not in known:
                known[seeded.seed] = student_fingerprint(network, image_shape(data, settings))
            of_run = {**inputs, "student": known[seeded.seed]}
            folder = RunFolder(place, complete, resume=True, inputs=of_run, said=said)
            run = train_run(
                "distill",
                folder,
                student,
                network,
                teacher,
                data,
                arguments["method"],
                recipe["layers"],
                seeded,
                memory=memory,
                label=label,
                warn=functools.partial(_warn_of, name, told),
            )
            told.add(name)
            runs[name].append(
                {"seed": seeded.seed, "run": str(place.relative_to(path)), **_study_figures(run.result)}
            )

        if not is_main_process():
            return Run(path, {})
        figures = _teacher_figures(teacher, data, settings)
        if data.test is not None and (tested := teacher_tested(teacher, data, settings, Device.of(settings))):
            write_answers(path / TEACHER_ANSWERS, tested.answers, data.test.labels)
        differences = {} if data.test is None else _differences(path, runs)
        entries = [
            {"method": name, "runs": runs[name], "summary": _summaries(runs[name])}
            | ({"difference": differences[name]} if name in differences else {})
            for name in methods
        ]
        content = {
            "kind": "study",
            "verb": "study",
            "recipe": record.recipe,
            "environment": environment(),
            "data": described(data),
            "teacher": figures,
            "student": {"model": called(student), "parameters": models.parameter_count(example)},
            "baseline": BASELINE,
            "methods": entries,
        }
        write_json(path / STUDY, content)
        content = read_json(path / STUDY, "the figures of a study")  # those that are not finite are None
        _draw_attention(path, content, make, teacher, data, settings, recipe["layers"])
        write_page(path, path / PAGE)
        return Run(path, content)


@contextmanager
def _advising(path: Path) -> Iterator[None]:
    """Say of a study that stops how it goes on."""
    try:
        yield
    except Diverged as error:
        raise Diverged(
            f"{error}; without this method, or with another weight under another name, the study in {path} "
            "goes on with --resume"
        ) from error
    except KeyboardInterrupt as stopped:
        if stopped.args:
            raise
        raise KeyboardInterrupt(
            f"stopped; what is done is kept in {path}; continue with the same command and --resume"
        ) from None


class _Planned(NamedTuple):
    """A run of a study that is to be made."""

    name: str
    label: str
    place: Path
    arguments: dict[str, Any]
    settings: Settings


def _warn_of(method: str, told: Collection[str], line: str) -> None:
    """Say what a run of a study warns of, if none of the method's has been told."""
    if method not in told:
        say(f"{method}: {line}")


def _check_parallel(parallel: int | None, recipe: Mapping[str, Any], settings: Settings) -> None:
    if parallel is None or parallel == 1:
        return
    if parallel < 1:
        raise InputError(f"parallel is {parallel}; expected at least 1")
    if not _has_names(recipe):
        raise InputError(
            f"parallel is {parallel}: such runs are trained in other processes, which need names of student, "
            "teacher and data; a Python object was given"
        )
    if Device.of(settings).fabric.world_size > 1:
        raise InputError(
            f"parallel is {parallel}: several runs at once are for one device a run, not several"
        )


def _has_names(recipe: Mapping[str, Any]) -> bool:
    return all(isinstance(recipe[what], str) for what in ("student", "teacher", "data"))


def _train_apart(
    parallel: int | None, plan: Sequence[_Planned], example: nn.Module, data: ImageData, told: set[str]
) -> None:
    """Train several runs at once, where that was asked for or was measured to be faster."""
    left = [run for run in plan if not (run.place / RESULT).exists()]
    if len(left) < 2 or not _has_names(left[0].arguments):
        return
    settings = left[0].settings
    device = Device.of(settings)
    if parallel is None and device.torch_device.type == "cpu":
        network = device.place(copy.deepcopy(example)).train()
        images = torch.zeros(settings.batch_size, *image_shape(data, settings))
        images = images.contiguous(memory_format=torch.channels_last)

        def step() -> None:
            with device.autocast():
                network(images).float().logsumexp(1).sum().backward()

        steps = settings.epochs * math.ceil(len(data.train) / settings.batch_size)
        parallel, said = how_many(step, len(left), steps)
        if said:
            say(said)
    if parallel is None or parallel == 1:
        return
    tasks = [
        {
            "recipe": plain(run.arguments),
            "settings": plain(dataclasses.asdict(run.settings)) | {"progress": False},
            "out": str(run.place),
        }
        for run in left
    ]
    finished = itertools.count(1)

    def done(number: int) -> None:
        run = left[number]
        if (run.place / DOCTOR).exists():
            for line in read_json(run.place / DOCTOR, "what the losses of a run do")["warnings"]:
                _warn_of(run.name, told, line)
            told.add(run.name)
        if settings.progress:
            accuracy = read_json(run.place / RESULT, "the figures of a finished run")["validation_accuracy"]
            count = f"{next(finished)} of {len(left)} runs"
            say(f"{count}: {run.label}, validation {100 * accuracy:.1f} %")

    try:
        run_apart(tasks, min(parallel, len(left)), done)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped with {next(finished) - 1} of {len(left)} runs done; the others are kept as they are; "
            "continue with the same command and --resume"
        ) from None


def named_methods(given: Sequence[Any] | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> resolved method, the student alone first."""
    given = [given] if isinstance(given, str) else given
    named = dict(given) if isinstance(given, Mapping) else {method_name(method): method for method in given}
    if not isinstance(given, Mapping) and len(named) < len(given):
        raise InputError(
            f"methods {list(given)!r} name one method twice; give a mapping with a name for each"
        )
    for name, method in named.items():
        if not isinstance(name, str) or not file_name(name).strip(".") or is_ours(file_name(name)):
            raise InputError(
                f"a method of the study is called {name!r}; expected a name that makes a folder, and not one "
                "of eyeline's own files or folders"
            )
        if name == BASELINE and resolve_method(method) != resolve_method(BASELINE):
            raise InputError(f"{BASELINE!r} is the student alone; give {method!r} another name")
    named.pop(BASELINE, None)
    return {BASELINE: resolve_method(BASELINE)} | {
        name: resolve_method(method) for name, method in named.items()
    }


def _teacher_figures(teacher: Teacher, data: ImageData, settings: Settings) -> dict[str, Any]:
    device = Device.of(settings)
    device.place(teacher.network)
    figures: dict[str, Any] = {"model": teacher.name, "parameters": models.parameter_count(teacher.network)}
    if Probe(teacher.network, image_shape(data, settings)).answer != (len(data.classes),):
        return figures  # a teacher of other classes
    trained = evaluate(
        teacher.network, evaluation_stream(data.train, data, settings, device), device.autocast
    )
    tested = None if data.test is None else teacher_tested(teacher, data, settings, device)
    for name, measured in (("train", trained), ("test", tested)):
        if measured is not None:
            figures |= {f"{name}_accuracy": measured.accuracy, f"{name}_loss": measured.loss}
    return figures


_FIGURES = (
    *("train_loss", "train_accuracy", "attention_loss", "validation_accuracy", "test_accuracy"),
    "teacher_agreement",
)


def _study_figures(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result.get(name) for name in _FIGURES}


def _differences(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of each method to the student alone, from the answers that the runs kept."""
    right = {
        name: np.stack([read_answers(path / run["run"] / ANSWERS)[1] for run in each])
        for name, each in runs.items()
    }
    found = {name: paired_difference(right[name], right[BASELINE]) for name in right if name != BASELINE}
    correct(found.values())
    return found


def _summaries(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: summary([run[name] for run in runs])
        for name in _FIGURES
        if all(run[name] is not None for run in runs)
    }


def _draw_attention(
    path: Path,
    content: Mapping[str, Any],
    make: Callable[[], nn.Module],
    teacher: Teacher,
    data: ImageData,
    settings: Settings,
    layers: str | Sequence[str],
) -> None:
    """``attention.png``: teacher and the first seed's students, side by side on a few test images.

    None for networks that have no layers to compare, and for images that are no pictures.
    """
    from torchvision.transforms.functional import to_pil_image

    from eyeline.data.splits import MemorySplit
    from eyeline.observe import Observer
    from eyeline.pages.pictures import attention_grid, save_figure
    from eyeline.pages.tables import display_name

    shape = image_shape(data, settings)
    if data.channels not in (1, 3):
        return
    teacher.network.cpu()
    try:
        distiller = Distiller(make().cpu(), teacher.network, "at", layers, shape)
    except InputError:
        return
    distiller.close()
    ours, theirs = zip(*distiller.pairs, strict=True)

    split = data.test or data.validation
    chosen = [int((split.labels == label).nonzero()[0, 0]) for label in split.labels.unique()[:4]]
    view = evaluation_view(data, settings)
    memory = isinstance(split, MemorySplit)
    images = [to_pil_image(split.images[i]) if memory else split.load(i) for i in chosen]  # type: ignore[union-attr]
    pixels = torch.stack([view.pixels(image) for image in images])

    networks = {"teacher": (teacher.network, theirs)}
    for entry in content["methods"]:
        networks[display_name(entry["method"])] = (load(path / entry["runs"][0]["run"], make()).cpu(), ours)
    maps = {}
    for name, (network, names) in networks.items():
        with Observer(network.eval(), names, shape) as observer, torch.no_grad():
            maps[name] = [attention_map(feature) for feature in observer(view(pixels)).features]
    rows = [data.classes[int(split.labels[i])] for i in chosen]
    save_figure(attention_grid(pixels, maps, rows), path / "attention.png")
