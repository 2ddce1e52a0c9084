"""The work behind the verbs: resolve what was named, run, and keep the figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml

from eyeline.attention import Reduce, attention_map
from eyeline.console import say
from eyeline.device import resolved
from eyeline.errors import InputError, TrainingStopped
from eyeline.experiment.preflight import check_memory, checked
from eyeline.experiment.resolve import (
    any_network,
    as_begun,
    complete_recipe,
    from_seed,
    image_shape,
    inputs_of,
    left_out,
    listed_data,
    named_network,
    named_teacher,
    place_of,
    run_path,
    said_of_hardware,
    tell_of_another_division,
)
from eyeline.fingerprint import student_fingerprint
from eyeline.objective.method import method_name, resolve_method
from eyeline.observe import evaluation_mode
from eyeline.runs.card import called, preprocess_of
from eyeline.runs.folder import (
    RESULT,
    RunFolder,
    claimed,
    is_run,
    remove_run,
)
from eyeline.runs.run import Run
from eyeline.settings import Settings
from eyeline.studies.study import BASELINE, named_methods, study
from eyeline.training.doctoring import examined
from eyeline.training.remembering import planned_memory
from eyeline.training.run import train_run
from eyeline.training.trainer import remember as fill


def train(
    recipe: dict[str, Any], settings: Settings, *, out: str | None, resume: bool, overwrite: bool
) -> Run:
    if settings.memory is not None:
        raise InputError("memory is for what a teacher answers; train has no teacher")
    listed, load_images = listed_data(recipe["data"], settings)
    parts = [called(recipe["model"]), listed.name, f"seed-{settings.seed}"]
    path = run_path(out, "train", parts, resume, overwrite, recipe["model"])
    said, settings = said_of_hardware(settings), as_begun(settings, listed, path, resume)
    network = from_seed(
        settings,
        lambda: named_network(recipe["model"], listed, settings, recipe["pretrained"], recipe["weights"]),
    )
    known = student_fingerprint(network, image_shape(listed, settings))
    data = load_images() if settings.skip_bad_images else listed  # those that are left
    complete = complete_recipe("train", recipe, settings)
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "said": said}
    folder = RunFolder(path, complete, **how, inputs=inputs_of(data, settings, model=known))
    data = load_images()
    return train_run("train", folder, recipe["model"], network, None, data, BASELINE, "auto", settings)


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
    listed, load_images = listed_data(recipe["data"], settings)
    parts = [called(recipe["student"]), method_name(method), listed.name, f"seed-{settings.seed}"]
    if check:  # it makes no folder
        path = place_of(out, "distill", parts)
        settings = resolved(settings, files=listed.size is None)
    else:
        path = run_path(out, "distill", parts, resume, overwrite, recipe["student"], recipe["teacher"])
        said, settings = said_of_hardware(settings), as_begun(settings, listed, path, resume)
        check_memory(settings, path, overwrite)
    teacher = named_teacher(recipe["teacher"], listed, recipe["teacher_weights"])
    student = from_seed(
        settings, lambda: named_network(recipe["student"], listed, settings, False, recipe["student_weights"])
    )
    # every mistake shows before images are decoded, and before a folder is made
    with checked(student, teacher, method, recipe["layers"], listed, settings) as distiller:
        if check:
            return Run(path, examined(distiller, load_images(), settings))
        data = load_images() if settings.skip_bad_images else listed  # those that are left
        memory, settings = planned_memory([distiller], teacher, data, settings, path, overwrite)
    known = student_fingerprint(student, image_shape(listed, settings))
    recipe = {**recipe, "method": method}
    complete = complete_recipe("distill", recipe, settings)
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "said": said}
    folder = RunFolder(path, complete, **how, inputs=inputs_of(data, settings, teacher, student=known))
    data = load_images()
    tell_of_another_division(recipe["teacher"], data)
    return train_run(
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


def remember(recipe: dict[str, Any], settings: Settings) -> Path:
    methods = named_methods(recipe["methods"])
    listed, load_images = listed_data(recipe["data"], settings)
    settings = resolved(settings, files=listed.size is None)
    check_memory(settings)
    teacher = named_teacher(recipe["teacher"], listed, recipe["teacher_weights"])
    example = named_network(recipe["student"], listed, settings)
    with ExitStack() as stack:
        distillers = [
            stack.enter_context(checked(example, teacher, method, recipe["layers"], listed, settings))
            for method in methods.values()
        ]
        data = load_images() if settings.skip_bad_images else listed
        memory, settings = planned_memory(distillers, teacher, data, settings)
        if memory is None:
            raise InputError(
                f"methods {list(methods)} need nothing of a teacher that could be remembered; "
                "expected some as 'at+kd'"
            )
        data = load_images()
        tell_of_another_division(recipe["teacher"], data)
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
    network = any_network(model, pretrained, weights)
    preprocess = preprocess_of(network)
    if isinstance(images, torch.Tensor):
        pixels, batch = images[:count].cpu(), preprocess(images[:count].cpu())
        names = None
    else:
        pixels, names, bad = read_images(images, preprocess, count, settings)
        batch = preprocess(pixels)
        if bad:
            say(left_out(bad))
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


def _map_function(name: str) -> tuple[Reduce, float]:
    match = re.fullmatch(r"(sum|max)\^(\d+(?:\.\d+)?)", name)
    if match is None or float(match[2]) < 1:
        raise InputError(
            f"map function {name!r}; expected sum^P or max^P with an exponent P of at least 1, as in sum^2"
        )
    return ("sum" if match[1] == "sum" else "max"), float(match[2])
