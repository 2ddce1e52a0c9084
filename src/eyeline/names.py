"""What can be named, known before PyTorch is imported: a typo is answered at once."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eyeline.errors import InputError, nearest, unknown

DATA = ("fashion_mnist", "fashion_mnist_sample", "cifar10", "cifar100", "folder:PATH")
SCHEDULES = ("constant", "linear", "cosine", "step", "loss_rate")
"""Of the weight of a loss."""
OPTIONS = ("loss", "layers", "weight", "schedule")
"""Of every term of a method."""
NOT_TERMS = (
    *("epoch", "step", "learning_rate", "loss", "train_accuracy", "validation_accuracy", "validation_loss"),
    *("images_per_second", "terms", "total", "logits"),
)
"""The other columns of metrics.csv, and what a step answers beside its terms."""
NETWORKS = (
    *("wrn_10_1", "wrn_16_1", "wrn_16_2", "wrn_16_4", "wrn_22_2", "wrn_28_2", "wrn_28_10", "wrn_40_1"),
    *("wrn_40_2", "wrn_40_4", "wrn_16_2.fashion_mnist"),
    *("resnet20", "resnet32", "resnet56", "resnet110", "resnet8x4", "resnet32x4", "resnet50_cifar"),
    *("vgg8_cifar", "vgg13_cifar", "mobilenetv2_half_cifar", "shufflenetv1_cifar", "shufflenetv2_cifar"),
    *("nin_wide", "nin_wide_nobn", "nin_thin", "nin_thin_nobn"),
)
"""Those of eyeline.models."""


def check_names(*, methods: Any = (), data: Any = None, networks: Iterable[Any] = ()) -> None:
    """Refuse a name of a method, data set or network that does not exist; objects are passed over.

    Raises:
        InputError: with the nearest name.
    """
    methods = [methods] if isinstance(methods, str) else methods
    for method in methods.values() if isinstance(methods, Mapping) else methods:
        named_terms(method)
    if isinstance(data, str | os.PathLike):
        check_data(os.fspath(data))
    for network in networks:
        if isinstance(network, str):
            check_network(network)


def named_terms(method: str | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Term -> the options that a method string or mapping gives it, all of them known; ``loss`` among them
    where it is not the term's name.

    Raises:
        InputError: an unknown loss, option or schedule, a value that is not finite, what cannot be the name
            of a term, or no loss at all.
    """
    known = losses()
    listing = ", ".join(known)
    if isinstance(method, str):
        names = [name.strip() for name in method.split("+")]
        if len(set(names)) < len(names):
            raise InputError(
                f"method {method!r} names a loss twice; expected each once, as in 'at+kd' ({listing})"
            )
        given: dict[str, Any] = {name: {} for name in names}
    elif isinstance(method, Mapping):
        for name, options in method.items():
            if not (options is None or isinstance(options, Mapping)):
                raise InputError(
                    f"options of loss {name!r} are {options!r}; expected a mapping such as {{weight: 1}}"
                )
        given = {name: dict(options or {}) for name, options in method.items()}
    else:
        raise InputError(
            f"method is {method!r}; expected a string such as 'at+kd', or a mapping of losses to options"
        )
    if not given:
        raise InputError(f"the method has no loss; expected some of {listing}")
    for name, options in given.items():
        loss = options.get("loss", name)
        if not isinstance(loss, str) or loss not in known:
            raise unknown("loss", loss, known)
        if loss == name:
            options.pop("loss", None)
        elif name in known or loss == "ce":
            wanted = "another name, as that is a loss itself" if name in known else "the name 'ce'"
            raise InputError(f"term {name!r} is of loss {loss!r}; expected {wanted}")
        else:
            check_term_name(name)
        for option, value in options.items():
            if option not in {*known[loss], *OPTIONS}:
                raise unknown(f"option of loss {loss!r}", option, {*known[loss], *OPTIONS})
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{option} is {value}; expected a finite value (loss {loss!r})")
        if "layers" in options:
            options["layers"] = _layers_of(name, options["layers"])
        if options.get("schedule", SCHEDULES[0]) not in SCHEDULES:
            raise unknown("schedule", options["schedule"], SCHEDULES)
    return given


def _layers_of(name: str, layers: Any) -> str | list[str]:
    """The layers of a term: ``"auto"``, or names."""
    if layers == "auto":
        return "auto"
    listed = layers.split(",") if isinstance(layers, str) else layers
    named = isinstance(listed, Sequence) and all(isinstance(each, str) and each.strip() for each in listed)
    if not (named and listed):
        raise InputError(
            f"layers of term {name!r} are {layers!r}; expected 'auto', or names such as [layer1, layer2] or "
            "['student_layer:teacher_layer']"
        )
    return [each.strip() for each in listed]


def check_term_name(name: Any) -> None:
    """Refuse what can be no column of a table, no part of a folder's name, or is another's already.

    Raises:
        InputError: says what can be one.
    """
    fits = isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", name)
    if not fits or name in NOT_TERMS:
        raise InputError(
            f"a term is called {name!r}; expected a letter, then up to 39 letters, digits, _ and -, and none "
            f"of {', '.join(NOT_TERMS)}"
        )


def losses() -> Mapping[str, tuple[str, ...]]:
    """Each loss -> its own options; with those that were registered, for which PyTorch is loaded already."""
    loaded = sys.modules.get("eyeline.losses")
    if loaded is None:
        return losses_in_source()
    signatures = {name: inspect.signature(loss.__init__).parameters for name, loss in loaded.LOSSES.items()}
    return {
        name: tuple(n for n, p in parameters.items() if p.default is not p.empty)
        for name, parameters in signatures.items()
    }


@functools.cache
def losses_in_source() -> Mapping[str, tuple[str, ...]]:
    """Eyeline's own, read from the source of ``eyeline.losses``: its classes that have a ``name``."""
    found: dict[str, tuple[str, ...]] = {}
    for file in sorted((Path(__file__).parent / "losses").glob("*.py")):
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            name = ""
            options: tuple[str, ...] = ()
            for line in statement.body if isinstance(statement, ast.ClassDef) else ():
                match line:
                    case ast.Assign(targets=[ast.Name("name")], value=ast.Constant(value)):
                        name = str(value)
                    case ast.FunctionDef(name="__init__", args=arguments):
                        options = tuple(a.arg for a in (*arguments.args[1:], *arguments.kwonlyargs))
            if name:
                found[name] = options
    return found


def has_own_losses(method: str | Mapping[str, Any]) -> bool:
    """Whether all losses of a method are eyeline's own, which a process that registers none knows too."""
    terms = named_terms(method).items()
    return {options.get("loss", name) for name, options in terms} <= losses_in_source().keys()


_OF_A_LOSS = {
    **dict.fromkeys(("T", "t", "tau", "temp", "temperature"), "{kd: {temperature: 4}}"),
    **{"alpha": "{kd: {weight: 0.9}}", "beta": "{at: {weight: 1000}}", "p": "{at: {exponent: 2}}"},
}


def meant(given: str, parameters: Iterable[str]) -> str | None:
    """The parameter of a verb that was probably meant; of an option of a loss, how it is written."""
    parameters = list(parameters)
    if given in _OF_A_LOSS and "method" in parameters:
        return f"method '{_OF_A_LOSS[given]}'"
    if given in _OF_A_LOSS and "methods" in parameters:
        return f"methods '{{NAME: {_OF_A_LOSS[given]}}}'"
    return nearest(given, parameters)


def check_data(name: str) -> None:
    """Refuse a data set that is neither known nor a folder that exists.

    Raises:
        InputError: with the nearest name.
    """
    folder = os.path.expanduser(name.removeprefix("folder:"))
    if name.startswith("folder:"):
        if not os.path.isdir(folder):
            raise InputError(
                f"{folder} is not a folder" if os.path.exists(folder) else f"there is no folder {folder}"
            )
    elif name not in DATA:
        if os.path.isdir(folder):
            raise InputError(f"unknown data set {name!r}; did you mean 'folder:{name}'?")
        raise unknown("data set", name, DATA)


def check_images(name: str) -> None:
    """Refuse what is neither images that exist nor a data set.

    Raises:
        InputError: with the nearest name.
    """
    if os.path.exists(os.path.expanduser(name)):
        return
    if name not in DATA and not name.startswith("folder:"):
        raise unknown("image file, folder of images or data set", name, DATA)
    check_data(name)


def check_network(name: str) -> None:
    """Refuse a name that is no network of ours, timm's or torchvision's, and no folder.

    The names of timm and torchvision are looked for in their sources, unless they are imported.

    Raises:
        InputError: with the nearest name.
    """
    if name in NETWORKS or os.path.exists(os.path.expanduser(name)):
        return
    if size := wide(name):
        check_wide(*size)
    elif name.startswith("torchvision/"):
        name, networks = name.removeprefix("torchvision/"), networks_in_source("torchvision")
        if name not in networks:
            raise unknown("torchvision model", name, networks)
    elif timm := sys.modules.get("timm"):
        if not timm.is_model(name):
            raise unknown_network(name, timm.list_models())
    elif not re.search(rf"\b{re.escape(name.partition('.')[0])}\b", _source("timm")):  # nor an old name
        raise unknown_network(name, networks_in_source("timm"))


def networks_in_source(package: str) -> list[str]:
    """Names of the networks of timm or torchvision, which is not imported for it."""
    return re.findall(r"^@register_model(?:\(.*\))?\s*\n(?:@.*\n)*def (\w+)", _source(package), re.MULTILINE)


def unknown_network(name: str, others: Iterable[str]) -> InputError:
    """The error for a name that is none of our networks and none of ``others``."""
    if name.startswith(("folder:", ".", "/", "~")) or "/" in name:
        return InputError(
            f"model {name!r} is neither a run folder that exists nor a name; expected a folder with "
            "model.json, a timm name, or torchvision/NAME"
        )
    error = unknown("model", name, {*NETWORKS, *others})
    # the list of all of timm's names helps nobody
    return InputError(f"{str(error).partition(' (')[0]} (see timm.list_models(), or torchvision/NAME)")


def wide(name: str) -> tuple[int, int] | None:
    """(depth, width) of a name such as ``wrn_40_2``, of any size."""
    match = re.fullmatch(r"wrn_(\d+)_(\d+)", name)
    return (int(match[1]), int(match[2])) if match else None


def check_wide(depth: int, width: int) -> None:
    """Refuse a wide residual network that does not exist.

    Raises:
        InputError: the depth is not 6n + 4, or the width is below 1.
    """
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise InputError(
            f"wrn_{depth}_{width} does not exist; expected a depth of 6n + 4 (10, 16, 22, 28, 40) "
            "and a width of at least 1"
        )


@functools.cache
def _source(package: str) -> str:
    spec = importlib.util.find_spec(package)
    files = sorted((Path(spec.origin).parent / "models").glob("*.py")) if spec and spec.origin else []
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
