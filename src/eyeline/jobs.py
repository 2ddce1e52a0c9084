"""The work behind the verbs: resolve what was named, run, and keep the figures."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import yaml
from safetensors.torch import save as to_safetensors
from torch import nn
from torchvision.datasets import FashionMNIST

from eyeline import models
from eyeline.api import Run
from eyeline.attention import Reduce, attention_map
from eyeline.console import console, show_progress
from eyeline.data.preprocess import CENTRAL, Preprocess, shorter_side
from eyeline.data.sources import list_data
from eyeline.data.splits import ImageData
from eyeline.device import Device, resolved
from eyeline.distiller import Distiller
from eyeline.doctor import check_effects, examine, warnings
from eyeline.errors import Diverged, InputError, TrainingStopped
from eyeline.files import amount, read_json, write_atomically, write_json
from eyeline.fingerprint import student_fingerprint, teacher_fingerprint
from eyeline.memory.folder import BEHAVIOUR, Memory, check_folder
from eyeline.memory.names import target_names
from eyeline.memory.shared import SharedTeacher
from eyeline.objective.method import method_name, resolve_method
from eyeline.observe import Probe, evaluation_mode
from eyeline.pages.page import write_page
from eyeline.randomness import draws_apart, mix
from eyeline.ranks import is_main_process
from eyeline.runs.answers import read_answers, write_answers
from eyeline.runs.folder import (
    ANSWERS,
    CHECKPOINT,
    DOCTOR,
    HARDWARE,
    MODEL,
    PAGE,
    RESULT,
    STUDY,
    TEACHER_ANSWERS,
    RunFolder,
    claimed,
    is_ours,
    is_run,
    is_taken,
    read_recipe,
    remove_run,
)
from eyeline.runs.provenance import environment, plain
from eyeline.settings import Settings
from eyeline.studies.apart import how_many, run_apart
from eyeline.studies.statistics import correct, paired_difference, summary
from eyeline.training.evaluation import Evaluation, attention_loss, evaluate
from eyeline.training.optimizer import learning_rate_factor
from eyeline.training.trainer import evaluation_stream, fit, targets_by_view, training_stream
from eyeline.training.trainer import remember as fill

BASELINE = "ce"

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class _Teacher:
    """A loaded teacher, and what it was called."""

    name: str
    network: nn.Module
    tested: dict[str, Evaluation | None] = dataclasses.field(default_factory=dict)
    """On the test images, once it was asked; None for a teacher of other classes."""
    fingerprints: dict[tuple[int, int, int], dict[str, Any]] = dataclasses.field(default_factory=dict)
    """By the shape of images."""

    def fingerprint(self, shape: tuple[int, int, int]) -> dict[str, Any]:
        """By what it is known again."""
        if shape not in self.fingerprints:
            self.fingerprints[shape] = teacher_fingerprint(self.network, shape)
        return self.fingerprints[shape]


def train(
    recipe: dict[str, Any], settings: Settings, *, out: str | None, resume: bool, overwrite: bool
) -> Run:
    if settings.memory is not None:
        raise InputError("memory is for what a teacher answers; train has no teacher")
    listed, load_images = _data(recipe["data"], settings)
    parts = [_shown(recipe["model"]), listed.name, f"seed-{settings.seed}"]
    path = _out(out, "train", parts, resume, overwrite, recipe["model"])
    said, settings = _said(settings), _as_begun(settings, listed, path, resume)
    network = _seeded(
        settings,
        lambda: _network(recipe["model"], listed, settings, recipe["pretrained"], recipe["weights"]),
    )
    known = student_fingerprint(network, _image_shape(listed, settings))
    data = load_images() if settings.skip_bad_images else listed  # those that are left
    complete = _complete("train", recipe, settings)
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "said": said}
    folder = RunFolder(path, complete, **how, inputs=_inputs(data, settings, model=known))
    data = load_images()
    return _run("train", folder, recipe["model"], network, None, data, BASELINE, "auto", settings)


def distill(
    recipe: dict[str, Any],
    settings: Settings,
    *,
    out: str | None,
    resume: bool,
    overwrite: bool,
    check: bool = False,
) -> Run:
    method = resolve_method(recipe["method"])
    listed, load_images = _data(recipe["data"], settings)
    parts = [_shown(recipe["student"]), method_name(method), listed.name, f"seed-{settings.seed}"]
    if check:  # it makes no folder
        path = _path(out, "distill", parts)
        settings = resolved(settings, files=listed.size is None)
    else:
        path = _out(out, "distill", parts, resume, overwrite, recipe["student"], recipe["teacher"])
        said, settings = _said(settings), _as_begun(settings, listed, path, resume)
        _check_memory(settings, path, overwrite)
    teacher = _teacher(recipe["teacher"], listed, recipe["teacher_weights"])
    student = _seeded(
        settings, lambda: _network(recipe["student"], listed, settings, False, recipe["student_weights"])
    )
    # every mistake shows before images are decoded, and before a folder is made
    with _check(student, teacher, method, recipe["layers"], listed, settings) as distiller:
        if check:
            return Run(path, _examine(distiller, load_images(), settings))
        data = load_images() if settings.skip_bad_images else listed  # those that are left
        memory, settings = _memory([distiller], teacher, data, settings, path, overwrite)
    known = student_fingerprint(student, _image_shape(listed, settings))
    recipe = {**recipe, "method": method}
    complete = _complete("distill", recipe, settings)
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "said": said}
    folder = RunFolder(path, complete, **how, inputs=_inputs(data, settings, teacher, student=known))
    data = load_images()
    _tell_of_another_division(recipe["teacher"], data)
    return _run(
        "distill",
        folder,
        recipe["student"],
        student,
        teacher,
        data,
        method,
        recipe["layers"],
        settings,
        memory=memory,
    )


def study(
    recipe: dict[str, Any], settings: Settings, *, out: str | None, resume: bool, overwrite: bool
) -> Run:
    methods = _methods(recipe["methods"])
    seeds = list(range(recipe["seeds"])) if isinstance(recipe["seeds"], int) else list(recipe["seeds"])
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(
            f"seeds are {recipe['seeds']!r}; expected a number of at least 1, or different seeds"
        )
    parallel = recipe["parallel"]
    _check_parallel(parallel, recipe, settings)
    if len({_file_name(name).casefold() for name in methods}) < len(methods):
        raise InputError(
            f"methods {list(methods)} have names that make one folder; expected names that differ"
        )
    listed, load_images = _data(recipe["data"], settings)
    student = recipe["student"]
    path = _out(out, "study", [_shown(student), listed.name], resume, overwrite, student, recipe["teacher"])
    # each seed has views of its own, unless all share a memory
    own_views: dict[str, Any] = {} if settings.memory else {"view_seed": settings.view_seed}
    said, settings = _said(settings), _as_begun(settings, listed, path, resume)
    settings = dataclasses.replace(settings, **own_views)
    _check_memory(settings, path, overwrite)
    teacher = _teacher(recipe["teacher"], listed, recipe["teacher_weights"])
    make = functools.partial(_network, student, listed, settings)
    example = _seeded(settings, make)
    known = {settings.seed: student_fingerprint(example, _image_shape(listed, settings))}
    with ExitStack() as claim:
        with ExitStack() as stack:
            distillers = [
                stack.enter_context(_check(example, teacher, method, recipe["layers"], listed, settings))
                for method in methods.values()
            ]
            data = load_images() if settings.skip_bad_images else listed
            memory, settings = _memory(distillers, teacher, data, settings, path, overwrite)
            recipe = {**recipe, "methods": methods, "seeds": seeds}
            inputs = _inputs(data, settings, teacher)
            complete = _complete("study", recipe, settings)
            how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "said": said}
            record = RunFolder(path, complete, **how, inputs={**inputs, "student": known[settings.seed]})
            data = load_images()
            _tell_of_another_division(recipe["teacher"], data)
            claim.enter_context(record.claimed())
            _tell_of_changes(record)
            done = all((path / _file_name(n) / f"seed-{s}" / RESULT).exists() for n in methods for s in seeds)
            if done:
                _say(f"all {len(methods) * len(seeds)} runs of {path} are done; --overwrite trains them anew")
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
                place = path / _file_name(name) / f"seed-{seed}"
                label = f"{name}, seed {seed} ({number}/{len(seeds)})"
                seeded = _as_begun(dataclasses.replace(settings, seed=seed), data, place, True)
                plan.append(_Planned(name, label, place, arguments, seeded))
        told = set[str]()  # the methods of which warnings have been said
        if Device.of(settings).fabric.world_size == 1:
            _train_apart(parallel, plan, example, data, told)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
        for name, label, place, arguments, seeded in plan:
            # one that is finished stays, on whatever hardware it was made
            said = () if (place / RESULT).exists() else HARDWARE
            complete = _complete("distill", arguments, seeded)
            network = _seeded(seeded, make)
            if seeded.seed not in known:
                known[seeded.seed] = student_fingerprint(network, _image_shape(data, settings))
            of_run = {**inputs, "student": known[seeded.seed]}
            folder = RunFolder(place, complete, resume=True, inputs=of_run, said=said)
            run = _run(
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
        if data.test is not None and (tested := _tested(teacher, data, settings, Device.of(settings))):
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
            "data": _described(data),
            "teacher": figures,
            "student": {"model": _shown(student), "parameters": models.parameter_count(example)},
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
        _say(f"{method}: {line}")


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
        images = torch.zeros(settings.batch_size, *_image_shape(data, settings))
        images = images.contiguous(memory_format=torch.channels_last)

        def step() -> None:
            with device.autocast():
                network(images).float().logsumexp(1).sum().backward()

        steps = settings.epochs * math.ceil(len(data.train) / settings.batch_size)
        parallel, said = how_many(step, len(left), steps)
        if said:
            _say(said)
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
            _say(f"{count}: {run.label}, validation {100 * accuracy:.1f} %")

    try:
        run_apart(tasks, min(parallel, len(left)), done)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped with {next(finished) - 1} of {len(left)} runs done; the others are kept as they are; "
            "continue with the same command and --resume"
        ) from None


def remember(recipe: dict[str, Any], settings: Settings) -> Path:
    methods = _methods(recipe["methods"])
    listed, load_images = _data(recipe["data"], settings)
    settings = resolved(settings, files=listed.size is None)
    _check_memory(settings)
    teacher = _teacher(recipe["teacher"], listed, recipe["teacher_weights"])
    example = _network(recipe["student"], listed, settings)
    with ExitStack() as stack:
        distillers = [
            stack.enter_context(_check(example, teacher, method, recipe["layers"], listed, settings))
            for method in methods.values()
        ]
        data = load_images() if settings.skip_bad_images else listed
        memory, settings = _memory(distillers, teacher, data, settings)
        if memory is None:
            raise InputError(
                f"methods {list(methods)} need nothing of a teacher that could be remembered; "
                "expected some as 'at+kd'"
            )
        data = load_images()
        _tell_of_another_division(recipe["teacher"], data)
        fill(memory, distillers, data, settings)
    if memory.stuck:
        raise TrainingStopped(f"the memory {memory.folder} is not complete; the same command goes on")
    return memory.folder


def demo(out: Path, seeds: int | Sequence[int] | None, full: bool, *, resume: bool, overwrite: bool) -> Run:
    name, out = "demo_full" if full else "demo", out.expanduser()
    recipe = yaml.safe_load((resources.files("eyeline.data") / "assets" / f"{name}.yaml").read_text("utf-8"))
    if full:
        teacher = recipe.pop("train_teacher")
        place = out / "teacher"
        if not (place / RESULT).exists() or overwrite:
            if overwrite and is_run(out / "study"):
                with claimed(out / "study"):
                    remove_run(out / "study")  # of the teacher that is replaced
            settings = {k: v for k, v in teacher.items() if k not in ("model", "data")}
            train(
                {"model": teacher["model"], "data": teacher["data"], "pretrained": False, "weights": None},
                Settings.of(**settings),
                out=str(place),
                resume=resume,
                overwrite=overwrite,
            )
        recipe["teacher"] = str(place)
        out = out / "study"
    arguments = {k: recipe.pop(k) for k in ("student", "teacher", "data", "methods", "seeds")}
    # one by one: the figures of several at once differ in rounding
    arguments |= {"layers": "auto", "teacher_weights": None, "parallel": 1}
    arguments |= {} if seeds is None else {"seeds": seeds}
    remembering = Settings.of(**recipe, memory=str(out / "memory"))
    return study(arguments, remembering, out=str(out), resume=resume, overwrite=overwrite)


def look(
    model: Any,
    images: Any,
    out: Path,
    layers: str | Sequence[str],
    maps: Sequence[str],
    count: int,
    pretrained: bool,
    weights: str | None,
    settings: Settings,
) -> Path:
    from eyeline.data.pictures import read_images
    from eyeline.observe import Observer
    from eyeline.pages.pictures import look_figure, save_figure

    if out.suffix.lower() != ".png":
        raise InputError(f"out is {out}; the picture is a PNG, expected a name that ends in .png")
    functions = {name: _map_function(name) for name in maps}
    if count < 1:
        raise InputError(f"count is {count}; expected a whole number of at least 1")
    network = _any_network(model, pretrained, weights)
    preprocess = _preprocess(network)
    if isinstance(images, torch.Tensor):
        pixels, batch = images[:count].cpu(), preprocess(images[:count].cpu())
        names = None
    else:
        pixels, names, bad = read_images(images, preprocess, count, settings)
        batch = preprocess(pixels)
        if bad:
            _say(_left_out(bad))
    first = next(network.parameters(), torch.empty(0))
    _, channels, height, width = batch.shape
    with (
        Observer(network, layers, (channels, height, width)) as observer,
        torch.no_grad(),
        evaluation_mode(network),
    ):
        features = observer(batch.to(first.device)).features
    drawn = {
        layer.name: {
            name: attention_map(feature, exponent, reduce).cpu()
            for name, (reduce, exponent) in functions.items()
        }
        for layer, feature in zip(observer.layers, features, strict=True)
    }
    try:
        return save_figure(look_figure(pixels, drawn, names), out.expanduser())
    except OSError as error:
        raise InputError(f"cannot write the picture {out}: {error.strerror or error}") from error


def load(folder: Path, network: nn.Module | None = None) -> nn.Module:
    if str(folder) in models.EMBEDDED and network is None:
        network = models.create_model(str(folder), pretrained=True)
        return _with_view(network, _preprocess(network), tuple(FashionMNIST.classes))
    folder = folder.expanduser()
    if (folder / STUDY).is_file():
        runs = sorted(file.parent for file in folder.glob(f"*/*/{MODEL}"))
        raise InputError(f"{folder} is a study; name one of its runs{f', as {runs[0]}' if runs else ''}")
    card = read_json(folder / MODEL, "a finished run of eyeline train or distill")
    try:
        name, classes, channels = card["model"], tuple(card["classes"]), card["in_chans"]
        view: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in card["preprocess"].items()}
        preprocess, weights = Preprocess(**view), folder / card["weights"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / MODEL} is damaged, or of another version ({error})") from error
    if not (isinstance(name, str | None) and isinstance(channels, int)):
        raise InputError(f"{folder / MODEL} is damaged: model is {name!r}, in_chans {channels!r}")
    if network is None:
        if name is None:
            raise InputError(
                f"{folder} was trained from a Python object; "
                f"give it: eyeline.load({str(folder)!r}, model=...)"
            )
        network = models.create_model(name, len(classes), channels)
    if not isinstance(network, nn.Module):
        raise InputError(f"model is {network!r}; expected a network, as MyNet(), not the class")
    models.load_weights(network, weights)
    return _with_view(network, preprocess, classes)


def _with_view(network: nn.Module, preprocess: Preprocess, classes: tuple[str, ...]) -> nn.Module:
    """In evaluation mode, with what its input is made by and what its outputs are called."""
    # plain attributes: torch declares only tensors and modules
    vars(network).update(preprocess=preprocess, classes=classes)
    return network.eval()


# --- one run ------------------------------------------------------------------------------------------------


def _run(
    verb: str,
    folder: RunFolder,
    given: Any,
    student: nn.Module,
    teacher: _Teacher | None,
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
    shape = _image_shape(data, settings)
    with folder.claimed() as result:
        if result is not None:
            if data.test is not None and not (folder.path / ANSWERS).exists() and is_main_process():
                result = _test_again(folder, student, teacher, data, settings)
            return Run(folder.path, result, _own(given, student))
        _tell_of_changes(folder)
        if data.skipped:
            _say(_left_out(data.skipped))
        # a loss's learnable parts depend on the seed alone, as the student does
        with _seeded(settings, lambda: Distiller(student, network, method, layers, shape)) as distiller:
            if is_main_process() and not (folder.path / CHECKPOINT).exists():
                effects = _examine(distiller, data, settings)
                write_json(folder.path / DOCTOR, effects)
                for line in effects["warnings"]:
                    (warn or _say)(line)
            device = fit(distiller, data, settings, folder, memory=memory, label=label)
        if is_main_process():
            _finish(
                verb, folder, given, student, teacher, data, method, layers, settings, device, distiller.pairs
            )
    device.fabric.barrier()
    return Run(folder.path, folder.result or {}, _own(given, student))


def _examine(distiller: Distiller, data: ImageData, settings: Settings) -> dict[str, Any]:
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


def _own(given: Any, network: nn.Module) -> nn.Module | None:
    """A network that no name rebuilds."""
    return network if _architecture(given) is None else None


def _finish(
    verb: str,
    folder: RunFolder,
    given: Any,
    student: nn.Module,
    teacher: _Teacher | None,
    data: ImageData,
    method: Any,
    layers: str | Sequence[str],
    settings: Settings,
    device: Device,
    pairs: Sequence[tuple[str, str]],
) -> None:
    """Write the weights and the figures of a run that is trained."""
    weights = "model.safetensors" if verb == "train" else "student.safetensors"
    state = {
        # a copy, for safetensors refuses tensors that share their memory, as those of a module with two names
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in student.state_dict().items()
    }
    write_atomically(folder.path / weights, to_safetensors(state))
    write_json(folder.path / MODEL, _model_card(given, student, data, settings, weights))

    last = folder.read_metrics()[-1]
    result: dict[str, Any] = {
        "kind": "run",
        "verb": verb,
        "student" if verb == "distill" else "model": {
            "model": _shown(given),
            "parameters": models.parameter_count(student),
        },
        "method": method_name(method),
        "layers": [list(pair) for pair in pairs],
        "seed": settings.seed,
        "data": _described(data),
        "train_loss": last.get("ce"),
        "train_accuracy": last["train_accuracy"],
        "validation_accuracy": last["validation_accuracy"],
        "validation_loss": last["validation_loss"],
        "attention_loss": _attention_loss(student, teacher, data, settings, device, layers),
        **_test(folder, student, teacher, data, settings, device),
    }
    if teacher:
        result["teacher"] = {"model": teacher.name, "parameters": models.parameter_count(teacher.network)}
    write_json(folder.path / RESULT, result)
    (folder.path / CHECKPOINT).unlink(missing_ok=True)  # the run is done: its weights lie beside it


def _test(
    folder: RunFolder,
    student: nn.Module,
    teacher: _Teacher | None,
    data: ImageData,
    settings: Settings,
    device: Device,
) -> dict[str, float | None]:
    """The figures on the test images; each answer is kept."""
    if data.test is None:
        return dict.fromkeys(("test_accuracy", "test_loss", "teacher_agreement"))
    measured = evaluate(student, evaluation_stream(data.test, data, settings, device), device.autocast)
    write_answers(folder.path / ANSWERS, measured.answers, data.test.labels)
    theirs = None if teacher is None else _tested(teacher, data, settings, device)
    same = None if theirs is None else float((measured.answers == theirs.answers).double().mean())
    return {"test_accuracy": measured.accuracy, "test_loss": measured.loss, "teacher_agreement": same}


def _test_again(
    folder: RunFolder, student: nn.Module, teacher: _Teacher | None, data: ImageData, settings: Settings
) -> dict[str, Any]:
    """The result of a finished run that kept no answers, as an earlier version left it: now it does."""
    card = read_json(folder.path / MODEL, "a finished run")
    models.load_weights(student, folder.path / card["weights"])
    device = Device.of(settings)
    device.place(student)
    _say(f"{folder.path} kept no answers to the test images: its weights are asked again")
    same = _test(folder, student, teacher, data, settings, device)["teacher_agreement"]
    result = {**(folder.result or {}), "teacher_agreement": same}
    write_json(folder.path / RESULT, result)
    return result


def _tested(teacher: _Teacher, data: ImageData, settings: Settings, device: Device) -> Evaluation | None:
    """The teacher on the test images, asked once; none for a teacher of other classes."""
    assert data.test is not None
    if "test" not in teacher.tested:
        device.place(teacher.network)
        ours = Probe(teacher.network, _image_shape(data, settings)).answer == (len(data.classes),)
        teacher.tested["test"] = (
            evaluate(teacher.network, evaluation_stream(data.test, data, settings, device), device.autocast)
            if ours
            else None
        )
    return teacher.tested["test"]


def _attention_loss(
    student: nn.Module,
    teacher: _Teacher | None,
    data: ImageData,
    settings: Settings,
    device: Device,
    layers: str | Sequence[str],
) -> float | None:
    """On the validation images; none without a teacher, or for networks that have no maps to compare."""
    if teacher is None:
        return None
    device.place(teacher.network)
    batches = evaluation_stream(data.validation, data, settings, device)
    try:
        return attention_loss(
            student, teacher.network, batches, device.autocast, layers, _image_shape(data, settings)
        )
    except InputError:
        return None


def _model_card(
    given: Any, network: nn.Module, data: ImageData, settings: Settings, weights: str
) -> dict[str, Any]:
    return {
        "format": 1,
        "model": _architecture(given),
        "num_classes": len(data.classes),
        "in_chans": data.channels,
        "parameters": models.parameter_count(network),
        "weights": weights,
        "data": {"name": data.name, **_held_out(data)},
        "classes": list(data.classes),
        "preprocess": plain(dataclasses.asdict(_evaluation_view(data, settings))),
    }


def _held_out(data: ImageData) -> dict[str, str]:
    """Hashes of the images that are kept from training."""
    return {name: data.fingerprint(name) for name in data.splits if name != "train"}


def _evaluation_view(data: ImageData, settings: Settings) -> Preprocess:
    channels, *size = _image_shape(data, settings)
    return Preprocess(
        channels, (size[0], size[1]), data.mean, data.std, CENTRAL if data.size is None else 1.0
    )


def _seeded(settings: Settings, make: Callable[[], _Module]) -> _Module:
    """A network whose initial weights depend on the seed alone."""
    with draws_apart(Device.of(settings).torch_device, seed=mix(settings.seed, 0x696E6974) >> 1):
        return make()


# --- what was named -----------------------------------------------------------------------------------------


def _data(given: Any, settings: Settings) -> tuple[ImageData, Callable[[], ImageData]]:
    """The data as listed, and what loads it; what cannot work with it, or on this machine, is refused."""
    Device.of(settings)
    listed, load = list_data(
        given,
        settings,
        say=_say,
        progress=lambda total: show_progress(settings, total, 0, "packing", shown=is_main_process()),
    )

    @functools.cache
    def loaded() -> ImageData:
        data = load()
        if data.size is None:
            sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
            _say(f"{data.name}: {sizes} images of {len(data.classes)} classes")
        return data

    return listed, loaded


def _network(
    given: Any, data: ImageData, settings: Settings, pretrained: bool = False, weights: str | None = None
) -> nn.Module:
    """The network to train: a name, a run folder, a module (copied), or a function that makes one."""
    if isinstance(given, str) and not _is_run(given):
        network = models.create_model(given, len(data.classes), data.channels, pretrained, weights)
    elif pretrained:
        raise InputError(f"pretrained is for a network given by name; {_shown(given)} brings its own weights")
    else:
        if isinstance(given, nn.Module):
            network = copy.deepcopy(given)
        elif isinstance(given, str):
            network = load(Path(given))
        elif callable(given):
            network = given()
        else:
            raise InputError(
                f"model is {given!r}; expected a name, a run folder, an nn.Module, "
                "or a function that makes one"
            )
        if weights is not None:
            models.load_weights(network, weights)
    answered = Probe(network, _image_shape(data, settings)).answer
    if answered != (len(data.classes),):
        raise InputError(
            f"the network answers {list(answered)} for an image; {data.name} has {len(data.classes)} classes"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(
            f"{_shown(given)} has no parameter that requires a gradient; there is nothing to train"
        )
    return network.train()


def _teacher(given: Any, data: ImageData, weights: str | None) -> _Teacher:
    """The teacher: with trained weights, never a fresh head."""
    if weights is not None and (not isinstance(given, str) or _is_run(given)):
        raise InputError(
            f"teacher_weights is for a teacher given by name; {_shown(given)} brings its own weights"
        )
    if isinstance(given, nn.Module):
        network = given
    elif isinstance(given, str) and _is_run(given):
        network = load(Path(given).expanduser())
    elif isinstance(given, str) and weights is not None:
        network = models.create_model(given, len(data.classes), data.channels, weights=weights)
    elif isinstance(given, str):
        if _has_no_published_weights(models.create_model(given), given):
            raise InputError(
                f"no trained weights are published for {given}; give a run folder "
                "(made with eyeline train), or a checkpoint with --teacher_weights"
            )
        network = models.create_model(given, pretrained=True)
    else:
        raise InputError(f"teacher is {given!r}; expected a run folder, a name or an nn.Module")
    classes = getattr(network, "classes", None)
    if classes is not None and len(classes) == len(data.classes) and tuple(classes) != data.classes:
        _say(
            f"teacher {_shown(given)} names its classes otherwise than {data.name}; they are paired in order"
        )
    return _Teacher(_shown(given), network.eval().requires_grad_(False))


def _tell_of_another_division(teacher: Any, data: ImageData) -> None:
    """Say of a teacher that it may have been trained on images that are held out here."""
    if not (isinstance(teacher, str) and _is_run(teacher)):
        return
    theirs = read_json(Path(teacher).expanduser() / MODEL, "a run").get("data", {})
    others = [name for name, hash_ in _held_out(data).items() if theirs.get(name, hash_) != hash_]
    if others and theirs.get("name") == data.name:
        _say(
            f"teacher {teacher} was trained beside other {' and '.join(others)} images of {data.name} (of "
            "another split_seed, or before files came or went); it may have seen some of these, and its "
            "figures be too high: train it again, or keep test images in a folder of their own"
        )


def _has_no_published_weights(network: nn.Module, name: str) -> bool:
    config = getattr(network, "pretrained_cfg", None) or {}
    return (
        name not in models.EMBEDDED
        and not name.startswith("torchvision/")
        and not (config.get("url") or config.get("hf_hub_id") or config.get("file"))
    )


def _check(
    student: nn.Module,
    teacher: _Teacher,
    method: Any,
    layers: str | Sequence[str],
    data: ImageData,
    settings: Settings,
) -> Distiller:
    """Show every mistake before a folder is made; the distiller is to be closed."""
    shape = _image_shape(data, settings)
    try:
        Probe(teacher.network, shape)
    except InputError as error:
        size = "x".join(map(str, shape))
        first = next((m for m in teacher.network.modules() if isinstance(m, nn.Conv2d)), None)
        why = str(error.__cause__ or error).partition("\n")[0]
        if first is not None and first.in_channels != data.channels:
            why = f"it takes {first.in_channels} channel{'s' * (first.in_channels > 1)}"
        raise InputError(
            f"teacher {teacher.name} cannot take the images of {data.name}, which are {size} ({why}); "
            f"train one on this data: eyeline train --model NAME --data {data.name}"
        ) from error

    def make(network: nn.Module) -> Distiller:
        # seeded, as in the run itself
        return _seeded(settings, lambda: Distiller(network, teacher.network, method, layers, shape))

    distiller = make(student)
    try:
        _try_step(distiller, shape, len(data.classes))
        if distiller.objective.needs("logits", of_teacher=True):
            answered = Probe(teacher.network, _image_shape(data, settings)).answer
            if answered != (len(data.classes),):
                raise InputError(
                    f"teacher {teacher.name} answers {list(answered)} for an image; {data.name} has "
                    f"{len(data.classes)} classes; train one on this data: "
                    f"eyeline train --model NAME --data {data.name}"
                )
    except BaseException:
        distiller.close()
        raise
    return distiller


def _check_memory(settings: Settings, out: Path | None = None, overwrite: bool = False) -> None:
    """Refuse a folder that can be no memory, for whatever teacher and data."""
    if settings.memory is None:
        return
    folder = Path(settings.memory).expanduser().resolve()
    place = out.expanduser().resolve() if out is not None else None
    if place is not None and (folder == place or folder in place.parents):
        raise InputError(
            f"memory {settings.memory} is the folder of the run, or around it; choose one of its own"
        )
    if not (overwrite and place == folder.parent):
        check_folder(Path(settings.memory).expanduser())


def _memory(
    distillers: Sequence[Distiller],
    asked: _Teacher,
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
    shape = _image_shape(data, settings)
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
        say=_say,
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
    _say(
        f"memory: {views} view{'s' * (views > 1)} of {len(data.train):,} images, {amount(size)} each, "
        f"{amount(whole)} in all ({', '.join(teacher.losses)}), in {settings.memory}; "
        + (f"{missing} to be filled" if missing else "all are there")
    )
    return memory, settings


def _left_out(files: Sequence[object]) -> str:
    named = ", ".join(map(str, files[:3])) + ", ..." * (len(files) > 3)
    return f"{len(files)} unreadable image{'s' * (len(files) > 1)} left out: {named}"


def _say(line: str) -> None:
    if is_main_process():
        console.print(line, soft_wrap=True, highlight=False, markup=False)


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
            f"{', '.join(bad)} of method {method_name(distiller.objective.method)} is not finite on images "
            "of noise; the student, the teacher or a parameter of the method has values that are too large"
        )
    check_effects(effects)


def _any_network(given: Any, pretrained: bool, weights: str | None) -> nn.Module:
    if weights is not None and (not isinstance(given, str) or _is_run(given)):
        raise InputError(f"weights is for a model given by name; {_shown(given)} brings its own")
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, str):
        raise InputError(f"model is {given!r}; expected a name, a run folder or an nn.Module")
    if _is_run(given):
        return load(Path(given).expanduser())
    if given in models.EMBEDDED:
        pretrained = True
    network = models.create_model(given, pretrained=pretrained, weights=weights)
    if not pretrained and weights is None:
        _say(
            f"{given} has random weights: give --pretrained, --weights FILE or a run folder for trained ones"
        )
    return network


def _preprocess(network: nn.Module) -> Preprocess:
    """The evaluation view of a network: of its run, of timm's configuration, or of ImageNet."""
    own = getattr(network, "preprocess", None)
    if isinstance(own, Preprocess):
        return own
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first else 3
    config = getattr(network, "pretrained_cfg", None) or {}
    mean, std = config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225))
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    size = tuple(config.get("input_size", (channels, 224, 224))[1:])
    return Preprocess(channels, size, tuple(mean), tuple(std), config.get("crop_pct", CENTRAL))


def _map_function(name: str) -> tuple[Reduce, float]:
    match = re.fullmatch(r"(sum|max)\^(\d+(?:\.\d+)?)", name)
    if match is None or float(match[2]) < 1:
        raise InputError(
            f"map function {name!r}; expected sum^P or max^P with an exponent P of at least 1, as in sum^2"
        )
    return ("sum" if match[1] == "sum" else "max"), float(match[2])


def _methods(given: Sequence[Any] | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> resolved method, the student alone first."""
    given = [given] if isinstance(given, str) else given
    named = dict(given) if isinstance(given, Mapping) else {method_name(method): method for method in given}
    if not isinstance(given, Mapping) and len(named) < len(given):
        raise InputError(
            f"methods {list(given)!r} name one method twice; give a mapping with a name for each"
        )
    for name, method in named.items():
        if not isinstance(name, str) or not _file_name(name).strip(".") or is_ours(_file_name(name)):
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


def _is_run(given: str) -> bool:
    folder = Path(given).expanduser()
    return (folder / MODEL).is_file() or is_run(folder)


def _shown(given: Any) -> str:
    return given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)


def _architecture(given: Any) -> str | None:
    """The name that rebuilds a network, seen through run folders."""
    if not isinstance(given, str):
        return None
    if _is_run(given):
        return read_json(Path(given).expanduser() / MODEL, "a run")["model"]
    return given


def _image_shape(data: ImageData, settings: Settings) -> tuple[int, int, int]:
    side = settings.image_size
    height, width = data.size or (side, side)
    return data.channels, height, width


# --- folders and figures ------------------------------------------------------------------------------------


def _complete(verb: str, recipe: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    return {"verb": verb, **recipe, **dataclasses.asdict(settings)}


def _said(settings: Settings) -> tuple[str, ...]:
    """The settings of the hardware that were given in so many words."""
    return tuple(name for name in HARDWARE if getattr(settings, name) != "auto")


def _as_begun(settings: Settings, data: ImageData, path: Path, resume: bool) -> Settings:
    """What the settings mean: for a run that goes on, as it began; otherwise on this hardware.

    Raises:
        InputError: the run began on hardware that is not here, and it was not said on what it goes on.
    """
    files = data.size is None
    here = resolved(settings, files=files)
    if not (resume and is_run(path)) or (path / RESULT).exists():  # what is finished is only read
        return here
    before = read_recipe(path)
    kept = {name: before[name] for name in HARDWARE if name in before and name not in _said(settings)}
    there = dataclasses.replace(settings, **kept)
    missing: list[str] = []
    try:
        as_auto = Device.of(dataclasses.replace(there, precision="auto"))
    except InputError:
        missing = [n for n in ("accelerator", "devices") if n in kept and kept[n] != getattr(here, n)]
        as_auto = Device.of(dataclasses.replace(settings, precision="auto"))
    if kept.get("precision") == "bf16" and not as_auto.bf16:
        missing.append("precision")
    if missing:
        began = ", ".join(f"{name}={kept[name]}" for name in missing)
        words = " ".join(f"--{name} {getattr(here, name)}" for name in missing)
        emulated = ", or --precision bf16, which is slow here" if "precision" in missing else ""
        raise InputError(
            f"{path} began with {began}, which this machine does not have; to go on otherwise, no longer bit "
            f"for bit, give {words}{emulated}"
        )
    return resolved(there, files=files)


def _tell_of_changes(folder: RunFolder) -> None:
    if folder.changed:
        began, now = (", ".join(f"{name}={each[i]}" for name, each in folder.changed.items()) for i in (0, 1))
        _say(f"{folder.path} goes on with {now}; it began with {began}: no longer bit for bit")


def _inputs(
    data: ImageData, settings: Settings, teacher: _Teacher | None = None, **trained: dict[str, Any]
) -> dict[str, Any]:
    """Records of what may change under a recipe that stays the same; ``trained``: fingerprints by name."""
    numbers = [" ".join(f"{number:.6g}" for number in each) for each in (data.mean, data.std)]
    inputs: dict[str, Any] = {"data": data.fingerprint(), "mean and std": ", ".join(numbers)}
    if teacher is not None:
        inputs["teacher"] = teacher.fingerprint(_image_shape(data, settings))
    return inputs | trained


def _out(
    out: str | None, verb: str, parts: Sequence[str], resume: bool, overwrite: bool, *needed: Any
) -> Path:
    """The folder of a run; refused where a run is there, or it would replace one that is needed."""
    path = _path(out, verb, parts)
    if is_main_process():
        is_taken(path, resume=resume, overwrite=overwrite)
    _keep(path, overwrite, *needed)
    return path


def _path(out: str | None, verb: str, parts: Sequence[str]) -> Path:
    path = Path(out) if out is not None else Path("runs") / _file_name("-".join([verb, *parts]))
    return path.expanduser()


def _keep(path: Path, overwrite: bool, *inputs: Any) -> None:
    """Refuse to overwrite a run that this one starts from."""
    ours = path.expanduser().resolve()
    for given in inputs:
        if overwrite and isinstance(given, str) and _is_run(given):
            theirs = Path(given).expanduser().resolve()
            if ours == theirs or ours in theirs.parents:
                raise InputError(
                    f"{path} is to be overwritten, but {given} is needed; choose another folder with --out"
                )


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9+._-]+", "_", text).strip("_")


def _described(data: ImageData) -> dict[str, Any]:
    sizes = {name: len(split) for name, split in data.splits.items()}
    skipped = {"skipped": list(data.skipped)} if data.skipped else {}
    facts = {"name": data.name, "fingerprint": data.fingerprint(), "classes": list(data.classes)}
    return {**facts, **sizes, **skipped}


def _teacher_figures(teacher: _Teacher, data: ImageData, settings: Settings) -> dict[str, Any]:
    device = Device.of(settings)
    device.place(teacher.network)
    figures: dict[str, Any] = {"model": teacher.name, "parameters": models.parameter_count(teacher.network)}
    if Probe(teacher.network, _image_shape(data, settings)).answer != (len(data.classes),):
        return figures  # a teacher of other classes
    trained = evaluate(
        teacher.network, evaluation_stream(data.train, data, settings, device), device.autocast
    )
    tested = None if data.test is None else _tested(teacher, data, settings, device)
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
    teacher: _Teacher,
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

    shape = _image_shape(data, settings)
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
    view = _evaluation_view(data, settings)
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
