"""The verbs: one function each, which the command line and the recipes call as they are.

No heavy import at the top: ``eyeline --help`` reads this file.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from eyeline.errors import InputError
from eyeline.isolation import as_found
from eyeline.kinds import as_kind
from eyeline.names import check_images, check_names, meant
from eyeline.runs.run import Run
from eyeline.settings import Settings, kinds_of_settings

if TYPE_CHECKING:
    from torch import nn

VERBS = ("train", "distill", "study", "remember", "look", "report", "demo")

Verb = TypeVar("Verb", bound=Callable[..., Any])


def _verb(verb: Verb) -> Verb:
    """Check the arguments of a verb by their annotations.

    Its ``**settings`` are the fields of Settings, in its signature and documentation too.
    """
    own = inspect.signature(verb, eval_str=True)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    documented = []
    for field in dataclasses.fields(Settings) if len(parameters) < len(own.parameters) else ():
        if field.name in own.parameters:
            continue
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=kinds_of_settings()[field.name],
            )
        )
        documented.append(f"        {field.name}: {field.metadata['doc'].replace('%%', '%')}")
    signature = own.replace(parameters=parameters)

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if documented and name not in signature.parameters:
                near = meant(name, signature.parameters)
                raise InputError(f"unknown setting {name!r}" + (f"; did you mean {near!r}?" if near else ""))
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            given.arguments[name] = as_kind(name, value, signature.parameters[name].annotation)
        if documented:
            Settings.of(**{k: v for k, v in given.arguments.items() if k not in own.parameters})
        with as_found(*given.arguments.values()):
            return verb(*given.args, **given.kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__doc__ = inspect.cleandoc(verb.__doc__ or "").replace(
        "    settings: see below", "\n".join(line[4:] for line in documented)
    )
    return call  # type: ignore[return-value]


@_verb
def train(
    model: str | Any,
    data: str | Any,
    out: str | None = None,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Run:
    """Train a network alone, from labels: a teacher, or a baseline.

    Args:
        model: a timm name, torchvision/NAME, wrn_16_1, a run folder, or (in Python) an nn.Module
        data: fashion_mnist, fashion_mnist_sample, cifar10, cifar100, folder:PATH, or (in Python) a data set
        out: folder of the run (default: under runs/)
        pretrained: start from the published weights
        weights: checkpoint to start from (safetensors)
        resume: continue the run that is in the folder
        overwrite: replace the run that is in the folder
        settings: see below

    Returns:
        The finished run; ``run.load()`` is the network.

    Raises:
        InputError: something given cannot work; raised before training.
    """
    check_names(data=data, networks=[model])
    from eyeline import jobs

    recipe = {"model": model, "data": data, "pretrained": pretrained, "weights": weights}
    return jobs.train(recipe, Settings.of(**settings), out=out, resume=resume, overwrite=overwrite)


@_verb
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
    **settings: Any,
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
    from eyeline import jobs

    recipe = {
        "student": student,
        "teacher": teacher,
        "data": data,
        "method": method,
        "layers": layers,
        "student_weights": student_weights,
        "teacher_weights": teacher_weights,
    }
    options = {"resume": resume, "overwrite": overwrite, "check": check}
    return jobs.distill(recipe, Settings.of(**settings), out=out, **options)


@_verb
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
    **settings: Any,
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
    from eyeline import jobs

    recipe = {
        "student": student,
        "teacher": teacher,
        "data": data,
        "methods": methods,
        "seeds": seeds,
        "layers": layers,
        "teacher_weights": teacher_weights,
        "parallel": parallel,
    }
    return jobs.study(recipe, Settings.of(**settings), out=out, resume=resume, overwrite=overwrite)


@_verb
def remember(
    student: str | Any,
    teacher: str | Any,
    data: str | Any,
    memory: str,
    *,
    methods: Sequence[str | Mapping[str, Any]] | str | Mapping[str, Any] = ["at+kd"],
    layers: str | Sequence[str] = "auto",
    teacher_weights: str | None = None,
    **settings: Any,
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
    from eyeline import jobs

    recipe = {
        "student": student,
        "teacher": teacher,
        "data": data,
        "methods": methods,
        "layers": layers,
        "teacher_weights": teacher_weights,
    }
    return jobs.remember(recipe, Settings.of(memory=memory, **settings))


@_verb
def look(
    model: str | Any,
    images: str | Any,
    out: str = "look.png",
    *,
    layers: str | Sequence[str] = "auto",
    maps: Sequence[str] = ["sum^1", "sum^2", "sum^4", "max^2"],
    count: int = 4,
    pretrained: bool = False,
    weights: str | None = None,
    skip_bad_images: bool = False,
    data_root: str | None = None,
    download: bool = False,
) -> Path:
    """Draw where a network looks: attention maps by layer and map function, in one picture.

    Args:
        model: a run folder, a name, or (in Python) an nn.Module
        images: an image file, a folder of images, or a data set (fashion_mnist_sample, its test images)
        out: the picture, PNG
        layers: auto, or names
        maps: map functions: sum^P or max^P with an exponent P of at least 1
        count: how many images, at most
        pretrained: load the published weights of a model given by name
        weights: checkpoint of a model given by name (safetensors)
        skip_bad_images: leave out unreadable images of a folder, and name them
        data_root: folder where data sets lie, or are downloaded to
        download: download a data set that is missing

    Returns:
        The path of the picture.

    Raises:
        InputError: something given cannot work.
    """
    check_names(networks=[model])
    if isinstance(images, str):
        check_images(images)
    from eyeline import jobs

    settings = Settings.of(skip_bad_images=skip_bad_images, data_root=data_root, download=download)
    return jobs.look(model, images, Path(out), layers, maps, count, pretrained, weights, settings)


@_verb
def report(folder: str | Path, out: str | None = None) -> Path:
    """Write the page of a study or a run: table, curves, attention maps, protocol.

    Args:
        folder: of a study or a run
        out: the page, HTML (default: report.html in the folder)

    Returns:
        The path of the page; it needs no network.

    Raises:
        InputError: the folder is no study or run, or is damaged.
    """
    from eyeline.pages import write_page

    return write_page(Path(folder), None if out is None else Path(out))


@_verb
def demo(
    out: str = "runs/demo",
    *,
    seeds: int | Sequence[int] | None = None,
    full: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Compare the student alone, KD, AT and AT+KD on real images, and write the page of the results.

    A teacher trained on all of Fashion-MNIST helps a student that has few labelled images of it; both come
    with the package. It takes a few minutes on two cores.

    Args:
        out: folder of the study
        seeds: how many (0, 1, ...), or a list of them (default: 6)
        full: train everything, teacher included, on the whole of Fashion-MNIST (hours)
        resume: continue the demo that is in the folder
        overwrite: replace the demo that is in the folder

    Returns:
        The finished study.
    """
    from eyeline import jobs

    return jobs.demo(Path(out), seeds, full, resume=resume, overwrite=overwrite)


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Rebuild the trained network of a run, in evaluation mode.

    Args:
        folder: of a run of ``train`` or ``distill``, or the name of a network whose trained weights come with
            the package (``wrn_16_2.fashion_mnist``).
        model: the network to load the weights into, for a run that was made with a Python object.

    Returns:
        The network, ``[N, C, H, W]`` -> logits ``[N, K]``. ``network.preprocess`` makes its input from PIL
        images or uint8 tensors, ``network.classes`` names its outputs.

    Raises:
        InputError: the folder holds no finished run, or its weights are damaged.
    """
    place = Path(as_kind("folder", folder, str | Path)).expanduser()
    with as_found():
        from eyeline.runs import card

        return card.load(place, model)
